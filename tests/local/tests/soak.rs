//! Three minutes of everything at once: HTTP/1.1, gRPC and TCP under load while
//! Deployments roll, routes and policies change, certificates rotate and the
//! control plane is killed. Nothing fails, and memory stays flat.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use weft_tests_local::*;

const LENGTH: Duration = Duration::from_secs(180);
/// By then every connection that is kept is open.
const SETTLED: Duration = Duration::from_secs(60);
/// Between two changes.
const BEAT: Duration = Duration::from_secs(5);

/// A service of the shop in its `edition`th edition.
fn edition(name: &str, replicas: u32, command: &str, edition: u32, probe: &str) -> String {
    let container = format!(
        "command: [shop, {command}], env: [{{name: EDITION, value: \"{edition}\"}}], readinessProbe: {probe}"
    );
    deployment(name, replicas, &container)
}

fn catalog(n: u32) -> String {
    let probe = "{httpGet: {path: /healthz, port: 8080}}";
    edition("catalog", 2, "catalog", n, probe)
}

fn cart(n: u32) -> String {
    edition("cart", 2, "cart", n, "{tcpSocket: {port: 9090}}")
}

fn stock(n: u32) -> String {
    edition("stock", 2, "stock", n, "{tcpSocket: {port: 7000}}")
}

/// The shop's page asks the catalog over HTTP/1.1, the cart over gRPC and the
/// stock over TCP, where the server speaks first.
fn shop() -> String {
    let probe = "{httpGet: {path: /healthz, port: 8080}}";
    [
        catalog(0),
        cart(0),
        stock(0),
        edition("frontend", 1, "frontend", 0, probe),
        web("recommend", 1),
        service("catalog", "catalog", 80, 8080),
        service("catalog-b", "catalog", 80, 8080),
        service("cart", "cart", 9090, 9090),
        service("stock", "stock", 7000, 7000),
        service("frontend", "frontend", 80, 8080),
        client("client"),
        unmeshed("plain", 1, "command: [sleep, infinity]"),
    ]
    .concat()
}

/// The `n`th change to the mesh.
fn change(mesh: &Mesh, n: u32) {
    match n % 6 {
        0 => mesh.apply(&catalog(n + 1)),
        1 => mesh.apply(&route(
            "catalog",
            "catalog",
            &format!(
                "[{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-edition, value: \"{n}\"}}]}}}}], \
                 backendRefs: [{{name: catalog, port: 80, weight: {n}}}, {{name: catalog-b, port: 80, weight: 5}}]}}]"
            ),
        )),
        2 => mesh.apply(&policy(
            "callers",
            "catalog",
            &format!("action: Allow, rules: [{{sources: [{{type: ServiceAccount, serviceAccount: {{name: frontend}}}}]}}, {{sources: [{{type: Namespace, namespace: n{n}}}]}}]"),
        )),
        3 => mesh.apply(&cart(n + 1)),
        4 => signal(
            mesh.pid("weft-control-plane", "weft-control-plane"),
            Signal::SIGKILL,
        ),
        _ => mesh.apply(&stock(n + 1)),
    }
}

#[test]
fn three_minutes_of_change_under_load_lose_nothing_and_keep_memory_flat() {
    let mesh = Mesh::up_with(&shop(), &["--leaf-lifetime", "60s"]);
    let load = |pod: &str, rate| mesh.load(pod, "http://frontend/", rate, LENGTH.as_secs());
    let callers = [
        ("meshed", load("deploy/client", 30)),
        ("unmeshed", load("deploy/plain", 10)),
    ];
    let sidecars = ["client", "frontend"].map(|pod| mesh.pid(pod, "weft-proxy"));
    let start = Instant::now();
    let mut settled = None;
    let mut n = 0;
    while start.elapsed() < LENGTH - Duration::from_secs(10) {
        change(&mesh, n);
        n += 1;
        std::thread::sleep(BEAT);
        if settled.is_none() && start.elapsed() > SETTLED {
            settled = Some(sidecars.map(resident));
        }
    }
    for (who, caller) in callers {
        let ran = caller.wait();
        let last = ran.out.lines().last().unwrap_or_default().to_owned();
        println!("{who}: {last}; {n} changes");
        assert!(last.contains(" bad 0 "), "{who}: {last}: {}", ran.err);
    }
    let ended = sidecars.map(resident);
    println!("resident KiB: {settled:?} after a minute, {ended:?} at the end");
    for (before, after) in settled.unwrap().into_iter().zip(ended) {
        assert!(
            after < before + before / 10 + 512,
            "{before} to {after} KiB"
        );
    }
    let rotated = mesh.sidecar_log("deploy/client");
    assert!(rotated.matches("certificate received").count() >= 3);
}
