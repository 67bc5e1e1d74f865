//! Connections that the application makes: resolve, detect, then HTTP or TCP.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;

use crate::config::{Destination, Endpoint, Protocol};
use crate::detect::Spoken;
use crate::first::{First, Speaker, first};
use crate::http::h2::Dialect;
use crate::http::plan::{OutboundSide, Side};
use crate::http::serve::{serve_h1, serve_h2};
use crate::tcp::relay;
use crate::telemetry::{Flag, Outcome};
use crate::transport::Io;
use crate::upstream::{ConnectError, LocalEndpoint, connect_opaque};
use crate::worker::{LocalDestination, Worker, outbound_key};

/// Attempts to reach some endpoint with an opaque connection.
const ATTEMPTS: usize = 3;

/// Serves one connection to `address`.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream, address: SocketAddr) {
    let mut client = Io::plain(tcp);
    let mesh = worker.shared.mesh.load_full();
    if !mesh.cidrs.is_empty() && !mesh.contains(address.ip()) {
        return Box::pin(external(&worker, client, address)).await;
    }
    let Some((local, destination)) = worker.destination(address).await else {
        // Within the mesh nothing is called in plaintext on a guess.
        tracing::warn!(%address, "refused: the control plane does not say where this leads");
        client.reset_on_drop();
        return;
    };
    let declared = match &*destination {
        Destination::External => {
            return Box::pin(external(&worker, client, address)).await;
        }
        Destination::Service(service) => service.protocol,
        Destination::Workload(endpoint) => endpoint.protocol,
    };
    drop(destination);
    let (spoken, early) = match declared {
        Protocol::Tcp => (Spoken::Opaque, Vec::new()),
        declared => {
            let connect = async || match declared {
                Protocol::Detect => opaque(&worker, &local).await.map(|(io, _)| io),
                // Of HTTP, the client speaks first.
                _ => std::future::pending().await,
            };
            match first(&mut client, local.first_speaker.get(), connect).await {
                Ok(First::Client(spoken, early)) => (spoken, early),
                Ok(First::Server(server, early)) => {
                    if early.is_empty() {
                        local.first_speaker.set(Speaker::Server);
                    }
                    return join(&worker, &local, client.with_early(early), server, None).await;
                }
                Ok(First::Gone) | Err(_) => return,
            }
        }
    };
    if spoken != Spoken::Opaque {
        // Of other protocols either side may be the first, now one, now the other.
        local.first_speaker.set(Speaker::Client);
    }
    let side = || {
        Side::Outbound(OutboundSide {
            worker: worker.clone(),
            destination: local.clone(),
        })
    };
    match spoken {
        Spoken::Http1 => serve_h1(&side(), client.with_early(early)).await,
        Spoken::Http2 => serve_h2(Rc::new(side()), client, early, Dialect::Standard).await,
        Spoken::Tls | Spoken::Opaque => {
            let client = client.with_early(early);
            match Box::pin(opaque(&worker, &local)).await {
                Ok((server, endpoint)) => {
                    join(&worker, &local, client, server, Some(endpoint)).await
                }
                Err(error) => {
                    tracing::debug!(%address, %error, "no connection");
                    client.reset_on_drop();
                    let outcome = Outcome {
                        status: 0,
                        grpc: None,
                        flag: Flag::ConnectFailure,
                    };
                    edge(&worker, &local, None).request(outcome, Default::default());
                }
            }
        }
    }
}

/// Outside the mesh: as it is.
async fn external(worker: &Rc<Worker>, mut client: Io, address: SocketAddr) {
    match connect_opaque(&worker.shared, address, None).await {
        Ok(mut server) => {
            let key = outbound_key(
                &worker.shared,
                &"external".into(),
                &"".into(),
                &"".into(),
                None,
                "tcp",
            );
            let edge = worker.edges.edge(key);
            edge.connection();
            let _ = relay(&mut client, &mut server, None, |a, b| edge.bytes(a, b)).await;
        }
        Err(error) => {
            tracing::debug!(%address, %error, "no connection");
            client.reset_on_drop();
        }
    }
}

/// Connects an opaque connection. HTTP rules do not apply to it, but the weights
/// of a rule that matches everything do.
async fn opaque(
    worker: &Rc<Worker>,
    local: &Rc<LocalDestination>,
) -> Result<(Io, Rc<LocalEndpoint>), ConnectError> {
    let none =
        || ConnectError::Unreachable(SocketAddr::from(([0, 0, 0, 0], 0)), "no endpoint".into());
    let destination = local.current().ok_or_else(none)?;
    let mut tried = Vec::new();
    let mut last = none();
    for _ in 0..ATTEMPTS {
        let endpoint = match &*destination {
            Destination::Service(service) => service
                .opaque_rule()
                .pick(worker.random())
                .and_then(|(_, b)| worker.balancer(b))
                .and_then(|b| {
                    b.deposit();
                    b.pick(worker, &tried)
                }),
            Destination::Workload(endpoint) => one(worker, endpoint, &tried),
            Destination::External => None,
        };
        let Some(endpoint) = endpoint else { break };
        match connect_opaque(&worker.shared, endpoint.address, endpoint.identity.as_ref()).await {
            Ok(io) => return Ok((io, endpoint)),
            Err(error) => {
                endpoint.failed();
                last = error;
                tried.push(endpoint);
            }
        }
    }
    Err(last)
}

fn one(
    worker: &Worker,
    endpoint: &Endpoint,
    tried: &[Rc<LocalEndpoint>],
) -> Option<Rc<LocalEndpoint>> {
    tried.is_empty().then(|| worker.endpoint(endpoint))
}

fn edge(
    worker: &Rc<Worker>,
    local: &Rc<LocalDestination>,
    endpoint: Option<&Rc<LocalEndpoint>>,
) -> Rc<crate::telemetry::Edge> {
    let service = match local.current().as_deref() {
        Some(Destination::Service(service)) => service.name.clone(),
        _ => "".into(),
    };
    local.edge("", "", endpoint, "tcp", || {
        let endpoint = endpoint.map(|e| &**e);
        let key = outbound_key(
            &worker.shared,
            &service,
            &"".into(),
            &"".into(),
            endpoint,
            "tcp",
        );
        worker.edges.edge(key)
    })
}

/// Joins the application's connection with an endpoint's.
async fn join(
    worker: &Rc<Worker>,
    local: &Rc<LocalDestination>,
    mut client: Io,
    mut server: Io,
    endpoint: Option<Rc<LocalEndpoint>>,
) {
    let address = server.tcp().peer_addr().ok();
    let endpoint = endpoint.or_else(|| address.and_then(|a| worker.known_endpoint(a)));
    let edge = edge(worker, local, endpoint.as_ref());
    edge.connection();
    let ended = relay(&mut client, &mut server, None, |sent, received| {
        edge.bytes(sent, received)
    })
    .await;
    tracing::debug!(?ended, "connection ended");
}
