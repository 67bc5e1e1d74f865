//! Talking to a mesh's engine, and starting one.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::MeshPaths;
use crate::protocol::{PodState, Reply, Request};

const START: Duration = Duration::from_secs(20);

/// Whether a mesh of this name is up.
pub fn is_running(paths: &MeshPaths) -> bool {
    UnixStream::connect(paths.engine_socket()).is_ok()
}

/// Starts an engine in the background; returns when it listens.
pub fn start_engine(paths: &MeshPaths, args: &[String]) -> anyhow::Result<()> {
    clean(paths)?;
    std::fs::create_dir_all(paths.logs())?;
    let log = File::create(paths.logs().join("engine.log"))?;
    let mut engine = Command::new(std::env::current_exe()?)
        .args(["local", "engine"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("the engine cannot be started")?;
    let deadline = Instant::now() + START;
    while !is_running(paths) {
        if let Some(status) = engine.try_wait()? {
            let log = std::fs::read_to_string(paths.logs().join("engine.log")).unwrap_or_default();
            bail!("the engine ended ({status}): {}", log.trim());
        }
        if Instant::now() > deadline {
            let _ = engine.kill();
            bail!(
                "the engine did not start in {START:?}; see {}",
                paths.logs().join("engine.log").display()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Sends a request and hands each reply over. Ends with the last one.
pub fn request(
    paths: &MeshPaths,
    request: &Request,
    mut reply: impl FnMut(&Reply),
) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(paths.engine_socket()).with_context(|| {
        let name = paths
            .root()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        format!(
            "no mesh named {name} is up: start it with `meshctl local up -f PATH --name {name}`"
        )
    })?;
    serde_json::to_writer(&mut stream, request)?;
    stream.write_all(b"\n")?;
    for line in BufReader::new(stream).lines() {
        let heard: Reply = serde_json::from_str(&line?)?;
        reply(&heard);
        match heard {
            Reply::Done => return Ok(()),
            Reply::Failed(why) => bail!("{why}"),
            Reply::Progress(_) | Reply::Pods(_) => {}
        }
    }
    bail!("the engine ended before it had answered; see `meshctl local logs --engine`")
}

/// The pods of a mesh.
pub fn pods(paths: &MeshPaths) -> anyhow::Result<Vec<PodState>> {
    let mut found = Vec::new();
    request(paths, &Request::Ps, |reply| {
        if let Reply::Pods(pods) = reply {
            found.clone_from(pods);
        }
    })?;
    Ok(found)
}

/// Ends a mesh, and removes what a power cut may have left.
pub fn down(paths: &MeshPaths) -> anyhow::Result<bool> {
    let running = is_running(paths);
    if running {
        // The engine ends while it answers.
        let _ = request(paths, &Request::Down, |_| {});
    }
    let existed = paths.root().exists();
    clean(paths)?;
    Ok(running || existed)
}

/// Ends what is left of an engine, and removes its files. Processes, network
/// namespaces, rules and mounts end with it.
fn clean(paths: &MeshPaths) -> anyhow::Result<()> {
    if let Some(pid) = engine_pid(&paths.engine_pid()) {
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while kill(pid, None).is_ok() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = kill(pid, Signal::SIGKILL);
    }
    match std::fs::remove_dir_all(paths.root()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("{} cannot be removed", paths.root().display()))
        }
        _ => Ok(()),
    }
}

/// The engine's process, if the one with that number is one of ours.
fn engine_pid(file: &Path) -> Option<Pid> {
    let pid: i32 = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    command
        .contains("local\0engine")
        .then(|| Pid::from_raw(pid))
}
