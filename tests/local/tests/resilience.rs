//! What must not be noticed: outages, rotations, rollouts, restarts.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use nix::sys::signal::Signal;
use weft_tests_local::*;

/// `good N bad M ...`, the last line of a load generator.
fn counts(text: &str) -> (u64, u64) {
    let last = text
        .lines()
        .rfind(|l| l.starts_with("good"))
        .unwrap_or_default();
    let mut words = last.split_whitespace();
    let mut number = || {
        words
            .nth(1)
            .and_then(|w| w.parse().ok())
            .unwrap_or(u64::MAX)
    };
    (number(), number())
}

#[test]
fn a_rollout_under_load_loses_nothing_for_meshed_and_unmeshed_callers() {
    let version = |v: &str| {
        let container = format!(
            "command: [shop, catalog, --version, {v}], readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}}}"
        );
        deployment("web", 3, &container)
    };
    let callers = client("client") + &unmeshed("plain", 1, "command: [sleep, infinity]");
    let mesh = Mesh::up(&(callers + &version("one") + &service("web", "web", 80, 8080)));
    let load = |pod: &str| mesh.load(pod, "http://web/items", 100, 25);
    let (meshed, plain) = (load("deploy/client"), load("deploy/plain"));
    std::thread::sleep(Duration::from_secs(1));
    mesh.apply(&version("two"));
    std::thread::sleep(Duration::from_millis(500));
    mesh.apply(&version("three"));
    for (who, ran) in [("meshed", meshed.wait()), ("unmeshed", plain.wait())] {
        let (good, bad) = counts(&ran.out);
        assert!(
            good > 2000 && bad == 0,
            "{who}: good {good} bad {bad}: {ran:?}"
        );
    }
    assert!(
        mesh.curl("deploy/client", &["http://web/items"])
            .1
            .contains("three")
    );
}

#[test]
fn while_the_control_plane_is_away_everything_goes_on() {
    let mesh = Mesh::up(&(client("client") + &web("web", 2)));
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    let control_plane = mesh.pid("weft-control-plane", "weft-control-plane");
    signal(control_plane, Signal::SIGSTOP);
    // New connections, a lost endpoint, and a sidecar that comes back from its cache.
    for _ in 0..5 {
        assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    }
    signal(mesh.pid("client", "weft-proxy"), Signal::SIGKILL);
    eventually("the sidecar is back", || {
        mesh.get("deploy/client", "http://web/items") == 200
    });
    let log = mesh.sidecar_log("deploy/client");
    assert!(log.contains("identity taken from the cache"), "{log}");
    signal(mesh.pid("web-", "weft-proxy"), Signal::SIGKILL);
    for _ in 0..20 {
        assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    }
    signal(control_plane, Signal::SIGCONT);
    eventually("everybody is connected again", || {
        mesh.ctl(&["check"]).code == 0
    });
}

#[test]
fn a_killed_control_plane_comes_back_and_changes_arrive() {
    let mesh = Mesh::up(&(client("client") + &web("web", 1)));
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    signal(
        mesh.pid("weft-control-plane", "weft-control-plane"),
        Signal::SIGKILL,
    );
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    eventually("it is back", || mesh.ctl(&["check"]).code == 0);
    mesh.apply(&policy("p", "web", "action: Deny, rules: [{}]"));
    eventually("the policy is in force", || {
        mesh.get("deploy/client", "http://web/items") == 403
    });
}

#[test]
fn certificates_rotate_under_load_without_a_lost_request() {
    let mesh = Mesh::up_with(
        &(client("client") + &web("web", 2)),
        &["--leaf-lifetime", "20s"],
    );
    let loaded = mesh.load("deploy/client", "http://web/items", 100, 30);
    let ran = loaded.wait();
    let (good, bad) = counts(&ran.out);
    assert!(good > 2900 && bad == 0, "{ran:?}");
    let log = mesh.sidecar_log("deploy/client");
    assert!(log.matches("certificate received").count() >= 3, "{log}");
}

#[test]
fn a_foreign_authority_is_not_believed() {
    // Two meshes side by side, with the same names and other roots.
    let one = Mesh::up(&(client("client") + &web("web", 1)));
    let two = Mesh::up(&(client("client") + &web("web", 1)));
    assert_eq!(one.get("deploy/client", "http://web/items"), 200);
    assert_eq!(two.get("deploy/client", "http://web/items"), 200);
    let show = |mesh: &Mesh| mesh.ctl(&["ca", "show"]);
    assert_eq!(show(&one).code, 0);
}

#[test]
fn scaling_down_to_one_and_back_loses_nothing() {
    let scaled = |n: u32| {
        let container =
            "command: [shop, catalog], readinessProbe: {httpGet: {path: /healthz, port: 8080}}";
        deployment("web", n, container)
    };
    let mesh = Mesh::up(&(client("client") + &scaled(3) + &service("web", "web", 80, 8080)));
    let loaded = mesh.load("deploy/client", "http://web/items", 100, 12);
    std::thread::sleep(Duration::from_secs(1));
    mesh.apply(&scaled(1));
    mesh.apply(&scaled(3));
    let ran = loaded.wait();
    assert_eq!(counts(&ran.out).1, 0, "{ran:?}");
}

#[test]
fn a_control_plane_that_returns_sends_only_what_has_changed() {
    let mesh = Mesh::up_with(&(client("client") + &web("web", 3)), &["--log", "debug"]);
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    let sent = || -> usize {
        let log = mesh
            .ctl(&["local", "logs", "-n", "weft-system", "weft-control-plane"])
            .out;
        let lines = log.lines().filter(|l| l.contains("resources sent"));
        let number = |l: &str| -> Option<usize> {
            l.rsplit_once("resources=")?
                .1
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        };
        lines.filter_map(number).sum::<usize>()
    };
    let at_first = sent();
    assert!(
        at_first >= 8,
        "{at_first}: settings, own policies, destinations of four pods"
    );
    signal(
        mesh.pid("weft-control-plane", "weft-control-plane"),
        Signal::SIGKILL,
    );
    eventually("it is back", || mesh.ctl(&["check"]).code == 0);
    std::thread::sleep(Duration::from_secs(1));
    let again = sent() - at_first;
    assert!(again <= 2, "{again} of {at_first} were sent again");
    // And what changes arrives.
    mesh.apply(&policy("p", "web", "action: Deny, rules: [{}]"));
    eventually("the policy is in force", || {
        mesh.get("deploy/client", "http://web/items") == 403
    });
}
