//! What holds of each object, written into its status (server-side apply).
//! Nothing is written that is there already: a steady cluster sees no writes.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use weft_api::{CONTROLLER_NAME, ObjectKey};
use weft_proto::Condition;

use super::FIELD_MANAGER;
use super::events::{reference, warn};
use super::lease::Turns;
use super::watch::{Written, resource};
use crate::State;

/// What the mesh does of the Gateway API, as its conformance suite names it (GEP-2162).
const FEATURES: [&str; 17] = [
    "GRPCRoute",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
];

/// Writes until the process ends.
pub async fn write(client: Client, state: Arc<State>, leader: watch::Receiver<bool>) {
    let mut turns = Turns::new(state.clone(), leader);
    loop {
        turns.next().await;
        let written = state.written.borrow().clone();
        for (key, written) in written.iter() {
            let Some(status) = wanted(&state, key, written) else {
                continue;
            };
            let complaints = complaints(&written.object.data["status"], &status);
            match patch(&client, key, written, status).await {
                Ok(()) => tell(&client, key, complaints).await,
                Err(error) => {
                    tracing::debug!(%key, %error, "the status cannot be written now");
                }
            }
        }
    }
}

/// The status, if it is another than the object has.
fn wanted(state: &State, key: &ObjectKey, written: &Written) -> Option<Value> {
    let object = &written.object.data;
    let old = object.get("status").cloned().unwrap_or(Value::Null);
    let generation = written.object.metadata.generation.unwrap_or_default();
    let dated = |conditions: &[Condition], before: &Value| dated(conditions, before, generation);
    let new = match key.kind.as_str() {
        "XMesh" => {
            let mine = object
                .pointer("/spec/controllerName")
                .and_then(Value::as_str)
                == Some(CONTROLLER_NAME);
            if !mine {
                return None;
            }
            let features: Vec<Value> = FEATURES.iter().map(|name| json!({"name": name})).collect();
            let conditions = dated(
                &[accepted(None)],
                old.get("conditions").unwrap_or(&Value::Null),
            );
            json!({"conditions": conditions, "supportedFeatures": features})
        }
        "HTTPRoute" | "GRPCRoute" => {
            json!({"parents": route_parents(state, key, written, &old, &dated)})
        }
        "ReferenceGrant" => return None,
        _ => {
            let found = state.index().conditions(key);
            let conditions = match &written.refused {
                Some(why) => vec![accepted(Some(why))],
                None => found?,
            };
            json!({"conditions": dated(&conditions, old.get("conditions").unwrap_or(&Value::Null))})
        }
    };
    (new != old).then_some(new)
}

/// The conditions that do not hold and did before, or for another reason: reason
/// and message.
fn complaints(old: &Value, new: &Value) -> BTreeSet<(String, String)> {
    let failing = |status: &Value| -> BTreeSet<(String, String)> {
        let own = status["conditions"].as_array().into_iter().flatten();
        let parents = status["parents"].as_array().into_iter().flatten();
        let mine = parents.filter(|p| p["controllerName"] == CONTROLLER_NAME);
        let theirs = mine.filter_map(|p| p["conditions"].as_array()).flatten();
        let text = |condition: &Value, field: &str| {
            let text = condition[field].as_str();
            text.unwrap_or_default().to_owned()
        };
        own.chain(theirs)
            .filter(|c| c["status"] == "False")
            .map(|c| (text(c, "reason"), text(c, "message")))
            .collect()
    };
    failing(new).difference(&failing(old)).cloned().collect()
}

/// An Event for each: the first place where many look.
async fn tell(client: &Client, key: &ObjectKey, complaints: BTreeSet<(String, String)>) {
    let Some(resource) = resource(&key.kind) else {
        return;
    };
    for (reason, message) in complaints {
        let about = reference(
            &resource.api_version,
            &resource.kind,
            &key.namespace,
            &key.name,
        );
        warn(client, about, &reason, &message).await;
    }
}

/// The condition of an object that is read, or why it is not.
pub fn accepted(refused: Option<&str>) -> Condition {
    Condition {
        r#type: "Accepted".to_owned(),
        status: refused.is_none(),
        reason: if refused.is_none() {
            "Accepted"
        } else {
            "UnsupportedValue"
        }
        .to_owned(),
        message: match refused {
            None => String::new(),
            Some(why) => format!("{why}; what was said before stays in force"),
        },
    }
}

type Dated<'a> = dyn Fn(&[Condition], &Value) -> Value + 'a;

/// Other controllers' entries as they are, then one for each Service.
fn route_parents(
    state: &State,
    key: &ObjectKey,
    written: &Written,
    old: &Value,
    dated: &Dated<'_>,
) -> Vec<Value> {
    let list = |value: &Value, pointer: &str| {
        value
            .pointer(pointer)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let entries = list(old, "/parents");
    let mine = |entry: &Value| {
        entry.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER_NAME)
    };
    let mut parents: Vec<Value> = entries.iter().filter(|e| !mine(e)).cloned().collect();
    let services = list(&written.object.data, "/spec/parentRefs")
        .into_iter()
        .filter(weft_api::is_service_parent);
    let found = state.index().parent_conditions(key);
    for (index, parent) in services.enumerate() {
        let conditions = match &written.refused {
            Some(why) => vec![accepted(Some(why))],
            None => found.get(index).cloned().unwrap_or_default(),
        };
        if conditions.is_empty() {
            continue;
        }
        let before = entries
            .iter()
            .find(|e| mine(e) && e.get("parentRef") == Some(&parent));
        let before = before
            .and_then(|e| e.get("conditions"))
            .cloned()
            .unwrap_or(Value::Null);
        let conditions = dated(&conditions, &before);
        parents.push(json!({"parentRef": parent, "controllerName": CONTROLLER_NAME, "conditions": conditions}));
    }
    parents
}

/// As Kubernetes writes conditions; the time is that of the last change.
fn dated(conditions: &[Condition], before: &Value, generation: i64) -> Value {
    let before = before.as_array().cloned().unwrap_or_default();
    let one = |c: &Condition| {
        let status = if c.status { "True" } else { "False" };
        let old = before
            .iter()
            .find(|o| o.get("type").and_then(Value::as_str) == Some(&c.r#type));
        let same = old.filter(|o| o.get("status").and_then(Value::as_str) == Some(status));
        let since = same.and_then(|o| o.get("lastTransitionTime")).cloned();
        let now = || json!(Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        json!({
            "lastTransitionTime": since.unwrap_or_else(now),
            "message": c.message,
            "observedGeneration": generation,
            "reason": c.reason,
            "status": status,
            "type": c.r#type,
        })
    };
    conditions.iter().map(one).collect()
}

async fn patch(
    client: &Client,
    key: &ObjectKey,
    written: &Written,
    status: Value,
) -> kube::Result<()> {
    let Some(resource) = resource(&key.kind) else {
        return Ok(());
    };
    let api: Api<DynamicObject> = match key.namespace.as_str() {
        "" => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &resource),
    };
    let body = json!({
        "apiVersion": resource.api_version, "kind": resource.kind,
        // One that changed meanwhile is looked at again.
        "metadata": {"name": key.name, "resourceVersion": written.object.metadata.resource_version},
        "status": status,
    });
    let force = PatchParams::apply(FIELD_MANAGER).force();
    api.patch_status(&key.name, &force, &Patch::Apply(&body))
        .await
        .map(|_| ())
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_to_hold_is_told_once() {
        let status = |condition: Condition| json!({"parents": [{"controllerName": CONTROLLER_NAME, "conditions": dated(&[condition], &Value::Null, 1)}]});
        let (good, bad) = (status(accepted(None)), status(accepted(Some("why"))));
        assert_eq!(complaints(&Value::Null, &bad).len(), 1);
        assert_eq!(complaints(&good, &bad).len(), 1);
        assert!(complaints(&bad, &bad).is_empty());
        assert!(complaints(&bad, &good).is_empty());
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let accepted = accepted(None);
        let old = json!([{"type": "Accepted", "status": "True", "reason": "Old", "lastTransitionTime": "2020-01-01T00:00:00Z"}]);
        let same = dated(std::slice::from_ref(&accepted), &old, 3);
        assert_eq!(same[0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_eq!(same[0]["observedGeneration"], 3);
        let other = dated(&[super::accepted(Some("why"))], &old, 3);
        assert_ne!(other[0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
    }
}
