//! What holds for the whole mesh is changed here, one after the other: nothing
//! else runs meanwhile.

use std::sync::{Mutex, MutexGuard, PoisonError};

use weft_kubernetes_tests::*;

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn sidecars_are_ordinary_containers_where_the_cluster_is_too_old() {
    let _alone = alone();
    let _settings = Setting::set("proxy.nativeSidecars=false");
    let ns = Namespace::meshed("ordinary");
    ns.apply(&server("web", 2));
    ns.ready("web");
    let spec = ns.get("pods -l app=web")["items"][0]["spec"].clone();
    // First of all containers: the application starts when it is ready.
    assert_eq!(spec["containers"][0]["name"], "weft-proxy");
    assert_eq!(
        spec["containers"][0]["restartPolicy"],
        serde_json::Value::Null
    );
    ns.apply(&load("load", "web", ""));
    ns.ready("load");
    eventually("the load", 30, || {
        counts(&ns, "load").iter().all(|c| c.good > 20)
    });
    ns.k("rollout restart deployment/web");
    ns.ready("web");
    eventually("the end of the old pods", 60, || {
        ns.get("pods -l app=web")["items"]
            .as_array()
            .is_some_and(|pods| pods.len() == 2)
    });
    for count in counts(&ns, "load") {
        assert_eq!(count.bad, 0, "{count:?}");
    }
    // A connection that its client gave up unused has no callee.
    let mut edges = ns.edges();
    edges.retain(|e| e["destination"] != "");
    assert!(edges.iter().all(|e| e["mtls"] == true), "{edges:?}");
}

#[test]
fn a_missing_kind_is_told_and_what_runs_goes_on() {
    const CRD: &str = "authenticationpolicies.weft.dev";
    let _alone = alone();
    let ns = Namespace::meshed("missing");
    ns.apply(&server("web", 1));
    ns.ready("web");
    ns.apply(&load("load", "web", ""));
    ns.ready("load");
    k(&format!("delete crd {CRD}"));
    let told = || {
        let ran = meshctl(&["check"]);
        (ran.code == 1 && ran.out.contains(CRD), ran)
    };
    eventually("a check that names it", 20, || told().0);
    let (_, ran) = told();
    assert!(ran.out.contains("meshctl upgrade"), "{ran:?}");
    // Pods come and go as before, also with a control plane that never saw the kind.
    k("-n weft-system rollout restart deployment/weft-control-plane");
    k("-n weft-system rollout status deployment/weft-control-plane --timeout=120s");
    ns.apply(&server("late", 1));
    ns.ready("late");
    ns.call("deployment/late", "http://web:8080/").good();
    // And with the kind come its objects into force, without another restart.
    meshctl(&["upgrade"]).good();
    ns.apply("{apiVersion: weft.dev/v1alpha1, kind: AuthenticationPolicy, metadata: {name: strict}, spec: {targetRefs: [{kind: Pod}], mtls: {mode: Strict}}}");
    eventually("the policy's status", 60, || {
        ns.get("authenticationpolicy strict")["status"]["conditions"][0]["status"] == "True"
    });
    for count in counts(&ns, "load") {
        assert!(count.good > 20 && count.bad == 0, "{count:?}");
    }
}

#[test]
fn pods_without_a_sidecar_are_evicted_where_asked() {
    let _alone = alone();
    let ns = Namespace::plain("evicted");
    ns.apply(&server("web", 1));
    ns.ready("web");
    k("label namespace evicted weft.dev/injection=enabled");
    let _settings = Setting::set("controlPlane.evictUnmeshed=true");
    eventually("a replacement with a sidecar", 90, || {
        let pods = ns.get("pods -l weft.dev/injected=true");
        pods["items"]
            .as_array()
            .is_some_and(|pods| !pods.is_empty())
    });
    ns.ready("web");
}

#[test]
fn an_uninstallation_leaves_nothing_behind_and_what_runs_runs_on() {
    let _alone = alone();
    let ns = Namespace::meshed("left");
    ns.apply(&(server("web", 1) + &server("client", 1)));
    ns.ready("web");
    ns.ready("client");
    ns.call("deployment/client", "http://web:8080/").good();
    let refused = meshctl(&["uninstall"]);
    assert!(
        refused.code != 0 && refused.err.contains("--force"),
        "{refused:?}"
    );
    meshctl(&["uninstall", "--force"]).good();
    for kind in [
        "clusterroles",
        "clusterrolebindings",
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
        "namespaces",
    ] {
        let left = k(&format!(
            "get {kind} -l app.kubernetes.io/part-of=weft -o name"
        ));
        assert_eq!(left, "", "{kind}");
    }
    assert!(
        k("get configmaps -A -o name")
            .lines()
            .all(|l| !l.contains("weft"))
    );
    // What operators wrote stays, and so does what pods know.
    k("get crd authorizationpolicies.weft.dev");
    ns.call("deployment/client", "http://web:8080/").good();

    // A mesh that is installed again has another root.
    meshctl(&["install"]).good();
    ns.k("rollout restart deployment");
    ns.ready("web");
    ns.ready("client");
    eventually("a call in the new mesh", 30, || {
        ns.call("deployment/client", "http://web:8080/").code == 0
    });
    eventually("mutual TLS", 15, || {
        let edges = ns.edges();
        edges
            .iter()
            .any(|e| e["source"] == "client" && e["mtls"] == true)
    });
}
