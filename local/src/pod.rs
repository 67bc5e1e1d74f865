//! A pod's supervisor: holds the pod's namespaces, sets capture up before
//! anything of the application runs, and starts, probes and restarts the
//! containers.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sethostname};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use weft_api::{Container, PortRef, Probe};
use weft_cni_init::{ADMIN_PORT, CaptureRules, PROXY_UID};

use crate::APPLICATION_UID;
use crate::network::configure_pod;
use crate::protocol::{ContainerState, FromPod, PodPlan, SidecarPlan, ToPod};

/// Name of the sidecar's container.
pub const SIDECAR: &str = "weft-proxy";
/// Between asking callers to leave and stopping the application.
const DRAIN: Duration = Duration::from_secs(2);
const SIDECAR_READY: Duration = Duration::from_secs(30);
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Enters namespaces of its own: must run before any thread is started.
pub fn enter_sandbox() -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .context("namespaces cannot be made: root is needed")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    Ok(())
}

/// Runs the pod until it is stopped.
pub async fn supervise() -> anyhow::Result<()> {
    say(&FromPod::Sandbox);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let first = lines.next_line().await?.context("the engine has gone")?;
    let ToPod::Start(plan) = serde_json::from_str(&first)? else {
        bail!("the first message must be Start")
    };
    let (stop, stopped) = watch::channel(Stop::No);
    let mut tasks = tokio::task::JoinSet::new();
    match start(&plan, &stopped, &mut tasks).await {
        Ok(()) => {}
        Err(error) => say(&FromPod::Failed(format!("{error:#}"))),
    }
    let mut grace = Duration::from_secs(plan.grace_seconds.into());
    while let Some(line) = lines.next_line().await? {
        if let Ok(ToPod::Stop { grace_seconds }) = serde_json::from_str(&line) {
            grace = Duration::from_secs(grace_seconds.into());
            break;
        }
    }
    // Callers first, then the application, then the proxy.
    stop.send_replace(Stop::Drain);
    tokio::time::sleep(DRAIN.min(grace)).await;
    stop.send_replace(Stop::Application(grace));
    let mut sidecars = usize::from(plan.sidecar.is_some());
    while tasks.len() > sidecars && tasks.join_next().await.is_some() {}
    stop.send_replace(Stop::All);
    while tasks.join_next().await.is_some() {
        sidecars = sidecars.saturating_sub(1);
    }
    Ok(())
}

/// How far the pod's end has come.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stop {
    No,
    Drain,
    Application(Duration),
    All,
}

fn say(message: &FromPod) {
    if let Ok(line) = serde_json::to_string(message) {
        println!("{line}");
    }
}

async fn start(
    plan: &PodPlan,
    stop: &watch::Receiver<Stop>,
    tasks: &mut tokio::task::JoinSet<()>,
) -> anyhow::Result<()> {
    configure_pod(&plan.addresses, plan.gateway)?;
    sethostname(&plan.name)?;
    own_files(plan)?;
    let address = *plan.addresses.first().context("no address")?;
    if let Some(sidecar) = &plan.sidecar {
        weft_cni_init::apply(&CaptureRules::default()).context("capture cannot be set up")?;
        let container = sidecar_container(plan, sidecar);
        let (ready, mut is_ready) = mpsc::channel(1);
        tasks.spawn(run_container(
            plan.clone(),
            container,
            true,
            address,
            stop.clone(),
            Some(ready),
        ));
        match tokio::time::timeout(SIDECAR_READY, is_ready.recv()).await {
            Ok(Some(())) => {}
            _ => bail!(
                "the sidecar did not get ready in {SIDECAR_READY:?}: see `meshctl local logs {} -c {SIDECAR}`",
                plan.name
            ),
        }
        // Nothing of the application runs unless it is captured.
        weft_cni_init::verify(&CaptureRules::default()).context("capture does not stand")?;
    }
    for container in &plan.containers {
        tasks.spawn(run_container(
            plan.clone(),
            container.clone(),
            false,
            address,
            stop.clone(),
            None,
        ));
    }
    Ok(())
}

/// `/etc/resolv.conf` and `/etc/hosts`, as a pod has them.
fn own_files(plan: &PodPlan) -> anyhow::Result<()> {
    let folder = Path::new(&plan.folder);
    let ns = &plan.namespace;
    let resolv = format!(
        "nameserver {}\nsearch {ns}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
        plan.gateway
    );
    let mut hosts = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    for address in &plan.addresses {
        hosts.push_str(&format!("{address} {}\n", plan.name));
    }
    for (name, text) in [("resolv.conf", resolv), ("hosts", hosts)] {
        let source = folder.join(name);
        fs::write(&source, text)?;
        let target = Path::new("/etc").join(name);
        let none: Option<&str> = None;
        mount(Some(&source), &target, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("{} cannot be mounted", target.display()))?;
    }
    Ok(())
}

fn sidecar_container(plan: &PodPlan, sidecar: &SidecarPlan) -> Container {
    let cache = Path::new(&plan.folder).join("cache");
    let args = [
        ("--control-plane", sidecar.control_plane.clone()),
        (
            "--control-plane-identity",
            sidecar.control_plane_identity.clone(),
        ),
        ("--trust-bundle", sidecar.trust_bundle.clone()),
        ("--token", sidecar.token.clone()),
        ("--pod", plan.name.clone()),
        ("--namespace", plan.namespace.clone()),
        ("--cache", cache.display().to_string()),
        ("--drain-seconds", (plan.grace_seconds + 30).to_string()),
        ("--log", sidecar.log.clone()),
        ("--workers", sidecar.workers.to_string()),
    ];
    Container {
        name: SIDECAR.to_owned(),
        command: vec![sidecar.program.clone()],
        args: args
            .into_iter()
            .flat_map(|(k, v)| [k.to_owned(), v])
            .collect(),
        ..Container::default()
    }
}

fn command(
    plan: &PodPlan,
    container: &Container,
    sidecar: bool,
    address: IpAddr,
) -> anyhow::Result<Command> {
    let uid = if sidecar { PROXY_UID } else { APPLICATION_UID };
    let mut words = container.command.iter().chain(&container.args);
    let program = words
        .next()
        .context("a container needs a command: images are not run here")?;
    // setpriv ends the process when its supervisor does, and takes root's rights away.
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid",
            &uid.to_string(),
            "--regid",
            &uid.to_string(),
            "--clear-groups",
        ])
        .args([
            "--pdeathsig",
            "KILL",
            "--no-new-privs",
            "--inh-caps=-all",
            "--",
            program,
        ])
        .args(words)
        .env_clear()
        .env("PATH", search_path())
        .env("HOME", "/tmp")
        .env("HOSTNAME", &plan.name)
        .current_dir("/tmp")
        .stdin(Stdio::null());
    for variable in &container.env {
        let field = variable
            .value_from
            .as_ref()
            .map(|s| s.field_ref.field_path.as_str());
        let value = match field {
            None => variable.value.clone(),
            Some("metadata.name") => plan.name.clone(),
            Some("metadata.namespace") => plan.namespace.clone(),
            Some("status.podIP") => address.to_string(),
            Some(_) => plan.service_account.clone(),
        };
        command.env(&variable.name, value);
    }
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(format!("{}_{}.log", plan.log_prefix, container.name))?;
    command.stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

/// The machine's programs, and those that were built with this one.
fn search_path() -> String {
    let own = std::env::current_exe()
        .ok()
        .and_then(|p| Some(p.parent()?.display().to_string()));
    let inherited = std::env::var("PATH").unwrap_or_default();
    format!(
        "{}:{inherited}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        own.unwrap_or_default()
    )
}

/// Keeps one container running until the pod ends.
async fn run_container(
    plan: PodPlan,
    container: Container,
    sidecar: bool,
    address: IpAddr,
    mut stop: watch::Receiver<Stop>,
    first_ready: Option<mpsc::Sender<()>>,
) {
    let mut state = ContainerState {
        name: container.name.clone(),
        ..ContainerState::default()
    };
    let mut backoff = MIN_BACKOFF;
    loop {
        let started = Instant::now();
        let spawned = command(&plan, &container, sidecar, address).and_then(|mut c| Ok(c.spawn()?));
        let ended = match spawned {
            Ok(mut child) => {
                state.pid = child.id().unwrap_or_default();
                say(&FromPod::Container(state.clone()));
                let ended = watch_child(
                    &mut child,
                    &container,
                    sidecar,
                    address,
                    &mut state,
                    &mut stop,
                    &first_ready,
                )
                .await;
                let Some(status) = ended else {
                    state.pid = 0;
                    state.ready = false;
                    return say(&FromPod::Container(state));
                };
                status
            }
            Err(error) => format!("{error:#}"),
        };
        state.pid = 0;
        state.ready = false;
        state.restarts += 1;
        state.last_exit = ended;
        say(&FromPod::Container(state.clone()));
        if started.elapsed() > MAX_BACKOFF {
            backoff = MIN_BACKOFF;
        }
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            () = time_to_stop(&mut stop, sidecar) => return,
        }
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// Waits until this container is to end.
async fn time_to_stop(stop: &mut watch::Receiver<Stop>, sidecar: bool) {
    let due = |s: &Stop| {
        if sidecar {
            *s == Stop::All
        } else {
            matches!(s, Stop::Application(_) | Stop::All)
        }
    };
    if stop.wait_for(due).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until the pod begins to end.
async fn begins(stop: &mut watch::Receiver<Stop>) {
    let ended = stop.wait_for(|s| *s == Stop::Drain).await.is_err();
    if ended {
        std::future::pending::<()>().await;
    }
}

/// `None`: it ended because the pod does; otherwise how it ended by itself.
async fn watch_child(
    child: &mut Child,
    container: &Container,
    sidecar: bool,
    address: IpAddr,
    state: &mut ContainerState,
    stop: &mut watch::Receiver<Stop>,
    first_ready: &Option<mpsc::Sender<()>>,
) -> Option<String> {
    let probe = match sidecar {
        true => Some(sidecar_probe()),
        false => container.readiness_probe.clone(),
    };
    let period = probe.as_ref().and_then(|p| p.period_seconds).unwrap_or(1);
    let period = Duration::from_secs(period.max(1).into());
    // Nothing of the application starts before its sidecar is ready.
    let until_ready = Duration::from_millis(if sidecar { 50 } else { 200 });
    let delay = probe
        .as_ref()
        .and_then(|p| p.initial_delay_seconds)
        .unwrap_or(0);
    let mut check = tokio::time::interval_at(
        tokio::time::Instant::now() + Duration::from_secs(delay.into()) + Duration::from_millis(30),
        until_ready,
    );
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut draining = false;
    let mut failures = 0;
    let (mut drain, now) = (stop.clone(), stop.clone());
    loop {
        tokio::select! {
            status = child.wait() => {
                return Some(status.map_or_else(|e| e.to_string(), |s| s.to_string()));
            }
            () = time_to_stop(stop, sidecar) => {
                let how = *now.borrow();
                terminate(child, how, sidecar).await;
                return None;
            }
            () = begins(&mut drain), if sidecar && !draining => {
                draining = true;
                signal(child, Signal::SIGTERM);
            }
            _ = check.tick() => {
                let ready = match &probe {
                    None => true,
                    Some(probe) => passes(probe, container, address).await,
                };
                failures = if ready { 0 } else { failures + 1 };
                let limit = probe.as_ref().and_then(|p| p.failure_threshold).unwrap_or(3);
                if ready != state.ready && (ready || failures >= limit) {
                    state.ready = ready;
                    say(&FromPod::Container(state.clone()));
                    if ready && let Some(first) = first_ready {
                        let _ = first.try_send(());
                    }
                }
                // Often until it is ready, then as often as the manifest says.
                if state.ready {
                    check.reset_after(period);
                }
            }
        }
    }
}

fn sidecar_probe() -> Probe {
    Probe {
        http_get: Some(weft_api::HttpGet {
            path: "/ready".to_owned(),
            port: PortRef::Number(ADMIN_PORT),
        }),
        ..Probe::default()
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|p| i32::try_from(p).ok()) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

async fn terminate(child: &mut Child, stop: Stop, sidecar: bool) {
    let grace = match stop {
        Stop::Application(grace) => grace,
        _ if sidecar => Duration::from_secs(8),
        _ => Duration::ZERO,
    };
    signal(child, Signal::SIGTERM);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Whether a readiness probe passes now. It is made from within the pod.
async fn passes(probe: &Probe, container: &Container, address: IpAddr) -> bool {
    let port = |port: &PortRef| match port {
        PortRef::Number(number) => Some(*number),
        PortRef::Name(name) => container
            .ports
            .iter()
            .find(|p| p.name == *name)
            .map(|p| p.container_port),
    };
    let timeout = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1).into());
    let check = async {
        if let Some(http) = &probe.http_get {
            let address = SocketAddr::new(address, port(&http.port)?);
            let path = if http.path.is_empty() {
                "/"
            } else {
                &http.path
            };
            return http_status(address, path)
                .await
                .filter(|s| (200..400).contains(s))
                .map(|_| ());
        }
        let tcp = probe.tcp_socket.as_ref()?;
        let stream = TcpStream::connect((address, port(&tcp.port)?)).await;
        stream.ok().map(|_| ())
    };
    tokio::time::timeout(timeout, check)
        .await
        .ok()
        .flatten()
        .is_some()
}

async fn http_status(address: SocketAddr, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: weft-local\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.ok()?;
    std::str::from_utf8(start.get(9..12)?).ok()?.parse().ok()
}
