//! `weft-control-plane`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let settings = weft_control_plane::Settings::parse();
    // What the library logs of a watch that fails is told here in the mesh's words.
    let filter = format!("kube_client=error,{}", settings.log);
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_default();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    // What TLS does not say otherwise uses this.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(weft_control_plane::run(settings)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
