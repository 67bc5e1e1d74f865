//! `meshctl proxy`: asks a sidecar, from within its pod.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use weft_local::MeshPaths;
use weft_local::client::pods;

use crate::cli::{Format, ProxyArgs, ProxyCommand};
use crate::cluster::{block_on, client, forward};
use crate::local::{enter_pod, find_pod};
use crate::operator::Mesh;

pub fn run(command: ProxyCommand) -> anyhow::Result<ExitCode> {
    let (args, path) = match &command {
        ProxyCommand::Config(args) => (args, "/config"),
        ProxyCommand::Metrics(args) => (args, "/metrics"),
        ProxyCommand::Logs(args) => return logs(args),
    };
    let body = ask(args, path)?;
    match (&command, args.mesh.output) {
        (ProxyCommand::Config(_), Format::Yaml) => {
            let value: serde_json::Value = serde_json::from_str(&body)?;
            print!("{}", serde_saphyr::to_string(&value)?);
        }
        (ProxyCommand::Config(_), _) => {
            let value: serde_json::Value = serde_json::from_str(&body)?;
            println!("{}", serde_json::to_string_pretty(&value)?);
        }
        (ProxyCommand::Metrics(_) | ProxyCommand::Logs(_), _) => print!("{body}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn logs(args: &ProxyArgs) -> anyhow::Result<ExitCode> {
    match Mesh::find(&args.mesh) {
        Mesh::Local(name) => bail!(
            "use meshctl local logs --name {name} -c weft-proxy {}",
            args.pod
        ),
        Mesh::Cluster(cluster) => block_on(async {
            let client = client(&cluster).await?;
            for pod in forward::find_pods(&client, &args.namespace, &args.pod).await? {
                print!(
                    "{}",
                    forward::sidecar_log(&client, &args.namespace, &pod).await?
                );
            }
            Ok(ExitCode::SUCCESS)
        }),
    }
}

fn ask(args: &ProxyArgs, path: &str) -> anyhow::Result<String> {
    match Mesh::find(&args.mesh) {
        Mesh::Local(name) => ask_local(args, &name, path),
        Mesh::Cluster(cluster) => block_on(async {
            let client = client(&cluster).await?;
            let pods = forward::find_pods(&client, &args.namespace, &args.pod).await?;
            let pod = pods.first().context("no pod")?;
            forward::ask_sidecar(&client, &args.namespace, pod, path).await
        }),
    }
}

/// Enters a pod of this machine and calls its sidecar.
pub fn connect_to_sidecar(mesh: &str, namespace: &str, pod: &str) -> anyhow::Result<TcpStream> {
    let pods = pods(&MeshPaths::new(mesh))?;
    let pod = find_pod(&pods, namespace, pod)?;
    if !pod.meshed {
        bail!("{} has no sidecar", pod.pod);
    }
    enter_pod(pod, false)?;
    TcpStream::connect(("127.0.0.1", forward::ADMIN)).context("the sidecar does not answer")
}

fn ask_local(args: &ProxyArgs, mesh: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = connect_to_sidecar(mesh, &args.namespace, &args.pod)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the sidecar's answer is not HTTP")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!(
            "the sidecar answered {}",
            head.lines().next().unwrap_or_default()
        );
    }
    Ok(body.to_owned())
}
