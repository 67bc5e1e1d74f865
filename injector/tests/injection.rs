//! Injection as a pure function.
#![allow(clippy::expect_used)]

use serde_json::{Value, json};
use weft_injector::{InjectorSettings, Outcome, inject, uninject, webhook};

fn settings() -> InjectorSettings {
    serde_json::from_value(json!({
        "image": "weft/proxy:1", "controlPlane": "cp:15010", "controlPlaneIdentity": "spiffe://td/ns/weft-system/sa/weft-control-plane",
    }))
    .expect("settings")
}

fn pod_spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 8,
        "initContainers": [{"name": "migrate", "image": "app"}],
        "containers": [{
            "name": "app", "image": "app",
            "ports": [{"name": "web", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/ready?full=1", "port": "web", "httpHeaders": [{"name": "X-A", "value": "b"}]}, "timeoutSeconds": 3},
            "livenessProbe": {"exec": {"command": ["true"]}},
            "startupProbe": {"grpc": {"port": 9090}},
        }],
    })
}

fn workload(kind: &str) -> Value {
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": pod_spec()});
    match kind {
        "Pod" => {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": "web"}}, "spec": pod_spec()})
        }
        "CronJob" => {
            json!({"kind": "CronJob", "metadata": {"name": "web"}, "spec": {"jobTemplate": {"spec": {"template": template}}}})
        }
        kind => json!({"kind": kind, "metadata": {"name": "web"}, "spec": {"template": template}}),
    }
}

const KINDS: [&str; 8] = [
    "Pod",
    "Deployment",
    "ReplicaSet",
    "StatefulSet",
    "DaemonSet",
    "Job",
    "ReplicationController",
    "CronJob",
];

#[test]
fn twice_is_once_and_taking_it_away_restores_every_kind() {
    for kind in KINDS {
        let original = workload(kind);
        let mut once = original.clone();
        assert_eq!(
            inject(&mut once, &settings()),
            Ok(Outcome::Injected),
            "{kind}"
        );
        assert_ne!(once, original, "{kind}");
        let mut twice = once.clone();
        inject(&mut twice, &settings()).expect("a second time");
        assert_eq!(twice, once, "{kind}");
        assert!(uninject(&mut twice), "{kind}");
        assert_eq!(twice, original, "{kind}");
        assert!(!uninject(&mut twice), "{kind}");
    }
}

#[test]
fn a_newer_injector_brings_an_older_ones_pods_up_to_date() {
    let mut pod = workload("Pod");
    inject(&mut pod, &settings()).expect("injected");
    let newer = InjectorSettings {
        image: "weft/proxy:2".to_owned(),
        ..settings()
    };
    inject(&mut pod, &newer).expect("injected");
    let text = pod.to_string();
    assert!(
        text.contains("weft/proxy:2") && !text.contains("weft/proxy:1"),
        "{text}"
    );
}

#[test]
fn the_sidecar_comes_first_and_may_do_nothing() {
    let mut pod = workload("Pod");
    inject(&mut pod, &settings()).expect("injected");
    let names: Vec<&str> = pod["spec"]["initContainers"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    assert_eq!(names, ["weft-init", "weft-proxy", "migrate"]);
    let proxy = &pod["spec"]["initContainers"][1];
    assert_eq!(proxy["restartPolicy"], "Always");
    let context = &proxy["securityContext"];
    assert_eq!(
        (&context["runAsNonRoot"], &context["capabilities"]),
        (&json!(true), &json!({"drop": ["ALL"]}))
    );
    let init = &pod["spec"]["initContainers"][0]["securityContext"];
    assert_eq!(init["capabilities"]["add"], json!(["NET_ADMIN", "NET_RAW"]));
    let cni = InjectorSettings {
        capture: weft_injector::Capture::Cni,
        ..settings()
    };
    inject(&mut pod, &cni).expect("injected");
    assert!(!pod.to_string().contains("NET_ADMIN"));
}

#[test]
fn an_old_cluster_gets_an_ordinary_container_that_the_others_wait_for() {
    let old = InjectorSettings {
        native_sidecars: false,
        sleep_hooks: false,
        ..settings()
    };
    let mut pod = workload("Pod");
    inject(&mut pod, &old).expect("injected");
    let spec = &pod["spec"];
    // The application's init containers run before anything is redirected.
    assert_eq!(spec["initContainers"][1]["name"], "weft-init");
    assert_eq!(spec["containers"][0]["name"], "weft-proxy");
    assert_eq!(
        spec["containers"][0]["lifecycle"]["postStart"]["exec"]["command"],
        json!(["/weft-proxy", "wait"])
    );
    assert_eq!(spec["containers"][0].get("restartPolicy"), None);
    assert_eq!(spec["containers"][1].get("lifecycle"), None);
}

#[test]
fn probes_go_to_the_sidecar_which_knows_what_was_asked() {
    let mut pod = workload("Pod");
    inject(&mut pod, &settings()).expect("injected");
    let app = &pod["spec"]["containers"][0];
    assert_eq!(
        app["readinessProbe"],
        json!({"timeoutSeconds": 3, "httpGet": {"path": "/probe/app/readiness", "port": 15020}})
    );
    assert_eq!(app["livenessProbe"], json!({"exec": {"command": ["true"]}}));
    let env = pod["spec"]["initContainers"][1]["env"]
        .as_array()
        .expect("env")
        .clone();
    let probes = env
        .iter()
        .find(|e| e["name"] == "WEFT_PROBES")
        .and_then(|e| e["value"].as_str())
        .expect("probes");
    let probes: Value = serde_json::from_str(probes).expect("JSON");
    assert_eq!(probes["app/readiness"]["httpGet"]["port"], 8080);
    assert_eq!(probes["app/readiness"]["httpGet"]["path"], "/ready?full=1");
    assert_eq!(probes["app/readiness"]["timeoutSeconds"], 3);
    assert_eq!(probes["app/startup"]["grpc"]["port"], 9090);
}

#[test]
fn containers_without_a_hook_serve_on_for_a_while_within_their_grace() {
    let mut pod = workload("Pod");
    inject(&mut pod, &settings()).expect("injected");
    assert_eq!(
        pod["spec"]["containers"][0]["lifecycle"]["preStop"],
        json!({"sleep": {"seconds": 4}})
    );
    let mut own = workload("Pod");
    own["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["bye"]}}});
    inject(&mut own, &settings()).expect("injected");
    assert_eq!(
        own["spec"]["containers"][0]["lifecycle"]["preStop"],
        json!({"exec": {"command": ["bye"]}})
    );
    let mut at_once = workload("Pod");
    at_once["metadata"]["annotations"] = json!({"weft.dev/termination-delay-seconds": "0"});
    inject(&mut at_once, &settings()).expect("injected");
    assert_eq!(at_once["spec"]["containers"][0].get("lifecycle"), None);
}

#[test]
fn what_cannot_have_a_sidecar_is_left_or_refused_unchanged() {
    let mut host = workload("Pod");
    host["spec"]["hostNetwork"] = json!(true);
    let before = host.clone();
    assert!(matches!(
        inject(&mut host, &settings()),
        Ok(Outcome::Skipped(_))
    ));
    let mut config = json!({"kind": "ConfigMap", "data": {}});
    assert!(matches!(
        inject(&mut config, &settings()),
        Ok(Outcome::Skipped(_))
    ));
    assert_eq!(host, before);
    for (pointer, value, told) in [
        (
            "/spec/securityContext",
            json!({"runAsUser": 1337}),
            "runs as user 1337",
        ),
        (
            "/metadata/annotations",
            json!({"weft.dev/proxy-cpu": "1"}),
            "weft.dev/proxy-cpu is not known",
        ),
        (
            "/metadata/annotations",
            json!({"weft.dev/workers": "99"}),
            "a number from 1 to 64",
        ),
        (
            "/spec/containers",
            json!([{"name": "app", "ports": [{"containerPort": 15001}]}]),
            "port 15001",
        ),
        (
            "/spec/containers",
            json!([{"name": "app", "readinessProbe": {"httpGet": {"port": "web"}}}]),
            "its port is not one",
        ),
    ] {
        let mut pod = workload("Pod");
        let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
        pod.pointer_mut(parent).expect("a parent")[field] = value;
        let before = pod.clone();
        let error = inject(&mut pod, &settings()).expect_err(pointer);
        assert!(error.0.contains(told), "{error}");
        assert_eq!(pod, before);
    }
}

#[test]
fn a_review_is_answered_whatever_it_holds() {
    let pod = workload("Pod");
    let review = json!({"request": {"uid": "u", "namespace": "shop", "object": pod}});
    let answer = webhook::answer(review.to_string().as_bytes(), &settings());
    assert_eq!(
        (&answer["response"]["uid"], &answer["response"]["allowed"]),
        (&json!("u"), &json!(true))
    );
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
    for bad in [
        "",
        "{}",
        "[]",
        r#"{"request": {"uid": "u", "object": 1}}"#,
        r#"{"request": {"uid": "u", "object": {"spec": {"containers": "x"}}}}"#,
    ] {
        let answer = webhook::answer(bad.as_bytes(), &settings());
        assert!(
            answer["response"]["allowed"].is_boolean(),
            "{bad}: {answer}"
        );
    }
}

fn validated(object: serde_json::Value) -> serde_json::Value {
    let review = serde_json::json!({"request": {"uid": "7", "object": object}});
    weft_injector::webhook::validation(review.to_string().as_bytes())
}

#[test]
fn what_operators_write_is_checked_at_once() {
    let policy = |path: &str| {
        serde_json::json!({"apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": "a", "namespace": "b", "uid": "c"},
            "spec": {"targetRefs": [{"kind": "Pod"}], "action": "Allow", "rules": [{"httpAttributes": [{"paths": [{"type": "RegularExpression", "value": path}]}]}]}})
    };
    let good = validated(policy("/a(b)*"));
    assert_eq!(good["response"]["allowed"], true);
    assert_eq!(good["response"]["uid"], "7");
    let bad = validated(policy("/a("));
    assert_eq!(bad["response"]["allowed"], false);
    let told = bad["response"]["status"]["message"]
        .as_str()
        .unwrap_or_default();
    assert!(
        told.contains("paths[0]") && told.contains("unclosed group"),
        "{told}"
    );
    // Another implementation may run what the mesh does not.
    let route = |parent: &str| {
        serde_json::json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "a", "namespace": "b"},
            "spec": {"parentRefs": [{"group": "", "kind": parent, "name": "x"}], "rules": [{"filters": [{"type": "Unheard"}]}]}})
    };
    let warned = validated(route("Service"));
    assert_eq!(warned["response"]["allowed"], true);
    assert!(
        warned["response"]["warnings"][0]
            .as_str()
            .is_some_and(|w| w.contains("Unheard"))
    );
    assert!(validated(route("Gateway"))["response"]["warnings"].is_null());
    assert_eq!(
        validated(serde_json::json!({}))["response"]["allowed"],
        true
    );
}
