//! `weft-cni`: the CNI plugin. Container runtimes call it; see `plugin.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let (text, code) =
        weft_cni_init::plugin::run(|name| std::env::var(name).ok(), std::io::stdin());
    if !text.is_empty() {
        println!("{text}");
    }
    ExitCode::from(code)
}
