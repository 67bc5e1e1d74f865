//! A chained CNI plugin (CNI specification 1.1): sets a pod's redirect rules
//! from its node, before any container of the pod is started.
//!
//! It asks the node's agent which pods are the mesh's. Without an answer the
//! pod is not started: it would run unredirected.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{CaptureRules, apply, enter_network_namespace, verify};

/// Name of the plugin's program, and its type in configurations.
pub const PLUGIN: &str = "weft-cni";
/// Versions of the specification that it speaks.
const VERSIONS: [&str; 5] = ["0.3.1", "0.4.0", "1.0.0", "1.0.1", "1.1.0"];
/// Largest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 1024 * 1024;
const ANSWER: Duration = Duration::from_secs(10);

/// The plugin's entry in the node's configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    cni_version: String,
    /// The agent's Unix socket.
    socket: PathBuf,
    /// Namespaces that are never the mesh's: their pods start without the agent.
    exclude_namespaces: Vec<String>,
    prev_result: Option<Value>,
}

/// What the agent is asked: about one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Question {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The pod is not captured from here.
    Leave,
    /// These are its rules.
    Capture(CaptureRules),
    /// It cannot be told.
    Failed(String),
}

/// An error as the specification wants it: a code and what went wrong.
struct Failure {
    code: u32,
    text: String,
}

/// Codes 100 and above are the plugin's own; 11 says that it may be tried
/// again, 50 that the plugin is not available.
fn failure(code: u32, text: impl Into<String>) -> Failure {
    Failure {
        code,
        text: text.into(),
    }
}

/// Runs the command of the environment. Returns what to print and the exit code.
pub fn run(environment: impl Fn(&str) -> Option<String>, input: impl Read) -> (String, u8) {
    let command = environment("CNI_COMMAND").unwrap_or_default();
    if command == "VERSION" {
        let version = json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS});
        return (version.to_string(), 0);
    }
    let mut text = String::new();
    let read = input.take(MAX_CONFIG).read_to_string(&mut text);
    let configuration = read
        .map_err(|e| e.to_string())
        .and_then(|_| serde_json::from_str::<Configuration>(&text).map_err(|e| e.to_string()));
    let version = configuration
        .as_ref()
        .map_or("1.1.0", |c| c.cni_version.as_str())
        .to_owned();
    let done = configuration
        .map_err(|e| failure(6, format!("the configuration cannot be read: {e}")))
        .and_then(|configuration| match command.as_str() {
            "ADD" => add(&environment, &configuration),
            "CHECK" => check(&environment, &configuration),
            // The rules go with the pod's network namespace.
            "DEL" | "GC" => Ok(String::new()),
            "STATUS" => status(&configuration),
            other => Err(failure(4, format!("CNI_COMMAND {other:?} is not known"))),
        });
    match done {
        Ok(text) => (text, 0),
        Err(Failure { code, text }) => {
            let error =
                json!({"cniVersion": version, "code": code, "msg": format!("weft: {text}")});
            (error.to_string(), 1)
        }
    }
}

/// The rules of the pod that the environment names; `None`: it has none.
fn wanted(
    environment: &impl Fn(&str) -> Option<String>,
    configuration: &Configuration,
) -> Result<Option<CaptureRules>, Failure> {
    let args = environment("CNI_ARGS").unwrap_or_default();
    let arg = |name: &str| {
        let mut pairs = args.split(';').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    };
    let (Some(namespace), Some(name)) = (arg("K8S_POD_NAMESPACE"), arg("K8S_POD_NAME")) else {
        // Not a pod of Kubernetes.
        return Ok(None);
    };
    if configuration.exclude_namespaces.contains(&namespace) {
        return Ok(None);
    }
    let uid = arg("K8S_POD_UID").unwrap_or_default();
    let question = Question {
        namespace,
        name,
        uid,
    };
    match ask(&configuration.socket, &question) {
        Ok(Answer::Leave) => Ok(None),
        Ok(Answer::Capture(rules)) => Ok(Some(rules)),
        Ok(Answer::Failed(why)) => Err(failure(11, why)),
        Err(error) => Err(failure(
            11,
            format!(
                "the node's agent ({}) does not answer: {error}; see the DaemonSet weft-cni",
                configuration.socket.display()
            ),
        )),
    }
}

fn enter(environment: &impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
    let path = environment("CNI_NETNS").unwrap_or_default();
    enter_network_namespace(Path::new(&path)).map_err(|e| failure(100, e.to_string()))
}

fn add(
    environment: &impl Fn(&str) -> Option<String>,
    configuration: &Configuration,
) -> Result<String, Failure> {
    let result = configuration.prev_result.clone();
    let result = result.ok_or_else(|| {
        failure(
            7,
            "this plugin must come after the one that makes the network",
        )
    })?;
    if let Some(rules) = wanted(environment, configuration)? {
        enter(environment)?;
        apply(&rules).map_err(|e| failure(101, e.to_string()))?;
    }
    Ok(result.to_string())
}

fn check(
    environment: &impl Fn(&str) -> Option<String>,
    configuration: &Configuration,
) -> Result<String, Failure> {
    if let Some(rules) = wanted(environment, configuration)? {
        enter(environment)?;
        verify(&rules).map_err(|e| failure(101, e.to_string()))?;
    }
    Ok(String::new())
}

fn status(configuration: &Configuration) -> Result<String, Failure> {
    let connected = UnixStream::connect(&configuration.socket);
    connected.map(|_| String::new()).map_err(|e| {
        failure(
            50,
            format!(
                "the node's agent ({}) is away: {e}",
                configuration.socket.display()
            ),
        )
    })
}

fn ask(socket: &Path, question: &Question) -> std::io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.write_all(format!("{}\n", serde_json::to_string(question)?).as_bytes())?;
    let mut text = String::new();
    stream.take(MAX_CONFIG).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

/// Puts the plugin at the end of the chain of a node's configuration, or takes
/// it out. `None`: the text is as wanted already.
///
/// A configuration of one plugin becomes a list of two.
pub fn chain(text: &str, entry: Option<&Value>) -> Result<Option<Value>, serde_json::Error> {
    let before: Value = serde_json::from_str(text)?;
    let mut after = before.clone();
    if after.get("plugins").is_none() {
        let pick = |field: &str| before.get(field).cloned().unwrap_or_default();
        let mut only = before.clone();
        if let Some(only) = only.as_object_mut() {
            only.remove("cniVersion");
            only.remove("name");
        }
        after = json!({"cniVersion": pick("cniVersion"), "name": pick("name"), "plugins": [only]});
    }
    if let Some(plugins) = after.get_mut("plugins").and_then(Value::as_array_mut) {
        plugins.retain(|p| p.get("type").and_then(Value::as_str) != Some(PLUGIN));
        plugins.extend(entry.cloned());
    }
    Ok((after != before && (entry.is_some() || before.get("plugins").is_some())).then_some(after))
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    fn environment(command: &'static str) -> impl Fn(&str) -> Option<String> {
        move |name| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_ARGS" => {
                Some("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web".to_owned())
            }
            "CNI_NETNS" => Some("/nonexistent".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn a_pod_does_not_start_without_the_agent() {
        let input = r#"{"cniVersion": "1.1.0", "socket": "/nonexistent", "prevResult": {}}"#;
        let (out, code) = run(environment("ADD"), input.as_bytes());
        assert_eq!(code, 1);
        assert!(
            out.contains(r#""code":11"#) && out.contains("does not answer"),
            "{out}"
        );
        let (out, code) = run(environment("STATUS"), input.as_bytes());
        assert!(code == 1 && out.contains(r#""code":50"#), "{out}");
    }

    #[test]
    fn an_excluded_namespace_needs_no_agent_and_keeps_the_result() {
        let input = r#"{"cniVersion": "1.1.0", "socket": "/nonexistent", "excludeNamespaces": ["shop"], "prevResult": {"ips": []}}"#;
        assert_eq!(
            run(environment("ADD"), input.as_bytes()),
            (r#"{"ips":[]}"#.to_owned(), 0)
        );
        assert_eq!(run(environment("DEL"), input.as_bytes()).1, 0);
    }

    #[test]
    fn the_chain_gets_the_plugin_once_and_loses_it_again() {
        let entry = json!({"type": PLUGIN, "socket": "/s"});
        let list = r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge"}]}"#;
        let with = chain(list, Some(&entry)).expect("JSON").expect("a change");
        assert_eq!(with["plugins"][1]["type"], PLUGIN);
        assert_eq!(chain(&with.to_string(), Some(&entry)).expect("JSON"), None);
        let without = chain(&with.to_string(), None)
            .expect("JSON")
            .expect("a change");
        assert_eq!(without, serde_json::from_str::<Value>(list).expect("JSON"));
        let single = r#"{"cniVersion": "0.4.0", "name": "n", "type": "bridge"}"#;
        let with = chain(single, Some(&entry))
            .expect("JSON")
            .expect("a change");
        assert_eq!(with["plugins"][0], json!({"type": "bridge"}));
        assert_eq!(with["name"], "n");
    }
}
