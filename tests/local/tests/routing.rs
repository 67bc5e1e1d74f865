//! Where requests go: routes, weights, timeouts, retries.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use weft_tests_local::*;

/// How many of `n` requests were answered by each version.
fn versions(mesh: &Mesh, n: u32) -> std::collections::BTreeMap<String, u32> {
    versions_slowly(mesh, n, "0")
}

fn versions_slowly(mesh: &Mesh, n: u32, pause: &str) -> std::collections::BTreeMap<String, u32> {
    let ran = mesh.sh(
        "deploy/client",
        &format!(
            "for i in $(seq {n}); do curl -s -m 5 http://web/items; echo; sleep {pause}; done"
        ),
    );
    let mut seen = std::collections::BTreeMap::new();
    for line in ran.out.lines() {
        let version = line.split('"').nth(3).unwrap_or(line).to_owned();
        *seen.entry(version).or_insert(0) += 1;
    }
    seen
}

#[test]
fn weights_split_requests_and_change_while_they_flow() {
    let mesh = Mesh::up(&(client("client") + &web("web", 1) + &web("new", 1)));
    let split = |a: u32, b: u32| {
        mesh.apply(&route("r", "web", &format!("[{{backendRefs: [{{name: web, port: 80, weight: {a}}}, {{name: new, port: 80, weight: {b}}}]}}]")));
        versions(&mesh, 200)
    };
    let seen = split(75, 25);
    assert!((30..=75).contains(&seen["new"]), "{seen:?}");
    assert_eq!(split(0, 1).get("web"), None);
    assert_eq!(split(1, 0).get("new"), None);
}

#[test]
fn the_most_specific_match_wins() {
    let rules = "[{matches: [{path: {value: /echo}}], backendRefs: [{name: web, port: 80}]}, {matches: [{path: {value: /echo}, headers: [{name: X-To, value: new}]}, {path: {type: Exact, value: /echo/exact}}, {queryParams: [{name: to, value: new}]}], backendRefs: [{name: new, port: 80}]}]";
    let mesh =
        Mesh::up(&(client("client") + &web("web", 1) + &web("new", 1) + &route("r", "web", rules)));
    let to = |args: &[&str]| {
        let (status, body) = mesh.curl("deploy/client", args);
        if status == 200 {
            body.split('"').nth(3).unwrap_or_default().to_owned()
        } else {
            status.to_string()
        }
    };
    assert_eq!(to(&["http://web/echo/x"]), "web");
    assert_eq!(to(&["-H", "x-to: new", "http://web/echo/x"]), "new");
    assert_eq!(to(&["http://web/echo/exact"]), "new");
    assert_eq!(to(&["http://web/items?to=new"]), "new");
    assert_eq!(to(&["http://web/items"]), "404", "no rule matches");
}

#[test]
fn headers_are_changed_on_both_ways() {
    let rules = "[{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: new}], add: [{name: x-add, value: more}], remove: [x-gone]}}, {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-back, value: 'yes'}]}}], backendRefs: [{name: web, port: 80}]}]";
    let mesh = Mesh::up(&(client("client") + &web("web", 1) + &route("r", "web", rules)));
    let (_, answer) = mesh.curl(
        "deploy/client",
        &[
            "-i",
            "-H",
            "X-Set: old",
            "-H",
            "X-Gone: here",
            "http://web/echo/x",
        ],
    );
    assert!(
        answer.contains("x-back: yes")
            && answer.contains("[\"x-set\",\"new\"]")
            && answer.contains("[\"x-add\",\"more\"]"),
        "{answer}"
    );
    assert!(
        !answer.contains("x-gone") && !answer.contains("old"),
        "{answer}"
    );
}

#[test]
fn a_backend_that_does_not_exist_is_said_so() {
    let mesh = Mesh::up(
        &(client("client")
            + &web("web", 1)
            + &route("r", "web", "[{backendRefs: [{name: gone, port: 80}]}]")),
    );
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 500);
    let check = mesh.ctl(&["check"]);
    assert!(
        check.code == 1 && check.out.contains("BackendNotFound"),
        "{check:?}"
    );
}

const SLOW: &str = "command: [/usr/bin/python3, -c, \"import http.server as h,time\\nclass H(h.BaseHTTPRequestHandler):\\n protocol_version='HTTP/1.1'\\n def do_GET(s):\\n  time.sleep(2)\\n  s.send_response(200); s.send_header('content-length','0'); s.end_headers()\\nh.ThreadingHTTPServer(('',8000),H).serve_forever()\"], readinessProbe: {tcpSocket: {port: 8000}}";

#[test]
fn a_timeout_answers_504() {
    let slow = deployment("slow", 1, SLOW) + &service("slow", "slow", 80, 8000);
    let rules = "[{timeouts: {request: 300ms}, backendRefs: [{name: slow, port: 80}]}]";
    let mesh = Mesh::up(&(client("client") + &slow + &route("r", "slow", rules)));
    let (status, took) = mesh.curl(
        "deploy/client",
        &[
            "-o",
            "/dev/null",
            "-w",
            "%{time_total}\n%{http_code}",
            "http://slow/",
        ],
    );
    assert_eq!(status, 504);
    assert!(took.trim().parse::<f64>().unwrap() < 1.0, "{took}");
}

#[test]
fn a_failing_instance_is_hidden_by_retries() {
    let flaky = "command: [shop, catalog, --version, flaky, --fail, '0.5'], readinessProbe: {httpGet: {path: /healthz, port: 8080}}";
    let all =
        client("client") + &deployment("flaky", 2, flaky) + &service("web", "flaky", 80, 8080);
    let mesh = Mesh::up(&all);
    let failed = |mesh: &Mesh| {
        versions_slowly(mesh, 60, "0.06")
            .iter()
            .filter(|(v, _)| *v != "flaky")
            .map(|(_, n)| n)
            .sum::<u32>()
    };
    assert!(failed(&mesh) > 10, "it does fail");
    mesh.apply(&route("r", "web", "[{retry: {attempts: 8, codes: [503], backoff: 1ms}, backendRefs: [{name: web, port: 80}]}]"));
    assert!(failed(&mesh) <= 3, "retries hide it");
    assert!(
        mesh.metrics("deploy/client")
            .contains("weft_request_retries_total")
    );
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_hidden_without_any_route() {
    let mesh = Mesh::up(&(client("client") + &web("web", 3)));
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    // The process goes away at once and is restarted only after a while; its
    // endpoint is still listed meanwhile.
    signal(
        mesh.pid("web-", "weft-proxy"),
        nix::sys::signal::Signal::SIGKILL,
    );
    let seen = versions(&mesh, 40);
    assert_eq!(seen.get("web"), Some(&40), "{seen:?}");
}

#[test]
fn contradicting_and_broken_manifests_change_nothing() {
    let mesh = Mesh::up(&(client("client") + &web("web", 1)));
    for (manifest, mend) in [
        (route("r", "web", "[{backendRefs: [{name: web}]}]"), "port is missing"),
        (route("r", "web", "[{matches: [{path: {type: RegularExpression, value: '('}}], backendRefs: [{name: web, port: 80}]}]"), "regular expression"),
        (route("r", "web", "[{filters: [{type: RequestMirror}]}]"), "RequestMirror"),
        ("{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}".to_owned(), "ConfigMap"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: nowhere}, spec: {containers: [{name: c, command: [x]}]}}".to_owned(), "namespace nowhere"),
        ("a: [".to_owned(), "standard input"),
    ] {
        let ran = mesh.try_apply(&manifest);
        assert!(ran.code == 1 && ran.err.contains(mend), "{mend}: {ran:?}");
        assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    }
}

#[test]
fn requests_that_two_servers_could_read_differently_are_refused() {
    let mesh = Mesh::up(&(client("client") + &web("web", 1)));
    for head in [
        "POST /items HTTP/1.1\\r\\nHost: web\\r\\nContent-Length: 4\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n",
        "POST /items HTTP/1.1\\r\\nHost: web\\r\\nContent-Length: 4\\r\\nContent-Length: 5\\r\\n\\r\\n",
        "GET /items HTTP/1.1\\r\\nHost: web\\r\\nHost: other\\r\\n\\r\\n",
        "GET /items%%00 HTTP/1.1\\r\\nHost: web\\r\\n\\r\\n",
        "GET /items HTTP/1.1\\r\\n\\r\\n",
    ] {
        let ran = mesh.sh(
            "deploy/client",
            &format!("printf '{head}' | timeout 5 nc -N web 80 | head -1"),
        );
        assert!(ran.out.starts_with("HTTP/1.1 400"), "{head}: {ran:?}");
    }
    let long = "X".repeat(70_000);
    assert_eq!(
        mesh.curl(
            "deploy/client",
            &["-H", &format!("X-Long: {long}"), "http://web/items"]
        )
        .0,
        431
    );
}

#[test]
fn routes_weights_policies_and_endpoints_change_under_load_without_a_failed_request() {
    let mesh = Mesh::up(
        &(client("client") + &web("one", 2) + &web("two", 2) + &service("web", "one", 80, 8080)),
    );
    let rules = |one: u32| {
        format!(
            "[{{backendRefs: [{{name: one, port: 80, weight: {one}}}, {{name: two, port: 80, weight: {}}}]}}]",
            10 - one
        )
    };
    mesh.apply(&route("r", "web", &rules(5)));
    let loaded = mesh.load("deploy/client", "http://web/items", 200, 15);
    let start = Instant::now();
    let mut n = 0;
    while start.elapsed() < Duration::from_secs(13) {
        match n % 4 {
            0 => mesh.apply(&route("r", "web", &rules(n % 11))),
            1 => mesh.apply(&policy(
                "p",
                "one",
                &format!("action: Allow, rules: [{{sources: [{{type: ServiceAccount, serviceAccount: {{name: client}}}}]}}, {{sources: [{{type: Namespace, namespace: n{n}}}]}}]"),
            )),
            2 => mesh.apply(&web("two", 1 + n % 3)),
            _ => mesh.delete(&route("r", "web", &rules(1))),
        }
        n += 1;
    }
    let ran = loaded.wait();
    let last = ran.out.lines().last().unwrap_or_default();
    assert!(last.contains(" bad 0 "), "{n} changes: {ran:?}");
    assert!(n > 10, "{n}");
}

#[test]
fn weights_split_opaque_connections() {
    let stock = |name: &str| {
        let echo = format!(
            "command: [/usr/bin/python3, -c, \"import socket\\ns=socket.create_server(('',7000))\\nwhile True:\\n c,_=s.accept()\\n c.sendall(b'{name}\\\\n')\\n c.close()\"], readinessProbe: {{tcpSocket: {{port: 7000}}}}"
        );
        deployment(name, 1, &echo) + &service(name, name, 7000, 7000)
    };
    let rules =
        "[{backendRefs: [{name: one, port: 7000, weight: 1}, {name: two, port: 7000, weight: 3}]}]";
    let mesh = Mesh::up(
        &(client("client")
            + &stock("one")
            + &stock("two")
            + &service("stock", "one", 7000, 7000)
            + &route("r", "stock", rules)),
    );
    let ran = mesh.sh(
        "deploy/client",
        "for i in $(seq 80); do timeout 5 nc stock 7000 </dev/null; done | sort | uniq -c",
    );
    let of = |name: &str| -> u32 {
        let line = ran.out.lines().find(|l| l.ends_with(name)).unwrap_or("0");
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    let (one, two) = (of("one"), of("two"));
    assert_eq!(one + two, 80, "{ran:?}");
    assert!((8..35).contains(&one), "a quarter was asked: {one} of 80");
}

#[test]
fn redirects_and_rewrites_follow_gateway_api() {
    let mesh = Mesh::up(&(client("client") + &web("web", 1) + &service("old", "web", 80, 8080)));
    let path = |prefix: &str| format!("matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]");
    mesh.apply(&route("r", "web", &format!(
        "[{{{}, filters: [{{type: RequestRedirect, requestRedirect: {{hostname: old.t, statusCode: 307, path: {{type: ReplacePrefixMatch, replacePrefixMatch: /echo/moved}}}}}}]}}, \
          {{{}, filters: [{{type: RequestRedirect, requestRedirect: {{scheme: https, port: 8443}}}}]}}, \
          {{{}, filters: [{{type: URLRewrite, urlRewrite: {{hostname: inner.example, path: {{type: ReplacePrefixMatch, replacePrefixMatch: /echo/x}}}}}}], backendRefs: [{{name: web, port: 80}}]}}, \
          {{{}, filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: /echo/full}}}}}}], backendRefs: [{{name: web, port: 80}}]}}]",
        path("/a"), path("/b"), path("/c"), path("/d"),
    )));
    let location = |url: &str| {
        let format = "%{http_code} %{redirect_url}";
        mesh.exec(
            "deploy/client",
            &["curl", "-s", "-o", "/dev/null", "-w", format, url],
        )
        .out
    };
    assert_eq!(
        location("http://web/a/1?q=2"),
        "307 http://old.t/echo/moved/1?q=2"
    );
    assert_eq!(location("http://web/b?q"), "302 https://web:8443/b?q");
    // The caller can follow it.
    let (status, body) = mesh.curl(
        "deploy/client",
        &["-L", "-X", "PUT", "-d", "hi", "http://web/a/1"],
    );
    assert!(
        status == 200 && body.contains("moved/1") && body.contains("\"bytes\":2"),
        "{body}"
    );
    let (status, body) = mesh.curl("deploy/client", &["http://web/c/y?z=1"]);
    assert!(
        status == 200 && body.contains("\"x/y\"") && body.contains("inner.example"),
        "{body}"
    );
    let (status, body) = mesh.curl("deploy/client", &["http://web/d/y"]);
    assert!(status == 200 && body.contains("\"full\""), "{body}");
    for bad in [
        "[{filters: [{type: RequestRedirect, requestRedirect: {}}], backendRefs: [{name: web, port: 80}]}]",
        "[{matches: [{path: {type: Exact, value: /x}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /y}}}], backendRefs: [{name: web, port: 80}]}]",
        "[{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]}]",
    ] {
        let ran = mesh.try_apply(&route("bad", "web", bad));
        assert_eq!(ran.code, 1, "{bad}: {ran:?}");
    }
}

#[test]
fn grpc_routes_match_services_and_methods() {
    let cart = |name: &str| {
        deployment(
            name,
            1,
            "command: [shop, cart], readinessProbe: {tcpSocket: {port: 9090}}",
        ) + &service(name, name, 9090, 9090)
    };
    let grpc_route = "---\n{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: r, namespace: t}, spec: {parentRefs: [{group: \"\", kind: Service, name: cart}], rules: [\
        {matches: [{method: {service: shop.Cart, method: Get}}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-rule, value: exact}]}}], backendRefs: [{name: cart, port: 9090}]}, \
        {matches: [{method: {method: AddAll}}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-rule, value: method}]}}], backendRefs: [{name: cart, port: 9090}]}, \
        {matches: [{method: {service: shop.Cart}, headers: [{name: x-to, value: none}]}], backendRefs: [{name: nobody, port: 9090}]}]}}\n";
    let mesh = Mesh::up(&(client("client") + &cart("cart") + grpc_route));
    let grpcurl = tool_for_pods("grpcurl");
    let proto = repository().join("examples/shop");
    let call = |flags: &str, method: &str| {
        let ran = mesh.sh(
            "deploy/client",
            &format!("{grpcurl} -v -plaintext -import-path {} -proto cart.proto {flags} cart:9090 shop.Cart/{method}", proto.display()),
        );
        format!("{}{}", ran.out, ran.err)
    };
    let get = call("-d '{\"user\":\"a\"}'", "Get");
    assert!(
        get.contains("x-rule: exact") && get.contains("\"items\": 3"),
        "{get}"
    );
    let add = call("-d '{\"name\":\"a\"}'", "AddAll");
    assert!(add.contains("x-rule: method"), "{add}");
    let nobody = call("-H 'x-to: none' -d '{}'", "Chat");
    assert!(
        nobody.contains("Code: Unavailable") || nobody.contains("Code: Internal"),
        "{nobody}"
    );
    let none = call("-d '{}'", "Chat");
    assert!(none.contains("Unimplemented"), "{none}");
    let bad =
        mesh.try_apply(&grpc_route.replace("service: shop.Cart, method: Get", "service: \"\""));
    assert!(
        bad.code == 1 && bad.err.contains("name a service or a method"),
        "{bad:?}"
    );
}
