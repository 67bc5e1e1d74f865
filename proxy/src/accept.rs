//! Listeners, and where each accepted connection was really going.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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

/// Opens a port on every address of both families; each worker has listeners
/// of its own on the same port.
pub fn listen(port: u16) -> io::Result<Vec<TcpListener>> {
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
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The address that a redirected connection was made to.
fn original_destination(tcp: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(tcp);
    let original = match tcp.local_addr()? {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    original
        .as_socket()
        .ok_or_else(|| io::Error::other("no original destination"))
}

/// Accepts until the proxy stops.
pub async fn accept(worker: Rc<Worker>, listener: TcpListener, direction: Direction) {
    let mut phase = worker.shared.phase.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|p| *p == Phase::Stopping) => return,
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
    prepare(&tcp);
    let address = match original_destination(&tcp) {
        Ok(address) if Some(address) != tcp.local_addr().ok() => address,
        // Not redirected: somebody called the proxy's own port.
        _ => {
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
