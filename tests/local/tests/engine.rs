//! The local engine: it runs what Kubernetes would, refuses the rest by name,
//! and leaves nothing behind.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use weft_tests_local::*;

#[test]
fn a_killed_engine_leaves_no_process_behind() {
    let mesh = Mesh::up(&web("web", 1));
    let pids: Vec<i32> = mesh
        .pods()
        .iter()
        .flat_map(|p| p["containers"].as_array().unwrap().clone())
        .map(|c| c["pid"].as_i64().unwrap() as i32)
        .collect();
    assert!(
        pids.iter()
            .all(|p| Path::new(&format!("/proc/{p}")).exists())
    );
    let engine = std::fs::read_to_string(format!("/run/weft/{}/engine.pid", mesh.name())).unwrap();
    signal(engine.trim().parse().unwrap(), Signal::SIGKILL);
    eventually("all processes are gone", || {
        !pids
            .iter()
            .any(|p| Path::new(&format!("/proc/{p}")).exists())
    });
    assert_eq!(mesh.ctl(&["local", "down"]).code, 0);
    assert!(!Path::new(&format!("/run/weft/{}", mesh.name())).exists());
}

#[test]
fn down_leaves_nothing() {
    let mesh = Mesh::up(&web("web", 1));
    let folder = format!("/run/weft/{}", mesh.name());
    assert_eq!(mesh.ctl(&["local", "down"]).code, 0);
    assert!(!Path::new(&folder).exists());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&folder));
}

#[test]
fn a_container_that_ends_is_started_again() {
    let mesh = Mesh::up(&web("web", 1));
    signal(mesh.pid("web", "main"), Signal::SIGKILL);
    eventually("it was restarted", || {
        mesh.pods()
            .iter()
            .any(|p| p["restarts"] == 1 && p["ready"] == true)
    });
}

#[test]
fn exec_runs_as_the_applications_user_and_passes_the_exit_code_on() {
    let mesh = Mesh::up(&client("client"));
    assert_eq!(mesh.sh("deploy/client", "id -u").out.trim(), "1000");
    assert_eq!(mesh.sh("deploy/client", "exit 7").code, 7);
    let token = mesh.sh(
        "deploy/client",
        "cat /run/weft/*/pods/*/token /run/weft/*/pods/*/cache/key.der 2>/dev/null | wc -c",
    );
    assert_eq!(
        token.out.trim(),
        "0",
        "the application cannot read the sidecar's secrets"
    );
}

#[test]
fn the_application_cannot_pass_the_proxy_by() {
    let mesh = Mesh::up(&client("client"));
    let ran = mesh.sh(
        "deploy/client",
        "iptables -t nat -F 2>&1; ip link set eth0 down 2>&1; setpriv --reuid 1337 true 2>&1",
    );
    assert!(
        ran.out.matches("ermi").count() >= 2 && ran.code != 0,
        "{ran:?}"
    );
}

#[test]
fn without_root_it_says_what_is_needed() {
    let ran = Command::new("setpriv")
        .args(["--reuid", "1000", "--clear-groups"])
        .arg(programs().join("meshctl"))
        .args(["local", "ps"])
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(
        !ran.status.success() && err.contains("run it with sudo"),
        "{err}"
    );
}

#[test]
fn a_pod_that_cannot_start_is_explained() {
    let ran = meshctl_with(
        &["local", "up", "--name", "broken", "-f", "-"],
        &(NAMESPACE.to_owned() + &deployment("bad", 1, "command: [no-such-program]")),
    );
    assert!(ran.code == 1 && ran.err.contains("t/bad-"), "{ran:?}");
    assert!(!Path::new("/run/weft/broken").exists());
}

#[test]
fn a_taken_port_is_explained() {
    let mesh = Mesh::up(&client("client"));
    let ran = meshctl(&[
        "local",
        "up",
        "--name",
        mesh.name(),
        "-f",
        "examples/manifests",
    ]);
    assert!(ran.code == 1, "{ran:?}");
    let taken = Command::new("unshare")
        .args(["-n", "bash", "-c"])
        .arg(format!(
            "ip link set lo up; exec 3< <(/usr/bin/python3 -uc 'import socket,time; s=socket.create_server((\"0.0.0.0\", 15001)); print(\"listening\"); time.sleep(8)'); read -ru 3 -t 10; timeout 4 {} --control-plane 127.0.0.1:1 --control-plane-identity spiffe://a/ns/b/sa/c --trust-bundle /x --token /x --pod p --namespace n",
            programs().join("weft-proxy").display()
        ))
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(
        err.contains("15001") && err.contains("another process has it"),
        "{err}"
    );
}

/// Commands in a network namespace of their own, as root.
fn in_new_network(script: &str) -> (i32, String) {
    let init = programs().join("weft-init");
    let ran = Command::new("unshare")
        .args(["-n", "bash", "-c", script, "bash"])
        .arg(init)
        .output()
        .unwrap();
    let text = [ran.stdout, ran.stderr].concat();
    (
        ran.status.code().unwrap(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn redirect_rules_are_set_once_read_back_and_taken_away() {
    let (code, said) = in_new_network(
        "set -e; $1; $1; iptables-save -t nat | sort > /dev/null; iptables-save -t nat | grep -c WEFT; $1 --verify && echo stands; $1 --remove; iptables-save -t nat | grep WEFT || echo gone",
    );
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("stands") && said.contains("gone"), "{said}");
}

#[test]
fn a_rule_that_somebody_removed_or_added_is_noticed_and_mended() {
    for tamper in [
        "iptables -t nat -F WEFT_OUTPUT",
        "iptables -t nat -I WEFT_OUTPUT -p tcp --dport 80 -j RETURN",
        "iptables -t nat -D PREROUTING 1",
        "ip6tables -t nat -D OUTPUT 1",
    ] {
        let (_, said) = in_new_network(&format!(
            "$1 && {tamper} && {{ $1 --verify || echo noticed; $1 && $1 --verify && echo mended; }}"
        ));
        assert!(
            said.contains("noticed") && said.contains("mended") && said.contains("not in place"),
            "{tamper}: {said}"
        );
    }
}

#[test]
fn a_machine_that_cannot_redirect_is_told_what_it_lacks() {
    let (code, said) = in_new_network(
        "d=$(mktemp -d); printf '#!/bin/sh\\necho \"iptables v1.8.9: can'\\''t initialize iptables table nat: Table does not exist (do you need to insmod?)\" >&2; exit 3\\n' | tee $d/iptables-save > $d/iptables-restore; chmod +x $d/*; PATH=$d:$PATH $1; c=$?; rm -r $d; exit $c",
    );
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("nf_nat"), "{said}");
    for path in ["$PATH", "/nowhere"] {
        let unprivileged =
            format!("/usr/bin/setpriv --reuid 1000 --clear-groups env PATH={path} $1");
        let (code, said) = in_new_network(&unprivileged);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("NET_ADMIN"), "{said}");
    }
}

#[test]
fn without_iptables_the_kernel_is_told_directly() {
    let (code, said) = in_new_network(
        "export PATH=/nowhere; $1 && $1 && $1 --verify && ! $1 --verify --exclude-inbound-ports 9100 && $1 --remove && ! $1 --verify",
    );
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("missing: chain output of table weft"),
        "{said}"
    );
}

#[test]
fn what_is_excluded_is_not_redirected_by_iptables() {
    what_is_excluded_is_not_redirected("$PATH");
}

#[test]
fn what_is_excluded_is_not_redirected_by_netlink() {
    what_is_excluded_is_not_redirected("/nowhere");
}

fn what_is_excluded_is_not_redirected(path: &str) {
    // Whoever is redirected reaches the listener on 15001; nobody answers
    // behind the interface.
    let script = "set -e; ip link set lo up; ip link add v0 type veth peer name v1; ip addr add 10.0.0.1/8 dev v0; ip link set v0 up; ip link set v1 up
        PATH=$3 $1 --exclude-outbound-ports 9000 --exclude-outbound-cidrs 10.3.0.0/16 --exclude-uids 1234
        /usr/bin/python3 -uc 'import socket,time
s=socket.create_server((\"0.0.0.0\",15001)); print(\"listening\"); time.sleep(20)' > $2 & listener=$!
        until grep -q listening $2; do sleep 0.1; done
        try() { timeout 1 setpriv --reuid $1 --clear-groups /usr/bin/python3 -c \"import socket; socket.create_connection(('$2',$3),0.5)\" 2>/dev/null && echo \"$1 $2 $3 redirected\" || echo \"$1 $2 $3 direct\"; }
        try 1000 10.2.0.2 80; try 1000 10.2.0.2 9000; try 1000 10.3.0.2 80; try 1234 10.2.0.2 80; try 1337 10.2.0.2 80
        kill $listener";
    let folder = Folder::new("excluded");
    let out = folder.write("out", "");
    let ran = Command::new("unshare")
        .args(["-n", "bash", "-c", script, "bash"])
        .arg(programs().join("weft-init"))
        .arg(&out)
        .arg(match path {
            "$PATH" => std::env::var("PATH").unwrap_or_default(),
            path => path.to_owned(),
        })
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    let wanted = "1000 10.2.0.2 80 redirected\n1000 10.2.0.2 9000 direct\n1000 10.3.0.2 80 direct\n1234 10.2.0.2 80 direct\n1337 10.2.0.2 80 direct\n";
    assert_eq!(said, wanted, "{}", String::from_utf8_lossy(&ran.stderr));
}
