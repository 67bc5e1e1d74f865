//! `Watch`: each proxy is told what it asked for, and then what changes.
//!
//! A stream looks at the index when it has changed and sends the difference to
//! what the proxy holds: a slow proxy gets the latest state, not a queue.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use weft_proto as proto;
use weft_proto::discovery_server::Discovery;
use weft_proto::resource::Body;
use weft_proto::watch_request::Message as Hear;
use weft_proto::watch_response::Message as Say;
use weft_proto::{Resource, WatchRequest, WatchResponse};

use super::listener::Peer;
use crate::State;
use crate::index::Asker;

const HEARTBEAT: Duration = Duration::from_secs(5);
/// Names that one proxy may ask for.
const MAX_NAMES: usize = 10_000;
/// Longest name, in bytes.
const MAX_NAME: usize = 512;

/// Serves discovery.
pub struct DiscoveryService {
    state: Arc<State>,
}

impl DiscoveryService {
    /// From a state.
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }
}

#[tonic::async_trait]
impl Discovery for DiscoveryService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let peer = request.extensions().get::<Peer>().and_then(|p| p.0.clone());
        let peer =
            peer.ok_or_else(|| Status::unauthenticated("a certificate of the mesh is needed"))?;
        let mut requests = request.into_inner();
        let first = requests.next().await.transpose()?.and_then(|m| m.message);
        let Some(Hear::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        self.check_pod(peer.as_str(), &hello)?;
        let (say, responses) = mpsc::channel(4);
        let session = Session::new(self.state.clone(), say, peer.to_string(), &hello);
        tokio::spawn(session.run(requests, hello));
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

impl DiscoveryService {
    /// A proxy speaks for a pod of its own service account only.
    fn check_pod(&self, peer: &str, hello: &proto::Hello) -> Result<(), Status> {
        let index = self.state.index();
        let pod = index.pod(&hello.namespace, &hello.pod);
        let pod = pod.ok_or_else(|| {
            Status::not_found(format!(
                "the pod {}/{} does not exist",
                hello.namespace, hello.pod
            ))
        })?;
        if index.identity(pod) != peer {
            return Err(Status::permission_denied(format!(
                "{peer} does not run the pod {}/{}",
                hello.namespace, hello.pod
            )));
        }
        Ok(())
    }
}

/// One proxy's stream.
struct Session {
    state: Arc<State>,
    say: mpsc::Sender<Result<WatchResponse, Status>>,
    identity: String,
    asker: Asker,
    delta: bool,
    names: HashSet<String>,
    /// Versions that the proxy holds, or will once it has read what was sent.
    held: HashMap<String, String>,
    /// The sets behind those versions, for sending differences.
    sets: HashMap<String, Arc<Resource>>,
    number: u64,
}

impl Session {
    fn new(
        state: Arc<State>,
        say: mpsc::Sender<Result<WatchResponse, Status>>,
        identity: String,
        hello: &proto::Hello,
    ) -> Self {
        Self {
            state,
            say,
            identity,
            asker: Asker {
                namespace: hello.namespace.clone(),
                pod: hello.pod.clone(),
            },
            delta: hello.capabilities.iter().any(|c| c == "endpoint-delta"),
            names: HashSet::new(),
            held: hello
                .held
                .iter()
                .map(|h| (h.name.clone(), h.version.clone()))
                .collect(),
            sets: HashMap::new(),
            number: 0,
        }
    }

    async fn run(mut self, requests: Streaming<WatchRequest>, hello: proto::Hello) {
        let Asker { namespace, pod } = self.asker.clone();
        tracing::info!(
            namespace,
            pod,
            version = hello.proxy_version,
            held = hello.held.len(),
            "proxy connected"
        );
        let held: Vec<String> = self.held.keys().cloned().collect();
        self.subscribe(hello.names.into_iter().chain(held));
        self.subscribe(self.state.proxies.remembered(&self.identity).into_iter());
        self.state.proxies.connected(proto::ProxyState {
            namespace: namespace.clone(),
            pod: pod.clone(),
            proxy_version: hello.proxy_version,
            spiffe_id: self.identity.clone(),
            connected: true,
            ..Default::default()
        });
        let ended = self.converse(requests).await;
        tracing::info!(
            namespace,
            pod,
            reason = ended.err().map(|e| proto::brief(&e)),
            "proxy disconnected"
        );
        self.state.proxies.disconnected(&namespace, &pod);
    }

    async fn converse(&mut self, mut requests: Streaming<WatchRequest>) -> Result<(), Status> {
        let mut changes: watch::Receiver<u64> = self.state.changes.subscribe();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        self.send(Say::Welcome(proto::Welcome {
            control_plane_version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: vec!["endpoint-delta".to_owned()],
        }))
        .await?;
        loop {
            // Endpoints never wait behind anything: all that changed goes in one.
            changes.mark_unchanged();
            self.update().await?;
            tokio::select! {
                heard = requests.next() => match heard.transpose()?.and_then(|m| m.message) {
                    Some(message) => self.hear(message),
                    None => return Ok(()),
                },
                changed = changes.changed() => changed.map_err(|_| Status::unavailable("stopping"))?,
                _ = heartbeat.tick() => {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    self.send(Say::Heartbeat(proto::Heartbeat { unix_millis: now.as_millis() as i64 })).await?;
                }
            }
        }
    }

    async fn send(&self, message: Say) -> Result<(), Status> {
        let response = WatchResponse {
            message: Some(message),
        };
        self.say
            .send(Ok(response))
            .await
            .map_err(|_| Status::cancelled("the proxy has gone"))
    }

    fn subscribe(&mut self, names: impl Iterator<Item = String>) {
        for name in names {
            if name.len() <= MAX_NAME && self.names.len() < MAX_NAMES {
                self.names.insert(name);
            }
        }
        self.state
            .proxies
            .remember(&self.identity, self.names.iter());
    }

    fn hear(&mut self, message: Hear) {
        let Asker { namespace, pod } = &self.asker;
        match message {
            Hear::Hello(_) => {}
            Hear::Subscribe(subscribe) => self.subscribe(subscribe.names.into_iter()),
            Hear::Unsubscribe(unsubscribe) => {
                for name in unsubscribe.names {
                    self.names.remove(&name);
                    self.held.remove(&name);
                    self.sets.remove(&name);
                }
            }
            Hear::Ack(ack) => {
                let resources = self.held.len() as u32;
                self.state.proxies.change(namespace, pod, |p| {
                    p.acknowledged = ack.number;
                    p.resources = resources;
                    p.refused.clear();
                });
            }
            Hear::Refusal(refusal) => {
                for refused in &refusal.resources {
                    tracing::warn!(
                        namespace,
                        pod,
                        name = refused.name,
                        reason = refused.reason,
                        "a proxy refused a resource"
                    );
                    // What it holds is not known any more: the next one is whole.
                    self.sets.remove(&refused.name);
                }
                self.state.proxies.change(namespace, pod, |p| {
                    p.acknowledged = refusal.number;
                    p.refused = refusal.resources;
                });
            }
            Hear::Report(report) => {
                self.state.proxies.change(namespace, pod, |p| {
                    p.certificate_not_after = report.certificate_not_after;
                    p.certificate_issuer = report.certificate_issuer;
                    p.clock_skew_millis = report.clock_skew_millis;
                });
                self.state.edges.add(report.edges);
            }
        }
    }

    /// Sends what the proxy does not hold, and what its destinations refer to.
    async fn update(&mut self) -> Result<(), Status> {
        let mut resources = Vec::new();
        let mut wanted: Vec<String> = self.names.iter().cloned().collect();
        let mut seen: HashSet<String> = HashSet::new();
        let state = self.state.clone();
        {
            let mut index = state.index();
            while let Some(name) = wanted.pop() {
                if !seen.insert(name.clone()) {
                    continue;
                }
                let Some(resource) = index.resolve(&name, &self.asker) else {
                    continue;
                };
                wanted.extend(references(&resource));
                if self.held.get(&name) != Some(&resource.version) {
                    resources.push(self.difference(&resource));
                    self.held.insert(name.clone(), resource.version.clone());
                }
                if name.starts_with("endpoints/") {
                    self.sets.insert(name, resource);
                }
            }
        }
        if resources.is_empty() {
            return Ok(());
        }
        self.number += 1;
        let number = self.number;
        tracing::debug!(
            namespace = self.asker.namespace,
            pod = self.asker.pod,
            resources = resources.len(),
            "resources sent"
        );
        self.state
            .proxies
            .change(&self.asker.namespace, &self.asker.pod, |p| p.sent = number);
        self.send(Say::Update(proto::Update { number, resources }))
            .await
    }

    /// Endpoints as the difference to what the proxy holds, where that is known.
    fn difference(&self, resource: &Arc<Resource>) -> Resource {
        let whole = || Resource::clone(resource);
        let (Some(Body::Endpoints(new)), true) = (&resource.body, self.delta) else {
            return whole();
        };
        let Some(old) = self.sets.get(&resource.name) else {
            return whole();
        };
        let Some(Body::Endpoints(before)) = &old.body else {
            return whole();
        };
        let removed = before
            .endpoints
            .iter()
            .filter(|e| !new.endpoints.iter().any(|n| n.address == e.address));
        let upserted = new
            .endpoints
            .iter()
            .filter(|n| !before.endpoints.contains(n));
        let delta = proto::EndpointDelta {
            base: old.version.clone(),
            removed: removed.map(|e| e.address.clone()).collect(),
            upserted: upserted.cloned().collect(),
        };
        Resource {
            name: resource.name.clone(),
            version: resource.version.clone(),
            body: Some(Body::EndpointDelta(delta)),
        }
    }
}

/// The endpoints that a destination needs.
fn references(resource: &Resource) -> Vec<String> {
    let Some(Body::Destination(destination)) = &resource.body else {
        return Vec::new();
    };
    let Some(proto::destination::Kind::Service(service)) = &destination.kind else {
        return Vec::new();
    };
    let backends = service
        .rules
        .iter()
        .flat_map(|r| &r.backends)
        .map(|b| &b.endpoints);
    let mut names: Vec<String> = backends
        .chain([&service.endpoints])
        .filter(|n| !n.is_empty())
        .cloned()
        .collect();
    names.sort();
    names.dedup();
    names
}
