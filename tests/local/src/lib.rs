//! Drives the real binaries: a mesh in network namespaces for each test, with
//! clients and servers that others wrote.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The namespace that tests use, and a client in it that has curl.
pub const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: t}}\n---\n";

/// A mesh, gone when it is dropped.
pub struct Mesh {
    name: String,
}

/// What a command gave.
#[derive(Debug)]
pub struct Ran {
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }
}

/// Folder of the binaries under test: what `cargo build --release` made.
pub fn programs() -> PathBuf {
    let target = std::env::var("CARGO_TARGET_DIR").map(PathBuf::from);
    target
        .unwrap_or_else(|_| repository().join("target"))
        .join("release")
}

/// The repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// A tool that `tests/setup.sh` built.
pub fn tool(name: &str) -> PathBuf {
    let cache = std::env::var("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|_| PathBuf::from(std::env::var("HOME").unwrap()).join(".cache"));
    cache.join("weft/tools").join(name)
}

/// The same, where the applications' user may run it.
pub fn tool_for_pods(name: &str) -> String {
    static PLACED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let place = format!("/run/weft-{name}");
    // Once for all tests of a file, which run side by side.
    let mut placed = PLACED.lock().unwrap();
    if placed.insert(name.to_owned()) {
        // Another file's pod may run it now: replaced, not written to.
        let new = format!("{place}.{}", std::process::id());
        std::fs::copy(tool(name), &new).unwrap();
        std::fs::rename(&new, &place).unwrap();
    }
    place
}

/// `meshctl` with arguments.
pub fn meshctl(args: &[&str]) -> Ran {
    meshctl_with(args, "")
}

/// `meshctl` with arguments and standard input.
pub fn meshctl_with(args: &[&str], input: &str) -> Ran {
    use std::io::Write;
    let mut child = Command::new(programs().join("meshctl"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("meshctl is built: cargo build --release");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap().into()
}

impl Mesh {
    /// Starts a mesh with manifests and waits until it is ready.
    pub fn up(manifests: &str) -> Self {
        Self::up_with(manifests, &[])
    }

    /// As `up`, with more flags.
    pub fn up_with(manifests: &str, flags: &[&str]) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mesh = Self {
            name: format!("t{}-{number}", std::process::id()),
        };
        let manifests = format!("{NAMESPACE}{manifests}");
        let mut args = vec!["local", "up", "--name", &mesh.name, "-f", "-"];
        args.extend(flags);
        let ran = meshctl_with(&args, &manifests);
        assert_eq!(ran.code, 0, "up: {}{}", ran.out, ran.err);
        mesh
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `meshctl` for this mesh.
    pub fn ctl(&self, args: &[&str]) -> Ran {
        let mut all = args.to_vec();
        // Before a `--`, which ends the flags.
        let at = all.iter().position(|a| *a == "--").unwrap_or(all.len());
        all.splice(at..at, ["--name", self.name.as_str()]);
        meshctl(&all)
    }

    /// The JSON of a command.
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let ran = self.ctl(&all);
        serde_json::from_str(&ran.out)
            .unwrap_or_else(|e| panic!("{args:?}: {e}: {}{}", ran.out, ran.err))
    }

    /// Applies manifests; panics if they are refused.
    pub fn apply(&self, manifests: &str) {
        let ran = self.try_apply(manifests);
        assert_eq!(ran.code, 0, "apply: {}{}", ran.out, ran.err);
    }

    /// Applies manifests.
    pub fn try_apply(&self, manifests: &str) -> Ran {
        meshctl_with(
            &["local", "apply", "--name", &self.name, "-f", "-"],
            manifests,
        )
    }

    /// Deletes what manifests name.
    pub fn delete(&self, manifests: &str) {
        let ran = meshctl_with(
            &["local", "delete", "--name", &self.name, "-f", "-"],
            manifests,
        );
        assert_eq!(ran.code, 0, "delete: {}{}", ran.out, ran.err);
    }

    /// A command in a pod of the namespace `t`.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Ran {
        let mut args = vec!["local", "exec", "-n", "t", pod, "--"];
        args.extend(command);
        self.ctl(&args)
    }

    /// A shell command in a pod.
    pub fn sh(&self, pod: &str, command: &str) -> Ran {
        self.exec(pod, &["bash", "-c", command])
    }

    /// curl in a pod: the body, and the status on a line of its own.
    pub fn curl(&self, pod: &str, args: &[&str]) -> (u16, String) {
        let mut all = vec!["curl", "-s", "-m", "10", "-w", "\n%{http_code}"];
        all.extend(args);
        let ran = self.exec(pod, &all);
        let (body, status) = ran.out.rsplit_once('\n').unwrap_or(("", "0"));
        (status.parse().unwrap_or(0), body.to_owned())
    }

    /// The status of a GET.
    pub fn get(&self, pod: &str, url: &str) -> u16 {
        self.curl(pod, &[url]).0
    }

    /// Starts a command in a pod that goes on beside the test.
    pub fn spawn(&self, pod: &str, command: &str) -> Background {
        let child = Command::new(programs().join("meshctl"))
            .args([
                "local", "exec", "--name", &self.name, "-n", "t", pod, "--", "bash", "-c", command,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Background(Some(child))
    }

    /// Pods as `ps` has them.
    pub fn pods(&self) -> Vec<Value> {
        self.json(&["local", "ps"]).as_array().unwrap().clone()
    }

    /// The process of a container on the machine.
    pub fn pid(&self, pod: &str, container: &str) -> i32 {
        let pods = self.pods();
        let found = pods
            .iter()
            .find(|p| p["pod"].as_str().unwrap().starts_with(pod))
            .expect("pod");
        let containers = found["containers"].as_array().unwrap();
        let found = containers
            .iter()
            .find(|c| c["name"] == container)
            .expect("container");
        found["pid"].as_i64().unwrap() as i32
    }

    /// Edges that the proxies reported, since the start.
    pub fn edges(&self) -> Vec<Value> {
        self.json(&["edges", "--window", "0"])
            .as_array()
            .unwrap()
            .clone()
    }

    /// Starts the shop's load generator in a pod; the last line it prints counts
    /// what was good and bad.
    pub fn load(&self, pod: &str, url: &str, rate: u32, seconds: u64) -> Background {
        // By its path: a command run by `exec` has the user's own.
        let program = programs().join("shop");
        let run = format!("load --url {url} --rate {rate} --seconds {seconds}");
        self.spawn(pod, &format!("{} {run}", program.display()))
    }

    /// What a sidecar of the namespace `t` has logged.
    pub fn sidecar_log(&self, pod: &str) -> String {
        self.ctl(&["local", "logs", "-n", "t", pod, "-c", "weft-proxy"])
            .out
    }

    /// Metrics of a sidecar.
    pub fn metrics(&self, pod: &str) -> String {
        self.ctl(&["proxy", "metrics", "-n", "t", pod]).out
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", meshctl(&["local", "ps", "--name", &self.name]).out);
            eprintln!("{}", meshctl(&["check", "--name", &self.name]).out);
        }
        meshctl(&["local", "down", "--name", &self.name]);
    }
}

/// A command that goes on beside the test; ended when it is dropped.
pub struct Background(Option<std::process::Child>);

impl Background {
    /// Waits for its end.
    pub fn wait(mut self) -> Ran {
        self.0.take().unwrap().wait_with_output().unwrap().into()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.0
            .as_mut()
            .is_some_and(|c| c.try_wait().unwrap().is_none())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until something holds, for at most ten seconds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Resident memory of a process, in KiB.
pub fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A folder that pods can read, gone when it is dropped.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Makes it; `name` is used once in a test's file.
    pub fn new(name: &str) -> Self {
        let folder = PathBuf::from(format!("/run/weft-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Sends a signal to a process of this test's mesh.
pub fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

/// A Deployment with a service account of its name.
pub fn deployment(name: &str, replicas: u32, container: &str) -> String {
    pod_manifest(name, replicas, container, "")
}

/// A Deployment without a sidecar.
pub fn unmeshed(name: &str, replicas: u32, container: &str) -> String {
    pod_manifest(
        name,
        replicas,
        container,
        "annotations: {weft.dev/inject: disabled}, ",
    )
}

fn pod_manifest(name: &str, replicas: u32, container: &str, annotations: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {name}, namespace: t}}}}\n\
         ---\n{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}, namespace: t}}, spec: {{replicas: {replicas}, \
         selector: {{matchLabels: {{app: {name}}}}}, template: {{metadata: {{{annotations}labels: {{app: {name}}}}}, \
         spec: {{serviceAccountName: {name}, containers: [{{name: main, {container}}}]}}}}}}}}\n"
    )
}

/// A pod that does nothing, to run commands in.
pub fn client(name: &str) -> String {
    deployment(name, 1, "command: [sleep, infinity]")
}

/// A service for the pods of an application.
pub fn service(name: &str, app: &str, port: u16, target: u16) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: t}}, spec: {{selector: {{app: {app}}}, ports: [{{port: {port}, targetPort: {target}}}]}}}}\n"
    )
}

/// The shop's catalog, which also echoes what it is sent.
pub fn web(name: &str, replicas: u32) -> String {
    let container = format!(
        "command: [shop, catalog, --version, {name}], ports: [{{containerPort: 8080}}], readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}}}"
    );
    deployment(name, replicas, &container) + &service(name, name, 80, 8080)
}

/// An AuthorizationPolicy for an application, with the given `spec` fields.
pub fn policy(name: &str, app: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: t}}\nspec: {{targetRefs: [{{group: \"\", kind: Pod, selector: {{matchLabels: {{app: {app}}}}}}}], {spec}}}\n"
    )
}

/// An HTTPRoute for a service, with the given rules.
pub fn route(name: &str, service: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: t}}\nspec: {{parentRefs: [{{group: \"\", kind: Service, name: {service}}}], rules: {rules}}}\n"
    )
}

/// An AuthenticationPolicy that requires mutual TLS of everybody.
pub const STRICT: &str = "---\napiVersion: weft.dev/v1alpha1\nkind: AuthenticationPolicy\nmetadata: {name: strict, namespace: t}\nspec: {targetRefs: [{group: \"\", kind: Pod, selector: {}}], mtls: {mode: Strict}}\n";
