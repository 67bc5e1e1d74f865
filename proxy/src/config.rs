//! What the control plane says, compiled for use: checked once, when it
//! arrives, so that nothing can fail on it later.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use weft_identity::{SpiffeId, TrustBundle};
use weft_policy::authorization::Policies;
use weft_policy::route::{RouteTable, pick_weighted};
use weft_proto as proto;

/// What a port or endpoint speaks.
pub use weft_proto::Protocol;

/// Why an update is refused. The last good one stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

fn refused(what: impl std::fmt::Display) -> Refused {
    Refused(what.to_string())
}

/// What holds for the whole mesh.
#[derive(Debug, Default)]
pub struct Mesh {
    /// The trust domain of this mesh.
    pub trust_domain: String,
    /// Roots that are trusted.
    pub bundle: TrustBundle,
    /// Where a destination that nobody knows is refused.
    pub cidrs: Vec<IpNet>,
    /// OTLP collector; `None`: no traces.
    pub otlp_endpoint: Option<String>,
    /// Part of new traces that are recorded.
    pub trace_sampling: f64,
    /// Fingerprint of the issuer that signs now; empty: it was not told.
    pub issuer: String,
}

impl Mesh {
    /// Checks and compiles.
    pub fn compile(mesh: &proto::Mesh) -> Result<Self, Refused> {
        let cidr = |text: &String| {
            text.parse::<IpNet>()
                .map_err(|_| refused(format!("{text:?} is not an address range")))
        };
        let bundle = TrustBundle::from_der(mesh.roots_der.iter().cloned()).map_err(refused)?;
        if bundle.roots().is_empty() {
            return Err(refused("the mesh has no root of trust"));
        }
        Ok(Self {
            trust_domain: mesh.trust_domain.clone(),
            bundle,
            cidrs: mesh.cidrs.iter().map(cidr).collect::<Result<_, _>>()?,
            otlp_endpoint: Some(mesh.otlp_endpoint.clone()).filter(|e| !e.is_empty()),
            trace_sampling: mesh.trace_sampling.clamp(0.0, 1.0),
            issuer: mesh.issuer.clone(),
        })
    }

    /// Whether an address is one of the mesh's pods or services.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.cidrs.iter().any(|cidr| cidr.contains(&ip))
    }
}

/// What a proxy knows about its own pod.
#[derive(Debug, Default)]
pub struct Inbound {
    /// The pod.
    pub workload: proto::Workload,
    /// Who may call it.
    pub policies: Policies,
    strict: bool,
    ports: Vec<InboundPort>,
}

#[derive(Debug)]
struct InboundPort {
    port: u16,
    strict: Option<bool>,
    protocol: Protocol,
    service: Arc<str>,
}

impl Inbound {
    /// Checks and compiles.
    pub fn compile(inbound: &proto::Inbound) -> Result<Self, Refused> {
        let policies = Policies::compile(&inbound.policies)
            .map_err(|(policy, e)| refused(format!("AuthorizationPolicy {policy}: {e}")))?;
        let strict = |mode: proto::MtlsMode| mode == proto::MtlsMode::Strict;
        let port = |p: &proto::InboundPort| {
            Ok(InboundPort {
                port: u16::try_from(p.port).map_err(|_| refused("a port above 65535"))?,
                strict: p.mtls.map(|_| strict(p.mtls())),
                protocol: p.protocol(),
                service: p
                    .services
                    .first()
                    .map(String::as_str)
                    .unwrap_or_default()
                    .into(),
            })
        };
        Ok(Self {
            workload: inbound.workload.clone().unwrap_or_default(),
            policies,
            strict: strict(inbound.mtls()),
            ports: inbound
                .ports
                .iter()
                .map(port)
                .collect::<Result<_, Refused>>()?,
        })
    }

    fn port(&self, port: u16) -> Option<&InboundPort> {
        self.ports.iter().find(|p| p.port == port)
    }

    /// Whether callers of a port must prove who they are.
    pub fn is_strict(&self, port: u16) -> bool {
        let own = self.port(port).and_then(|p| p.strict);
        own.unwrap_or(self.strict)
    }

    /// What a port is declared to speak.
    pub fn protocol(&self, port: u16) -> Protocol {
        self.port(port).map_or(Protocol::Detect, |p| p.protocol)
    }

    /// The service that leads to a port, `NAMESPACE/NAME`; empty if none does.
    pub fn service(&self, port: u16) -> Arc<str> {
        self.port(port)
            .map_or_else(|| "".into(), |p| p.service.clone())
    }
}

/// One pod's port, as it can be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's own address.
    pub address: SocketAddr,
    /// What it must prove; `None`: it has no proxy and is called in plaintext.
    pub identity: Option<SpiffeId>,
    /// The workload's name.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// What it is declared to speak.
    pub protocol: Protocol,
}

impl Endpoint {
    /// Checks and compiles.
    pub fn compile(endpoint: &proto::Endpoint) -> Result<Self, Refused> {
        let address = endpoint
            .address
            .parse()
            .map_err(|_| refused(format!("{:?} is not IP:PORT", endpoint.address)))?;
        let identity = match endpoint.spiffe_id.as_str() {
            "" => None,
            id => Some(id.parse().map_err(refused)?),
        };
        Ok(Self {
            address,
            identity,
            workload: endpoint.workload.clone(),
            namespace: endpoint.namespace.clone(),
            protocol: endpoint.protocol(),
        })
    }
}

/// The endpoints behind a service's port.
pub type EndpointSet = Vec<Arc<Endpoint>>;

/// A set that changes while it is used.
pub type EndpointSlot = Arc<ArcSwap<EndpointSet>>;

/// What an address leads to.
#[derive(Debug)]
pub enum Destination {
    /// A service.
    Service(Box<Service>),
    /// One pod.
    Workload(Arc<Endpoint>),
    /// Outside the mesh.
    External,
}

/// A service's port and its routes.
#[derive(Debug)]
pub struct Service {
    /// `NAMESPACE/NAME`.
    pub name: Arc<str>,
    /// What it is declared to speak.
    pub protocol: Protocol,
    /// Which rule a request takes.
    pub table: RouteTable,
    /// The rules, in the order of the table.
    pub rules: Vec<Arc<Rule>>,
    /// What applies where there is no route.
    pub default_rule: Arc<Rule>,
}

/// Where a request goes, and what is done to it.
#[derive(Debug)]
pub struct Rule {
    /// `NAMESPACE/NAME/RULE`; empty for the default.
    pub route: Arc<str>,
    /// Change the request's fields.
    pub request_headers: HeaderChange,
    /// Change the response's fields.
    pub response_headers: HeaderChange,
    /// For the whole exchange, retries included.
    pub request_timeout: Option<Duration>,
    /// For each attempt.
    pub backend_timeout: Option<Duration>,
    /// Beyond the safe ones.
    pub retry: Option<Retry>,
    /// Where to.
    pub backends: Vec<Backend>,
    /// Answered here instead.
    pub redirect: Option<proto::Redirect>,
    /// Changes host and path.
    pub rewrite: Option<proto::Rewrite>,
    /// The prefix that the match names; empty for other matches.
    pub matched_prefix: String,
}

/// A weighted share of a rule's requests.
#[derive(Debug)]
pub struct Backend {
    /// Its share, relative to the others'.
    pub weight: u32,
    /// `None`: the reference does not resolve.
    pub endpoints: Option<EndpointSlot>,
    /// `NAMESPACE/NAME`.
    pub service: Arc<str>,
    /// Change the request's fields.
    pub request_headers: HeaderChange,
    /// Change the response's fields.
    pub response_headers: HeaderChange,
}

/// Configured retries (GEP-1731).
#[derive(Debug, Clone, Default)]
pub struct Retry {
    /// Besides the first attempt.
    pub attempts: u32,
    /// Before each further attempt.
    pub backoff: Duration,
    /// Responses that are tried again.
    pub codes: Vec<u16>,
}

/// Fields to set, add and remove.
#[derive(Debug, Clone, Default)]
pub struct HeaderChange {
    set: Vec<(String, String)>,
    add: Vec<(String, String)>,
    remove: Vec<String>,
}

impl HeaderChange {
    fn compile(change: Option<&proto::HeaderModifier>) -> Self {
        let Some(change) = change else {
            return Self::default();
        };
        let pairs = |list: &[proto::HeaderValue]| {
            list.iter()
                .map(|h| (h.name.clone(), h.value.clone()))
                .collect()
        };
        Self {
            set: pairs(&change.set),
            add: pairs(&change.add),
            remove: change.remove.clone(),
        }
    }

    /// Changes the fields of a head.
    pub fn apply(&self, fields: &mut crate::http::fields::Fields) {
        for (name, value) in &self.set {
            fields.set(name, value.as_bytes());
        }
        for (name, value) in &self.add {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        for name in &self.remove {
            fields.remove(name);
        }
    }
}

impl Destination {
    /// Checks and compiles. `slot` gives the endpoints by resource name.
    pub fn compile(
        destination: &proto::Destination,
        slot: &mut dyn FnMut(&str) -> EndpointSlot,
    ) -> Result<Self, Refused> {
        use proto::destination::Kind;
        Ok(match destination.kind.as_ref() {
            Some(Kind::Service(service)) => {
                Self::Service(Box::new(Service::compile(service, slot)?))
            }
            Some(Kind::Workload(endpoint)) => {
                Self::Workload(Arc::new(Endpoint::compile(endpoint)?))
            }
            Some(Kind::External(_)) => Self::External,
            None => {
                return Err(refused(
                    "a destination of a kind that this proxy does not know",
                ));
            }
        })
    }
}

impl Service {
    fn compile(
        service: &proto::ServiceDestination,
        slot: &mut dyn FnMut(&str) -> EndpointSlot,
    ) -> Result<Self, Refused> {
        let table = RouteTable::compile(&service.rules)
            .map_err(|(route, e)| refused(format!("HTTPRoute {route}: {e}")))?;
        let name: Arc<str> = format!("{}/{}", service.namespace, service.name).into();
        let default_rule = proto::RouteRule {
            backends: vec![proto::WeightedBackend {
                weight: 1,
                endpoints: service.endpoints.clone(),
                service: name.to_string(),
                ..Default::default()
            }],
            ..Default::default()
        };
        Ok(Self {
            name,
            protocol: service.protocol(),
            table,
            rules: service
                .rules
                .iter()
                .map(|r| Arc::new(Rule::compile(r, slot)))
                .collect(),
            default_rule: Arc::new(Rule::compile(&default_rule, slot)),
        })
    }

    /// What an opaque connection takes: it has nothing that a match could look at.
    pub fn opaque_rule(&self) -> &Rule {
        let rule = self.table.catch_all().and_then(|i| self.rules.get(i));
        rule.unwrap_or(&self.default_rule)
    }
}

impl Rule {
    /// A backend and its index, by weight.
    pub fn pick(&self, random: u64) -> Option<(usize, &Backend)> {
        let weights = self.backends.iter().map(|b| b.weight);
        let index = pick_weighted(weights, (random >> 32) as u32)?;
        Some((index, self.backends.get(index)?))
    }

    fn compile(rule: &proto::RouteRule, slot: &mut dyn FnMut(&str) -> EndpointSlot) -> Self {
        let timeout = |ms: u32| (ms > 0).then(|| Duration::from_millis(ms.into()));
        Self {
            route: rule.route.as_str().into(),
            request_headers: HeaderChange::compile(rule.request_headers.as_ref()),
            response_headers: HeaderChange::compile(rule.response_headers.as_ref()),
            request_timeout: timeout(rule.request_timeout_ms),
            backend_timeout: timeout(rule.backend_timeout_ms),
            retry: rule.retry.as_ref().map(|r| Retry {
                attempts: r.attempts,
                backoff: Duration::from_millis(r.backoff_ms.into()),
                codes: r
                    .codes
                    .iter()
                    .filter_map(|c| u16::try_from(*c).ok())
                    .collect(),
            }),
            backends: rule
                .backends
                .iter()
                .map(|b| Backend::compile(b, slot))
                .collect(),
            redirect: rule.redirect.clone(),
            rewrite: rule.rewrite.clone(),
            matched_prefix: matched_prefix(rule),
        }
    }
}

fn matched_prefix(rule: &proto::RouteRule) -> String {
    let path = rule.r#match.as_ref().and_then(|m| m.path.as_ref());
    path.filter(|p| p.kind() == proto::path_match::Kind::Prefix)
        .map_or_else(String::new, |p| p.value.clone())
}

impl Backend {
    fn compile(
        backend: &proto::WeightedBackend,
        slot: &mut dyn FnMut(&str) -> EndpointSlot,
    ) -> Self {
        let name = &backend.endpoints;
        Self {
            weight: backend.weight,
            endpoints: (!name.is_empty()).then(|| slot(name)),
            service: backend.service.as_str().into(),
            request_headers: HeaderChange::compile(backend.request_headers.as_ref()),
            response_headers: HeaderChange::compile(backend.response_headers.as_ref()),
        }
    }
}
