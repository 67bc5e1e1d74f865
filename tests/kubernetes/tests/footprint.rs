//! A sidecar's memory follows what its pod calls, not the size of the cluster.

use std::fmt::Write;

use weft_kubernetes_tests::*;

/// Resident memory of a pod's sidecar, in KiB.
fn resident(ns: &Namespace, app: &str) -> u64 {
    let pod = ns.get(&format!("pods -l app={app}"))["items"][0].clone();
    let name = pod["metadata"]["name"].as_str().expect("a pod").to_owned();
    let node = pod["spec"]["nodeName"].as_str().expect("a node").to_owned();
    let script = format!(
        "for p in /proc/[0-9]*; do if grep -qx weft-proxy $p/comm 2>/dev/null && tr '\\0' '\\n' <$p/environ | grep -qx POD_NAME={name}; \
         then grep VmRSS $p/status | tr -dc 0-9; fi; done"
    );
    on_node(&node, &script)
        .good()
        .trim()
        .parse()
        .expect("its memory")
}

#[test]
fn a_thousand_more_services_cost_an_idle_sidecar_nothing() {
    let ns = Namespace::meshed("idle");
    ns.apply(&server("idle", 1));
    ns.ready("idle");
    std::thread::sleep(std::time::Duration::from_secs(3));
    let before = resident(&ns, "idle");
    let many = Namespace::plain("many");
    let mut list = "apiVersion: v1\nkind: List\nitems:\n".to_owned();
    for n in 0..1000 {
        let _ = writeln!(
            list,
            "- {{apiVersion: v1, kind: Service, metadata: {{name: s{n}}}, spec: {{selector: {{app: s{n}}}, ports: [{{port: 80}}]}}}}"
        );
    }
    many.apply(&list);
    std::thread::sleep(std::time::Duration::from_secs(5));
    let after = resident(&ns, "idle");
    println!("an idle sidecar: {before} KiB, after a thousand Services {after} KiB");
    assert!(after < before + 512, "{before} KiB have become {after} KiB");
}
