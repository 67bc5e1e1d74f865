//! What holds for the whole mesh is changed here, one after the other: nothing
//! else runs meanwhile.

use std::sync::{Mutex, MutexGuard, PoisonError};

use weft_kubernetes_tests::*;

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Settings of the whole mesh, until the test ends.
struct Settings;

impl Settings {
    fn set(setting: &str) -> Self {
        meshctl(&["upgrade", "--set", setting]).good();
        Self
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        meshctl(&["upgrade"]);
    }
}

#[test]
fn sidecars_are_ordinary_containers_where_the_cluster_is_too_old() {
    let _alone = alone();
    let _settings = Settings::set("proxy.nativeSidecars=false");
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
    ns.apply(&load("load", "web"));
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
    assert!(
        ns.edges().iter().all(|e| e["mtls"] == true),
        "{:?}",
        ns.edges()
    );
}

#[test]
fn a_missing_kind_is_told_and_what_runs_goes_on() {
    const CRD: &str = "authenticationpolicies.weft.dev";
    let _alone = alone();
    let ns = Namespace::meshed("missing");
    ns.apply(&server("web", 1));
    ns.ready("web");
    ns.apply(&load("load", "web"));
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
