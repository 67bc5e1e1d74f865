//! The index from manifests alone.
#![allow(clippy::unwrap_used, clippy::panic)]

use weft_api::parse_manifests;

use super::*;

const SHOP: &str = r#"
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {selector: {app: web}, clusterIP: 10.97.0.1, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web2, namespace: shop}, spec: {selector: {app: web}, clusterIP: 10.97.0.2, ports: [{port: 80, targetPort: 8080}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, weft.dev/injected: "true"}}
spec: {serviceAccountName: web, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.96.0.1, podIPs: [{ip: 10.96.0.1}], ready: true}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints: [{addresses: [10.96.0.1], conditions: {ready: true, serving: true}, targetRef: {kind: Pod, name: web-1, namespace: shop}}]
"#;

fn index(more: &str) -> Index {
    let mut index = Index::new(MeshSettings {
        trust_domain: "east.example".into(),
        cidrs: vec!["10.96.0.0/15".into()],
        ..MeshSettings::default()
    });
    replace(&mut index, more);
    index
}

fn replace(index: &mut Index, more: &str) -> bool {
    let objects = parse_manifests(&format!("{SHOP}\n---\n{more}"), "test").unwrap();
    index.replace(objects.into_iter().map(|o| (o.key(), o)).collect())
}

fn asker(namespace: &str) -> Asker {
    Asker {
        namespace: namespace.into(),
        pod: "web-1".into(),
    }
}

fn rules(index: &mut Index, namespace: &str) -> Vec<proto::RouteRule> {
    let resource = index
        .resolve("dest/10.97.0.1:80", &asker(namespace))
        .unwrap();
    let Some(Body::Destination(d)) = &resource.body else {
        panic!()
    };
    let Some(proto::destination::Kind::Service(s)) = &d.kind else {
        panic!("{d:?}")
    };
    s.rules.clone()
}

fn route(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{parentRefs: [{{group: \"\", kind: Service, name: web, namespace: shop}}], rules: {spec}}}\n"
    )
}

#[test]
fn an_endpoint_carries_the_identity_it_must_prove() {
    let resource = index("")
        .resolve("endpoints/shop/web/80", &asker("x"))
        .unwrap();
    let Some(Body::Endpoints(set)) = &resource.body else {
        panic!()
    };
    assert_eq!(set.endpoints[0].address, "10.96.0.1:8080");
    assert_eq!(
        set.endpoints[0].spiffe_id,
        "spiffe://east.example/ns/shop/sa/web"
    );
}

#[test]
fn an_unknown_address_within_the_mesh_has_no_endpoints_and_outside_is_external() {
    let mut index = index("");
    let mut kind = |name: &str| {
        let resource = index.resolve(name, &asker("x")).unwrap();
        let Some(Body::Destination(d)) = &resource.body else {
            panic!()
        };
        d.kind.clone().unwrap()
    };
    use proto::destination::Kind;
    assert!(matches!(kind("dest/10.97.0.9:80"), Kind::Service(s) if s.endpoints.is_empty()));
    assert!(matches!(kind("dest/192.0.2.1:80"), Kind::External(_)));
    assert!(matches!(kind("dest/10.96.0.1:8080"), Kind::Workload(_)));
}

#[test]
fn a_pod_sees_only_its_own_inbound() {
    let mut index = index("");
    assert!(index.resolve("inbound", &asker("shop")).is_some());
    assert!(index.resolve("inbound", &asker("other")).is_none());
}

#[test]
fn a_consumer_route_holds_for_its_namespace_in_place_of_the_producers() {
    let producer = route(
        "shop",
        "producer",
        "[{backendRefs: [{name: web, port: 80}]}]",
    );
    let consumer = route(
        "ops",
        "consumer",
        "[{backendRefs: [{name: web, port: 80}]}]",
    );
    let mut index = index(&format!("{producer}{consumer}"));
    assert_eq!(rules(&mut index, "shop")[0].route, "shop/producer/0");
    assert_eq!(rules(&mut index, "ops")[0].route, "ops/consumer/0");
}

#[test]
fn a_backend_that_does_not_exist_has_no_endpoints_and_shows_in_status() {
    let mut index = index(&route(
        "shop",
        "r",
        "[{backendRefs: [{name: gone, port: 80}]}]",
    ));
    assert_eq!(rules(&mut index, "shop")[0].backends[0].endpoints, "");
    let status = index.status();
    let refs = status[0]
        .conditions
        .iter()
        .find(|c| c.r#type == "ResolvedRefs")
        .unwrap();
    assert_eq!(
        (refs.status, refs.reason.as_str()),
        (false, "BackendNotFound")
    );
}

#[test]
fn a_change_that_changes_nothing_keeps_the_version() {
    let mut index = index("");
    let before = index.resolve("endpoints/shop/web/80", &asker("x")).unwrap();
    assert!(!replace(&mut index, ""));
    // A label that nobody looks at.
    assert!(replace(
        &mut index,
        "{apiVersion: v1, kind: Service, metadata: {name: other, namespace: shop}, spec: {ports: [{port: 1}]}}"
    ));
    let after = index.resolve("endpoints/shop/web/80", &asker("x")).unwrap();
    assert!(Arc::ptr_eq(&before, &after));
}

#[test]
fn a_policy_reaches_the_pods_it_selects_and_the_root_namespace_all() {
    let policy = |namespace: &str, app: &str| {
        let selector = if app.is_empty() {
            String::new()
        } else {
            format!("matchLabels: {{app: {app}}}")
        };
        format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p{app}, namespace: {namespace}}}\nspec: {{targetRefs: [{{kind: Pod, selector: {{{selector}}}}}], action: Allow}}\n"
        )
    };
    let count = |policies: String| {
        let resource = index(&policies).resolve("inbound", &asker("shop")).unwrap();
        let Some(Body::Inbound(inbound)) = &resource.body else {
            panic!()
        };
        inbound.policies.len()
    };
    assert_eq!(count(policy("shop", "web")), 1);
    assert_eq!(count(policy("shop", "db")), 0);
    assert_eq!(count(policy("ops", "")), 0);
    assert_eq!(count(policy("weft-system", "")), 1);
}

#[test]
fn the_closest_authentication_policy_holds() {
    let policy = |name: &str, namespace: &str, selector: &str, mode: &str| {
        format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: AuthenticationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{targetRefs: [{{kind: Pod, selector: {{{selector}}}}}], mtls: {{mode: {mode}, ports: [{{port: 9100, mode: Permissive}}]}}}}\n"
        )
    };
    let all = [
        policy("mesh", "weft-system", "", "Permissive"),
        policy("namespace", "shop", "", "Permissive"),
        policy("workload", "shop", "matchLabels: {app: web}", "Strict"),
    ];
    let mut index = index(&all.concat());
    let resource = index.resolve("inbound", &asker("shop")).unwrap();
    let Some(Body::Inbound(inbound)) = &resource.body else {
        panic!()
    };
    assert_eq!(inbound.mtls(), proto::MtlsMode::Strict);
    let port = inbound.ports.iter().find(|p| p.port == 9100).unwrap();
    assert_eq!(port.mtls(), proto::MtlsMode::Permissive);
}

#[test]
fn another_namespaces_service_is_named_only_with_its_grant() {
    let consumer = route(
        "ops",
        "r",
        "[{backendRefs: [{name: web, namespace: shop, port: 80}]}, {backendRefs: [{name: web2, namespace: shop, port: 80}]}]",
    );
    let grant = |kind: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: shop}}\nspec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: ops}}], to: [{{group: \"\", kind: Service, name: web2}}]}}\n"
        )
    };
    let backends = |index: &mut Index| -> Vec<String> {
        let rules = rules(index, "ops");
        let mut all: Vec<_> = rules.into_iter().flat_map(|r| r.backends).collect();
        all.sort_by(|a, b| a.service.cmp(&b.service));
        all.into_iter().map(|b| b.endpoints).collect()
    };
    let mut index = index(&consumer);
    // The service that the callers asked for needs no grant.
    assert_eq!(backends(&mut index), ["endpoints/shop/web/80", ""]);
    let refs = index.status()[0].conditions[1].clone();
    assert_eq!(refs.reason, "RefNotPermitted");
    assert!(refs.message.contains("ReferenceGrant"), "{}", refs.message);
    replace(&mut index, &(consumer.clone() + &grant("GRPCRoute")));
    assert_eq!(backends(&mut index), ["endpoints/shop/web/80", ""]);
    replace(&mut index, &(consumer + &grant("HTTPRoute")));
    let both = ["endpoints/shop/web/80", "endpoints/shop/web2/80"];
    assert_eq!(backends(&mut index), both);
    assert_eq!(index.status()[0].conditions[1].reason, "ResolvedRefs");
}

#[test]
fn a_caller_is_led_to_the_family_that_it_called() {
    let mut index = index(
        r#"
{apiVersion: v1, kind: Service, metadata: {name: both, namespace: shop}, spec: {clusterIP: 10.97.0.9, clusterIPs: [10.97.0.9, "fd00::9"], ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: both-4, namespace: shop, labels: {kubernetes.io/service-name: both}}, addressType: IPv4, ports: [{name: "", port: 8080}], endpoints: [{addresses: [10.96.0.9], conditions: {ready: true, serving: true}}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: both-6, namespace: shop, labels: {kubernetes.io/service-name: both}}, addressType: IPv6, ports: [{name: "", port: 8080}], endpoints: [{addresses: ["fd00::10"], conditions: {ready: true, serving: true}}]}
"#,
    );
    let mut led_to = |called: &str| {
        let name = format!("dest/{called}");
        let resource = index.resolve(&name, &asker("shop")).unwrap();
        let Some(Body::Destination(d)) = &resource.body else {
            panic!()
        };
        let Some(proto::destination::Kind::Service(s)) = &d.kind else {
            panic!("{d:?}")
        };
        let set = index.resolve(&s.endpoints, &asker("shop")).unwrap();
        let Some(Body::Endpoints(set)) = &set.body else {
            panic!()
        };
        let addresses = set.endpoints.iter().map(|e| e.address.clone());
        addresses.collect::<Vec<_>>()
    };
    assert_eq!(led_to("10.97.0.9:80"), ["10.96.0.9:8080"]);
    assert_eq!(led_to("[fd00::9]:80"), ["[fd00::10]:8080"]);
}

/// Objects of every kind that a table holds, in variants that share addresses,
/// services and parents.
fn variants() -> Vec<Object> {
    let mut text = String::new();
    for n in 0..3 {
        for v in 0..3 {
            text += &format!(
                r#"
---
{{apiVersion: v1, kind: Service, metadata: {{name: s{n}, namespace: a}}, spec: {{clusterIP: 10.97.0.{v}, ports: [{{port: 80}}]}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: p{n}, namespace: a}}, spec: {{containers: [{{name: c}}]}}, status: {{podIPs: [{{ip: 10.96.0.{v}}}, {{ip: "fd00::{n}"}}]}}}}
---
{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: e{n}, namespace: a, labels: {{kubernetes.io/service-name: s{v}}}}}, addressType: IPv4, endpoints: []}}
---
{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: r{n}, namespace: a}}, spec: {{parentRefs: [{{group: "", kind: Service, name: s{v}}}, {{group: "", kind: Service, name: s0, port: 80}}], rules: []}}}}
---
{{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {{name: r{n}, namespace: a}}, spec: {{parentRefs: [{{group: "", kind: Service, name: s{v}}}], rules: []}}}}
---
{{apiVersion: weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: z{n}, namespace: a}}, spec: {{targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: v{v}}}}}}}], action: Allow, rules: []}}}}
---
{{apiVersion: weft.dev/v1alpha1, kind: AuthenticationPolicy, metadata: {{name: n{n}, namespace: a}}, spec: {{targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: v{v}}}}}}}], mtls: {{mode: Strict}}}}}}
"#
            );
        }
    }
    parse_manifests(&text, "test").unwrap()
}

proptest::proptest! {
    #[test]
    fn tables_follow_any_changes(steps in proptest::collection::vec((0usize..63, proptest::bool::ANY), 0..120)) {
        let variants = variants();
        let mut index = Index::new(MeshSettings::default());
        let mut all = BTreeMap::new();
        for (which, there) in steps {
            let object = variants[which].clone();
            let key = object.key();
            if there {
                all.insert(key.clone(), object.clone());
                index.change([(key, Some(object))]);
            } else {
                all.remove(&key);
                index.change([(key, None)]);
            }
        }
        let mut fresh = Index::new(MeshSettings::default());
        fresh.replace(all);
        proptest::prop_assert_eq!(index.tables, fresh.tables);
    }
}
