//! Where a request comes from and where it goes: decided before anything is
//! sent.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use weft_identity::SpiffeId;
use weft_policy::Identity;
use weft_policy::authorization::{Call, Decision};
use weft_policy::url::location;

use super::head::RequestHead;
use super::local::LocalResponse;
use crate::config::{Backend, Destination, Inbound, Rule};
use crate::shared::Phase;
use crate::telemetry::{Edge, EdgeKey, Flag};
use crate::upstream::{Balancer, LocalEndpoint};
use crate::worker::{LocalDestination, Worker, outbound_key};

/// The connection that a request came by.
pub enum Side {
    /// From the application, to be routed.
    Outbound(OutboundSide),
    /// For the application, to be authorized.
    Inbound(Rc<InboundSide>),
}

/// A connection of the application.
pub struct OutboundSide {
    /// The thread.
    pub worker: Rc<Worker>,
    /// Where it was to go.
    pub destination: Rc<LocalDestination>,
}

/// A connection to the application.
pub struct InboundSide {
    /// The thread.
    pub worker: Rc<Worker>,
    /// Who calls; `None`: plaintext.
    pub peer: Option<SpiffeId>,
    /// From where.
    pub peer_ip: IpAddr,
    /// The address that was called.
    pub address: SocketAddr,
    /// The application.
    pub application: Rc<LocalEndpoint>,
    /// Counters by protocol.
    edges: RefCell<Vec<(&'static str, Rc<Edge>)>>,
}

/// What is to be done with a request.
pub struct Plan {
    /// Routing rule, if a service was called.
    pub rule: Option<Arc<Rule>>,
    /// Index of the backend in the rule.
    pub backend: usize,
    /// Where to.
    pub target: Target,
    /// The service called, `NAMESPACE/NAME`.
    pub service: Arc<str>,
}

/// Candidates for a request.
pub enum Target {
    /// Any of a service's endpoints.
    Balanced(Rc<Balancer>),
    /// This one.
    One(Rc<LocalEndpoint>),
}

impl Plan {
    /// The backend, if a service was called.
    pub fn backend(&self) -> Option<&Backend> {
        self.rule.as_ref()?.backends.get(self.backend)
    }

    fn one(endpoint: Rc<LocalEndpoint>, service: Arc<str>) -> Self {
        Self {
            rule: None,
            backend: 0,
            target: Target::One(endpoint),
            service,
        }
    }
}

impl Side {
    /// The thread.
    pub fn worker(&self) -> &Rc<Worker> {
        match self {
            Self::Outbound(side) => &side.worker,
            Self::Inbound(side) => &side.worker,
        }
    }

    /// When the connection's peer is asked to leave: callers as soon as the pod
    /// is to end, the application when it ought to be gone.
    pub fn leaves(&self) -> Phase {
        match self {
            Self::Outbound(_) => Phase::Stopping,
            Self::Inbound(_) => Phase::Draining,
        }
    }

    /// Whether that time has come.
    pub fn peer_leaves(&self) -> bool {
        self.worker().shared.has_reached(self.leaves())
    }

    /// Decides. An error is the response to send instead.
    pub fn plan(&self, head: &RequestHead) -> Result<Plan, LocalResponse> {
        match self {
            Self::Outbound(side) => side.plan(head),
            Self::Inbound(side) => side.plan(head),
        }
    }

    /// The counters of a request.
    pub fn edge(
        &self,
        plan: Option<&Plan>,
        endpoint: Option<&Rc<LocalEndpoint>>,
        protocol: &'static str,
    ) -> Rc<Edge> {
        match self {
            Self::Outbound(side) => side.edge(plan, endpoint, protocol),
            Self::Inbound(side) => side.edge(protocol),
        }
    }
}

impl OutboundSide {
    fn plan(&self, head: &RequestHead) -> Result<Plan, LocalResponse> {
        let destination = self.destination.current();
        match destination.as_deref() {
            Some(Destination::Service(service)) => {
                let rule = match service.table.select(head) {
                    Some(index) => service.rules.get(index),
                    None if service.table.is_empty() => Some(&service.default_rule),
                    None => None,
                };
                let rule = rule
                    .ok_or_else(|| LocalResponse::new(Flag::NoRoute))?
                    .clone();
                if let Some(redirect) = &rule.redirect {
                    let to = location(redirect, head, &rule.matched_prefix, head.scheme());
                    let status = u16::try_from(redirect.status).unwrap_or(302);
                    return Err(LocalResponse::redirect(status, to));
                }
                let (backend, target) = rule
                    .pick(self.worker.random())
                    .and_then(|(index, b)| Some((index, self.worker.balancer(b)?)))
                    .ok_or_else(|| LocalResponse::new(Flag::NoBackend))?;
                Ok(Plan {
                    backend,
                    target: Target::Balanced(target),
                    service: service.name.clone(),
                    rule: Some(rule),
                })
            }
            Some(Destination::Workload(endpoint)) => {
                Ok(Plan::one(self.worker.endpoint(endpoint), "".into()))
            }
            Some(Destination::External) | None => Err(LocalResponse::new(Flag::NoEndpoint)),
        }
    }

    fn edge(
        &self,
        plan: Option<&Plan>,
        endpoint: Option<&Rc<LocalEndpoint>>,
        protocol: &'static str,
    ) -> Rc<Edge> {
        let empty: Arc<str> = "".into();
        let route = plan
            .and_then(|p| p.rule.as_ref())
            .map_or(&empty, |r| &r.route);
        let backend = plan.and_then(Plan::backend).map_or(&empty, |b| &b.service);
        let service = plan.map_or(&empty, |p| &p.service);
        self.destination
            .edge(route, backend, endpoint, protocol, || {
                let shared = &self.worker.shared;
                let endpoint = endpoint.map(|e| &**e);
                self.worker.edges.edge(outbound_key(
                    shared, service, route, backend, endpoint, protocol,
                ))
            })
    }
}

impl InboundSide {
    /// A connection whose caller is known.
    pub fn new(
        worker: Rc<Worker>,
        peer: Option<SpiffeId>,
        peer_ip: IpAddr,
        address: SocketAddr,
    ) -> Rc<Self> {
        Rc::new(Self {
            application: worker.application(address),
            worker,
            peer,
            peer_ip,
            address,
            edges: RefCell::default(),
        })
    }

    /// Whether a configuration allows this connection, or a request on it.
    pub fn decide(
        &self,
        inbound: &Inbound,
        head: Option<&RequestHead>,
    ) -> weft_policy::authorization::Verdict {
        inbound.policies.decide(&self.call(head))
    }

    /// Whether some request of this caller could be allowed here.
    pub fn may_allow_a_request(&self, inbound: &Inbound) -> bool {
        inbound.policies.may_allow_a_request(&self.call(None))
    }

    fn call<'a>(&'a self, head: Option<&'a RequestHead>) -> Call<'a> {
        let peer = self.peer.as_ref();
        Call {
            identity: peer.map(|p| Identity {
                uri: p.as_str(),
                trust_domain: p.trust_domain(),
                namespace: p.namespace(),
                service_account: p.service_account(),
            }),
            source_ip: self.peer_ip,
            port: self.address.port(),
            http: head.map(|h| h as &dyn weft_policy::RequestView),
        }
    }

    /// Whether a configuration lets a running call go on.
    pub fn may_go_on(&self, inbound: &Inbound, head: Option<&RequestHead>) -> bool {
        (self.peer.is_some() || !inbound.is_strict(self.address.port()))
            && self.decide(inbound, head).decision.is_allowed()
    }

    fn plan(&self, head: &RequestHead) -> Result<Plan, LocalResponse> {
        let inbound = self.worker.shared.inbound.load();
        let port = self.address.port();
        if self.peer.is_none() && inbound.is_strict(port) {
            return Err(LocalResponse::new(Flag::PlaintextRefused));
        }
        if !inbound.policies.is_empty() {
            let verdict = self.decide(&inbound, Some(head));
            if !verdict.decision.is_allowed() {
                self.log_denial(&inbound, verdict.decision, Some(head));
                return Err(LocalResponse::new(Flag::Denied));
            }
            if !verdict.dry_run.is_allowed() {
                self.edge("http").would_deny();
            }
        }
        Ok(Plan::one(self.application.clone(), inbound.service(port)))
    }

    /// For the operator: who was denied, and by what.
    pub fn log_denial(&self, inbound: &Inbound, decision: Decision, head: Option<&RequestHead>) {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let by = match decision {
            Decision::Denied(place) => inbound.policies.policy(place).map(|p| p.name.clone()),
            _ => None,
        };
        tracing::info!(
            source = self.peer.as_ref().map_or("plaintext", |p| p.as_str()),
            address = %self.peer_ip,
            port = self.address.port(),
            method = head.map(|h| text(h.method_bytes())),
            path = head.map(|h| text(h.path_bytes())),
            policy = by.as_deref().unwrap_or("no Allow matches"),
            "denied"
        );
    }

    /// The counters of a protocol.
    pub fn edge(&self, protocol: &'static str) -> Rc<Edge> {
        if let Some((_, edge)) = self.edges.borrow().iter().find(|(p, _)| *p == protocol) {
            return edge.clone();
        }
        let inbound = self.worker.shared.inbound.load();
        let own = &inbound.workload;
        let peer = self.peer.as_ref();
        let edge = self.worker.edges.edge(EdgeKey {
            outbound: false,
            // The caller's workload is not proved; its service account is.
            source: peer.map(|p| p.service_account()).unwrap_or_default().into(),
            source_namespace: peer.map(|p| p.namespace()).unwrap_or_default().into(),
            source_identity: peer.map(|p| p.as_str()).unwrap_or_default().into(),
            destination: own.owner.as_str().into(),
            destination_namespace: own.namespace.as_str().into(),
            destination_identity: own.spiffe_id.as_str().into(),
            service: inbound.service(self.address.port()),
            backend: "".into(),
            route: "".into(),
            protocol,
            mtls: self.peer.is_some(),
        });
        self.edges.borrow_mut().push((protocol, edge.clone()));
        edge
    }
}
