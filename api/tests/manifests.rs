//! Which manifests are taken, and what is said of the others.
#![allow(missing_docs, clippy::unwrap_used)]

use weft_api::{Object, parse_manifests};

fn errors(yaml: &str) -> String {
    let errors = parse_manifests(yaml, "test.yaml").unwrap_err();
    errors.iter().map(|e| format!("{e}\n")).collect()
}

const POLICY: &str = r#"
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Pod, selector: {matchLabels: {app: web}}}]
  action: Allow
  mode: Enforce
  rules:
  - sources:
    - {type: ServiceAccount, serviceAccount: {name: frontend, namespace: shop}}
    - {type: SPIFFE, spiffe: "spiffe://east.example/ns/shop/sa/frontend"}
    - {type: Namespace, namespace: ops}
    - {type: TrustDomain, trustDomain: west.example}
    - {type: IPBlock, ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.7/32]}}
    networkAttributes: {ports: [8080]}
    httpAttributes:
    - methods: [GET, HEAD]
      paths: [{type: PathPrefix, value: /api}]
      hosts: [shop.example]
      headers: [{type: Exact, name: x-tier, value: gold}]
---
apiVersion: weft.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {name: strict, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Pod, selector: {}}]
  mtls: {mode: Strict, ports: [{port: 9100, mode: Permissive}]}
"#;

#[test]
fn the_policies_of_the_design_are_understood() {
    let objects = parse_manifests(POLICY, "test.yaml").unwrap();
    assert_eq!(objects.len(), 2);
    let Object::AuthorizationPolicy(policy) = &objects[0] else {
        panic!("{:?}", objects[0])
    };
    assert_eq!(policy.spec.rules[0].sources.len(), 5);
}

#[test]
fn an_object_survives_writing_and_reading() {
    for object in parse_manifests(POLICY, "test.yaml").unwrap() {
        let text = serde_json::to_string(&object).unwrap();
        assert_eq!(parse_manifests(&text, "again").unwrap(), [object]);
    }
}

#[test]
fn an_unknown_kind_is_refused_by_name() {
    let told = errors("{apiVersion: batch/v1, kind: Job, metadata: {name: j}}");
    assert!(
        told.contains("\"Job\" is not run here") && told.contains("Deployment"),
        "{told}"
    );
}

#[test]
fn an_unknown_field_is_refused_with_its_place() {
    let told = errors(
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, lifecycle: {}}]}}",
    );
    assert!(
        told.contains("spec.containers[0]") && told.contains("lifecycle"),
        "{told}"
    );
}

#[test]
fn an_unsupported_filter_is_refused() {
    let told = errors(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules: [{filters: [{type: CORS, cors: {}}]}]
"#,
    );
    assert!(told.contains("CORS"), "{told}");
}

#[test]
fn what_cannot_work_is_told_all_at_once() {
    let told = errors(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: gateway}]
  rules:
  - matches: [{path: {type: RegularExpression, value: "("}}]
    retry: {attempts: 99}
    backendRefs: [{name: web}]
"#,
    );
    for part in [
        "spec.parentRefs[0]",
        "regular expression",
        "attempts is above",
        "port is missing",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
}

#[test]
fn hostile_yaml_is_refused_in_bounded_time() {
    let bomb = format!(
        "a: &a [x,x,x,x,x,x,x,x,x]\n{}",
        ('b'..='k')
            .map(|c| {
                let previous = (c as u8 - 1) as char;
                format!(
                    "{c}: &{c} [{}]\n",
                    vec![format!("*{previous}"); 9].join(",")
                )
            })
            .collect::<String>()
    );
    assert!(parse_manifests(&bomb, "bomb").is_err());
    assert!(parse_manifests(&"[".repeat(100_000), "deep").is_err());
    assert!(parse_manifests("a: b\n\tc", "tab").is_err());
}
