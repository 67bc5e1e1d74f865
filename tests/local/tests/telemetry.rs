//! What the mesh tells of the calls: to a real OpenTelemetry collector, and in
//! Prometheus' format.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;

use weft_tests_local::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A span as the collector prints it: its fields and attributes.
type Printed = BTreeMap<String, String>;

/// The spans of a trace in the collector's output; `service` is whose they are.
fn spans(output: &str, trace: &str) -> Vec<Printed> {
    let (mut spans, mut service) = (Vec::<Printed>::new(), String::new());
    for line in output.lines() {
        let line = line.trim().trim_start_matches("-> ");
        if let Some(name) = line.strip_prefix("service.name: Str(") {
            service = name.trim_end_matches(')').to_owned();
        } else if line.starts_with("Span #") {
            spans.push([("service".to_owned(), service.clone())].into());
        } else if let (Some((key, value)), Some(span)) = (line.split_once(": "), spans.last_mut()) {
            span.insert(key.trim().to_owned(), value.trim().to_owned());
        } else if let (Some((key, value)), Some(span)) = (line.split_once(':'), spans.last_mut()) {
            span.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    spans.retain(|s| s.get("Trace ID").is_some_and(|id| id == trace));
    spans
}

fn collector() -> String {
    let command = format!("command: [{}]", tool_for_pods("otel-collector"));
    unmeshed(
        "collector",
        1,
        &(command + ", readinessProbe: {tcpSocket: {port: 4317}}"),
    ) + "---\n{apiVersion: v1, kind: Service, metadata: {name: collector, namespace: t}, spec: {clusterIP: 10.96.255.1, selector: {app: collector}, ports: [{port: 4317}]}}\n"
}

#[test]
fn a_real_collector_receives_one_trace_across_all_hops() {
    let probe = "readinessProbe: {httpGet: {path: /healthz, port: 8080}}";
    let manifests = [
        collector(),
        client("client"),
        web("catalog", 1),
        web("recommend", 1),
        deployment(
            "cart",
            1,
            "command: [shop, cart], readinessProbe: {tcpSocket: {port: 9090}}",
        ),
        service("cart", "cart", 9090, 9090),
        deployment(
            "stock",
            1,
            "command: [shop, stock], readinessProbe: {tcpSocket: {port: 7000}}",
        ),
        service("stock", "stock", 7000, 7000),
        deployment(
            "frontend",
            1,
            &format!("command: [shop, frontend], {probe}"),
        ),
        service("frontend", "frontend", 80, 8080),
    ]
    .concat();
    let flags = [
        "--otlp-endpoint",
        "http://10.96.255.1:4317",
        "--trace-sampling",
        "0",
    ];
    let mesh = Mesh::up_with(&manifests, &flags);
    let given = format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01");
    assert_eq!(
        mesh.curl("deploy/client", &["-H", &given, "http://frontend/"])
            .0,
        200
    );
    // What the caller does not want recorded is not, nor is what nobody asked for.
    let unsampled = format!(
        "traceparent: 00-{}-00f067aa0ba902b7-00",
        TRACE.replace('4', "5")
    );
    mesh.curl("deploy/client", &["-H", &unsampled, "http://frontend/"]);
    mesh.get("deploy/client", "http://frontend/");

    let printed = || {
        mesh.ctl(&["local", "logs", "-n", "t", "deploy/collector"])
            .out
    };
    let mut found = Vec::new();
    eventually("a span of each side of each hop", || {
        found = spans(&printed(), TRACE);
        found.len() >= 8
    });
    let of = |service: &str, kind: &str| -> Vec<&Printed> {
        let here = |s: &&Printed| s["service"] == service && s["Kind"] == kind;
        found.iter().filter(here).collect()
    };
    let client = of("client", "Client");
    assert_eq!(client.len(), 1, "{found:?}");
    assert_eq!(client[0]["Parent ID"], "00f067aa0ba902b7");
    let frontend = of("frontend", "Server");
    assert_eq!(frontend[0]["Parent ID"], client[0]["ID"]);
    assert_eq!(frontend[0]["http.response.status_code"], "Int(200)");
    for callee in ["catalog", "cart"] {
        let served = of(callee, "Server");
        assert!(!served.is_empty(), "{callee}: {found:?}");
        let caller = found.iter().find(|s| s["ID"] == served[0]["Parent ID"]);
        assert_eq!(caller.unwrap()["service"], "frontend");
    }
    assert!(of("cart", "Server")[0]["Name"].starts_with("shop.Cart/"));
    let all = printed();
    assert!(
        !all.contains(&TRACE.replace('4', "5")),
        "an unsampled trace was recorded"
    );
    let traces: std::collections::BTreeSet<_> = all
        .lines()
        .filter(|l| l.trim().starts_with("Trace ID"))
        .collect();
    assert_eq!(traces.len(), 1, "{traces:?}");
}

#[test]
fn metrics_tell_the_edge_and_why_the_proxy_answered() {
    let mesh = Mesh::up(
        &(client("client")
            + &web("web", 1)
            + &policy(
                "p",
                "web",
                "action: Deny, rules: [{httpAttributes: [{paths: [{type: Exact, value: /admin}]}]}]",
            )),
    );
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    assert_eq!(mesh.get("deploy/client", "http://web/admin"), 403);
    let mut metrics = String::new();
    eventually("both requests are counted", || {
        metrics = mesh.metrics("deploy/web");
        metrics.contains("response_flags=\"denied\"")
            && metrics.contains("http_response_status_code=\"200\"")
    });
    let denied = metrics
        .lines()
        .find(|l| {
            l.starts_with("http_server_request_duration_seconds_count")
                && l.contains("response_flags=\"denied\"")
        })
        .unwrap();
    for label in [
        "source_workload=\"client\"",
        "source_namespace=\"t\"",
        "source_identity=\"spiffe://cluster.local/ns/t/sa/client\"",
        "destination_workload=\"web\"",
        "destination_identity=\"spiffe://cluster.local/ns/t/sa/web\"",
        "http_response_status_code=\"403\"",
    ] {
        assert!(denied.contains(label), "{label} is missing in {denied}");
    }
}
