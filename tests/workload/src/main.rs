//! What the tests on Kubernetes run in pods: an application that knows nothing
//! of the mesh, and callers that count what came back.

mod load;
mod serve;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// HTTP on 8080, gRPC health on 9090, TCP on 7000 whose server speaks first
    Serve {
        /// Only requests with this token in their query find it healthy
        #[arg(long, default_value = "")]
        health_token: String,
        /// Open the TCP port this many seconds late
        #[arg(long, default_value_t = 0)]
        tcp_after: u64,
    },
    /// Calls the HTTP and gRPC ports of a host at a steady rate, and prints a
    /// line of JSON each second
    Load {
        #[arg(long)]
        host: String,
        /// Requests a second of each kind
        #[arg(long, default_value_t = 20)]
        rate: u64,
    },
    /// Calls a URL once, or until it is answered 200; prints status and body
    Get {
        url: String,
        #[arg(long)]
        wait: bool,
    },
    /// Ends with this code, after a while
    Exit {
        code: u8,
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let role = async {
        match Cli::parse().role {
            Role::Serve {
                health_token,
                tcp_after,
            } => serve::serve(health_token, tcp_after).await,
            Role::Load { host, rate } => load::run(&host, rate).await,
            Role::Get { url, wait } => load::get(&url, wait).await,
            Role::Exit { code, after } => {
                tokio::time::sleep(std::time::Duration::from_secs(after)).await;
                std::process::exit(code.into())
            }
        }
    };
    tokio::select! {
        ended = role => ended,
        // At once and without care, as many applications do.
        _ = term.recv() => Ok(()),
    }
}
