//! `meshctl inject` and `uninject`: what the webhook does, done to manifests.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::Value;
use weft_injector::{InjectorSettings, Outcome};

use crate::cli::InjectArgs;
use crate::cluster::chart::Values;

pub fn run(args: &InjectArgs, into: bool) -> anyhow::Result<ExitCode> {
    let settings = settings(&args.values, &args.set)?;
    for path in &args.filename {
        let text = read(path)?;
        let place = path.display();
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).with_context(|| place.to_string())?;
        for mut document in documents.into_iter().filter(|d| !d.is_null()) {
            // `kubectl get -o yaml` gives a List.
            let is_list = document.get("kind").and_then(Value::as_str) == Some("List");
            let items = document
                .get_mut("items")
                .and_then(Value::as_array_mut)
                .filter(|_| is_list);
            match items {
                Some(items) => items
                    .iter_mut()
                    .try_for_each(|item| change(item, &settings, into))?,
                None => change(&mut document, &settings, into)?,
            }
            println!("---\n{}", serde_saphyr::to_string(&document)?.trim_end());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn change(object: &mut Value, settings: &InjectorSettings, into: bool) -> anyhow::Result<()> {
    let name = |o: &Value| {
        let text = |p: &str| {
            o.pointer(p)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        format!("{} {}", text("/kind"), text("/metadata/name"))
    };
    if !into {
        let had = weft_injector::uninject(object);
        eprintln!(
            "{}: {}",
            name(object),
            if had {
                "its sidecar was taken away"
            } else {
                "has no sidecar"
            }
        );
        return Ok(());
    }
    match weft_injector::inject(object, settings) {
        Ok(Outcome::Injected) => eprintln!("{}: has a sidecar", name(object)),
        Ok(Outcome::Skipped(why)) => eprintln!("{}: left as it is, for {why}", name(object)),
        Err(error) => bail!("{}: {error}", name(object)),
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// What the chart tells the injector, if this is the injector.
pub fn injector_settings(object: &Value) -> Option<&str> {
    let env = object
        .pointer("/spec/template/spec/containers/0/env")?
        .as_array()?;
    let said = env
        .iter()
        .find(|e| e.get("name").and_then(Value::as_str) == Some("WEFT_SETTINGS"))?;
    said.get("value")?.as_str()
}

/// What the chart would tell the injector.
pub fn settings(values: &[std::path::PathBuf], set: &[String]) -> anyhow::Result<InjectorSettings> {
    let objects = Values::new(values, set)?.render()?;
    let text = objects.iter().find_map(injector_settings);
    Ok(serde_json::from_str(
        text.context("the chart has no settings of the injector")?,
    )?)
}
