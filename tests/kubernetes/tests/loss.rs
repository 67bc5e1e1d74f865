//! Orderly changes, each under continuous load from meshed and unmeshed callers
//! with default settings: not one request may fail.
//!
//! tonic's channel gives up a request that it was about to send when its peer
//! asks it to leave; gRPC demands that a client sends such a request again
//! (proposal A6, transparent retries). Nothing that a server does prevents it,
//! so without a sidecar its losses are shown, not judged; with one it may have
//! none.

use std::time::{Duration, Instant};

use weft_kubernetes_tests::*;

const NAMESPACE: &str = "loss";

/// What both callers have counted.
fn count(callers: &[(&Namespace, &str)]) -> Vec<(String, Count)> {
    let of = |(ns, label): &(&Namespace, &str)| {
        let label = (*label).to_owned();
        counts(ns, "load")
            .into_iter()
            .map(move |c| (format!("{label} {}", c.kind), c))
    };
    callers.iter().flat_map(of).collect()
}

struct Row {
    change: &'static str,
    seconds: f64,
    good: u64,
    bad: u64,
    /// Lost by a caller that itself is to blame.
    given_up: u64,
    errors: Vec<String>,
}

/// The caller that may lose requests.
const GIVES_UP: &str = "unmeshed channel";

/// Makes a change under load and sees what it cost.
fn under_load(callers: &[(&Namespace, &str)], change: &'static str, make: impl FnOnce()) -> Row {
    let before = count(callers);
    let start = Instant::now();
    make();
    // What a change leaves behind shows a moment later.
    std::thread::sleep(Duration::from_secs(4));
    let mut row = Row {
        change,
        seconds: 0.0,
        good: 0,
        bad: 0,
        given_up: 0,
        errors: Vec::new(),
    };
    for ((_, old), (caller, new)) in before.iter().zip(count(callers)) {
        let good = new.good.saturating_sub(old.good);
        let bad = new.bad.saturating_sub(old.bad);
        assert!(good > 0, "{change}: {caller} made no calls");
        row.good += good;
        if caller == GIVES_UP {
            row.given_up += bad;
        } else {
            row.bad += bad;
        }
        if bad > 0 {
            row.errors
                .push(format!("{caller}: {bad}, the last: {}", new.last_error));
        }
    }
    row.seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "{change}: {} good, {} failed {:?}",
        row.good, row.bad, row.errors
    );
    row
}

fn rollout(namespace: &str, name: &str) {
    k(&format!("-n {namespace} rollout restart deployment/{name}"));
    k(&format!(
        "-n {namespace} rollout status deployment/{name} --timeout=180s"
    ));
    // Until the last of the old ones is gone.
    eventually("the end of the old pods", 60, || {
        let pods = get(&format!("-n {namespace} pods"));
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        pods.iter()
            .all(|p| p["metadata"]["deletionTimestamp"].is_null())
    });
}

fn scale(namespace: &str, name: &str, replicas: u32) {
    k(&format!(
        "-n {namespace} scale deployment/{name} --replicas={replicas}"
    ));
    k(&format!(
        "-n {namespace} rollout status deployment/{name} --timeout=120s"
    ));
}

/// For callers: the node that is not drained.
const STAYS: &str = "nodeSelector: {node-role.kubernetes.io/control-plane: \"\"}\n      tolerations: [{operator: Exists}]";

#[test]
fn orderly_changes_lose_no_request() {
    let web = Namespace::meshed(NAMESPACE);
    let plain = Namespace::plain("loss-plain");
    web.apply(&server("web", 3));
    web.apply(
        "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web}, \
         spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}}",
    );
    web.ready("web");
    for namespace in [&web, &plain] {
        namespace.apply(&load("load", &format!("web.{NAMESPACE}.svc"), STAYS));
        namespace.ready("load");
    }
    let callers = [(&web, "meshed"), (&plain, "unmeshed")];
    eventually("the load", 30, || {
        count(&callers).iter().all(|(_, c)| c.good > 20)
    });
    let under_load = |change, make: &dyn Fn()| under_load(&callers, change, make);
    let mut rows = vec![
        under_load("nothing changes", &|| {
            std::thread::sleep(Duration::from_secs(5))
        }),
        under_load("rolling update", &|| rollout(NAMESPACE, "web")),
        under_load("scale down to one", &|| scale(NAMESPACE, "web", 1)),
        under_load("scale up to three", &|| scale(NAMESPACE, "web", 3)),
    ];
    rows.push(under_load("node drain", &|| {
        k("drain weft-1-worker --ignore-daemonsets --delete-emptydir-data --timeout=180s --pod-selector=app=web");
        web.ready("web");
        k("uncordon weft-1-worker");
    }));
    rows.push(under_load("control-plane upgrade", &|| {
        rollout("weft-system", "weft-control-plane")
    }));
    rows.push(under_load("injector outage", &|| {
        scale("weft-system", "weft-injector", 0);
        eventually("no injector", 60, || {
            let pods = get("-n weft-system pods -l app.kubernetes.io/name=weft-injector");
            pods["items"].as_array().is_some_and(Vec::is_empty)
        });
        // Nobody else is blocked; a meshed pod never comes up without its sidecar.
        plain.k(&format!("run bystander --image={WORKLOAD} -- serve"));
        let refused = kubectl(&[
            "-n",
            NAMESPACE,
            "run",
            "waits",
            &format!("--image={WORKLOAD}"),
        ]);
        assert!(
            refused.code != 0 && refused.err.contains("namespace.injector.weft.dev"),
            "{refused:?}"
        );
        scale("weft-system", "weft-injector", 2);
    }));
    rows.push(under_load("control plane killed", &|| {
        k("-n weft-system delete pods -l app.kubernetes.io/name=weft-control-plane --grace-period=0 --force");
        k("-n weft-system rollout status deployment/weft-control-plane --timeout=120s");
    }));
    rows.push(under_load("root and issuer rotated", &|| {
        let roots = || get("-n weft-system secret weft-issuer")["data"]["ca.crt"].clone();
        let before = roots();
        meshctl(&["ca", "rotate"]).good();
        assert_ne!(roots(), before);
    }));
    rows.push(under_load("API server away", &|| {
        let manifest = "/etc/kubernetes/manifests/kube-apiserver.yaml";
        on_node(
            "weft-1-control-plane",
            &format!("mv {manifest} /kube-apiserver.yaml"),
        )
        .good();
        // Half a minute; ten minutes were seen with WEFT_API_AWAY=600.
        let away = std::env::var("WEFT_API_AWAY").unwrap_or_default();
        std::thread::sleep(Duration::from_secs(away.parse().unwrap_or(30)));
        on_node(
            "weft-1-control-plane",
            &format!("mv /kube-apiserver.yaml {manifest}"),
        )
        .good();
        eventually("the API server", 120, || {
            kubectl(&["get", "--raw", "/readyz"]).code == 0
        });
        k("-n weft-system rollout status deployment/weft-control-plane --timeout=120s");
    }));
    println!(
        "\n| change | seconds | requests | failed | given up by tonic's channel without a sidecar |"
    );
    println!("|---|---|---|---|---|");
    for row in &rows {
        println!(
            "| {} | {:.0} | {} | {} | {} |",
            row.change,
            row.seconds,
            row.good + row.bad + row.given_up,
            row.bad,
            row.given_up
        );
    }
    let failed: Vec<_> = rows
        .iter()
        .filter(|r| r.bad > 0)
        .map(|r| (r.change, &r.errors))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}
