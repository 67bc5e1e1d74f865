//! `weft-cni-agent`: on each node, keeps the CNI plugin installed, tells it
//! which pods are the mesh's, and finds pods that were made without it.

mod answer;
mod install;
mod repair;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Captures pods' traffic from their node.
///
/// Exit codes: 0 stopped in order, 1 could not start.
#[derive(Parser, Debug, Clone)]
#[command(name = "weft-cni-agent", version)]
pub struct Args {
    /// The node
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Folder of the node's CNI configuration, as it is mounted here
    #[arg(long, default_value = "/host/etc/cni/net.d")]
    configurations: PathBuf,
    /// Folder of the node's CNI programs, as it is mounted here
    #[arg(long, default_value = "/host/opt/cni/bin")]
    programs: PathBuf,
    /// The plugin, in this image
    #[arg(long, default_value = "/weft-cni")]
    plugin: PathBuf,
    /// Folder for the socket; the same path here and on the node
    #[arg(long, default_value = "/run/weft-cni")]
    socket_folder: PathBuf,
    /// Namespaces that are never the mesh's
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "kube-system,weft-system,weft-cni"
    )]
    exclude_namespaces: Vec<String>,
    /// What is logged: error, warn, info, debug
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // What the library logs of a watch that fails is told here in the mesh's words.
    let filter = format!("kube_client=error,{}", args.log);
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_default();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(args)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let client = kube::Client::try_default()
        .await
        .context("the API server cannot be reached")?;
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let socket = args.socket_folder.join("agent.sock");
    // First the answers, then the plugin that asks.
    let answers = answer::serve(&socket, client.clone())?;
    tokio::select! {
        () = answers => {}
        () = install::keep(&args, &socket) => {}
        () = repair::follow(client.clone(), &args.node) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    // A restart leaves the plugin: pods that are made meanwhile wait for the
    // next agent. Only when all of it is taken away does the plugin go.
    if install::is_uninstalled(&client).await {
        install::remove(&args);
        tracing::info!("the plugin was taken out of the node's configuration");
    }
    Ok(())
}
