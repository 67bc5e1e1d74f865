//! Who may call what, and how that is told.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use weft_tests_local::*;

const FROM_CLIENT: &str =
    "action: Allow, rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: client}}]}]";

#[test]
fn an_allow_lets_in_whom_it_names_and_nobody_else() {
    let mesh = Mesh::up(
        &(client("client")
            + &client("other")
            + &web("web", 1)
            + &policy("only-named", "web", FROM_CLIENT)),
    );
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    let (status, answer) = mesh.curl("deploy/other", &["-i", "http://web/items"]);
    assert_eq!(status, 403);
    assert!(
        answer.contains("x-request-id:") && !answer.contains("only-named"),
        "names no policy: {answer}"
    );
    eventually("the metric says why", || {
        mesh.metrics("deploy/web")
            .contains("response_flags=\"denied\"")
    });
}

/// Who keeps a connection in reserve says nothing on it for a while.
#[test]
fn a_client_that_is_silent_at_first_may_still_ask_what_it_may() {
    let allow = "action: Allow, rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: client}}], httpAttributes: [{methods: [GET]}]}]";
    let mesh = Mesh::up(
        &(client("client") + &client("other") + &web("web", 1) + &policy("p", "web", allow)),
    );
    let ask = |pod: &str| {
        let silent = "exec 3<>/dev/tcp/web/80; sleep 0.5; \
            printf 'GET /items HTTP/1.1\\r\\nhost: web\\r\\nconnection: close\\r\\n\\r\\n' >&3; head -1 <&3";
        mesh.sh(pod, silent).out
    };
    assert!(ask("deploy/client").starts_with("HTTP/1.1 200"));
    // Not HTTP: the port is not for it, and it is told so by a reset.
    let opaque = mesh.sh(
        "deploy/client",
        "exec 3<>/dev/tcp/web/80; sleep 0.2; printf '\\0\\1\\2' >&3; timeout 5 cat <&3; echo $?",
    );
    assert_eq!(opaque.out.trim(), "1", "{}", opaque.err);
    // Whom no rule names is not kept waiting.
    let refused = "exec 3<>/dev/tcp/web/80; timeout 5 cat <&3; echo $?";
    assert_eq!(mesh.sh("deploy/other", refused).out.trim(), "1");
}

#[test]
fn requests_are_told_apart_by_method_path_host_and_header() {
    let deny = "action: Deny, rules: [{httpAttributes: [{paths: [{type: PathPrefix, value: /admin}]}, {methods: [PUT]}, {hosts: [evil.example]}, {headers: [{name: x-tier, value: gold}]}]}]";
    let mesh = Mesh::up(&(client("client") + &web("web", 1) + &policy("p", "web", deny)));
    let status = |args: &[&str]| mesh.curl("deploy/client", args).0;
    assert_eq!(status(&["http://web/items"]), 200);
    // However the path is written.
    for path in [
        "admin",
        "admin/x",
        "%61dmin",
        "items/../admin",
        "/admin",
        "./admin",
    ] {
        assert_eq!(
            status(&["--path-as-is", &format!("http://web/{path}")]),
            403,
            "{path}"
        );
    }
    assert_eq!(status(&["-X", "PUT", "http://web/echo/x"]), 403);
    assert_eq!(
        status(&["-H", "Host: evil.example", "http://web/items"]),
        403
    );
    assert_eq!(status(&["-H", "X-Tier: gold", "http://web/items"]), 403);
    assert_eq!(status(&["-H", "X-Tier: lead", "http://web/items"]), 200);
}

#[test]
fn grpc_denials_are_grpc() {
    let cart = "command: [shop, cart], readinessProbe: {tcpSocket: {port: 9090}}";
    let deny = "action: Deny, rules: [{httpAttributes: [{grpcMethods: [shop.Cart/Watch]}]}]";
    let mesh = Mesh::up(
        &(client("client")
            + &deployment("cart", 1, cart)
            + &service("cart", "cart", 9090, 9090)
            + &policy("p", "cart", deny)),
    );
    let grpcurl = tool_for_pods("grpcurl");
    let proto = repository().join("examples/shop");
    let call = |method: &str| {
        let ran = mesh.sh("deploy/client", &format!(
            "{grpcurl} -plaintext -import-path {} -proto cart.proto -max-time 1 -d '{{\"user\":\"a\"}}' cart:9090 shop.Cart/{method}",
            proto.display()
        ));
        format!("{}{}", ran.out, ran.err)
    };
    assert!(call("Get").contains("items"));
    let denied = call("Watch");
    assert!(denied.contains("PermissionDenied"), "{denied}");
}

#[test]
fn opaque_connections_are_reset() {
    let stock = "command: [shop, stock], readinessProbe: {tcpSocket: {port: 7000}}";
    let mesh = Mesh::up(
        &(client("client")
            + &client("other")
            + &deployment("stock", 1, stock)
            + &service("stock", "stock", 7000, 7000)
            + &policy("p", "stock", FROM_CLIENT)),
    );
    let talk = |pod: &str| {
        mesh.sh(pod, "printf 'x\\n' | timeout 5 nc -N stock 7000")
            .out
    };
    assert!(talk("deploy/client").contains("STOCK"));
    assert_eq!(talk("deploy/other"), "");
}

#[test]
fn a_new_policy_ends_open_connections_within_a_second() {
    let stock = "command: [shop, stock], readinessProbe: {tcpSocket: {port: 7000}}";
    let mesh = Mesh::up(
        &(client("client")
            + &deployment("stock", 1, stock)
            + &service("stock", "stock", 7000, 7000)),
    );
    let mut open = mesh.spawn("deploy/client", "exec nc stock 7000 < <(sleep 60)");
    std::thread::sleep(Duration::from_millis(500));
    assert!(open.is_running());
    let nobody = policy("p", "stock", "action: Allow, rules: []");
    let start = Instant::now();
    mesh.apply(&nobody);
    while open.is_running() {
        assert!(start.elapsed() < Duration::from_secs(2), "it is still open");
        std::thread::sleep(Duration::from_millis(20));
    }
    mesh.delete(&nobody);
    assert!(
        mesh.sh(
            "deploy/client",
            "printf 'x\\n' | timeout 5 nc -N stock 7000"
        )
        .out
        .contains("STOCK")
    );
}

#[test]
fn dry_run_denies_nothing_and_counts_what_it_would() {
    let dry = "action: Allow, mode: DryRun, rules: []";
    let mesh = Mesh::up(&(client("client") + &web("web", 1) + &policy("p", "web", dry)));
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    eventually("the metric", || {
        mesh.metrics("deploy/web")
            .contains("weft_policy_would_deny_total")
    });
    let said = mesh.ctl(&[
        "authz",
        "explain",
        "-n",
        "t",
        "--from",
        "deploy/client",
        "--to",
        "web:8080",
        "--path",
        "/",
    ]);
    assert_eq!(said.code, 0);
    assert!(said.out.contains("would deny"), "{said:?}");
}

#[test]
fn explain_names_policy_rule_and_field() {
    let rule = "action: Allow, rules: [{sources: [{type: Namespace, namespace: t}], httpAttributes: [{methods: [GET]}]}]";
    let mesh = Mesh::up(&(client("client") + &web("web", 1) + &policy("p", "web", rule)));
    let explain = |method: &str| {
        mesh.ctl(&[
            "authz",
            "explain",
            "-n",
            "t",
            "--from",
            "deploy/client",
            "--to",
            "web:8080",
            "--method",
            method,
            "--path",
            "/items",
        ])
    };
    let allowed = explain("GET");
    assert!(
        allowed.code == 0
            && allowed
                .out
                .contains("ALLOWED: AuthorizationPolicy t/p, rule 0"),
        "{allowed:?}"
    );
    let denied = explain("POST");
    assert!(
        denied.code == 3 && denied.out.contains("httpAttributes.methods"),
        "{denied:?}"
    );
    // It says what the proxy does.
    assert_eq!(
        mesh.curl("deploy/client", &["-X", "POST", "http://web/items"])
            .0,
        403
    );
}

#[test]
fn sources_by_address_trust_domain_and_spiffe_id_count() {
    let mesh = Mesh::up(&(client("client") + &web("web", 1)));
    let with = |source: &str| {
        mesh.apply(&policy(
            "p",
            "web",
            &format!("action: Allow, rules: [{{sources: [{source}]}}]"),
        ));
        mesh.get("deploy/client", "http://web/items")
    };
    assert_eq!(
        with("{type: SPIFFE, spiffe: \"spiffe://cluster.local/ns/t/sa/client\"}"),
        200
    );
    assert_eq!(
        with("{type: SPIFFE, spiffe: \"spiffe://cluster.local/ns/t/sa/clien\"}"),
        403
    );
    assert_eq!(with("{type: TrustDomain, trustDomain: cluster.local}"), 200);
    assert_eq!(with("{type: TrustDomain, trustDomain: west.example}"), 403);
    assert_eq!(with("{type: IPBlock, ipBlock: {cidr: 10.244.0.0/16}}"), 200);
    assert_eq!(with("{type: IPBlock, ipBlock: {cidr: 192.0.2.0/24}}"), 403);
}

#[test]
fn strict_can_be_lifted_for_a_port() {
    let mesh =
        Mesh::up(&(unmeshed("plain", 1, "command: [sleep, infinity]") + &web("web", 1) + STRICT));
    assert_eq!(mesh.get("deploy/plain", "http://web/items"), 403);
    mesh.apply("apiVersion: weft.dev/v1alpha1\nkind: AuthenticationPolicy\nmetadata: {name: web, namespace: t}\nspec: {targetRefs: [{kind: Pod, selector: {matchLabels: {app: web}}}], mtls: {mode: Strict, ports: [{port: 8080, mode: Permissive}]}}\n");
    assert_eq!(mesh.get("deploy/plain", "http://web/items"), 200);
}

#[test]
fn a_new_policy_ends_running_streams_within_a_second() {
    let cart = "command: [shop, cart], readinessProbe: {tcpSocket: {port: 9090}}";
    // Answers without an end, a line every 100 ms.
    let endless = "command: [/usr/bin/python3, -c, \"import socket,threading,time\\ns=socket.create_server(('',8000))\\ndef f(c):\\n c.recv(9999)\\n c.sendall(b'HTTP/1.1 200 OK\\\\r\\\\n\\\\r\\\\n')\\n while True:\\n  c.sendall(b'tick\\\\n')\\n  time.sleep(0.1)\\nwhile True:\\n c,_=s.accept()\\n threading.Thread(target=f,args=(c,),daemon=True).start()\"], readinessProbe: {tcpSocket: {port: 8000}}";
    let mesh = Mesh::up(
        &(client("client")
            + &deployment("cart", 1, cart)
            + &service("cart", "cart", 9090, 9090)
            + &deployment("endless", 1, endless)
            + &service("endless", "endless", 80, 8000)),
    );
    let grpcurl = tool_for_pods("grpcurl");
    let proto = repository().join("examples/shop");
    let streams = [
        (
            "cart",
            format!(
                "exec {grpcurl} -plaintext -import-path {} -proto cart.proto -d '{{\"user\":\"a\"}}' cart:9090 shop.Cart/Watch",
                proto.display()
            ),
        ),
        ("endless", "exec curl -sN http://endless/".to_owned()),
    ];
    for (app, command) in streams {
        let mut open = mesh.spawn("deploy/client", &command);
        std::thread::sleep(Duration::from_secs(1));
        assert!(open.is_running(), "{app}");
        let nobody = policy("p", app, "action: Allow, rules: []");
        mesh.apply(&nobody);
        let start = Instant::now();
        while open.is_running() {
            assert!(
                start.elapsed() < Duration::from_secs(1),
                "{app} is still open"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let ran = open.wait();
        assert!(!ran.out.is_empty(), "{app}: {ran:?}");
        assert_ne!(ran.code, 0, "{app} must not look complete: {ran:?}");
    }
}

#[test]
fn a_denied_head_request_leaves_the_connection_in_order() {
    let deny =
        "action: Deny, rules: [{httpAttributes: [{paths: [{type: PathPrefix, value: /admin}]}]}]";
    let mesh = Mesh::up(&(client("client") + &web("web", 1) + &policy("p", "web", deny)));
    let ran = mesh.sh(
        "deploy/client",
        "printf 'HEAD /admin HTTP/1.1\\r\\nHost: web\\r\\n\\r\\nGET /items HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n' | timeout 5 nc web 80",
    );
    let (first, second) = ran.out.split_once("\r\n\r\n").unwrap();
    assert!(first.starts_with("HTTP/1.1 403"), "{ran:?}");
    assert!(second.starts_with("HTTP/1.1 200"), "{ran:?}");
    let ran = mesh.exec(
        "deploy/client",
        &["curl", "-sI", "--http2-prior-knowledge", "http://web/admin"],
    );
    assert!(ran.code == 0 && ran.out.contains("HTTP/2 403"), "{ran:?}");
}
