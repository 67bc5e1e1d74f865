//! Every protocol through the redirect rules, without any declaration.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use weft_tests_local::*;

#[test]
fn http1_and_http2_reach_the_service_under_the_identities_of_both_pods() {
    let mesh = Mesh::up(&(client("client") + &web("web", 1)));
    for flag in ["--http1.1", "--http2-prior-knowledge"] {
        let (status, body) = mesh.curl("deploy/client", &[flag, "http://web/items"]);
        assert_eq!(
            (status, body.contains("web")),
            (200, true),
            "{flag}: {body}"
        );
    }
    let ran = mesh.exec("deploy/client", &["nghttp", "-s", "http://web.t/items"]);
    assert!(ran.out.contains("200"), "{}{}", ran.out, ran.err);
    eventually("the edge shows both identities", || {
        mesh.edges().iter().any(|e| {
            e["mtls"] == true
                && e["sourceIdentity"] == "spiffe://cluster.local/ns/t/sa/client"
                && e["destinationIdentity"] == "spiffe://cluster.local/ns/t/sa/web"
        })
    });
}

#[test]
fn names_resolve_in_every_form_and_over_both_families() {
    let headless = "---\n{apiVersion: v1, kind: Service, metadata: {name: direct, namespace: t}, spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}}\n";
    let dual = "---\n{apiVersion: v1, kind: Service, metadata: {name: dual, namespace: t}, spec: {ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}\n";
    let mesh = Mesh::up(&(client("client") + &web("web", 2) + headless + dual));
    for url in [
        "http://web/items",
        "http://web.t/items",
        "http://web.t.svc.cluster.local/items",
        "http://direct:8080/items",
    ] {
        assert_eq!(mesh.get("deploy/client", url), 200, "{url}");
    }
    for family in ["-4", "-6"] {
        let (status, _) = mesh.curl("deploy/client", &[family, "http://dual/items"]);
        assert_eq!(status, 200, "{family}");
    }
    let ran = mesh.exec(
        "deploy/client",
        &["curl", "-s", "-m", "5", "http://nobody.t/"],
    );
    assert_eq!(ran.code, 6, "an unknown name does not resolve: {ran:?}");
}

#[test]
fn large_bodies_arrive_whole_in_both_directions() {
    let python = "command: [/usr/bin/python3, -c, \"import http.server as h\\nclass H(h.BaseHTTPRequestHandler):\\n protocol_version='HTTP/1.1'\\n def do_POST(s):\\n  import hashlib\\n  d=hashlib.sha256()\\n  n=int(s.headers['content-length'])\\n  left=n\\n  while left:\\n   b=s.rfile.read(min(65536,left)); left-=len(b); d.update(b)\\n  o=d.hexdigest().encode()\\n  s.send_response(200); s.send_header('content-length',str(len(o))); s.end_headers(); s.wfile.write(o)\\n def do_GET(s):\\n  s.send_response(200); s.send_header('content-length',str(50<<20)); s.end_headers()\\n  for i in range(800): s.wfile.write(bytes([i%251])*65536)\\nh.ThreadingHTTPServer(('',8000),H).serve_forever()\"], readinessProbe: {tcpSocket: {port: 8000}}";
    let mesh = Mesh::up(
        &(client("client") + &deployment("sum", 1, python) + &service("sum", "sum", 80, 8000)),
    );
    let ran = mesh.sh(
        "deploy/client",
        "head -c 30000000 /dev/urandom > $HOSTNAME.bin && sha256sum < $HOSTNAME.bin && curl -s -m 20 --data-binary @$HOSTNAME.bin -H Expect: http://sum/; rm $HOSTNAME.bin",
    );
    let mut sums = ran.out.split_whitespace().filter(|w| w.len() == 64);
    assert_eq!(sums.next(), sums.next(), "{ran:?}");
    let ran = mesh.sh("deploy/client", "curl -s -m 20 http://sum/ | wc -c");
    assert_eq!(ran.out.trim(), (50 << 20).to_string(), "{ran:?}");
}

#[test]
fn grpc_works_in_every_kind_of_streaming() {
    let cart = "command: [shop, cart], readinessProbe: {tcpSocket: {port: 9090}}";
    let mesh = Mesh::up(
        &(client("client") + &deployment("cart", 1, cart) + &service("cart", "cart", 9090, 9090)),
    );
    let proto = repository().join("examples/shop");
    let grpcurl = tool_for_pods("grpcurl");
    let call = |flags: &str, method: &str| {
        let ran = mesh.sh(
            "deploy/client",
            &format!("{grpcurl} -plaintext -import-path {} -proto cart.proto {flags} cart:9090 shop.Cart/{method}", proto.display()),
        );
        format!("{}{}", ran.out, ran.err)
    };
    assert!(call("-d '{\"user\":\"a\"}'", "Get").contains("\"items\": 3"));
    assert!(call("-d '{}'", "Get").contains("InvalidArgument"));
    let watched = call("-max-time 1 -d '{\"user\":\"a\"}'", "Watch");
    assert!(
        watched.contains("\"items\": 5") && watched.contains("DeadlineExceeded"),
        "{watched}"
    );
    let items = "-d '{\"name\":\"a\"} {\"name\":\"b\"} {\"name\":\"c\"}'";
    assert!(call(items, "AddAll").contains("\"items\": 3"));
    let chat = call(items, "Chat");
    assert!(
        chat.contains("\"items\": 1") && chat.contains("\"items\": 3"),
        "{chat}"
    );
}

#[test]
fn a_server_that_speaks_first_is_not_waited_for() {
    let stock = "command: [shop, stock], readinessProbe: {tcpSocket: {port: 7000}}";
    let mesh = Mesh::up(
        &(client("client")
            + &deployment("stock", 1, stock)
            + &service("stock", "stock", 7000, 7000)),
    );
    for _ in 0..3 {
        let start = Instant::now();
        let ran = mesh.sh(
            "deploy/client",
            "printf 'hello\\n' | timeout 5 nc -N stock 7000",
        );
        assert_eq!(ran.out, "STOCK 42\nhello\nBYE\n", "half-close: {ran:?}");
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
    }
}

#[test]
fn a_database_works_and_its_connection_is_encrypted() {
    let maria = "command: [bash, -c, \"mkdir -p /tmp/db$HOSTNAME && mariadb-install-db --datadir=/tmp/db$HOSTNAME --auth-root-authentication-method=normal >/dev/null && exec mariadbd --no-defaults --datadir=/tmp/db$HOSTNAME --port=3306 --socket=/tmp/db$HOSTNAME/s --skip-grant-tables --skip-networking=0 --bind-address=0.0.0.0 --innodb-use-native-aio=0\"], readinessProbe: {tcpSocket: {port: 3306}}";
    let mesh = Mesh::up(
        &(client("client")
            + &deployment("db", 1, maria)
            + &service("db", "db", 3306, 3306)
            + STRICT),
    );
    let query = "create database x; create table x.t (a int); insert into x.t values (1),(2),(3); select sum(a) from x.t";
    let ran = mesh.exec(
        "deploy/client",
        &["mariadb", "-h", "db", "--skip-ssl", "-N", "-e", query],
    );
    assert_eq!(ran.out.trim(), "6", "{ran:?}");
    mesh.sh("deploy/db", "rm -rf /tmp/db$HOSTNAME");
    eventually("the edge is opaque and proved", || {
        mesh.edges().iter().any(|e| {
            e["protocol"] == "tcp" && e["mtls"] == true && e["connections"].as_u64() > Some(0)
        })
    });
}

#[test]
fn websockets_and_other_upgrades_become_tunnels() {
    let server = "command: [/usr/bin/python3, -c, \"import socket,threading\\ns=socket.create_server(('',8000))\\ndef f(c):\\n d=b''\\n while b'\\\\r\\\\n\\\\r\\\\n' not in d: d+=c.recv(999)\\n c.sendall(b'HTTP/1.1 101 Switching Protocols\\\\r\\\\nUpgrade: websocket\\\\r\\\\nConnection: Upgrade\\\\r\\\\n\\\\r\\\\n')\\n while True:\\n  b=c.recv(999)\\n  if not b: break\\n  c.sendall(b.upper())\\n c.close()\\nwhile True:\\n c,_=s.accept()\\n threading.Thread(target=f,args=(c,)).start()\"], readinessProbe: {tcpSocket: {port: 8000}}";
    let mesh = Mesh::up(
        &(client("client") + &deployment("ws", 1, server) + &service("ws", "ws", 80, 8000)),
    );
    let ran = mesh.sh(
        "deploy/client",
        "(printf 'GET /chat HTTP/1.1\\r\\nHost: ws\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n\\r\\n'; sleep 0.3; printf 'hello'; sleep 0.3) | timeout 5 nc -N ws 80",
    );
    assert!(
        ran.out.starts_with("HTTP/1.1 101") && ran.out.ends_with("HELLO"),
        "{ran:?}"
    );
}

#[test]
fn the_applications_own_tls_passes_untouched() {
    let server = "command: [bash, -c, \"cd /tmp && openssl req -x509 -newkey rsa:2048 -nodes -keyout k$HOSTNAME -out c$HOSTNAME -days 1 -subj /CN=own 2>/dev/null && exec openssl s_server -www -accept 8443 -key k$HOSTNAME -cert c$HOSTNAME\"], readinessProbe: {tcpSocket: {port: 8443}}";
    let mesh = Mesh::up(
        &(client("client") + &deployment("own", 1, server) + &service("own", "own", 443, 8443)),
    );
    let ran = mesh.sh(
        "deploy/client",
        "curl -skv -m 5 https://own/ 2>&1 | grep -E 'CN=own|HTTP/1'",
    );
    assert!(
        ran.out.contains("CN=own") && ran.out.contains("200"),
        "{ran:?}"
    );
}

#[test]
fn http_details_survive_the_way() {
    let server = "command: [/usr/bin/python3, -c, \"import socket,threading\\ns=socket.create_server(('',8000))\\ndef f(c):\\n d=b''\\n while b'\\\\r\\\\n\\\\r\\\\n' not in d: d+=c.recv(9999)\\n c.sendall(b'HTTP/1.1 299 Very Fine\\\\r\\\\nX-CaSe: Kept\\\\r\\\\nContent-Length: %d\\\\r\\\\n\\\\r\\\\n'%len(d)+d)\\n c.close()\\nwhile True:\\n c,_=s.accept()\\n threading.Thread(target=f,args=(c,)).start()\"], readinessProbe: {tcpSocket: {port: 8000}}";
    let mesh = Mesh::up(
        &(client("client") + &deployment("raw", 1, server) + &service("raw", "raw", 80, 8000)),
    );
    let (_, answer) = mesh.curl(
        "deploy/client",
        &[
            "-i",
            "-H",
            "X-MiXed: 1",
            "-H",
            "b: 2",
            "-H",
            "a: 3",
            "http://raw/a/../b?q=%41",
        ],
    );
    for part in [
        "HTTP/1.1 299 Very Fine",
        "X-CaSe: Kept",
        "GET /b?q=%41 HTTP/1.1",
        "X-MiXed: 1",
        "Host: raw",
    ] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
    assert!(answer.find("b: 2") < answer.find("a: 3"), "order: {answer}");
}

#[test]
fn an_application_may_call_its_own_service() {
    let mesh = Mesh::up(&web("web", 1));
    assert_eq!(mesh.get("deploy/web", "http://web/items"), 200);
    assert_eq!(mesh.get("deploy/web", "http://localhost:8080/items"), 200);
}

#[test]
fn unmeshed_pods_take_part() {
    let plain = unmeshed(
        "plain",
        1,
        "command: [shop, catalog, --version, plain], readinessProbe: {httpGet: {path: /healthz, port: 8080}}",
    );
    let mesh = Mesh::up(
        &(client("client") + &web("web", 2) + &plain + &service("plain", "plain", 80, 8080)),
    );
    assert_eq!(
        mesh.get("deploy/client", "http://plain/items"),
        200,
        "meshed to unmeshed"
    );
    assert_eq!(
        mesh.get("deploy/plain", "http://web/items"),
        200,
        "unmeshed to meshed"
    );
    mesh.apply(STRICT);
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    assert_eq!(
        mesh.get("deploy/plain", "http://web/items"),
        403,
        "plaintext under strict"
    );
}

#[test]
fn http2_conforms_to_h2spec() {
    let mesh = Mesh::up(&(client("client") + &web("web", 1)));
    let h2spec = tool_for_pods("h2spec");
    let ran = mesh.sh(
        "deploy/client",
        &format!("{h2spec} -h web -p 80 -P /echo/x -o 2 generic http2 hpack 2>&1"),
    );
    // The path reads its request whole before it answers.
    // Where no protocol is declared, what is not HTTP/2 from its first bytes is
    // for the application to refuse.
    let expected = "Sends invalid connection preface";
    let failed = ran
        .out
        .lines()
        .filter(|l| l.contains('×') && !l.contains(expected));
    assert_eq!(
        failed.collect::<Vec<_>>(),
        Vec::<&str>::new(),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("145 tests"), "{}", ran.out);
}

#[test]
fn where_either_side_may_speak_first_neither_is_waited_for() {
    // A banner for everybody, whoever has spoken.
    let server = "command: [/usr/bin/python3, -c, \"import socket\\ns=socket.create_server(('',7000))\\nwhile True:\\n c,_=s.accept()\\n c.sendall(b'banner\\\\n')\\n c.close()\"], readinessProbe: {tcpSocket: {port: 7000}}";
    let mesh = Mesh::up(
        &(client("client") + &deployment("both", 1, server) + &service("both", "both", 7000, 7000)),
    );
    let ask = |first: &str| {
        let script = format!(
            "import socket,time\ns=socket.create_connection(('both',7000))\nt=time.time()\ns.sendall({first})\nprint(s.recv(7),time.time()-t)"
        );
        let ran = mesh.exec("deploy/client", &["/usr/bin/python3", "-c", &script]);
        let (banner, seconds) = ran.out.trim().rsplit_once(' ').unwrap();
        assert_eq!(banner, "b'banner\\n'", "{ran:?}");
        seconds.parse::<f64>().unwrap()
    };
    ask("b'\\x00hello'");
    let silent = ask("b''");
    assert!(silent < 0.5, "a silent client waited for {silent} s");
}
