//! Objects of the Gateway API's and our own kinds as an API server holds them.

use serde_json::Value;

use crate::load::KINDS;
use crate::{Object, Problem, parse_object};

/// Kubernetes' own kinds are read elsewhere, and more leniently.
fn is_custom(kind: &str) -> bool {
    let groups = ["gateway.networking.k8s.io/", "weft.dev/"];
    let custom = |version: &str| groups.iter().any(|group| version.starts_with(group));
    KINDS
        .iter()
        .any(|(k, version)| *k == kind && custom(version))
}

/// An object of one of these kinds, as an API server holds it: with what that
/// adds to its metadata, and, in a route, with parents that are other
/// implementations' to run. `None`: nothing in it concerns the mesh.
pub fn parse_live(kind: &str, mut document: Value) -> Result<Option<Object>, Vec<Problem>> {
    if !is_custom(kind) {
        return Ok(None);
    }
    if let Some(metadata) = document
        .pointer_mut("/metadata")
        .and_then(Value::as_object_mut)
    {
        metadata.retain(|field, _| {
            ["name", "namespace", "creationTimestamp"].contains(&field.as_str())
        });
    }
    if kind.ends_with("Route") && !keep_services(&mut document) {
        return Ok(None);
    }
    parse_object(document).map(Some)
}

/// Leaves the parents that are Services; `false`: there is none.
fn keep_services(route: &mut Value) -> bool {
    let Some(parents) = route
        .pointer_mut("/spec/parentRefs")
        .and_then(Value::as_array_mut)
    else {
        return false;
    };
    parents.retain(is_service_parent);
    !parents.is_empty()
}

/// Whether a parentRef of a route names a Service (GEP-1294).
pub fn is_service_parent(parent: &Value) -> bool {
    let text = |field: &str| parent.get(field).and_then(Value::as_str);
    text("kind") == Some("Service") && matches!(text("group"), Some("" | "core"))
}
