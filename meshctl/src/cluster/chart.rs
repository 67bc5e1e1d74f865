//! The Helm chart of `deploy/chart`, rendered without Helm.
//!
//! Of Helm's template language the chart uses, and this understands, values
//! (`{{ .Values.a.b }}`, `| quote`, `| toJson`) and `if` on a value, on lines of
//! their own. A test compares the result with Helm's.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Map, Value};

/// The chart's templates, in the order in which they are applied.
const TEMPLATES: [&str; 5] = [
    include_str!("../../../deploy/chart/templates/cni.yaml"),
    include_str!("../../../deploy/chart/templates/control-plane-rbac.yaml"),
    include_str!("../../../deploy/chart/templates/control-plane.yaml"),
    include_str!("../../../deploy/chart/templates/injector.yaml"),
    include_str!("../../../deploy/chart/templates/webhook.yaml"),
];
const CRDS: [&str; 2] = [
    include_str!("../../../deploy/chart/crds/authorizationpolicies.yaml"),
    include_str!("../../../deploy/chart/crds/authenticationpolicies.yaml"),
];
const VALUES: &str = include_str!("../../../deploy/chart/values.yaml");

/// What an installation chose.
pub struct Values(Value);

impl Values {
    /// The chart's own, then those of files, then those of `NAME=VALUE`.
    pub fn new(files: &[impl AsRef<Path>], set: &[String]) -> anyhow::Result<Self> {
        let mut values: Value = serde_saphyr::from_str(VALUES)?;
        for file in files {
            let path = file.as_ref();
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let more: Value =
                serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
            merge(&mut values, &more, "")?;
        }
        for pair in set {
            let (name, value) = pair
                .split_once('=')
                .with_context(|| format!("--set {pair}: write NAME=VALUE"))?;
            let scalar: Value =
                serde_saphyr::from_str(value).unwrap_or_else(|_| Value::from(value));
            let more = nested(name, scalar);
            merge(&mut values, &more, "")?;
        }
        Ok(Self(values))
    }

    /// A value by its name.
    pub fn text(&self, name: &str) -> anyhow::Result<String> {
        let value = lookup(&self.0, name)?;
        Ok(plain(value))
    }

    /// Sets a value.
    pub fn set(&mut self, name: &str, value: Value) -> anyhow::Result<()> {
        let more = nested(name, value);
        merge(&mut self.0, &more, "")
    }

    /// All objects of the chart but its CustomResourceDefinitions.
    pub fn render(&self) -> anyhow::Result<Vec<Value>> {
        let mut objects = Vec::new();
        for template in TEMPLATES {
            objects.extend(documents(&render(template, &self.0)?)?);
        }
        Ok(objects)
    }
}

/// The kinds that the mesh defines.
pub fn crds() -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for text in CRDS {
        objects.extend(documents(text)?);
    }
    Ok(objects)
}

/// A value at the place that its name says: `a.b` is `{a: {b: ...}}`.
fn nested(name: &str, value: Value) -> Value {
    name.rsplit('.').fold(value, |inner, key| {
        Value::Object(Map::from_iter([(key.to_owned(), inner)]))
    })
}

fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(all.into_iter().filter(|d| !d.is_null()).collect())
}

/// A value that the chart does not know is a mistake, not a wish.
fn merge(into: &mut Value, from: &Value, at: &str) -> anyhow::Result<()> {
    let (Some(map), Some(more)) = (into.as_object_mut(), from.as_object()) else {
        *into = from.clone();
        return Ok(());
    };
    // Resources are Kubernetes' own, not the chart's.
    let free = at.ends_with("resources");
    for (key, value) in more {
        let at = if at.is_empty() {
            key.clone()
        } else {
            format!("{at}.{key}")
        };
        match map.get_mut(key) {
            Some(old) => merge(old, value, &at)?,
            None if free || at.contains(".resources.") => {
                map.insert(key.clone(), value.clone());
            }
            None => {
                let known: Vec<&str> = map.keys().map(String::as_str).collect();
                bail!(
                    "the chart has no value {at}; here it has {}",
                    known.join(", ")
                );
            }
        }
    }
    Ok(())
}

fn lookup<'a>(values: &'a Value, name: &str) -> anyhow::Result<&'a Value> {
    let pointer = format!("/{}", name.replace('.', "/"));
    values
        .pointer(&pointer)
        .with_context(|| format!("the chart has no value {name}"))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => sorted(other).to_string(),
    }
}

/// As Helm writes JSON: keys in their order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(pairs.into_iter().collect())
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::String(text) => !text.is_empty(),
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

fn render(template: &str, values: &Value) -> anyhow::Result<String> {
    let mut out = String::new();
    let mut conditions: Vec<bool> = Vec::new();
    for line in template.lines() {
        let directive = line
            .trim()
            .strip_prefix("{{-")
            .and_then(|l| l.strip_suffix("}}"))
            .map(str::trim);
        match directive {
            Some("end") => {
                conditions.pop().context("an end without an if")?;
            }
            Some(condition) => {
                let name = condition
                    .strip_prefix("if .Values.")
                    .with_context(|| format!("not understood: {line}"))?;
                conditions.push(is_true(lookup(values, name)?));
            }
            None if conditions.iter().all(|c| *c) => {
                out.push_str(&substitute(line, values)?);
                out.push('\n');
            }
            None => {}
        }
    }
    if !conditions.is_empty() {
        bail!("an if without an end");
    }
    Ok(out)
}

fn substitute(line: &str, values: &Value) -> anyhow::Result<String> {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, after) = after
            .split_once("}}")
            .with_context(|| format!("not understood: {line}"))?;
        let mut parts = inside.split('|').map(str::trim);
        let name = parts.next().and_then(|n| n.strip_prefix(".Values."));
        let value = lookup(
            values,
            name.with_context(|| format!("not understood: {line}"))?,
        )?;
        let text = match parts.next() {
            None => plain(value),
            Some("quote") => Value::from(plain(value)).to_string(),
            Some("toJson") => sorted(value).to_string(),
            Some(other) => bail!("not understood: {other}"),
        };
        out.push_str(before);
        out.push_str(&text);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    fn kinds(values: &Values) -> Vec<String> {
        let name = |o: &Value| {
            format!(
                "{}/{}",
                o["kind"].as_str().unwrap_or("?"),
                o["metadata"]["name"].as_str().unwrap_or("?")
            )
        };
        values.render().expect("a chart").iter().map(name).collect()
    }

    #[test]
    fn the_chart_renders_and_what_is_chosen_is_in_it() {
        let set = [
            "controlPlane.replicas=1",
            "controlPlane.otlpEndpoint=http://collector:4317",
            "proxy.resources.limits.cpu=1",
        ];
        let values = Values::new(&[] as &[&str], &set.map(str::to_owned)).expect("values");
        assert!(kinds(&values).contains(&"Deployment/weft-control-plane".to_owned()));
        let text = serde_json::to_string(&values.render().expect("a chart")).expect("JSON");
        assert!(text.contains("--otlp-endpoint=http://collector:4317"));
        assert!(!text.contains("--evict-unmeshed"));
        assert!(text.contains(r#""replicas":1"#));
    }

    #[test]
    fn a_value_that_the_chart_does_not_have_is_refused() {
        let wrong = Values::new(&[] as &[&str], &["controlPlane.replica=1".to_owned()]);
        let text = wrong.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(
            text.contains("no value controlPlane.replica") && text.contains("replicas"),
            "{text}"
        );
    }

    #[test]
    fn the_injector_understands_its_settings() {
        let objects = Values::new(&[] as &[&str], &[])
            .expect("values")
            .render()
            .expect("a chart");
        let settings = objects
            .iter()
            .find_map(crate::inject::injector_settings)
            .expect("settings");
        serde_json::from_str::<weft_injector::InjectorSettings>(settings)
            .expect("the injector's settings");
    }
}
