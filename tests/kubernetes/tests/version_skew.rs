//! The release before this one and this one work together, whichever of proxy
//! and control plane is the newer, and a change between them loses nothing.

use weft_kubernetes_tests::*;

/// `meshctl` of the release before, which brings its control plane and injector.
fn older(args: &[&str]) -> Ran {
    let folder = std::env::var("WEFT_OLDER").unwrap_or_default();
    run(&format!("{folder}/bin/meshctl"), args, "")
}

fn sidecar(ns: &Namespace, app: &str) -> String {
    let pods = ns.get(&format!("pods -l app={app}"));
    let containers = pods["items"][0]["spec"]["initContainers"]
        .as_array()
        .cloned();
    let proxy = containers.unwrap_or_default();
    let proxy = proxy.iter().find(|c| c["name"] == "weft-proxy");
    proxy.expect("a sidecar")["image"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Calls both ways with mutual TLS, and a policy that reaches both.
fn works_together(ns: &Namespace) {
    let deny = "{apiVersion: weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: closed}, spec: {targetRefs: [{kind: Pod}], action: Deny, \
                rules: [{httpAttributes: [{paths: [{type: Exact, value: /moved}]}]}]}}";
    for (from, to) in [("newer", "older"), ("older", "newer")] {
        let said = ns.call(&format!("deployment/{from}"), &format!("http://{to}:8080/"));
        assert!(said.good().starts_with(&format!("200 {to}")));
    }
    ns.apply(deny);
    for (from, to) in [("newer", "older"), ("older", "newer")] {
        let url = format!("http://{to}:8080/moved");
        eventually(&format!("a denial by {to}"), 20, || {
            let ran = ns.call(&format!("deployment/{from}"), &url);
            ran.code != 0 && ran.err.contains("403")
        });
    }
    ns.k("delete authorizationpolicy closed");
    for to in ["older", "newer"] {
        eventually(&format!("an open {to}"), 20, || {
            !ns.call("deployment/newer", &format!("http://{to}:8080/moved"))
                .err
                .contains("403")
        });
    }
    eventually("mutual TLS both ways", 15, || {
        let edges = ns.edges();
        [("newer", "older"), ("older", "newer")]
            .iter()
            .all(|(from, to)| {
                edges
                    .iter()
                    .any(|e| e["source"] == *from && e["destination"] == *to && e["mtls"] == true)
            })
    });
}

#[test]
fn neighbouring_releases_interoperate_and_an_upgrade_loses_nothing() {
    if std::env::var("WEFT_OLDER").unwrap_or_default().is_empty() {
        eprintln!("this clone does not hold the release before: version skew is NOT tested");
        return;
    }
    let ns = Namespace::meshed("skew");
    ns.apply(&server("newer", 1));
    ns.ready("newer");
    ns.apply(&load("load-newer", "newer", ""));
    ns.ready("load-newer");

    // Newer proxies, older control plane: an upgrade that was taken back.
    older(&["upgrade"]).good();
    ns.apply(&server("older", 1));
    ns.ready("older");
    ns.apply(&load("load-older", "older", ""));
    ns.ready("load-older");
    assert_ne!(sidecar(&ns, "newer"), sidecar(&ns, "older"));
    works_together(&ns);
    let said = meshctl(&["version"]).good();
    let image = sidecar(&ns, "older");
    let version = image.rsplit(':').next().unwrap_or_default();
    assert!(said.contains(version), "{version}: {said}");

    // Older proxies, newer control plane: an upgrade.
    meshctl(&["upgrade"]).good();
    works_together(&ns);
    for load in ["load-newer", "load-older"] {
        for count in counts(&ns, load) {
            assert!(count.good > 100 && count.bad == 0, "{load}: {count:?}");
        }
    }
    // Whoever looks is told what to restart.
    let check = meshctl(&["check"]);
    assert!(check.out.contains("skew/older"), "{}", check.out);
}
