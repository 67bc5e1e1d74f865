//! Printing: colours and tables where people look, JSON and YAML for machines.

use std::io::IsTerminal;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::cli::Format;

fn colour(code: &str, text: &str) -> String {
    let wanted = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if wanted {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

pub fn red(text: &str) -> String {
    colour("31;1", text)
}

pub fn green(text: &str) -> String {
    colour("32", text)
}

pub fn yellow(text: &str) -> String {
    colour("33", text)
}

/// A table without lines, as kubectl's.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.to_string()
}

/// Prints a value in the format that was asked for.
pub fn print<T: Serialize>(
    format: Format,
    value: &T,
    as_table: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Table => println!("{}", as_table()),
        Format::Json => println!("{}", serde_json::to_string_pretty(value)?),
        Format::Yaml => print!("{}", serde_saphyr::to_string(value)?),
    }
    Ok(())
}
