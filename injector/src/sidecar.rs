//! What is added to a pod.

use serde_json::{Map, Value, json};

use crate::annotations::Annotations;
use crate::probes::ADMIN_PORT;
use crate::{Capture, InjectorSettings};

/// Name of the sidecar's container.
pub const PROXY: &str = "weft-proxy";
/// Name of the init container that sets the redirect rules.
pub const INIT: &str = "weft-init";
/// User of the sidecar, whose own calls are not redirected.
pub const UID: u64 = 1337;
/// Names of added volumes start so.
pub const VOLUMES: &str = "weft-";
/// Longest life of the token for the control plane; kubelet renews it.
const TOKEN_SECONDS: u64 = 43_200;

/// The init container that sets the redirect rules.
pub fn init_container(settings: &InjectorSettings, annotations: &Annotations) -> Value {
    // Names are the cluster's own to answer.
    let mut args = vec!["--no-dns".to_owned()];
    for (flag, value) in [
        (
            "--exclude-inbound-ports",
            &annotations.exclude_inbound_ports,
        ),
        (
            "--exclude-outbound-ports",
            &annotations.exclude_outbound_ports,
        ),
        (
            "--exclude-outbound-cidrs",
            &annotations.exclude_outbound_cidrs,
        ),
    ] {
        if let Some(value) = value {
            args.extend([flag.to_owned(), value.clone()]);
        }
    }
    json!({
        "name": INIT,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["/weft-init"],
        "args": args,
        "resources": {"requests": {"cpu": "10m", "memory": "10Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

/// The sidecar.
pub fn proxy_container(
    settings: &InjectorSettings,
    annotations: &Annotations,
    probes: &Map<String, Value>,
    grace_seconds: u64,
) -> Value {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let mut env = vec![
        json!({"name": "POD_NAME", "valueFrom": field("metadata.name")}),
        json!({"name": "POD_NAMESPACE", "valueFrom": field("metadata.namespace")}),
        // Nothing of the application starts unredirected.
        json!({"name": "WEFT_REQUIRE_CAPTURE", "valueFrom": field("status.podIP")}),
    ];
    if !probes.is_empty() {
        env.push(
            json!({"name": "WEFT_PROBES", "value": Value::Object(probes.clone()).to_string()}),
        );
    }
    // A native sidecar is told to stop when the application is gone, and a Job
    // is not to wait for it. An ordinary container is told together with it.
    let drain_seconds = if settings.native_sidecars {
        0
    } else {
        grace_seconds
    };
    let mut args = vec![
        format!("--control-plane={}", settings.control_plane),
        format!(
            "--control-plane-identity={}",
            settings.control_plane_identity
        ),
        format!("--cluster-domain={}", settings.cluster_domain),
        "--trust-bundle=/var/run/weft/trust/ca.crt".to_owned(),
        "--token=/var/run/weft/token/token".to_owned(),
        "--cache=/var/run/weft/cache".to_owned(),
        format!("--drain-seconds={drain_seconds}"),
        format!(
            "--log={}",
            annotations.log.as_ref().unwrap_or(&settings.log)
        ),
    ];
    if let Some(workers) = annotations.workers {
        args.push(format!("--workers={workers}"));
    }
    let get = |path: &str| json!({"path": path, "port": ADMIN_PORT});
    let mut container = json!({
        "name": PROXY,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["/weft-proxy"],
        "args": args,
        "env": env,
        "ports": [{"name": "weft-metrics", "containerPort": ADMIN_PORT, "protocol": "TCP"}],
        // What comes after it in the pod starts when it is ready.
        "startupProbe": {"httpGet": get("/ready"), "periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": {"httpGet": get("/ready"), "periodSeconds": 5, "timeoutSeconds": 2},
        "livenessProbe": {"httpGet": get("/live"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["/weft-proxy", "drain"]}}},
        "resources": resources(settings, annotations),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": UID,
            "runAsNonRoot": true,
            "runAsUser": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "weft-token", "mountPath": "/var/run/weft/token", "readOnly": true},
            {"name": "weft-trust", "mountPath": "/var/run/weft/trust", "readOnly": true},
            {"name": "weft-cache", "mountPath": "/var/run/weft/cache"},
        ],
    });
    if let Some(container) = container.as_object_mut() {
        if settings.native_sidecars {
            container.insert("restartPolicy".to_owned(), json!("Always"));
        } else {
            let wait = json!({"exec": {"command": ["/weft-proxy", "wait"]}});
            if let Some(lifecycle) = container
                .get_mut("lifecycle")
                .and_then(Value::as_object_mut)
            {
                // Containers start one after the other: the next one waits for this.
                lifecycle.insert("postStart".to_owned(), wait);
            }
        }
    }
    container
}

fn resources(settings: &InjectorSettings, annotations: &Annotations) -> Value {
    let default =
        json!({"requests": {"cpu": "10m", "memory": "20Mi"}, "limits": {"memory": "256Mi"}});
    let mut resources = if settings.resources.is_object() {
        settings.resources.clone()
    } else {
        default
    };
    for (group, name, value) in &annotations.resources {
        if let Some(map) = resources.as_object_mut() {
            let group = map.entry(*group).or_insert_with(|| json!({}));
            if let Some(group) = group.as_object_mut() {
                group.insert((*name).to_owned(), json!(value));
            }
        }
    }
    resources
}

/// The sidecar's token, the roots that it starts from, and its memory.
pub fn volumes() -> Vec<Value> {
    vec![
        json!({"name": "weft-token", "projected": {"sources": [
            {"serviceAccountToken": {"audience": "weft", "expirationSeconds": TOKEN_SECONDS, "path": "token"}}]}}),
        json!({"name": "weft-trust", "configMap": {"name": "weft-trust-bundle"}}),
        json!({"name": "weft-cache", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}),
    ]
}

/// Whether the rules are set from within the pod.
pub fn needs_init(settings: &InjectorSettings) -> bool {
    settings.capture == Capture::InitContainer
}
