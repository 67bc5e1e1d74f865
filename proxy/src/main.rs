//! `weft-proxy`: the data plane of one pod.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // A sidecar's memory is small: whole huge pages of it would lie idle. Where
    // the kernel cannot be told, it only uses more.
    let _ = nix::sys::prctl::set_thp_disable(true);
    let settings = weft_proxy::Settings::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log).unwrap_or_default();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    match weft_proxy::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
