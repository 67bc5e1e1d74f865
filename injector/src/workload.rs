//! Injection into whatever holds a pod: a Pod, or the template of a workload.

use serde_json::{Map, Value, json};
use weft_api::{LABEL_INJECTED, is_dns_label};

use crate::annotations::Annotations;
use crate::sidecar::{
    INIT, PROXY, UID, VOLUMES, init_container, needs_init, proxy_container, volumes,
};
use crate::{InjectError, InjectorSettings, probes};

const ORIGINAL: &str = "weft.dev/original";
/// Lets the cluster autoscaler move pods whose only local volume is the cache.
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";
const CACHE: &str = "weft-cache";
const DEFAULT_GRACE: u64 = 30;

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It has a sidecar now.
    Injected,
    /// It is left as it was; why.
    Skipped(String),
}

/// Where a kind of object holds its pod.
fn template_of(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment"
        | "ReplicaSet"
        | "StatefulSet"
        | "DaemonSet"
        | "Job"
        | "ReplicationController" => Some("/spec/template"),
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn pod_of(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let kind = object
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    object.pointer_mut(template_of(kind)?)?.as_object_mut()
}

/// Gives an object's pod a sidecar, or says why not. An object that cannot
/// have one is refused, and left as it was.
pub fn inject(object: &mut Value, settings: &InjectorSettings) -> Result<Outcome, InjectError> {
    let kind = object
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let Some(pod) = pod_of(object) else {
        return Ok(Outcome::Skipped(format!("a {kind} has no pods")));
    };
    let annotations = Annotations::read(pod.get("metadata").and_then(Value::as_object))?;
    if annotations.inject == Some(false) {
        return Ok(Outcome::Skipped(
            "its annotation weft.dev/inject says so".to_owned(),
        ));
    }
    let mut changed = pod.clone();
    uninject_pod(&mut changed);
    let Some(spec) = changed.get("spec").and_then(Value::as_object) else {
        return Err(InjectError("spec is missing".to_owned()));
    };
    if spec.get("hostNetwork") == Some(&json!(true)) {
        return Ok(Outcome::Skipped(
            "it uses its node's network, whose traffic is not the pod's alone".to_owned(),
        ));
    }
    check(spec)?;
    insert(&mut changed, settings, &annotations)?;
    *pod = changed;
    Ok(Outcome::Injected)
}

/// What would make the sidecar useless.
fn check(spec: &Map<String, Value>) -> Result<(), InjectError> {
    let user = |of: Option<&Value>| {
        of.and_then(|v| v.pointer("/securityContext/runAsUser"))
            .and_then(Value::as_u64)
    };
    let spec_user = user(Some(&Value::Object(spec.clone())));
    for list in ["initContainers", "containers"] {
        for container in spec
            .get(list)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let name = container
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if !is_dns_label(name) {
                return Err(InjectError(format!("spec.{list}: {name:?} is not a name")));
            }
            if user(Some(container)).or(spec_user) == Some(UID) {
                return Err(InjectError(format!(
                    "container {name} runs as user {UID}, which is the sidecar's: its traffic would not be redirected; choose another user"
                )));
            }
        }
    }
    let ports = spec
        .get("containers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let ports = ports.flat_map(|c| {
        c.get("ports")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    });
    for port in ports.filter_map(|p| p.get("containerPort").and_then(Value::as_u64)) {
        if [15001, 15006, 15020, 15053].contains(&port) {
            return Err(InjectError(format!(
                "port {port} is the sidecar's: the application must use another"
            )));
        }
    }
    Ok(())
}

fn insert(
    pod: &mut Map<String, Value>,
    settings: &InjectorSettings,
    annotations: &Annotations,
) -> Result<(), InjectError> {
    let mut originals = Map::new();
    let mut made = Map::new();
    let spec = object_in(pod, "spec");
    let grace = spec
        .get("terminationGracePeriodSeconds")
        .and_then(Value::as_u64)
        .unwrap_or(DEFAULT_GRACE);
    // Half of the grace is the application's, to end in.
    let delay = annotations.termination_delay_seconds.min(grace / 2);
    for list in ["initContainers", "containers"] {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            made.append(&mut probes::redirect(container, &mut originals)?);
            if settings.sleep_hooks && list == "containers" {
                probes::delay_stop(container, delay, &mut originals);
            }
        }
    }
    let init = needs_init(settings).then(|| init_container(settings, annotations));
    let proxy = proxy_container(settings, annotations, &made, grace);
    if settings.native_sidecars {
        // Before the pod's own: their network is the mesh's already.
        let first: Vec<Value> = init.into_iter().chain([proxy]).collect();
        list_in(spec, "initContainers").splice(0..0, first);
    } else {
        // After them: there is no proxy yet while they run.
        list_in(spec, "initContainers").extend(init);
        list_in(spec, "containers").insert(0, proxy);
    }
    list_in(spec, "volumes").extend(volumes());
    let metadata = object_in(pod, "metadata");
    object_in(metadata, "labels").insert(LABEL_INJECTED.to_owned(), json!("true"));
    let notes = object_in(metadata, "annotations");
    if !originals.is_empty() {
        notes.insert(
            ORIGINAL.to_owned(),
            json!(Value::Object(originals).to_string()),
        );
    }
    let others = notes
        .get(SAFE_TO_EVICT)
        .and_then(Value::as_str)
        .filter(|o| !o.is_empty());
    let volumes = others.map_or_else(|| CACHE.to_owned(), |others| format!("{others},{CACHE}"));
    notes.insert(SAFE_TO_EVICT.to_owned(), json!(volumes));
    Ok(())
}

/// Takes an object's sidecar away. `true`: it had one.
pub fn uninject(object: &mut Value) -> bool {
    let Some(pod) = pod_of(object) else {
        return false;
    };
    let before = pod.clone();
    uninject_pod(pod);
    *pod != before
}

fn uninject_pod(pod: &mut Map<String, Value>) {
    let originals = pod
        .get("metadata")
        .and_then(|m| m.get("annotations"))
        .and_then(|a| a.get(ORIGINAL));
    let originals: Map<String, Value> = originals
        .and_then(Value::as_str)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let named = |item: &Value, fine: &dyn Fn(&str) -> bool| {
        item.get("name").and_then(Value::as_str).is_some_and(fine)
    };
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        for list in ["initContainers", "containers"] {
            if let Some(containers) = spec.get_mut(list).and_then(Value::as_array_mut) {
                containers.retain(|c| !named(c, &|name| name == PROXY || name == INIT));
                containers
                    .iter_mut()
                    .for_each(|c| probes::restore(c, &originals));
                remove_empty(spec, list);
            }
        }
        let ours =
            ["token", "trust", CACHE.trim_start_matches(VOLUMES)].map(|v| format!("{VOLUMES}{v}"));
        if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
            volumes.retain(|v| !named(v, &|name| ours.iter().any(|o| o == name)));
            remove_empty(spec, "volumes");
        }
    }
    let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
        labels.remove(LABEL_INJECTED);
        remove_empty(metadata, "labels");
    }
    if let Some(notes) = metadata
        .get_mut("annotations")
        .and_then(Value::as_object_mut)
    {
        notes.remove(ORIGINAL);
        let others = notes
            .get(SAFE_TO_EVICT)
            .and_then(Value::as_str)
            .unwrap_or_default();
        let others: Vec<&str> = others
            .split(',')
            .filter(|v| !v.is_empty() && *v != CACHE)
            .collect();
        let others = others.join(",");
        match others.is_empty() {
            true => notes.remove(SAFE_TO_EVICT),
            false => notes.insert(SAFE_TO_EVICT.to_owned(), json!(others)),
        };
        remove_empty(metadata, "annotations");
    }
    remove_empty(pod, "metadata");
}

fn remove_empty(map: &mut Map<String, Value>, field: &str) {
    let empty = map.get(field).is_some_and(|v| {
        v.as_array().is_some_and(Vec::is_empty) || v.as_object().is_some_and(Map::is_empty)
    });
    if empty {
        map.remove(field);
    }
}

/// The object in a field, made where there is none.
fn object_in<'a>(map: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(field).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("it was made one"),
    }
}

/// The list in a field, made where there is none.
fn list_in<'a>(map: &'a mut Map<String, Value>, field: &str) -> &'a mut Vec<Value> {
    let value = map.entry(field).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("it was made one"),
    }
}
