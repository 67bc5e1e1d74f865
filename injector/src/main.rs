//! `weft-injector`: the mutating webhook.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use weft_injector::InjectorSettings;
use weft_injector::webhook::{Injector, health_routes, serve};

/// Gives pods a sidecar when they are made.
///
/// Exit codes: 0 stopped in order, 1 could not start.
#[derive(Parser)]
#[command(name = "weft-injector", version)]
struct Args {
    /// Address for API servers
    #[arg(long, default_value = "0.0.0.0:15443")]
    listen: SocketAddr,
    /// Address of health
    #[arg(long, default_value = "0.0.0.0:15014")]
    health: SocketAddr,
    /// How sidecars are made, JSON; the installation writes it
    #[arg(long, env = "WEFT_SETTINGS", value_parser = settings)]
    settings: InjectorSettings,
    /// What is logged: error, warn, info, debug
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    log: String,
}

fn settings(text: &str) -> Result<InjectorSettings, serde_json::Error> {
    serde_json::from_str(text)
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
    let injector = Injector::new(args.settings);
    let client = kube::Client::try_default()
        .await
        .context("the API server cannot be reached")?;
    let open = async |address: SocketAddr| {
        TcpListener::bind(address)
            .await
            .with_context(|| format!("{address} cannot be opened"))
    };
    let health = axum::serve(open(args.health).await?, health_routes(injector.clone()));
    let webhook = serve(open(args.listen).await?, injector.clone());
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tracing::info!(address = %args.listen, "serving");
    tokio::select! {
        ended = async { health.await } => ended?,
        () = webhook => {}
        () = injector.follow_certificate(client) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
