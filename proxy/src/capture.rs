//! Whether the redirect rules stand: seen from within, without the rights to
//! read them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use crate::shared::Shared;

const LOOK: Duration = Duration::from_secs(1);
/// Once they stand, they are looked at less often.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(1);
/// Nobody listens here; a redirected connection is answered all the same.
const PORT: u16 = 1;

/// Keeps `shared.captured` current until the process ends.
pub async fn watch(shared: Arc<Shared>, pod: IpAddr) {
    loop {
        let stands = matches!(
            tokio::time::timeout(ANSWER, call_own_pod(pod)).await,
            Ok(Ok(_))
        );
        if shared.captured.swap(stands, Ordering::AcqRel) && !stands {
            tracing::error!(
                "the pod's traffic is not redirected any more: somebody took the rules away"
            );
        }
        tokio::time::sleep(if stands { LOOK_AGAIN } else { LOOK }).await;
    }
}

/// As the proxy calls its own pod: the rules lead that to the inbound side.
async fn call_own_pod(pod: IpAddr) -> std::io::Result<TcpStream> {
    let (socket, source) = match pod {
        IpAddr::V4(_) => (
            TcpSocket::new_v4()?,
            IpAddr::from(Ipv4Addr::new(127, 0, 0, 6)),
        ),
        IpAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::from(Ipv6Addr::LOCALHOST)),
    };
    socket.bind(SocketAddr::new(source, 0))?;
    socket.connect(SocketAddr::new(pod, PORT)).await
}
