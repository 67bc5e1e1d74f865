//! Listeners, and where each accepted connection was really going.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::shared::Phase;
use crate::transport::prepare;
use crate::worker::Worker;
use crate::{inbound, outbound};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// Which side a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the application.
    Outbound,
    /// To the application.
    Inbound,
}

impl Direction {
    /// Where such connections are led.
    pub fn port(self) -> u16 {
        match self {
            Self::Outbound => 15001,
            Self::Inbound => 15006,
        }
    }
}

/// Opens a direction's port on every address of both families; each worker has
/// listeners of its own on the same port.
pub fn listen(direction: Direction) -> io::Result<Vec<TcpListener>> {
    let port = direction.port();
    let v4 = bind(Domain::IPV4, IpAddr::from(Ipv4Addr::UNSPECIFIED), port);
    let mut listeners = vec![v4.map_err(|e| taken(port, e))?];
    // A pod without IPv6 has no such listener.
    if let Ok(v6) = bind(Domain::IPV6, IpAddr::from(Ipv6Addr::UNSPECIFIED), port) {
        listeners.push(v6);
    }
    Ok(listeners)
}

fn taken(port: u16, error: io::Error) -> io::Error {
    let mend = match error.kind() {
        io::ErrorKind::AddrInUse => ": another process has it; the proxy needs it for itself",
        _ => "",
    };
    io::Error::new(
        error.kind(),
        format!("port {port} cannot be opened: {error}{mend}"),
    )
}

fn bind(domain: Domain, ip: IpAddr, port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(ip, port).into())?;
    // Every accepted socket inherits it.
    prepare(&socket.as_fd());
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The address that a redirected connection was made to; `None` if it was made
/// to the proxy's own port.
fn original_destination(
    tcp: &TcpStream,
    peer: SocketAddr,
    direction: Direction,
) -> io::Result<Option<SocketAddr>> {
    let socket = SockRef::from(tcp);
    let original = match peer {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    let Some(original) = original.as_socket() else {
        return Ok(None);
    };
    let own = original.port() == direction.port() && original == tcp.local_addr()?;
    Ok((!own).then_some(original))
}

/// Accepts until the proxy stops.
pub async fn accept(worker: Rc<Worker>, listener: TcpListener, direction: Direction) {
    let mut phase = worker.shared.phase.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|p| *p >= Phase::Stopping) => return,
        };
        match accepted {
            Ok((tcp, peer)) => {
                tokio::task::spawn_local(serve(worker.clone(), tcp, peer, direction));
            }
            Err(error) => {
                // Out of file descriptors, usually: those in use will be freed.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn serve(worker: Rc<Worker>, tcp: TcpStream, peer: SocketAddr, direction: Direction) {
    let address = match original_destination(&tcp, peer, direction) {
        Ok(Some(address)) => address,
        Ok(None) | Err(_) => {
            let _ = SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
            return;
        }
    };
    let shared = worker.shared.clone();
    shared.open_connections.fetch_add(1, Ordering::Relaxed);
    match direction {
        Direction::Outbound => outbound::serve(worker, tcp, address).await,
        Direction::Inbound => inbound::serve(worker, tcp, peer, address).await,
    }
    shared.open_connections.fetch_sub(1, Ordering::Relaxed);
}
