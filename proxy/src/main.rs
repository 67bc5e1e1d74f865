//! `weft-proxy`: the data plane of one pod.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // A sidecar's memory is small: whole huge pages of it would lie idle. Where
    // the kernel cannot be told, it only uses more.
    let _ = nix::sys::prctl::set_thp_disable(true);
    match std::env::args().nth(1).as_deref() {
        Some("drain") => return done(weft_proxy::drain().unwrap_or(false)),
        Some("wait") => return done(weft_proxy::wait()),
        _ => {}
    }
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

fn done(fine: bool) -> ExitCode {
    if fine {
        ExitCode::SUCCESS
    } else {
        eprintln!("weft-proxy: the sidecar of this pod did not answer as hoped");
        ExitCode::FAILURE
    }
}
