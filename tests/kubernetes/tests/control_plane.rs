//! What the control plane does in a cluster, and what it does not.

use std::time::Duration;

use weft_kubernetes_tests::*;

#[test]
fn a_steady_cluster_sees_no_writes() {
    // Other tests of this file make none that the mesh answers to, and this
    // namespace is theirs alone: only its objects are looked at.
    let ns = Namespace::meshed("steady");
    ns.apply(&server("web", 1));
    ns.apply(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: web}, spec: {parentRefs: [{group: \"\", kind: Service, name: web}], \
         rules: [{backendRefs: [{name: web, port: 8080}]}]}}",
    );
    ns.ready("web");
    eventually("the route's status", 20, || {
        ns.get("httproute web")["status"]["parents"][0]["conditions"][1]["status"] == "True"
    });
    std::thread::sleep(Duration::from_secs(2));
    let writes = || {
        audit()
            .iter()
            .filter(|e| ["create", "update", "patch", "delete"].contains(&text(e, "/verb")))
            .filter(|e| text(e, "/objectRef/namespace") == "steady")
            .count()
    };
    let before = writes();
    // An edit that changes nothing of what the mesh says.
    ns.k("annotate httproute web note=changed");
    ns.k("annotate service web note=changed");
    std::thread::sleep(Duration::from_secs(35));
    assert_eq!(
        writes(),
        before,
        "the control plane wrote into a steady namespace"
    );
}

#[test]
fn every_right_is_used_and_nothing_is_refused() {
    let ns = Namespace::meshed("rights");
    ns.apply(&server("web", 1));
    for (kind, spec) in [
        ("AuthorizationPolicy", "action: Allow, rules: [{}]"),
        ("AuthenticationPolicy", "mtls: {mode: Permissive}"),
    ] {
        ns.apply(&format!(
            "{{apiVersion: weft.dev/v1alpha1, kind: {kind}, metadata: {{name: web}}, spec: {{targetRefs: [{{kind: Pod, selector: {{}}}}], {spec}}}}}"
        ));
    }
    for kind in ["HTTPRoute", "GRPCRoute"] {
        ns.apply(&format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: {kind}, metadata: {{name: {}}}, spec: {{parentRefs: [{{group: \"\", kind: Service, name: web}}], \
             rules: [{{backendRefs: [{{name: web, port: 8080}}]}}]}}}}",
            kind.to_lowercase()
        ));
    }
    apply(
        "{apiVersion: gateway.networking.x-k8s.io/v1alpha1, kind: XMesh, metadata: {name: weft}, spec: {controllerName: weft.dev/mesh}}",
    );
    // A pod that came before its namespace joined: the mesh tells of it.
    let late = Namespace::plain("rights-late");
    late.k(&format!("run early --image={WORKLOAD} -- serve"));
    k("label namespace rights-late weft.dev/injection=enabled");
    ns.ready("web");
    eventually("the event of a pod without sidecar", 60, || {
        late.get("events")["items"]
            .as_array()
            .is_some_and(|e| e.iter().any(|e| e["reason"] == "SidecarMissing"))
    });
    // The issuer is written once a year; server-side apply needs the right to
    // create what it makes, and is recorded as a patch.
    assert_rights_are_used(
        "system:serviceaccount:weft-system:",
        &[
            "clusterrole weft-control-plane",
            "-n weft-system role weft-control-plane",
            "-n weft-system role weft-injector",
        ],
        &[("update", "secrets"), ("create", "configmaps")],
    );
}

#[test]
fn mistakes_are_refused_at_admission_or_told_in_the_status() {
    let ns = Namespace::meshed("mistakes");
    ns.apply(&server("web", 1));
    let policy = |rules: &str| {
        format!(
            "{{apiVersion: weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: web}}, spec: {{targetRefs: [{{kind: Pod}}], action: Allow, rules: [{rules}]}}}}"
        )
    };
    for (rules, told) in [
        (
            "{sources: [{type: ServiceAccount, namespace: x}]}",
            "serviceAccount belongs to the type ServiceAccount",
        ),
        (
            "{sources: [{type: IPBlock, ipBlock: {cidr: 10.0.0.0/99}}]}",
            "cidr is not an address range",
        ),
        (
            "{httpAttributes: [{paths: [{value: admin}]}]}",
            "a path starts with '/'",
        ),
        ("{networkAttributes: {ports: [70000]}}", "65535"),
        ("{sources: [{type: Everybody}]}", "supported values"),
        ("{when: 'true'}", "unknown field"),
        // What a schema cannot say.
        (
            "{httpAttributes: [{paths: [{type: RegularExpression, value: '/a('}]}]}",
            "unclosed group",
        ),
    ] {
        let refused = ns.try_apply(&policy(rules));
        assert!(
            refused.code != 0 && refused.err.to_lowercase().contains(&told.to_lowercase()),
            "{rules}: {refused:?}"
        );
    }
    // What the Gateway API allows and the mesh does not run is told, and what
    // was said before stays in force.
    let route = |filters: &str| {
        format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: web}}, spec: {{parentRefs: [{{group: \"\", kind: Service, name: web}}], \
             rules: [{{{filters} backendRefs: [{{name: web, port: 8080}}]}}]}}}}"
        )
    };
    let accepted = || ns.get("httproute web")["status"]["parents"][0]["conditions"][0].clone();
    ns.apply(&route(""));
    eventually("a route that is in force", 20, || {
        accepted()["status"] == "True"
    });
    let warned = ns.try_apply(&route(
        "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web, port: 8080}}}],",
    ));
    assert!(
        warned.code == 0 && warned.err.contains("Warning: the mesh will not run this"),
        "{warned:?}"
    );
    eventually("a route that is not run", 20, || {
        accepted()["status"] == "False"
    });
    let condition = accepted();
    assert_eq!(condition["reason"], "UnsupportedValue");
    assert!(
        text(&condition, "/message").contains("stays in force"),
        "{condition}"
    );
    let told = ns.get("events --field-selector involvedObject.kind=HTTPRoute");
    assert_eq!(told["items"][0]["reason"], "UnsupportedValue", "{told}");
    let wrong = meshctl(&["check"]);
    assert!(
        wrong.code == 1 && wrong.out.contains("HTTPRoute mistakes/web"),
        "{wrong:?}"
    );
    ns.apply(&route(""));
    eventually("a mended route", 20, || accepted()["status"] == "True");
    ns.k("delete service web");
    eventually("a route without its service", 20, || {
        accepted()["reason"] == "NoMatchingParent"
    });
}
