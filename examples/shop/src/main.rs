//! A small shop: the kind of application that people run. It knows nothing of
//! the mesh; it only passes trace headers on, as any traced application does.

mod cart;
mod catalog;
mod frontend;
mod load;
mod stock;
mod traces;

use clap::{Parser, Subcommand};

/// One program, several services.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    service: Service,
}

#[derive(Subcommand)]
enum Service {
    /// Web pages; calls all the others
    Frontend {
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Items over HTTP/1.1
    Catalog {
        #[arg(long, default_value_t = 8080)]
        port: u16,
        #[arg(long, default_value = "v1")]
        version: String,
        /// Part of the requests that are answered 503, 0 to 1
        #[arg(long, default_value_t = 0.0)]
        fail: f64,
    },
    /// Carts over gRPC
    Cart {
        #[arg(long, default_value_t = 9090)]
        port: u16,
        #[arg(long, default_value = "v1")]
        version: String,
    },
    /// A TCP service whose server speaks first
    Stock {
        #[arg(long, default_value_t = 7000)]
        port: u16,
    },
    /// Collects traces over OTLP and prints those that cross the whole shop
    Traces {
        #[arg(long, default_value_t = 4317)]
        port: u16,
        /// Spans that such a trace has at least
        #[arg(long, default_value_t = 8)]
        spans: usize,
    },
    /// Calls a URL at a steady rate and prints what came back
    Load {
        #[arg(long)]
        url: String,
        #[arg(long, default_value_t = 50)]
        rate: u64,
        /// Seconds; 0: until it is stopped
        #[arg(long, default_value_t = 0)]
        seconds: u64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let serve = async {
        match Cli::parse().service {
            Service::Frontend { port } => frontend::serve(port).await,
            Service::Catalog {
                port,
                version,
                fail,
            } => catalog::serve(port, version, fail).await,
            Service::Cart { port, version } => cart::serve(port, version).await,
            Service::Stock { port } => stock::serve(port).await,
            Service::Traces { port, spans } => traces::serve(port, spans).await,
            Service::Load { url, rate, seconds } => load::run(&url, rate, seconds).await,
        }
    };
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        ended = serve => ended,
        _ = term.recv() => Ok(()),
    }
}

/// Headers that a traced application hands from a request to those it causes.
pub const TRACE_HEADERS: [&str; 3] = ["traceparent", "tracestate", "x-request-id"];
