//! Every kind of workload gets a sidecar that it does not notice.

use weft_kubernetes_tests::*;

/// Mutual TLS only, and nobody may call anything.
const LOCKED: &str = "apiVersion: weft.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {name: strict}
spec:
  targetRefs: [{group: \"\", kind: Pod, selector: {}}]
  mtls: {mode: Strict}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec:
  targetRefs: [{group: \"\", kind: Pod, selector: {}}]
  action: Allow
  rules: []
";

/// Whether an edge with mutual TLS to a workload was counted.
fn called_with_mtls(namespace: &Namespace, destination: &str) -> bool {
    namespace.edges().iter().any(|e| {
        e["destination"] == destination && e["mtls"] == true && e["requests"].as_u64() > Some(0)
    })
}

#[test]
fn probes_of_every_kind_pass_under_strict_mtls_and_denial_of_everything() {
    let ns = Namespace::meshed("probes");
    ns.apply(LOCKED);
    let probes = [
        (
            "query",
            "{httpGet: {path: \"/health?token=s3cret\", port: 8080}, periodSeconds: 1}",
        ),
        (
            "named",
            "{httpGet: {path: \"/health?token=s3cret\", port: web}, periodSeconds: 1}",
        ),
        (
            "redirect",
            "{httpGet: {path: /moved, port: 8080}, periodSeconds: 1}",
        ),
        ("grpc", "{grpc: {port: 9090}, periodSeconds: 1}"),
        ("tcp", "{tcpSocket: {port: 7000}, periodSeconds: 1}"),
        (
            "exec",
            "{exec: {command: [/workload, get, \"http://127.0.0.1:8080/health?token=s3cret\"]}, periodSeconds: 1, timeoutSeconds: 5}",
        ),
    ];
    for (name, probe) in probes {
        let more = format!(
            ", ports: [{{name: web, containerPort: 8080}}], startupProbe: {probe}, readinessProbe: {probe}, livenessProbe: {probe}"
        );
        ns.apply(&deployment(name, 1, "serve, --health-token=s3cret", &more));
    }
    // A wrong probe must fail, or the others prove nothing.
    let wrong = [
        (
            "wrong-query",
            "{httpGet: {path: \"/health?token=other\", port: 8080}, periodSeconds: 1}",
        ),
        ("wrong-port", "{tcpSocket: {port: 7999}, periodSeconds: 1}"),
        (
            "wrong-service",
            "{grpc: {port: 9090, service: unknown}, periodSeconds: 1}",
        ),
    ];
    for (name, probe) in wrong {
        ns.apply(&deployment(
            name,
            1,
            "serve, --health-token=s3cret",
            &format!(", readinessProbe: {probe}"),
        ));
    }
    for (name, _) in probes {
        ns.ready(name);
    }
    std::thread::sleep(std::time::Duration::from_secs(3));
    let pods = ns.get("pods");
    for pod in pods["items"].as_array().expect("pods") {
        let name = pod["metadata"]["labels"]["app"]
            .as_str()
            .unwrap_or_default();
        let app = pod["status"]["containerStatuses"]
            .as_array()
            .and_then(|s| s.iter().find(|c| c["name"] == "app"));
        let app = app.expect("the application");
        assert_eq!(app["ready"], !name.starts_with("wrong"), "{name}: {app}");
        assert_eq!(app["restartCount"], 0, "{name}");
    }
    // The policies do hold: nobody else may come in.
    let refused = ns.call("deployment/exec", "http://query:8080/health?token=s3cret");
    assert!(
        refused.code != 0 && refused.err.contains("403"),
        "{refused:?}"
    );
}

#[test]
fn jobs_end_with_their_own_code_and_init_containers_have_the_network() {
    let ns = Namespace::meshed("jobs");
    ns.apply(&server("web", 1));
    ns.ready("web");
    let job = |name: &str, init: &str, args: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n  backoffLimit: 0\n  template:\n    spec:\n      \
             restartPolicy: Never\n      {init}\n      containers: [{{name: app, image: {WORKLOAD}, args: [{args}]}}]\n---\n"
        )
    };
    let init = format!(
        "initContainers: [{{name: first, image: {WORKLOAD}, args: [get, \"http://web:8080/\"]}}]"
    );
    ns.apply(&job("good", &init, "exit, \"0\", --after=1"));
    ns.apply(&job("bad", "", "exit, \"3\", --after=1"));
    ns.apply(&format!(
        "apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: nightly}}\nspec:\n  schedule: \"0 3 * * *\"\n  jobTemplate:\n    spec:\n      \
         template:\n        spec:\n          restartPolicy: Never\n          containers: [{{name: app, image: {WORKLOAD}, args: [get, \"http://web:8080/\"]}}]\n"
    ));
    ns.k("create job by-hand --from=cronjob/nightly");
    for name in ["good", "by-hand"] {
        ns.k(&format!(
            "wait --for=condition=Complete job/{name} --timeout=90s"
        ));
    }
    ns.k("wait --for=condition=Failed job/bad --timeout=90s");
    let pod = ns.get("pods -l job-name=bad");
    let app = pod["items"][0]["status"]["containerStatuses"]
        .as_array()
        .and_then(|s| s.iter().find(|c| c["name"] == "app"));
    assert_eq!(
        app.expect("the application")["state"]["terminated"]["exitCode"],
        3
    );
    eventually("the calls of init container and CronJob", 15, || {
        let sources: Vec<_> = ns
            .edges()
            .iter()
            .filter(|e| e["mtls"] == true)
            .map(|e| e["source"].clone())
            .collect();
        ["good", "by-hand"]
            .iter()
            .all(|name| sources.iter().any(|s| s == name))
    });
}

#[test]
fn stateful_sets_headless_services_host_ports_and_host_network_clients() {
    let ns = Namespace::meshed("kinds");
    ns.apply(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: db}}, spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{name: http, port: 8080}}]}}}}\n---\n\
         apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db}}\nspec:\n  serviceName: db\n  replicas: 2\n  selector: {{matchLabels: {{app: db}}}}\n  \
         template:\n    metadata: {{labels: {{app: db}}}}\n    spec:\n      containers:\n      - {{name: app, image: {WORKLOAD}, args: [serve], ports: [{{containerPort: 8080, hostPort: 18080}}], readinessProbe: {{httpGet: {{path: /health, port: 8080}}, periodSeconds: 1}}}}\n---\n"
    ));
    ns.apply(&server("client", 1));
    ns.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: host}}, spec: {{hostNetwork: true, containers: [{{name: app, image: {WORKLOAD}, args: [exit, \"0\", --after=3600]}}]}}}}"
    ));
    ns.k("rollout status statefulset/db --timeout=120s");
    ns.ready("client");
    ns.k("wait --for=condition=Ready pod/host --timeout=60s");
    // By its own name, through the headless service.
    eventually("the DNS name of a replica", 30, || {
        ns.call("deployment/client", "http://db-1.db:8080/").code == 0
    });
    let said = ns.call("deployment/client", "http://db-1.db:8080/").good();
    assert!(said.starts_with("200 db-1"), "{said}");
    eventually("mutual TLS to a replica", 15, || {
        called_with_mtls(&ns, "db")
    });
    // The pod on the node's network has no sidecar, and is let in while the port is permissive.
    assert_eq!(
        ns.get("pod host")["spec"]["initContainers"],
        serde_json::Value::Null
    );
    let address = ns.get("pod db-0")["status"]["podIP"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ns.call("host", &format!("http://{address}:8080/")).good();
    let node = ns.get("pod db-0")["status"]["hostIP"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ns.call("host", &format!("http://{node}:18080/")).good();
    // A second container, added later, is in the same network.
    let debug = format!(
        "debug db-0 --image={WORKLOAD} --profile=restricted --container=dbg --attach=true -q -- /workload get http://client:8080/"
    );
    let said = ns.k(&debug);
    assert!(said.starts_with("200 client"), "{said}");
}

#[test]
fn both_address_families_are_captured_and_carried() {
    let nodes = get("nodes");
    let ranges = nodes["items"][0]["spec"]["podCIDRs"].as_array();
    if ranges.is_none_or(|r| r.len() < 2) {
        eprintln!("this machine has no IPv6: dual stack is NOT tested");
        return;
    }
    let ns = Namespace::meshed("dual");
    ns.apply(&server("client", 1));
    ns.apply(&server("web", 1));
    for (name, families) in [("both", "IPv4, IPv6"), ("six", "IPv6")] {
        let policy = if name == "both" {
            "RequireDualStack"
        } else {
            "SingleStack"
        };
        ns.apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ipFamilyPolicy: {policy}, ipFamilies: [{families}], \
             selector: {{app: web}}, ports: [{{name: http, port: 8080}}]}}}}"
        ));
    }
    ns.apply(
        "{apiVersion: weft.dev/v1alpha1, kind: AuthenticationPolicy, metadata: {name: strict}, spec: {targetRefs: [{kind: Pod}], mtls: {mode: Strict}}}",
    );
    ns.ready("client");
    ns.ready("web");
    let both = ns.get("service both")["spec"]["clusterIPs"].clone();
    let pod = ns.get("pods -l app=web")["items"][0]["status"]["podIPs"].clone();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let hosts = [
        text(&both[0]),
        format!("[{}]", text(&both[1])),
        "six".to_owned(),
        text(&pod[0]["ip"]),
        format!("[{}]", text(&pod[1]["ip"])),
    ];
    for host in &hosts {
        let url = format!("http://{host}:8080/");
        eventually(&format!("an answer of {url}"), 20, || {
            ns.call("deployment/client", &url).code == 0
        });
    }
    eventually("mutual TLS by each address", 15, || {
        let mut edges = ns.edges();
        edges.retain(|e| e["source"] == "client" && e["destination"] != "");
        ["dual/both", "dual/six", ""].iter().all(|service| {
            edges
                .iter()
                .any(|e| e["service"] == *service && e["mtls"] == true)
        }) && edges.iter().all(|e| e["mtls"] == true)
    });
    // A caller without a sidecar is kept out by either family.
    let plain = Namespace::plain("dual-plain");
    plain.apply(&server("outside", 1));
    plain.ready("outside");
    for host in [&hosts[3], &hosts[4]] {
        let ran = plain.call("deployment/outside", &format!("http://{host}:8080/"));
        assert!(ran.code != 0, "{host}: {ran:?}");
    }
}

#[test]
fn annotations_decide_and_mistakes_are_refused_with_their_mend() {
    let ns = Namespace::meshed("choices");
    let plain = Namespace::plain("choices-plain");
    let pod = |name: &str, annotations: &str, spec: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, annotations: {annotations}}}, spec: {{containers: [{{name: app, image: {WORKLOAD}, args: [serve]{spec}}}]}}}}\n"
        )
    };
    ns.apply(&pod("out", "{weft.dev/inject: disabled}", ""));
    plain.apply(&pod("in", "{weft.dev/inject: enabled}", ""));
    plain.apply(&pod("bystander", "{}", ""));
    let sidecars =
        |pod: serde_json::Value| pod["spec"]["initContainers"].as_array().map_or(0, Vec::len);
    assert_eq!(sidecars(ns.get("pod out")), 0);
    assert_eq!(sidecars(plain.get("pod in")), 2);
    assert_eq!(sidecars(plain.get("pod bystander")), 0);
    plain.k("wait --for=condition=Ready pod/in --timeout=60s");
    for (name, annotations, spec, told) in [
        (
            "unknown",
            "{weft.dev/exclude-ports: \"1\"}",
            "",
            "weft.dev/exclude-ports is not known; known are",
        ),
        (
            "bad-port",
            "{weft.dev/exclude-inbound-ports: web}",
            "",
            "must be ports",
        ),
        (
            "user",
            "{}",
            ", securityContext: {runAsUser: 1337}",
            "runs as user 1337, which is the sidecar's",
        ),
        (
            "taken",
            "{}",
            ", ports: [{containerPort: 15006}]",
            "port 15006 is the sidecar's",
        ),
    ] {
        let refused = ns.try_apply(&pod(name, annotations, spec));
        assert!(
            refused.code != 0 && refused.err.contains(told),
            "{name}: {refused:?}"
        );
    }
}

#[test]
fn a_restricted_namespace_says_what_it_needs() {
    let ns = Namespace::labelled(
        "restricted-init",
        "{weft.dev/injection: enabled, pod-security.kubernetes.io/enforce: restricted}",
    );
    let refused = ns.try_apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}, \
         containers: [{{name: app, image: {WORKLOAD}, securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}}}]}}}}"
    ));
    // Only the init container offends; the CNI plugin makes it unneeded.
    assert!(
        refused.code != 0
            && refused.err.contains("weft-init")
            && !refused.err.contains("weft-proxy"),
        "{refused:?}"
    );
}
