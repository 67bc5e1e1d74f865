//! gRPC for proxies (mutual TLS) and for operators (a Unix socket).

mod discovery;
mod identity;
mod listener;
mod operator;

use std::os::unix::fs::PermissionsExt;
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

use crate::token::TokenKey;
use crate::{Settings, State};

/// Serves until SIGTERM or SIGINT.
pub async fn serve(state: Arc<State>, tokens: TokenKey, settings: &Settings) -> anyhow::Result<()> {
    let incoming = listener::listen(settings.listen, state.clone()).await?;
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
    let path = &settings.operator_socket;
    // A socket file that an earlier process left.
    let _ = std::fs::remove_file(path);
    let socket =
        UnixListener::bind(path).with_context(|| format!("{} cannot be opened", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let operators = Server::builder()
        .add_service(OperatorServer::new(operator::OperatorService::new(state)))
        .serve_with_incoming(UnixListenerStream::new(socket));
    tracing::info!(address = %settings.listen, "serving");
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::select! {
        ended = proxies => ended?,
        ended = operators => ended?,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
