//! What the tests on Kubernetes share: a cluster with the mesh in it, which
//! `run.sh` has started, and namespaces of their own.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The image of the tests' own workload.
pub const WORKLOAD: &str = "weft/test-workload:0.1.0";

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Its output; it must have worked.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "{}\n{}", self.out, self.err);
        self.out
    }
}

/// A command where the cluster can be reached from.
fn within(program: &str) -> Command {
    let prefix = std::env::var("WEFT_WITHIN").unwrap_or_default();
    let mut words = prefix.split_whitespace();
    match words.next() {
        Some(first) => {
            let mut command = Command::new(first);
            command.args(words).arg(program);
            command
        }
        None => Command::new(program),
    }
}

fn program(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run tests/kubernetes/run.sh"))
}

/// A program where the cluster can be reached, with its input.
pub fn run(program: &str, args: &[&str], input: &str) -> Ran {
    let mut child = within(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(program);
    let mut stdin = child.stdin.take().expect("stdin");
    stdin
        .write_all(input.as_bytes())
        .expect("the input is read");
    drop(stdin);
    child.wait_with_output().expect("it ends").into()
}

/// `kubectl`, with the cluster's kubeconfig.
pub fn kubectl(args: &[&str]) -> Ran {
    run(&program("WEFT_KUBECTL"), args, "")
}

/// `kubectl` with words separated by spaces; it must work.
#[track_caller]
pub fn k(words: &str) -> String {
    kubectl(&words.split_whitespace().collect::<Vec<_>>()).good()
}

/// What `kubectl get` says, as JSON.
#[track_caller]
pub fn get(words: &str) -> Value {
    serde_json::from_str(&k(&format!("get {words} -o json"))).expect("JSON")
}

/// Applies manifests; whether that works is the caller's to see.
pub fn try_apply(manifests: &str) -> Ran {
    run(&program("WEFT_KUBECTL"), &["apply", "-f", "-"], manifests)
}

/// Applies manifests.
#[track_caller]
pub fn apply(manifests: &str) {
    try_apply(manifests).good();
}

/// `meshctl`, with the cluster's kubeconfig.
pub fn meshctl(args: &[&str]) -> Ran {
    run(&program("WEFT_MESHCTL"), args, "")
}

/// A command on a node of the cluster.
pub fn on_node(node: &str, script: &str) -> Ran {
    let output = Command::new("docker")
        .args(["exec", node, "sh", "-c", script])
        .output();
    output.expect("docker").into()
}

/// Waits until something holds, for at most `seconds`.
#[track_caller]
pub fn eventually(what: &str, seconds: u64, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(
            Instant::now() < deadline,
            "{what} did not come true within {seconds} s"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A namespace of the mesh, taken away when the test ends.
pub struct Namespace(String);

impl Namespace {
    /// One whose pods get a sidecar.
    pub fn meshed(name: &str) -> Self {
        Self::labelled(name, "{weft.dev/injection: enabled}")
    }

    /// One whose pods get none.
    pub fn plain(name: &str) -> Self {
        Self::labelled(name, "{}")
    }

    /// One with labels, in YAML.
    pub fn labelled(name: &str, labels: &str) -> Self {
        k(&format!(
            "delete namespace {name} --ignore-not-found --wait=true"
        ));
        apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {labels}}}}}"
        ));
        let name = name.to_owned();
        // Made a moment after the namespace, and needed by every pod.
        eventually("the service account", 20, || {
            kubectl(&["-n", &name, "get", "serviceaccount", "default"]).code == 0
        });
        Self(name)
    }

    /// Applies manifests in it.
    #[track_caller]
    pub fn apply(&self, manifests: &str) {
        self.try_apply(manifests).good();
    }

    /// Applies manifests in it; whether that works is the caller's to see.
    pub fn try_apply(&self, manifests: &str) -> Ran {
        run(
            &program("WEFT_KUBECTL"),
            &["-n", &self.0, "apply", "-f", "-"],
            manifests,
        )
    }

    /// `kubectl` in it; it must work.
    #[track_caller]
    pub fn k(&self, words: &str) -> String {
        k(&format!("-n {} {words}", self.0))
    }

    /// What `kubectl get` says, as JSON.
    #[track_caller]
    pub fn get(&self, words: &str) -> Value {
        get(&format!("-n {} {words}", self.0))
    }

    /// Waits until a Deployment has all its pods, and its Service leads to them:
    /// the cluster's own controller may be busy for a while.
    #[track_caller]
    pub fn ready(&self, deployment: &str) {
        self.k(&format!(
            "rollout status deployment/{deployment} --timeout=120s"
        ));
        let service = kubectl(&["-n", &self.0, "get", "service", deployment]);
        if service.code != 0 {
            return;
        }
        eventually("the endpoints of the Service", 90, || {
            let slices = self.get(&format!(
                "endpointslices -l kubernetes.io/service-name={deployment}"
            ));
            let slices = slices["items"].as_array().cloned().unwrap_or_default();
            slices
                .iter()
                .filter_map(|s| s["endpoints"].as_array())
                .flatten()
                .any(|e| e["conditions"]["ready"] == true)
        });
    }

    /// Calls a URL from a pod's application.
    pub fn call(&self, from: &str, url: &str) -> Ran {
        let call = ["exec", from, "-c", "app", "--", "/workload", "get", url];
        kubectl(&[["-n", &self.0].as_slice(), &call].concat())
    }

    /// What is in it, for whoever reads why a test failed.
    fn tell(&self) {
        let pods = get_names(&self.0);
        let mut commands = vec!["get pods -o wide".to_owned(), "get events".to_owned()];
        for pod in pods.iter().take(8) {
            commands.push(format!("describe pod {pod}"));
            commands.push(format!(
                "logs {pod} --all-containers --prefix --timestamps --tail=60"
            ));
        }
        for command in commands {
            let words = format!("-n {} {command}", self.0);
            let ran = kubectl(&words.split_whitespace().collect::<Vec<_>>());
            eprintln!("--- kubectl {words}\n{}{}", ran.out, ran.err);
        }
    }

    /// The edges that begin or end in it, as the mesh counted them.
    pub fn edges(&self) -> Vec<Value> {
        let all = ["edges", "-n", &self.0, "--window", "0", "-o", "json"];
        serde_json::from_str(&meshctl(&all).good()).expect("JSON")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
        kubectl(&["delete", "namespace", &self.0, "--wait=false"]);
    }
}

/// The names of a namespace's pods.
fn get_names(namespace: &str) -> Vec<String> {
    let ran = kubectl(&["-n", namespace, "get", "pods", "-o", "name"]);
    let name = |line: &str| line.trim_start_matches("pod/").to_owned();
    ran.out.lines().map(name).collect()
}

/// A setting of the whole mesh, until the test ends.
pub struct Setting;

impl Setting {
    /// `NAME=VALUE`, as `meshctl upgrade --set` takes it.
    pub fn set(setting: &str) -> Self {
        meshctl(&["upgrade", "--set", setting]).good();
        Self
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        meshctl(&["upgrade"]);
    }
}

/// A Deployment of the workload, with a Service of the same name.
pub fn deployment(name: &str, replicas: u32, args: &str, more: &str) -> String {
    let service = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: {name}}}, ports: [\
         {{name: http, port: 8080}}, {{name: grpc, port: 9090}}, {{name: tcp, port: 7000}}]}}}}"
    );
    format!(
        "{service}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      \
         containers:\n      - {{name: app, image: {WORKLOAD}, args: [{args}]{more}}}\n---\n"
    )
}

/// The workload as a server that is ready when its HTTP port answers.
pub fn server(name: &str, replicas: u32) -> String {
    let probe = ", readinessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1}";
    deployment(name, replicas, "serve", probe)
}

/// What a caller made by [`load`] has counted of one kind of calls.
#[derive(Debug, Clone)]
pub struct Count {
    /// `http` (connections are kept), `fresh` (a new one each time), `grpc` and
    /// `channel` (tonic's, which does not repeat what it has not sent yet).
    pub kind: &'static str,
    pub good: u64,
    pub bad: u64,
    pub last_error: String,
}

/// A Deployment that calls a server's ports 20 times a second each, and counts.
/// It has a share of the CPU: a caller that stands still for as long as others
/// want it sends on connections that have ended meanwhile. `more` is a part of
/// its pods' spec.
pub fn load(name: &str, host: &str, more: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      \
         {more}\n      containers: [{{name: app, image: {WORKLOAD}, args: [load, --host={host}], \
         resources: {{requests: {{cpu: 200m}}}}}}]\n---\n"
    )
}

/// What a caller has counted so far.
pub fn counts(ns: &Namespace, caller: &str) -> Vec<Count> {
    let line = ns.k(&format!("logs deployment/{caller} -c app --tail 1"));
    let said: Value = serde_json::from_str(line.trim()).unwrap_or_default();
    let count = |kind: &'static str| Count {
        kind,
        good: said[kind]["good"].as_u64().unwrap_or_default(),
        bad: said[kind]["bad"].as_u64().unwrap_or_default(),
        last_error: said[kind]["last_error"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    };
    ["http", "fresh", "grpc", "channel"].map(count).to_vec()
}

/// What the mesh's accounts asked of the API server so far.
pub fn audit() -> Vec<Value> {
    let log = on_node("weft-1-control-plane", "cat /var/log/kubernetes/audit.log").good();
    log.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// The text at a place in a document, or none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default()
}

/// Whoever's names begin so was refused nothing, and used every right of these
/// roles but those that are seldom needed: verb and resource.
#[track_caller]
pub fn assert_rights_are_used(accounts: &str, roles: &[&str], seldom: &[(&str, &str)]) {
    let mut refused: Vec<String> = Vec::new();
    let mut used: BTreeSet<(String, String)> = BTreeSet::new();
    for event in audit() {
        if !text(&event, "/user/username").starts_with(accounts) {
            continue;
        }
        let mut resource = text(&event, "/objectRef/resource").to_owned();
        let sub = text(&event, "/objectRef/subresource");
        if !sub.is_empty() {
            resource = format!("{resource}/{sub}");
        }
        let verb = text(&event, "/verb").to_owned();
        if event["annotations"]["authorization.k8s.io/decision"] == "forbid" {
            let name = text(&event, "/objectRef/name");
            refused.push(format!("{verb} {resource} {name}"));
        }
        used.insert((verb, resource));
    }
    assert_eq!(refused, [""; 0], "rights are missing");
    let mut unused = Vec::new();
    for role in roles {
        let rules = get(role)["rules"].as_array().cloned().expect("rules");
        for rule in rules {
            let list = |field: &str| rule[field].as_array().cloned().unwrap_or_default();
            for resource in list("resources") {
                for verb in list("verbs") {
                    let pair = (text(&verb, "").to_owned(), text(&resource, "").to_owned());
                    if !used.contains(&pair) {
                        unused.push(pair);
                    }
                }
            }
        }
    }
    unused.retain(|(verb, resource)| !seldom.contains(&(verb.as_str(), resource.as_str())));
    assert_eq!(unused, [], "rights that nothing used");
}
