//! Connections to the application: authenticate, authorize, then HTTP or TCP.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use weft_identity::{ALPN_HTTP, SpiffeId, peer_identity};

use crate::config::Protocol;
use crate::detect::Spoken;
use crate::first::{First, Speaker, first, is_mesh_hello};
use crate::http::h2::Dialect;
use crate::http::plan::{InboundSide, Side};
use crate::http::serve::{serve_h1, serve_h2};
use crate::tcp::relay;
use crate::telemetry::{Flag, Outcome};
use crate::transport::Io;
use crate::upstream::{ConnectError, connect_opaque};
use crate::worker::{ActiveCalls, Worker};

/// For the TLS handshake of a peer.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves one connection from `peer` to the application at `address`.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream, peer: SocketAddr, address: SocketAddr) {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let mut client = Io::plain(tcp);
    let inbound = worker.shared.inbound.load_full();
    let strict = inbound.is_strict(address.port());
    let plain = InboundSide::new(worker.clone(), None, peer.ip(), address);
    // Until the application has been asked for nothing on behalf of a caller
    // that may not call, only the caller's words are looked at.
    let may_connect = plain.may_go_on(&inbound, None);
    let connect = async || match may_connect {
        true => application(&plain).await,
        false => std::future::pending().await,
    };
    let found = first(&mut client, Speaker::Unknown, connect).await;
    let (spoken, mut early) = match found {
        Ok(First::Client(spoken, early)) => (spoken, early),
        Ok(First::Server(server, early)) => {
            return opaque(&plain, client.with_early(early), Some(server)).await;
        }
        Ok(First::Gone) | Err(_) => return,
    };
    if spoken == Spoken::Tls {
        match is_mesh_hello(&mut client, &mut early).await {
            Ok(true) => return Box::pin(mesh(worker, client, early, peer, address)).await,
            Ok(false) => {}
            Err(_) => return,
        }
    }
    if strict && !matches!(spoken, Spoken::Http1) {
        return refuse(&plain, &client, Flag::PlaintextRefused);
    }
    let declared = inbound.protocol(address.port());
    drop(inbound);
    match spoken {
        Spoken::Http1 if declared != Protocol::Tcp => {
            serve_h1(&Side::Inbound(plain), client.with_early(early)).await;
        }
        Spoken::Http2 if declared != Protocol::Tcp => {
            serve_h2(
                Rc::new(Side::Inbound(plain)),
                client,
                early,
                Dialect::Standard,
            )
            .await;
        }
        _ => opaque(&plain, client.with_early(early), None).await,
    }
}

/// The caller has a proxy of the mesh.
async fn mesh(
    worker: Rc<Worker>,
    client: Io,
    early: Vec<u8>,
    peer: SocketAddr,
    address: SocketAddr,
) {
    let Some(tls) = worker.shared.tls.load_full() else {
        client.reset_on_drop();
        return;
    };
    let (tcp, _) = client.into_plain();
    let server = tls.server.clone();
    let accepting = async { Io::tls_server(tcp, server, early)?.handshake().await };
    let io = match tokio::time::timeout(HANDSHAKE, accepting).await {
        Ok(Ok(io)) => io,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "a TLS handshake took too long"),
    };
    let session = io.session();
    let http = session.and_then(|s| s.alpn_protocol()) == Some(ALPN_HTTP);
    let identity: SpiffeId = match peer_identity(session.and_then(|s| s.peer_certificates())) {
        Ok((identity, _)) => identity,
        Err(error) => {
            tracing::debug!(%peer, %error, "refused");
            return io.reset_on_drop();
        }
    };
    let side = InboundSide::new(worker, Some(identity), peer.ip(), address);
    if http {
        side.edge("http").connection();
        serve_h2(Rc::new(Side::Inbound(side)), io, Vec::new(), Dialect::Mesh).await;
    } else {
        opaque(&side, io, None).await;
    }
}

async fn application(side: &InboundSide) -> Result<Io, ConnectError> {
    connect_opaque(&side.worker.shared, side.address, None).await
}

/// Denies an opaque connection: a reset.
fn refuse(side: &InboundSide, client: &Io, flag: Flag) {
    let edge = side.edge("tcp");
    edge.denied_connection();
    edge.request(
        Outcome {
            status: 0,
            grpc: None,
            flag,
        },
        Duration::ZERO,
    );
    client.reset_on_drop();
}

/// One opaque connection. `server`: to the application, if it is open already.
async fn opaque(side: &Rc<InboundSide>, mut client: Io, server: Option<Io>) {
    let inbound = side.worker.shared.inbound.load_full();
    if side.peer.is_none() && inbound.is_strict(side.address.port()) {
        return refuse(side, &client, Flag::PlaintextRefused);
    }
    let verdict = side.decide(&inbound, None);
    if !verdict.decision.is_allowed() {
        if server.is_none() && side.may_allow_a_request(&inbound) {
            // The caller's proxy asks who speaks first: were it told no, it
            // would take the caller's HTTP for denied as well.
            let spoke = poll_fn(|cx| client.poll_peek(cx)).await;
            if spoke.is_err() || !client.has_peeked() {
                return;
            }
        }
        side.log_denial(&inbound, verdict.decision, None);
        return refuse(side, &client, Flag::Denied);
    }
    if !verdict.dry_run.is_allowed() {
        side.edge("tcp").would_deny();
    }
    drop(inbound);
    let server = match server {
        Some(server) => Ok(server),
        None => Box::pin(application(side)).await,
    };
    let edge = side.edge("tcp");
    let mut server = match server {
        Ok(server) => server,
        Err(error) => {
            tracing::debug!(%error, "the application takes no connection");
            client.reset_on_drop();
            let outcome = Outcome {
                status: 0,
                grpc: None,
                flag: Flag::ConnectFailure,
            };
            return edge.request(outcome, Duration::ZERO);
        }
    };
    edge.connection();
    let guard = {
        let side = side.clone();
        let worker = side.worker.clone();
        ActiveCalls::register(
            &worker,
            Box::new(move |inbound| side.may_go_on(inbound, None)),
        )
    };
    let ended = relay(&mut client, &mut server, Some(&guard), |sent, received| {
        edge.bytes(sent, received);
    })
    .await;
    tracing::debug!(?ended, "connection ended");
}
