//! The engine of one mesh: wanted objects in, running pods and the objects
//! that describe them out.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;
use tokio::sync::mpsc;
use weft_api::{
    ANNOTATION_INJECT, LABEL_DEPLOYMENT, LABEL_INJECTED, Object, ObjectKey, Pod, PodIp, PodStatus,
    PodTemplate, ROOT_NAMESPACE,
};
use weft_cni_init::PROXY_UID;

use crate::files::ManifestFolder;
use crate::network::{self, Addresses, GATEWAY, MESH_CIDRS};
use crate::objects::{self, PodView};
use crate::protocol::{
    ContainerState, FromPod, PodPlan, PodState, Reply, Request, SidecarPlan, ToPod,
};
use crate::rollout::{Member, next_step};
use crate::tokens::TokenSigner;
use crate::{MeshPaths, dns};

const CONTROL_PLANE_PORT: u16 = 15010;
const CONTROL_PLANE_ACCOUNT: &str = "weft-control-plane";
/// How long `up` and `apply` wait.
const SETTLE: Duration = Duration::from_secs(90);
/// Restarts of a container after which nobody waits for it any longer.
const HOPELESS: u32 = 6;

/// How a mesh is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct EngineSettings {
    pub name: String,
    pub trust_domain: String,
    /// Folder with an issuer (`meshctl ca init`); made anew if absent.
    pub ca: Option<PathBuf>,
    pub leaf_lifetime: String,
    pub otlp_endpoint: String,
    pub trace_sampling: f64,
    pub log: String,
    pub workers: u16,
}

/// The outer process: makes the PID namespace, and removes the mesh's files in
/// the end. Must run before any thread is started.
pub fn run_outer(settings: &EngineSettings) -> anyhow::Result<()> {
    let paths = MeshPaths::new(&settings.name);
    fs::create_dir_all(paths.root())?;
    fs::write(paths.engine_pid(), std::process::id().to_string())?;
    unshare(CloneFlags::CLONE_NEWPID).context("a PID namespace cannot be made: run as root")?;
    let mut inner = std::process::Command::new(std::env::current_exe()?)
        .args([
            "local",
            "engine",
            "--inner",
            "--settings",
            &serde_json::to_string(settings)?,
        ])
        .stdin(Stdio::null())
        .spawn()?;
    let status = inner.wait()?;
    if !status.success() {
        // The log says why; the next `up` or `down` removes it.
        bail!("the engine ended: {status}");
    }
    fs::remove_dir_all(paths.root())?;
    Ok(())
}

/// The inner process, first of its PID namespace: leaves the machine's network
/// and mounts before any thread is started.
pub fn run_inner(settings: EngineSettings) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    let resolver = dns::machine_resolver();
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let paths = MeshPaths::new(&settings.name);
    let pods = paths.root().join("pods");
    fs::create_dir_all(&pods)?;
    // Keys are kept in memory only.
    mount(
        Some("tmpfs"),
        &pods,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0755"),
    )?;
    network::prepare_router()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let names = dns::Names::default();
        tokio::spawn(dns::serve(names.clone(), resolver));
        Engine::new(settings, paths, names)?.run().await
    })
}

/// A pod that exists.
struct RunningPod {
    object: Pod,
    deployment: Option<String>,
    template: u64,
    addresses: Vec<IpAddr>,
    meshed: bool,
    grace_seconds: u32,
    to_pod: Option<tokio::process::ChildStdin>,
    sandbox_pid: u32,
    containers: BTreeMap<String, ContainerState>,
    expected: usize,
    failed: Option<String>,
    stopping: bool,
}

impl RunningPod {
    fn is_ready(&self) -> bool {
        self.failed.is_none()
            && self.containers.len() == self.expected
            && self.containers.values().all(|c| c.ready)
    }
}

type PodKey = (String, String);

enum Event {
    Request(Request, mpsc::UnboundedSender<Reply>),
    Pod(PodKey, FromPod),
    PodEnded(PodKey),
    ControlPlane(ContainerState),
}

/// Somebody who waits until everything is as wanted.
struct Waiter {
    reply: mpsc::UnboundedSender<Reply>,
    since: Instant,
    said: String,
    first: bool,
}

struct Engine {
    settings: EngineSettings,
    paths: MeshPaths,
    names: dns::Names,
    programs: PathBuf,
    tokens: TokenSigner,
    addresses: Addresses,
    wanted: BTreeMap<ObjectKey, Object>,
    pods: BTreeMap<PodKey, RunningPod>,
    folder: ManifestFolder,
    waiters: Vec<Waiter>,
    events: mpsc::UnboundedSender<Event>,
    inbox: mpsc::UnboundedReceiver<Event>,
    control_plane: ContainerState,
    was_up: bool,
    serial: u32,
}

impl Engine {
    fn new(settings: EngineSettings, paths: MeshPaths, names: dns::Names) -> anyhow::Result<Self> {
        let programs = std::env::current_exe()?
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default();
        for program in ["weft-proxy", "weft-control-plane"] {
            let path = programs.join(program);
            if !path.exists() {
                bail!(
                    "{} is missing: build it with `cargo build --release`",
                    path.display()
                );
            }
        }
        let (events, inbox) = mpsc::unbounded_channel();
        let engine = Self {
            tokens: TokenSigner::new()?,
            folder: ManifestFolder::new(paths.manifests())?,
            settings,
            paths,
            names,
            programs,
            addresses: Addresses::default(),
            wanted: BTreeMap::new(),
            pods: BTreeMap::new(),
            waiters: Vec::new(),
            events,
            inbox,
            control_plane: ContainerState::default(),
            was_up: false,
            serial: 0,
        };
        engine.make_issuer()?;
        fs::write(
            engine.paths.root().join("token.pem"),
            &engine.tokens.public_pem,
        )?;
        Ok(engine)
    }

    /// Takes the given issuer, or makes one; its root's key is not kept.
    fn make_issuer(&self) -> anyhow::Result<()> {
        let folder = self.paths.issuer();
        fs::create_dir_all(&folder)?;
        if let Some(given) = &self.settings.ca {
            for name in ["tls.crt", "tls.key", "ca.crt"] {
                fs::copy(given.join(name), folder.join(name)).with_context(|| {
                    format!(
                        "{} cannot be read: make it with `meshctl ca init`",
                        given.join(name).display()
                    )
                })?;
            }
        } else {
            let root = weft_identity::new_root(&format!("Weft root of {}", self.settings.name))?;
            let trust_domain = self.settings.trust_domain.parse()?;
            let (certificate, key) =
                root.sign_intermediate(&trust_domain, Duration::from_secs(365 * 86_400))?;
            fs::write(folder.join("tls.crt"), certificate)?;
            fs::write(folder.join("tls.key"), key)?;
            fs::write(folder.join("ca.crt"), &root.certificate_pem)?;
        }
        fs::set_permissions(folder.join("tls.key"), fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    async fn run(mut self) -> anyhow::Result<()> {
        self.write_world();
        tokio::spawn(keep_control_plane(
            self.control_plane_args(),
            self.paths.clone(),
            self.programs.clone(),
            self.events.clone(),
        ));
        let socket = UnixListener::bind(self.paths.engine_socket())?;
        fs::set_permissions(
            self.paths.engine_socket(),
            fs::Permissions::from_mode(0o600),
        )?;
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            tokio::select! {
                Ok((stream, _)) = socket.accept() => {
                    tokio::spawn(serve_client(stream, self.events.clone()));
                }
                Some(event) = self.inbox.recv() => {
                    if self.handle(event).await {
                        return Ok(());
                    }
                    // What has come meanwhile is taken together.
                    while let Ok(event) = self.inbox.try_recv() {
                        if self.handle(event).await {
                            return Ok(());
                        }
                    }
                    self.reconcile().await;
                }
                _ = tick.tick() => {
                    if self.tell_waiters() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn control_plane_args(&self) -> Vec<String> {
        let path = |p: PathBuf| p.display().to_string();
        let settings = &self.settings;
        [
            ("--listen", format!("{GATEWAY}:{CONTROL_PLANE_PORT}")),
            ("--operator-socket", path(self.paths.operator_socket())),
            ("--manifests", path(self.paths.manifests())),
            ("--issuer", path(self.paths.issuer())),
            ("--token-key", path(self.paths.root().join("token.pem"))),
            ("--leaf-lifetime", settings.leaf_lifetime.clone()),
            ("--mesh-cidrs", MESH_CIDRS.to_owned()),
            ("--otlp-endpoint", settings.otlp_endpoint.clone()),
            ("--trace-sampling", settings.trace_sampling.to_string()),
            ("--log", settings.log.clone()),
        ]
        .into_iter()
        .flat_map(|(k, v)| [k.to_owned(), v])
        .collect()
    }

    /// `true`: the mesh is to end.
    async fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Request(Request::Down, reply) => {
                let _ = reply.send(Reply::Done);
                // Everything hangs on this process.
                tokio::time::sleep(Duration::from_millis(20)).await;
                return true;
            }
            Event::Request(Request::Ps, reply) => {
                let _ = reply.send(Reply::Pods(self.ps()));
                let _ = reply.send(Reply::Done);
            }
            Event::Request(Request::Apply { objects, first }, reply) => match self.want(objects) {
                Ok(()) => self.wait(reply, first),
                Err(error) => {
                    let _ = reply.send(Reply::Failed(error));
                }
            },
            Event::Request(Request::Delete { keys }, reply) => {
                for key in keys {
                    self.wanted.remove(&key);
                }
                self.wait(reply, false);
            }
            Event::Pod(key, message) => self.hear_pod(&key, message).await,
            Event::PodEnded(key) => {
                self.pods.remove(&key);
            }
            Event::ControlPlane(state) => self.control_plane = state,
        }
        false
    }

    fn wait(&mut self, reply: mpsc::UnboundedSender<Reply>, first: bool) {
        self.waiters.push(Waiter {
            reply,
            since: Instant::now(),
            said: String::new(),
            first,
        });
    }

    /// Takes wanted objects in, all or none.
    fn want(&mut self, objects: Vec<Object>) -> Result<(), String> {
        let mut wanted = self.wanted.clone();
        for mut object in objects {
            let key = object.key();
            self.complete(&mut object, wanted.get(&key));
            wanted.insert(key, object);
        }
        let has = |kind: &str, namespace: &str, name: &str| {
            let (kind, namespace, name) = (kind.to_owned(), namespace.to_owned(), name.to_owned());
            wanted.contains_key(&ObjectKey {
                kind,
                namespace,
                name,
            })
        };
        for (key, object) in &wanted {
            let namespace = &key.namespace;
            let known = namespace.is_empty()
                || namespace == "default"
                || namespace == ROOT_NAMESPACE
                || has("Namespace", "", namespace);
            if !known {
                return Err(format!(
                    "{key}: the namespace {namespace} does not exist: add a Namespace to the manifests"
                ));
            }
            let account = match object {
                Object::Deployment(d) => d.spec.template.spec.account(),
                Object::Pod(p) => p.spec.account(),
                _ => continue,
            };
            if account != "default" && !has("ServiceAccount", namespace, account) {
                return Err(format!(
                    "{key}: the ServiceAccount {namespace}/{account} does not exist: add it to the manifests"
                ));
            }
        }
        self.wanted = wanted;
        Ok(())
    }

    /// What the API server would fill in.
    fn complete(&mut self, object: &mut Object, before: Option<&Object>) {
        let metadata = object.metadata_mut();
        match before {
            Some(before) => {
                metadata.uid.clone_from(&before.metadata().uid);
                metadata
                    .creation_timestamp
                    .clone_from(&before.metadata().creation_timestamp);
            }
            None => {
                metadata.uid = new_uid();
                metadata.creation_timestamp = now();
            }
        }
        let Object::Service(service) = object else {
            return;
        };
        if service.is_headless() || !service.spec.cluster_ip.is_empty() {
            return;
        }
        if let Some(Object::Service(before)) = before
            && !before.is_headless()
        {
            service.spec.cluster_ip.clone_from(&before.spec.cluster_ip);
            service
                .spec
                .cluster_ips
                .clone_from(&before.spec.cluster_ips);
            return;
        }
        let (v4, v6) = self.addresses.service();
        let dual = service
            .spec
            .ip_family_policy
            .is_some_and(|p| p != weft_api::IpFamilyPolicy::SingleStack);
        service.spec.cluster_ip = v4.to_string();
        service.spec.cluster_ips = vec![v4.to_string()];
        if dual {
            service.spec.cluster_ips.push(v6.to_string());
        }
    }

    async fn hear_pod(&mut self, key: &PodKey, message: FromPod) {
        match message {
            FromPod::Sandbox => {
                if let Err(error) = self.connect(key).await
                    && let Some(pod) = self.pods.get_mut(key)
                {
                    pod.failed = Some(format!("{error:#}"));
                }
            }
            FromPod::Container(state) => {
                if let Some(pod) = self.pods.get_mut(key) {
                    pod.containers.insert(state.name.clone(), state);
                }
            }
            FromPod::Failed(why) => {
                if let Some(pod) = self.pods.get_mut(key) {
                    pod.failed = Some(why);
                }
            }
        }
    }

    /// The pod's namespaces are there: gives it its network and its plan.
    async fn connect(&mut self, key: &PodKey) -> anyhow::Result<()> {
        self.serial += 1;
        let link = format!("veth{}", self.serial);
        let plan = self.plan(key)?;
        let Some(pod) = self.pods.get_mut(key) else {
            return Ok(());
        };
        let (Some(IpAddr::V4(v4)), Some(IpAddr::V6(v6))) =
            (pod.addresses.first(), pod.addresses.get(1))
        else {
            bail!("no addresses");
        };
        network::connect_pod(&link, pod.sandbox_pid, *v4, *v6)?;
        let line = serde_json::to_string(&ToPod::Start(Box::new(plan)))?;
        let to_pod = pod.to_pod.as_mut().context("the supervisor has gone")?;
        to_pod.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(())
    }

    fn plan(&self, key: &PodKey) -> anyhow::Result<PodPlan> {
        let pod = self.pods.get(key).context("no such pod")?;
        let (namespace, name) = key;
        let folder = self.paths.pod(namespace, name);
        fs::create_dir_all(&folder)?;
        let account = pod.object.spec.account();
        let mut sidecar = None;
        if pod.meshed {
            let token = folder.join("token");
            fs::write(
                &token,
                self.tokens
                    .token(namespace, account, name, &pod.object.metadata.uid)?,
            )?;
            fs::set_permissions(&token, fs::Permissions::from_mode(0o400))?;
            chown(&token, Some(PROXY_UID), Some(PROXY_UID))?;
            let cache = folder.join("cache");
            fs::create_dir_all(&cache)?;
            fs::set_permissions(&cache, fs::Permissions::from_mode(0o700))?;
            chown(&cache, Some(PROXY_UID), Some(PROXY_UID))?;
            let trust_domain = &self.settings.trust_domain;
            sidecar = Some(SidecarPlan {
                program: self.programs.join("weft-proxy").display().to_string(),
                control_plane: format!("{GATEWAY}:{CONTROL_PLANE_PORT}"),
                control_plane_identity: format!(
                    "spiffe://{trust_domain}/ns/{ROOT_NAMESPACE}/sa/{CONTROL_PLANE_ACCOUNT}"
                ),
                trust_bundle: self.paths.issuer().join("ca.crt").display().to_string(),
                token: token.display().to_string(),
                log: self.settings.log.clone(),
                workers: self.settings.workers,
            });
        }
        Ok(PodPlan {
            namespace: namespace.clone(),
            name: name.clone(),
            service_account: account.to_owned(),
            addresses: pod.addresses.clone(),
            gateway: GATEWAY.into(),
            containers: pod.object.spec.containers.clone(),
            sidecar,
            folder: folder.display().to_string(),
            log_prefix: self
                .paths
                .logs()
                .join(format!("{namespace}_{name}"))
                .display()
                .to_string(),
            grace_seconds: pod.grace_seconds,
        })
    }

    /// Brings the pods closer to what is wanted, and tells the world.
    async fn reconcile(&mut self) {
        let wanted: Vec<Object> = self.wanted.values().cloned().collect();
        for object in &wanted {
            match object {
                Object::Deployment(d) => {
                    let owner = Some(d.metadata.name.as_str());
                    let replicas = d.spec.replicas.unwrap_or(1) as usize;
                    self.reconcile_group(&d.metadata.namespace, owner, &d.spec.template, replicas)
                        .await;
                }
                Object::Pod(pod) => self.reconcile_bare(pod).await,
                _ => {}
            }
        }
        let orphans: Vec<PodKey> = self
            .pods
            .iter()
            .filter(|(key, p)| !p.stopping && !self.has_owner(key, p))
            .map(|(k, _)| k.clone())
            .collect();
        for key in orphans {
            self.stop(&key).await;
        }
        self.write_world();
    }

    fn has_owner(&self, key: &PodKey, pod: &RunningPod) -> bool {
        let (kind, name) = match &pod.deployment {
            Some(deployment) => ("Deployment", deployment),
            None => ("Pod", &key.1),
        };
        let (kind, namespace, name) = (kind.to_owned(), key.0.clone(), name.clone());
        self.wanted.contains_key(&ObjectKey {
            kind,
            namespace,
            name,
        })
    }

    async fn reconcile_group(
        &mut self,
        namespace: &str,
        owner: Option<&str>,
        template: &PodTemplate,
        replicas: usize,
    ) {
        let hash = template_hash(template);
        let owned: Vec<(PodKey, Member)> = self
            .pods
            .iter()
            .filter(|(key, p)| {
                key.0 == namespace && p.deployment.as_deref() == owner && !p.stopping
            })
            .map(|(key, p)| {
                (
                    key.clone(),
                    Member {
                        current: p.template == hash,
                        ready: p.is_ready(),
                    },
                )
            })
            .collect();
        let members: Vec<Member> = owned.iter().map(|(_, m)| *m).collect();
        let step = next_step(replicas, &members);
        for index in step.stop {
            if let Some((key, _)) = owned.get(index) {
                self.stop(key).await;
            }
        }
        for _ in 0..step.start {
            let owner = owner.unwrap_or_default();
            let name = format!(
                "{owner}-{:08x}-{:05x}",
                hash as u32,
                rand::random::<u32>() & 0xf_ffff
            );
            let mut metadata = template.metadata.clone();
            metadata.name = name;
            namespace.clone_into(&mut metadata.namespace);
            metadata
                .labels
                .insert(LABEL_DEPLOYMENT.to_owned(), owner.to_owned());
            let pod = Pod {
                api_version: "v1".to_owned(),
                metadata,
                spec: template.spec.clone(),
                status: None,
            };
            self.start(pod, Some(owner.to_owned()), hash);
        }
    }

    async fn reconcile_bare(&mut self, pod: &Pod) {
        let template = PodTemplate {
            metadata: pod.metadata.clone(),
            spec: pod.spec.clone(),
        };
        let hash = template_hash(&template);
        let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        match self.pods.get(&key) {
            None => self.start(pod.clone(), None, hash),
            Some(running) if running.template != hash && !running.stopping => self.stop(&key).await,
            Some(_) => {}
        }
    }

    fn start(&mut self, mut pod: Pod, deployment: Option<String>, template: u64) {
        let meshed = pod
            .metadata
            .annotations
            .get(ANNOTATION_INJECT)
            .is_none_or(|v| v != "disabled");
        pod.metadata.uid = new_uid();
        pod.metadata.creation_timestamp = now();
        "local".clone_into(&mut pod.spec.node_name);
        if meshed {
            pod.metadata
                .labels
                .insert(LABEL_INJECTED.to_owned(), "true".to_owned());
        }
        let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        let (v4, v6) = self.addresses.pod();
        let mut running = RunningPod {
            deployment,
            template,
            addresses: vec![v4.into(), v6.into()],
            meshed,
            grace_seconds: pod.spec.termination_grace_period_seconds.unwrap_or(30),
            to_pod: None,
            sandbox_pid: 0,
            containers: BTreeMap::new(),
            expected: pod.spec.containers.len() + usize::from(meshed),
            failed: None,
            stopping: false,
            object: pod,
        };
        match self.spawn_supervisor(&key) {
            Ok((to_pod, pid)) => {
                running.to_pod = Some(to_pod);
                running.sandbox_pid = pid;
            }
            Err(error) => running.failed = Some(format!("{error:#}")),
        }
        self.pods.insert(key, running);
    }

    fn spawn_supervisor(&self, key: &PodKey) -> anyhow::Result<(tokio::process::ChildStdin, u32)> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.paths.logs().join("engine.log"))?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["local", "pod"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let to_pod = child.stdin.take().context("no pipe")?;
        let from_pod = child.stdout.take().context("no pipe")?;
        let pid = child.id().context("it has ended")?;
        let (key, events) = (key.clone(), self.events.clone());
        tokio::spawn(async move {
            let mut lines = BufReader::new(from_pod).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(message) = serde_json::from_str(&line) {
                    let _ = events.send(Event::Pod(key.clone(), message));
                }
            }
            let _ = child.wait().await;
            let _ = events.send(Event::PodEnded(key));
        });
        Ok((to_pod, pid))
    }

    async fn stop(&mut self, key: &PodKey) {
        let Some(pod) = self.pods.get_mut(key) else {
            return;
        };
        if pod.stopping {
            return;
        }
        pod.stopping = true;
        let message = ToPod::Stop {
            grace_seconds: pod.grace_seconds,
        };
        let told = match (&mut pod.to_pod, serde_json::to_string(&message)) {
            (Some(to_pod), Ok(line)) => to_pod
                .write_all(format!("{line}\n").as_bytes())
                .await
                .is_ok(),
            _ => false,
        };
        if !told {
            self.pods.remove(key);
        }
    }

    /// Writes what Kubernetes would show: objects, pods with their status,
    /// EndpointSlices.
    fn write_world(&mut self) {
        let mut objects: Vec<Object> = self
            .wanted
            .values()
            .filter(|o| !matches!(o, Object::Deployment(_) | Object::Pod(_)))
            .cloned()
            .collect();
        let pods: Vec<Pod> = self.pods.values().map(described).collect();
        let views: Vec<PodView<'_>> = pods
            .iter()
            .zip(self.pods.values())
            .map(|(pod, running)| PodView {
                pod,
                addresses: &running.addresses,
                serving: running.is_ready(),
                terminating: running.stopping,
            })
            .collect();
        let services = self.wanted.values().filter_map(|o| match o {
            Object::Service(service) => Some(service),
            _ => None,
        });
        objects.extend(services.flat_map(|s| objects::endpoint_slices(s, &views)));
        drop(views);
        objects.extend(pods.into_iter().map(Object::Pod));
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = objects::names(&objects);
        if let Err(error) = self.folder.write(&objects) {
            eprintln!("the manifests cannot be written: {error}");
        }
        if let Err(error) = network::lead_services(&objects) {
            eprintln!("services cannot be led to endpoints: {error:#}");
        }
    }

    /// What is not as wanted; `Err`: and will not be.
    fn unsettled(&self) -> Result<Vec<String>, String> {
        let mut missing = Vec::new();
        for ((namespace, name), pod) in &self.pods {
            if let Some(why) = &pod.failed {
                return Err(format!("{namespace}/{name}: {why}"));
            }
            let hopeless = |c: &&ContainerState| !c.ready && c.restarts >= HOPELESS;
            if let Some(container) = pod.containers.values().find(hopeless) {
                return Err(format!(
                    "{namespace}/{name}: the container {} keeps ending ({}): see `meshctl local logs -n {namespace} {name} -c {}`",
                    container.name, container.last_exit, container.name
                ));
            }
        }
        for object in self.wanted.values() {
            match object {
                Object::Deployment(d) => {
                    let hash = template_hash(&d.spec.template);
                    let replicas = d.spec.replicas.unwrap_or(1) as usize;
                    let own = |p: &&RunningPod| {
                        p.deployment.as_ref() == Some(&d.metadata.name)
                            && p.object.metadata.namespace == d.metadata.namespace
                    };
                    let ready = self
                        .pods
                        .values()
                        .filter(own)
                        .filter(|p| p.template == hash && !p.stopping && p.is_ready())
                        .count();
                    let old = self
                        .pods
                        .values()
                        .filter(own)
                        .filter(|p| p.template != hash || p.stopping)
                        .count();
                    if ready != replicas || old > 0 {
                        missing.push(format!(
                            "{}/{} {ready}/{replicas}",
                            d.metadata.namespace, d.metadata.name
                        ));
                    }
                }
                Object::Pod(pod) => {
                    let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
                    if !self
                        .pods
                        .get(&key)
                        .is_some_and(|p| p.is_ready() && !p.stopping)
                    {
                        missing.push(format!("{}/{}", key.0, key.1));
                    }
                }
                _ => {}
            }
        }
        let orphans = self.pods.iter().filter(|(key, p)| !self.has_owner(key, p));
        missing.extend(orphans.map(|(key, _)| format!("{}/{} is stopping", key.0, key.1)));
        if !self.control_plane.ready {
            missing.push("control plane".to_owned());
        }
        Ok(missing)
    }

    /// `true`: the one who started the mesh has gone before it was up.
    fn tell_waiters(&mut self) -> bool {
        let state = self.unsettled();
        let mut abandoned = false;
        let was_up = self.was_up;
        let mut up = false;
        self.waiters.retain_mut(|waiter| {
            if waiter.reply.is_closed() {
                abandoned |= waiter.first && !was_up;
                return false;
            }
            let answer = match &state {
                Ok(missing) if missing.is_empty() => {
                    up = true;
                    Reply::Done
                }
                Err(why) => Reply::Failed(why.clone()),
                Ok(missing) if waiter.since.elapsed() > SETTLE => Reply::Failed(format!(
                    "not ready after {SETTLE:?}: {}",
                    missing.join(", ")
                )),
                Ok(missing) => {
                    let text = missing.join(", ");
                    if text != waiter.said {
                        let _ = waiter.reply.send(Reply::Progress(text.clone()));
                        waiter.said = text;
                    }
                    return true;
                }
            };
            let _ = waiter.reply.send(answer);
            false
        });
        self.was_up |= up;
        abandoned
    }

    fn ps(&self) -> Vec<PodState> {
        let host = host_pids();
        let on_host = |pid: u32| host.get(&pid).copied().unwrap_or_default();
        let state = |c: &ContainerState| ContainerState {
            pid: on_host(c.pid),
            ..c.clone()
        };
        let mut pods: Vec<PodState> = self
            .pods
            .iter()
            .map(|((namespace, name), pod)| {
                let mut containers: Vec<_> = pod.containers.values().map(state).collect();
                // The application first.
                containers.sort_by_key(|c| c.name == crate::pod::SIDECAR);
                PodState {
                    pod: name.clone(),
                    namespace: namespace.clone(),
                    ip: pod
                        .addresses
                        .first()
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                    ips: pod.addresses.iter().map(ToString::to_string).collect(),
                    ready: pod.is_ready() && !pod.stopping,
                    restarts: containers.iter().map(|c| c.restarts).sum(),
                    pid: containers.first().map(|c| c.pid).unwrap_or_default(),
                    sandbox_pid: on_host(pod.sandbox_pid),
                    phase: phase(pod).to_owned(),
                    meshed: pod.meshed,
                    containers,
                }
            })
            .collect();
        let own = state(&self.control_plane);
        pods.push(PodState {
            pod: CONTROL_PLANE_ACCOUNT.to_owned(),
            namespace: ROOT_NAMESPACE.to_owned(),
            ip: GATEWAY.to_string(),
            ips: vec![GATEWAY.to_string()],
            ready: own.ready,
            restarts: own.restarts,
            pid: own.pid,
            sandbox_pid: own.pid,
            phase: if own.ready { "Running" } else { "Pending" }.to_owned(),
            meshed: false,
            containers: vec![own],
        });
        pods
    }
}

fn phase(pod: &RunningPod) -> &'static str {
    match pod {
        p if p.stopping => "Terminating",
        p if p.failed.is_some() => "Failed",
        p if p.containers.len() == p.expected => "Running",
        _ => "Pending",
    }
}

/// The pod with the status that kubelet would report.
fn described(running: &RunningPod) -> Pod {
    let mut pod = running.object.clone();
    let ips: Vec<PodIp> = running
        .addresses
        .iter()
        .map(|ip| PodIp { ip: ip.to_string() })
        .collect();
    pod.status = Some(PodStatus {
        phase: phase(running).to_owned(),
        pod_ip: ips.first().map(|ip| ip.ip.clone()).unwrap_or_default(),
        pod_ips: ips,
        ready: running.is_ready() && !running.stopping,
    });
    pod
}

fn template_hash(template: &PodTemplate) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let mut template = template.clone();
    template.metadata.uid = String::new();
    template.metadata.creation_timestamp = String::new();
    serde_json::to_string(&template)
        .unwrap_or_default()
        .hash(&mut hasher);
    hasher.finish()
}

fn new_uid() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn now() -> String {
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"
    );
    time::OffsetDateTime::now_utc()
        .format(&format)
        .unwrap_or_default()
}

/// Processes of this PID namespace: their numbers here, and on the host. The
/// mount of `/proc` is the host's.
fn host_pids() -> BTreeMap<u32, u32> {
    let own = fs::read_link("/proc/self/ns/pid").ok();
    let mut pids = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(host) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let inner = status
            .lines()
            .find_map(|l| l.strip_prefix("NSpid:"))
            .and_then(|l| l.split_whitespace().last()?.parse().ok());
        if let Some(inner) = inner
            && fs::read_link(entry.path().join("ns/pid")).ok() == own
        {
            pids.insert(inner, host);
        }
    }
    pids
}

/// Keeps the control plane running until the mesh ends.
async fn keep_control_plane(
    args: Vec<String>,
    paths: MeshPaths,
    programs: PathBuf,
    events: mpsc::UnboundedSender<Event>,
) {
    let mut state = ContainerState {
        name: CONTROL_PLANE_ACCOUNT.to_owned(),
        ..ContainerState::default()
    };
    loop {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(paths.logs().join("control-plane.log"));
        let spawned = log.and_then(|log| {
            Command::new(programs.join("weft-control-plane"))
                .args(&args)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true)
                .spawn()
        });
        if let Ok(mut child) = spawned {
            state.pid = child.id().unwrap_or_default();
            let listening = async {
                while UnixStream::connect(paths.operator_socket()).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let ended = tokio::select! {
                status = child.wait() => Some(status),
                () = listening => None,
            };
            if ended.is_none() {
                state.ready = true;
                let _ = events.send(Event::ControlPlane(state.clone()));
                let status = child.wait().await;
                state.last_exit = status.map(|s| s.to_string()).unwrap_or_default();
            }
        }
        state.pid = 0;
        state.ready = false;
        state.restarts += 1;
        let _ = events.send(Event::ControlPlane(state.clone()));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// One request, and its replies until the last.
async fn serve_client(
    stream: UnixStream,
    events: mpsc::UnboundedSender<Event>,
) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let Some(line) = lines.next_line().await? else {
        return Ok(());
    };
    let (reply, mut replies) = mpsc::unbounded_channel();
    match serde_json::from_str(&line) {
        Ok(request) => events.send(Event::Request(request, reply)).ok(),
        Err(error) => reply
            .send(Reply::Failed(format!("not understood: {error}")))
            .ok(),
    };
    loop {
        tokio::select! {
            reply = replies.recv() => {
                let Some(reply) = reply else { return Ok(()) };
                let line = serde_json::to_string(&reply)?;
                write.write_all(format!("{line}\n").as_bytes()).await?;
            }
            // The client has gone: dropping the receiver tells the engine.
            _ = lines.next_line() => return Ok(()),
        }
    }
}
