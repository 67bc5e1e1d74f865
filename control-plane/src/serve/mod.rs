//! gRPC for proxies (mutual TLS) and for operators (a Unix socket).

mod discovery;
mod identity;
mod listener;
mod operator;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use weft_proto::discovery_server::DiscoveryServer;
use weft_proto::identity_server::IdentityServer;
use weft_proto::operator_server::OperatorServer;

use crate::State;
use crate::token::TokenReviewer;

/// Where operators come in.
pub enum Operators {
    /// A Unix socket, for the user that this runs as.
    Socket(PathBuf),
    /// A loopback address, for those whom the API server lets into the pod.
    Loopback(SocketAddr),
}

/// Serves until SIGTERM or SIGINT.
pub async fn serve(
    state: Arc<State>,
    tokens: TokenReviewer,
    listen: SocketAddr,
    operators: Operators,
) -> anyhow::Result<()> {
    let incoming = listener::listen(listen, state.clone()).await?;
    let proxies = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(15)))
        .add_service(IdentityServer::new(identity::IdentityService::new(
            state.clone(),
            tokens,
        )))
        .add_service(DiscoveryServer::new(discovery::DiscoveryService::new(
            state.clone(),
        )))
        .serve_with_incoming(incoming);
    tracing::info!(address = %listen, "serving");
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::select! {
        ended = proxies => ended?,
        ended = serve_operators(state, operators) => ended?,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

async fn serve_operators(state: Arc<State>, operators: Operators) -> anyhow::Result<()> {
    let service = OperatorServer::new(operator::OperatorService::new(state));
    let server = Server::builder().add_service(service);
    match operators {
        Operators::Loopback(address) => server.serve(address).await?,
        Operators::Socket(path) => {
            // A socket file that an earlier process left.
            let _ = std::fs::remove_file(&path);
            let socket = UnixListener::bind(&path)
                .with_context(|| format!("{} cannot be opened", path.display()))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            server
                .serve_with_incoming(UnixListenerStream::new(socket))
                .await?;
        }
    }
    Ok(())
}
