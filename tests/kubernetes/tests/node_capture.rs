//! Capture by the node's CNI plugin: pods need no capability, and none ever runs
//! unredirected.

use weft_kubernetes_tests::*;

const NODES: [&str; 2] = ["weft-1-control-plane", "weft-1-worker"];
const CHAIN: &str = "/etc/cni/net.d/10-weft-kind.conflist";

fn is_chained(node: &str) -> bool {
    on_node(node, &format!("cat {CHAIN}"))
        .out
        .contains("weft-cni")
}

/// Takes the plugin out of a node's configuration, as another's rewrite would.
fn unchain(node: &str) {
    let script = format!(
        "sed -z 's/,[^{{}}]*{{[^{{}}]*weft-cni[^{{}}]*}}//' {CHAIN} >/tmp/chain && cp /tmp/chain {CHAIN}"
    );
    on_node(node, &script).good();
}

/// Restarts a node. What the test's network set in it by hand is set again.
fn restart(node: &str) {
    let list = "ip route show; ip -6 route show";
    let routes = on_node(node, list).good();
    let ran = std::process::Command::new("docker")
        .args(["restart", node])
        .output();
    assert!(ran.is_ok_and(|r| r.status.success()));
    for route in routes.lines() {
        if route.contains(" via ") && !route.starts_with("default") {
            on_node(node, &format!("ip route replace {route}"));
        }
    }
}

fn restricted(name: &str, args: &str) -> String {
    let container = ", securityContext: {allowPrivilegeEscalation: false, runAsNonRoot: true, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}";
    deployment(name, 1, args, container)
}

#[test]
fn pods_without_rights_are_captured_and_none_runs_unredirected() {
    let plugin = Setting::set("cni.enabled=true");
    for node in NODES {
        eventually("the plugin in the chain", 30, || is_chained(node));
    }
    let ns = Namespace::labelled(
        "cni",
        "{weft.dev/injection: enabled, pod-security.kubernetes.io/enforce: restricted}",
    );
    ns.apply(&(restricted("web", "serve") + &restricted("client", "serve")));
    ns.ready("web");
    ns.ready("client");
    assert!(
        ns.call("deployment/client", "http://web:8080/")
            .good()
            .starts_with("200 web")
    );
    eventually("mutual TLS", 15, || {
        ns.edges().iter().any(|e| {
            e["destination"] == "web" && e["mtls"] == true && e["requests"].as_u64() > Some(0)
        })
    });
    let pods = ns.get("pods").to_string();
    assert!(!pods.contains("NET_ADMIN") && !pods.contains("weft-init"));

    // Another's rewrite of the configuration is mended.
    unchain(NODES[1]);
    eventually("the plugin in its place again", 10, || is_chained(NODES[1]));

    // Without its agent the plugin lets no pod start.
    let select = |selector: &str| {
        let patch =
            format!("{{\"spec\":{{\"template\":{{\"spec\":{{\"nodeSelector\":{selector}}}}}}}}}");
        kubectl(&[
            "-n",
            "weft-cni",
            "patch",
            "daemonset",
            "weft-cni",
            "-p",
            &patch,
        ])
        .good();
    };
    select("{\"nowhere\":\"\"}");
    eventually("no agent", 60, || {
        get("-n weft-cni pods")["items"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    assert!(
        NODES.iter().all(|node| is_chained(node)),
        "a restart of the agent took the plugin out"
    );
    ns.apply(&restricted("late", "serve"));
    eventually("a pod that is held back", 60, || {
        ns.k("get events").contains("the node's agent")
    });

    // A pod that starts while the plugin is not even called never runs its application.
    NODES.iter().for_each(|node| unchain(node));
    let late = || ns.get("pods -l app=late")["items"][0].clone();
    eventually("a sidecar that sees it", 90, || {
        let statuses = late()["status"]["initContainerStatuses"].to_string();
        statuses.contains("\"running\"")
    });
    std::thread::sleep(std::time::Duration::from_secs(5));
    let app = late()["status"]["containerStatuses"][0]["state"].to_string();
    assert!(app.contains("waiting"), "{app}");
    select("null");
    ns.ready("late");
    assert!(ns.k("get events").contains("NotRedirected"));

    // A node that restarts comes back with the plugin, and its pods redirected.
    restart(NODES[1]);
    eventually("the node", 120, || {
        kubectl(&[
            "wait",
            "--for=condition=Ready",
            "node",
            NODES[1],
            "--timeout=5s",
        ])
        .code
            == 0
    });
    assert!(is_chained(NODES[1]), "the restart took the plugin out");
    k("-n weft-cni rollout status daemonset/weft-cni --timeout=120s");
    for app in ["web", "client", "late"] {
        ns.ready(app);
    }
    eventually("a call after the restart", 60, || {
        ns.call("deployment/client", "http://web:8080/").code == 0
    });
    let called = || -> u64 {
        let edges = ns.edges();
        let secured = edges
            .iter()
            .filter(|e| e["destination"] == "web" && e["mtls"] == true);
        secured.filter_map(|e| e["requests"].as_u64()).sum()
    };
    let before = called();
    ns.call("deployment/client", "http://web:8080/").good();
    eventually("its count with mutual TLS", 15, || called() > before);

    assert_rights_are_used(
        "system:serviceaccount:weft-cni:",
        &["clusterrole weft-cni", "-n weft-cni role weft-cni"],
        &[],
    );

    // And it goes as it came.
    drop(plugin);
    for node in NODES {
        eventually("a chain without the plugin", 60, || !is_chained(node));
    }
}
