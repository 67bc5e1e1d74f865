//! Accepts proxies' connections: TLS with the control plane's own
//! certificate, and the caller's identity, if it has one yet.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use weft_identity::{SpiffeId, peer_identity};

use crate::State;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once.
const CONCURRENT: usize = 64;

/// Who is at the other end of a connection; `None`: it has no certificate yet.
#[derive(Debug, Clone)]
pub struct Peer(pub Option<SpiffeId>);

/// A connection whose handshake is done.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts until the process ends.
pub async fn listen(
    address: SocketAddr,
    state: Arc<State>,
) -> anyhow::Result<ReceiverStream<io::Result<Connection>>> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("{address} cannot be opened: is another control plane running?")
    })?;
    let (ready, incoming) = mpsc::channel(16);
    let slots = Arc::new(tokio::sync::Semaphore::new(CONCURRENT));
    tokio::spawn(async move {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let tcp = match listener.accept().await {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            let (ready, state) = (ready.clone(), state.clone());
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE, handshake(tcp, &state)).await {
                    Ok(Ok(connection)) => {
                        let _ = ready.send(Ok(connection)).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
                    Err(_) => tracing::debug!("a handshake took too long"),
                }
                drop(slot);
            });
        }
    });
    Ok(ReceiverStream::new(incoming))
}

async fn handshake(tcp: TcpStream, state: &State) -> io::Result<Connection> {
    tcp.set_nodelay(true)?;
    let stream = TlsAcceptor::from(state.issuer.server()).accept(tcp).await?;
    let certificates = stream.get_ref().1.peer_certificates();
    let peer = match certificates {
        None => Peer(None),
        Some(_) => Peer(Some(
            peer_identity(certificates).map_err(io::Error::other)?.0,
        )),
    };
    Ok(Connection { stream, peer })
}
