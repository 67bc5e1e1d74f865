//! `meshctl local`: a mesh on this machine.

use std::fs::{self, File};
use std::io::{IsTerminal, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Uid;
use weft_api::{Object, load_path, parse_manifests};
use weft_local::client::{down, is_running, pods, request, start_engine};
use weft_local::engine::{EngineSettings, run_inner, run_outer};
use weft_local::protocol::{PodState, Reply, Request};
use weft_local::{APPLICATION_UID, MeshPaths};
use weft_proto::ProxiesRequest;

use crate::cli::{ExecArgs, FilesArgs, LocalArgs, LocalCommand, LogsArgs, UpArgs};
use crate::operator::with_operator;
use crate::output::{green, print, red, table};

pub fn run(command: LocalCommand) -> anyhow::Result<ExitCode> {
    if !Uid::effective().is_root() {
        bail!(
            "a local mesh needs root, for network namespaces and redirect rules: run it with sudo"
        );
    }
    match command {
        LocalCommand::Up(args) => up(&args)?,
        LocalCommand::Apply(args) => apply(&args)?,
        LocalCommand::Delete(args) => delete(&args)?,
        LocalCommand::Ps(args) => ps(&args)?,
        LocalCommand::Exec(args) => return exec(&args),
        LocalCommand::Logs(args) => logs(&args)?,
        LocalCommand::Down(args) => match down(&MeshPaths::new(&args.name))? {
            true => println!("the mesh {} is down", args.name),
            false => println!("no mesh named {} was up", args.name),
        },
        LocalCommand::Engine { settings, inner } => {
            let settings: EngineSettings = serde_json::from_str(&settings)?;
            if inner {
                run_inner(settings)?
            } else {
                run_outer(&settings)?
            }
        }
        LocalCommand::Pod => {
            weft_local::pod::enter_sandbox()?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let ended = runtime.block_on(weft_local::pod::supervise());
            // A read of standard input may still be under way.
            runtime.shutdown_background();
            ended?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn load(args: &FilesArgs) -> anyhow::Result<Vec<Object>> {
    let mut objects = Vec::new();
    let mut problems = Vec::new();
    for path in &args.filename {
        let loaded = if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin()
                .take(weft_api::MAX_MANIFEST_BYTES)
                .read_to_string(&mut text)?;
            parse_manifests(&text, "standard input")
        } else {
            load_path(path)
        };
        match loaded {
            Ok(more) => objects.extend(more),
            Err(more) => problems.extend(more.iter().map(|p| format!("\n  {p}"))),
        }
    }
    if problems.is_empty() {
        return Ok(objects);
    }
    bail!(
        "the manifests cannot be used; nothing was changed:{}",
        problems.concat()
    )
}

/// Tools that are called by name.
fn check_tools() -> anyhow::Result<()> {
    let paths = std::env::var("PATH").unwrap_or_default();
    for (tool, package) in [
        ("ip", "iproute2"),
        ("iptables-restore", "iptables"),
        ("setpriv", "util-linux"),
    ] {
        if !paths.split(':').any(|p| Path::new(p).join(tool).exists()) {
            bail!("{tool} is not installed: apt-get install {package}");
        }
    }
    Ok(())
}

fn up(args: &UpArgs) -> anyhow::Result<()> {
    check_tools()?;
    let mesh = &args.files.mesh;
    let paths = MeshPaths::new(&mesh.name);
    let objects = load(&args.files)?;
    if is_running(&paths) {
        bail!(
            "the mesh {0} is up already: change it with `meshctl local apply --name {0} -f PATH`",
            mesh.name
        );
    }
    if weft_api::GatewayDuration::parse(&args.leaf_lifetime).is_none() {
        bail!(
            "--leaf-lifetime {}: write it like 24h, 10m or 90s",
            args.leaf_lifetime
        );
    }
    let settings = EngineSettings {
        name: mesh.name.clone(),
        trust_domain: args.trust_domain.clone(),
        ca: args
            .ca
            .as_ref()
            .map(|p| fs::canonicalize(p).with_context(|| p.display().to_string()))
            .transpose()?,
        leaf_lifetime: args.leaf_lifetime.clone(),
        otlp_endpoint: args.otlp_endpoint.clone(),
        trace_sampling: args.trace_sampling,
        log: args.log.clone(),
        workers: args.workers,
    };
    start_engine(
        &paths,
        &["--settings".to_owned(), serde_json::to_string(&settings)?],
    )?;
    let applied = change(
        &mesh.name,
        &Request::Apply {
            objects,
            first: true,
        },
    );
    if applied.is_err() {
        let _ = keep_logs(&paths);
        down(&paths)?;
    }
    applied?;
    println!(
        "the mesh {} is up; next: meshctl local ps, meshctl edges, meshctl local down",
        mesh.name
    );
    Ok(())
}

/// Shows the last lines of what failed before they are removed.
fn keep_logs(paths: &MeshPaths) -> anyhow::Result<()> {
    for entry in fs::read_dir(paths.logs())? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        if !lines.is_empty() {
            eprintln!(
                "--- {}",
                path.file_name().unwrap_or_default().to_string_lossy()
            );
            for line in lines.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
    Ok(())
}

/// Makes a change and shows what it waits for.
fn change(mesh: &str, what: &Request) -> anyhow::Result<()> {
    let paths = MeshPaths::new(mesh);
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    bar.set_style(ProgressStyle::with_template(
        "{spinner} {elapsed} waiting for {wide_msg}",
    )?);
    bar.enable_steady_tick(Duration::from_millis(100));
    let mut said = Instant::now();
    let result = request(&paths, what, |reply| {
        if let Reply::Progress(text) = reply {
            bar.set_message(text.clone());
            if bar.is_hidden() && said.elapsed() > Duration::from_secs(2) {
                said = Instant::now();
                eprintln!("waiting for {text}");
            }
        }
    });
    bar.finish_and_clear();
    result?;
    wait_for_proxies(mesh)
}

/// Waits until every connected proxy runs what the control plane has sent.
fn wait_for_proxies(mesh: &str) -> anyhow::Result<()> {
    const BOUND: Duration = Duration::from_secs(5);
    with_operator(mesh, |mut operator| async move {
        // The control plane sees the change within this time.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let deadline = Instant::now() + BOUND;
        loop {
            let known = operator.proxies(ProxiesRequest {}).await?.into_inner();
            let behind = known
                .proxies
                .iter()
                .filter(|p| p.connected && p.acknowledged < p.sent)
                .count();
            if behind == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                eprintln!("{behind} proxies have not answered yet; see `meshctl check`");
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

fn apply(args: &FilesArgs) -> anyhow::Result<()> {
    let objects = load(args)?;
    let count = objects.len();
    change(
        &args.mesh.name,
        &Request::Apply {
            objects,
            first: false,
        },
    )?;
    println!("{count} objects are in force");
    Ok(())
}

fn delete(args: &FilesArgs) -> anyhow::Result<()> {
    let keys: Vec<_> = load(args)?.iter().map(Object::key).collect();
    let count = keys.len();
    change(&args.mesh.name, &Request::Delete { keys })?;
    println!("{count} objects are gone");
    Ok(())
}

fn ps(args: &LocalArgs) -> anyhow::Result<()> {
    let pods = pods(&MeshPaths::new(&args.name))?;
    print(args.output, &pods, || {
        let rows = pods.iter().map(|p| {
            let ready = p.containers.iter().filter(|c| c.ready).count();
            let ready = format!("{ready}/{}", p.containers.len());
            vec![
                p.namespace.clone(),
                p.pod.clone(),
                if p.ready { green(&ready) } else { red(&ready) },
                p.phase.clone(),
                p.restarts.to_string(),
                p.ip.clone(),
                p.pid.to_string(),
            ]
        });
        table(
            &[
                "NAMESPACE",
                "POD",
                "READY",
                "STATUS",
                "RESTARTS",
                "IP",
                "PID",
            ],
            rows,
        )
    })
}

/// A pod by name, or a ready one of `deploy/NAME`.
pub fn find_pod<'a>(
    pods: &'a [PodState],
    namespace: &str,
    name: &str,
) -> anyhow::Result<&'a PodState> {
    let here = || pods.iter().filter(|p| p.namespace == namespace);
    let found = match name.strip_prefix("deploy/") {
        None => here().find(|p| p.pod == name),
        Some(deployment) => {
            // NAME-HASH-RANDOM.
            let of = |p: &&PodState| p.pod.rsplitn(3, '-').nth(2) == Some(deployment);
            here().filter(of).max_by_key(|p| p.ready)
        }
    };
    found.with_context(|| {
        let known: Vec<&str> = here().map(|p| p.pod.as_str()).collect();
        format!(
            "no pod {name} in the namespace {namespace}; there are: {}",
            known.join(", ")
        )
    })
}

/// Moves this process into a pod's namespaces. It must have no threads.
pub fn enter_pod(pod: &PodState, mounts: bool) -> anyhow::Result<()> {
    let pid = pod.sandbox_pid;
    let open = |kind: &str| {
        File::open(format!("/proc/{pid}/ns/{kind}"))
            .with_context(|| format!("the pod {} has ended", pod.pod))
    };
    let (net, mnt, uts) = (open("net")?, open("mnt")?, open("uts")?);
    setns(net, CloneFlags::CLONE_NEWNET)?;
    if mounts {
        setns(uts, CloneFlags::CLONE_NEWUTS)?;
        setns(mnt, CloneFlags::CLONE_NEWNS)?;
    }
    Ok(())
}

fn exec(args: &ExecArgs) -> anyhow::Result<ExitCode> {
    let pods = pods(&MeshPaths::new(&args.mesh.name))?;
    let pod = find_pod(&pods, &args.namespace, &args.pod)?;
    enter_pod(pod, true)?;
    let mut words = args.command.iter();
    let program = words.next().context("name a command")?;
    // Replaces this process: signals, terminal and exit code are the command's.
    let error = std::process::Command::new("setpriv")
        .args([
            "--reuid",
            &APPLICATION_UID.to_string(),
            "--regid",
            &APPLICATION_UID.to_string(),
        ])
        .args(["--clear-groups", "--inh-caps=-all", "--", program])
        .args(words)
        .exec();
    bail!("{program} cannot be run: {error}")
}

fn logs(args: &LogsArgs) -> anyhow::Result<()> {
    let paths = MeshPaths::new(&args.mesh.name);
    // `ps` lists the control plane as the pod that it is elsewhere.
    let control_plane = args.namespace == weft_api::ROOT_NAMESPACE
        && args.pod.as_deref() == Some("weft-control-plane");
    let file = match &args.pod {
        _ if args.engine => paths.logs().join("engine.log"),
        _ if args.control_plane || control_plane => paths.logs().join("control-plane.log"),
        None => bail!("name a pod"),
        Some(name) => {
            let pods = pods(&paths)?;
            // The log of a pod that is gone can still be read.
            let pod = find_pod(&pods, &args.namespace, name).ok();
            let full = pod.map_or(name.as_str(), |p| p.pod.as_str());
            let first = pod
                .and_then(|p| p.containers.first())
                .map(|c| c.name.as_str());
            let container = args.container.as_deref().or(first).unwrap_or_default();
            paths.container_log(&args.namespace, full, container)
        }
    };
    let mut log =
        File::open(&file).with_context(|| format!("there is no log {}", file.display()))?;
    std::io::copy(&mut log, &mut std::io::stdout())?;
    Ok(())
}
