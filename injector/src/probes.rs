//! Probes and hooks that kubelet makes over the network.
//!
//! They come without a certificate, and a TCP probe that meets the proxy would
//! always succeed. So each is led to the sidecar's own port, and the sidecar
//! makes exactly the one that the pod's author wrote, from within the pod.

use serde_json::{Map, Value, json};

use crate::InjectError;

/// The sidecar's port for health and probes.
pub const ADMIN_PORT: u16 = 15020;
/// Where in a container kubelet makes calls from.
const PLACES: [(&str, &str); 5] = [
    ("/livenessProbe", "liveness"),
    ("/readinessProbe", "readiness"),
    ("/startupProbe", "startup"),
    ("/lifecycle/postStart", "postStart"),
    ("/lifecycle/preStop", "preStop"),
];
const HANDLERS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// Leads a container's probes to the sidecar. Returns those that the sidecar
/// is to make, by the path under which kubelet asks for them; `originals`
/// takes what was there, by its place.
pub fn redirect(
    container: &mut Value,
    originals: &mut Map<String, Value>,
) -> Result<Map<String, Value>, InjectError> {
    let mut made = Map::new();
    let name = container
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let ports = container.get("ports").cloned().unwrap_or_default();
    for (place, label) in PLACES {
        let Some(probe) = container.pointer_mut(place).and_then(Value::as_object_mut) else {
            continue;
        };
        let Some(kind) = HANDLERS.into_iter().find(|h| probe.contains_key(*h)) else {
            continue;
        };
        let own_host = probe
            .get(kind)
            .and_then(|h| h.get("host"))
            .and_then(Value::as_str);
        if own_host.is_some_and(|h| !h.is_empty()) {
            // Not this pod: the call is another one's to answer.
            continue;
        }
        let at = format!("{name}{place}");
        let mut handler = probe.get(kind).cloned().unwrap_or_default();
        let port = resolve_port(handler.get("port"), &ports).ok_or_else(|| {
            InjectError(format!(
                "container {at}: its port is not one of the container's"
            ))
        })?;
        if let Some(handler) = handler.as_object_mut() {
            handler.insert("port".to_owned(), json!(port));
        }
        let mut wanted = json!({kind: handler});
        if let (Some(timeout), Some(wanted)) = (probe.get("timeoutSeconds"), wanted.as_object_mut())
        {
            wanted.insert("timeoutSeconds".to_owned(), timeout.clone());
        }
        originals.insert(at, Value::Object(probe.clone()));
        probe.remove(kind);
        probe.insert(
            "httpGet".to_owned(),
            json!({"path": format!("/probe/{name}/{label}"), "port": ADMIN_PORT}),
        );
        made.insert(format!("{name}/{label}"), wanted);
    }
    Ok(made)
}

fn resolve_port(port: Option<&Value>, ports: &Value) -> Option<u64> {
    match port? {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => match text.parse() {
            Ok(number) => Some(number),
            Err(_) => {
                let mut named = ports.as_array()?.iter();
                let port = named.find(|p| p.get("name").and_then(Value::as_str) == Some(text))?;
                port.get("containerPort")?.as_u64()
            }
        },
        _ => None,
    }
}

/// Puts back what `redirect` and `delay_stop` found.
pub fn restore(container: &mut Value, originals: &Map<String, Value>) {
    let name = container
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    for (place, _) in PLACES {
        let Some(original) = originals.get(&format!("{name}{place}")) else {
            continue;
        };
        let Some((parent, field)) = place.rsplit_once('/') else {
            continue;
        };
        let parent = if parent.is_empty() {
            Some(&mut *container)
        } else {
            container.pointer_mut(parent)
        };
        if let Some(parent) = parent.and_then(Value::as_object_mut) {
            match original {
                Value::Null => parent.remove(field),
                original => parent.insert(field.to_owned(), original.clone()),
            };
        }
    }
    let empty = container
        .get("lifecycle")
        .and_then(Value::as_object)
        .is_some_and(Map::is_empty);
    if let (true, Some(container)) = (empty, container.as_object_mut()) {
        container.remove("lifecycle");
    }
}

/// Lets a container without a hook of its own serve for a while after its pod
/// is to end: until nobody is led to it any more.
pub fn delay_stop(container: &mut Value, seconds: u64, originals: &mut Map<String, Value>) {
    let name = container
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if seconds == 0 || container.pointer("/lifecycle/preStop").is_some() {
        return;
    }
    if let Some(container) = container.as_object_mut() {
        let lifecycle = container.entry("lifecycle").or_insert_with(|| json!({}));
        if let Some(lifecycle) = lifecycle.as_object_mut() {
            lifecycle.insert("preStop".to_owned(), json!({"sleep": {"seconds": seconds}}));
            originals.insert(format!("{name}/lifecycle/preStop"), Value::Null);
        }
    }
}
