//! New connections: to a pod's proxy with mutual TLS, or in plaintext.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::net::{TcpSocket, TcpStream};
use weft_identity::{SpiffeId, peer_identity};

use crate::shared::Shared;
use crate::transport::{Io, prepare};

/// For the TCP handshake and for TLS, each.
const CONNECT: Duration = Duration::from_secs(3);
/// Source of a connection to the proxy's own pod (`weft_cni_init::SELF_CALL_SOURCE`).
const SELF_CALL: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// Why there is no connection. Nothing of the request has left.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// TCP.
    #[error("{0} cannot be reached: {1}")]
    Unreachable(SocketAddr, String),
    /// The peer did not prove what it must.
    #[error("{0} did not prove to be {1}: {2}")]
    Identity(SocketAddr, String, String),
    /// No certificate of our own.
    #[error("this proxy has no certificate yet")]
    NoCertificate,
}

async fn within<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(CONNECT, future).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Connects to `address`. A call to the own pod gets the source address that
/// the redirect rules lead to the inbound side.
async fn connect_tcp(address: SocketAddr, own: &[IpAddr]) -> Result<TcpStream, ConnectError> {
    let unreachable = |e: io::Error| ConnectError::Unreachable(address, e.to_string());
    let connect = async {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if own.contains(&address.ip()) {
            let source: IpAddr = match address {
                SocketAddr::V4(_) => SELF_CALL.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.connect(address).await
    };
    let tcp = within(connect).await.map_err(unreachable)?;
    prepare(&tcp);
    Ok(tcp)
}

/// Connects without TLS.
pub async fn connect_plain(address: SocketAddr) -> Result<Io, ConnectError> {
    Ok(Io::plain(connect_tcp(address, &[]).await?))
}

/// Connects with mutual TLS, to exactly this peer.
pub async fn connect_mesh(
    shared: &Shared,
    address: SocketAddr,
    peer: &SpiffeId,
    http: bool,
) -> Result<Io, ConnectError> {
    let tls = shared.tls.load_full().ok_or(ConnectError::NoCertificate)?;
    let identity = |e: String| ConnectError::Identity(address, peer.to_string(), e);
    let config: Arc<ClientConfig> = tls
        .client(peer, http)
        .map_err(|e| identity(e.to_string()))?;
    let tcp = connect_tcp(address, &crate::worker::own_addresses()).await?;
    let handshake = async { Io::tls_client(tcp, address.ip(), config)?.handshake().await };
    let io = within(handshake).await.map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => identity(e.to_string()),
        _ => ConnectError::Unreachable(address, e.to_string()),
    })?;
    // A resumed session is not verified by rustls again: its leaf may have ended.
    let certificates = io.session().and_then(|s| s.peer_certificates());
    let (proved, _) = peer_identity(certificates).map_err(|e| identity(e.to_string()))?;
    if proved != *peer {
        return Err(identity(format!("it is {proved}")));
    }
    Ok(io)
}

/// One opaque connection of its own to an endpoint.
pub async fn connect_opaque(
    shared: &Shared,
    address: SocketAddr,
    peer: Option<&SpiffeId>,
) -> Result<Io, ConnectError> {
    match peer {
        Some(peer) => connect_mesh(shared, address, peer, false).await,
        None => connect_plain(address).await,
    }
}
