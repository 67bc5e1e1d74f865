//! Everything that is known, and what follows from it: events in, resources
//! out. No I/O, no clock, no lock.
//!
//! A computed resource remembers what it was computed from. A change marks the
//! things that it touches, and only resources that depend on one of them are
//! computed again; one whose content stays the same keeps its version, and is
//! not sent.

mod destination;
mod family;
mod inbound;
mod status;
mod tables;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use prost::Message;
use weft_api::{
    ANNOTATION_INJECT, LABEL_DEPLOYMENT, LABEL_INJECTED, LABEL_INJECTION, Metadata, Object,
    ObjectKey, ParentRef, Pod,
};
use weft_proto as proto;
use weft_proto::{Resource, names, resource::Body};

use tables::{Route, Tables, service_addresses, service_of};

/// What is said once for the whole mesh.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct MeshSettings {
    pub trust_domain: String,
    pub roots_der: Vec<Vec<u8>>,
    pub issuer: String,
    pub cidrs: Vec<String>,
    pub otlp_endpoint: String,
    pub trace_sampling: f64,
}

/// Namespace and name.
type Name = (String, String);

/// What a resource may depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Dependency {
    /// A service, its slices and the routes attached to it.
    Service(Name),
    /// Which services a namespace has.
    Services(String),
    Pod(Name),
    Address(IpAddr),
    /// Policies of a namespace.
    Policies(String),
    /// Which routes of others a namespace lets name its services.
    Grants(String),
    Mesh,
}

struct Computed {
    at: u64,
    dependencies: Vec<Dependency>,
    resource: Option<Arc<Resource>>,
}

/// All objects, and the resources computed from them.
pub struct Index {
    mesh: MeshSettings,
    objects: BTreeMap<ObjectKey, Object>,
    tables: Tables,
    generation: u64,
    touched: HashMap<Dependency, u64>,
    computed: HashMap<(String, String), Computed>,
}

/// Who asks: what it gets may depend on that.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Asker {
    pub namespace: String,
    pub pod: String,
}

/// Computed resources kept beside those in use.
const MAX_COMPUTED: usize = 100_000;
/// Dependencies whose last change is remembered.
const MAX_TOUCHED: usize = 200_000;

impl Index {
    /// An index without objects.
    pub fn new(mesh: MeshSettings) -> Self {
        Self {
            mesh,
            objects: BTreeMap::new(),
            tables: Tables::default(),
            generation: 1,
            touched: HashMap::new(),
            computed: HashMap::new(),
        }
    }

    /// Takes the set of all objects; `true`: something changed.
    pub fn replace(&mut self, all: BTreeMap<ObjectKey, Object>) -> bool {
        let gone = self.objects.keys().filter(|key| !all.contains_key(key));
        let gone: Vec<_> = gone.map(|key| (key.clone(), None)).collect();
        let there = all.into_iter().map(|(key, object)| (key, Some(object)));
        self.change(gone.into_iter().chain(there))
    }

    /// Takes objects that are new or other, and forgets those that are `None`;
    /// `true`: something changed.
    pub fn change(
        &mut self,
        changes: impl IntoIterator<Item = (ObjectKey, Option<Object>)>,
    ) -> bool {
        let mut touched = Vec::new();
        for (key, object) in changes {
            if self.objects.get(&key) == object.as_ref() {
                continue;
            }
            if let Some(old) = self.objects.remove(&key) {
                touched.extend(touches(&old));
                self.tables.take(&key, &old);
            }
            if let Some(object) = object {
                touched.extend(touches(&object));
                self.tables.put(&key, &object);
                self.objects.insert(key, object);
            }
        }
        if touched.is_empty() {
            return false;
        }
        self.generation += 1;
        // Pods and addresses come and go without end: what they touched is
        // forgotten together with what was computed before.
        if self.touched.len() > MAX_TOUCHED {
            self.touched.clear();
            self.computed.clear();
        }
        for dependency in touched {
            self.touched.insert(dependency, self.generation);
        }
        true
    }

    /// Other ranges of pods' and Services' addresses; `true`: they changed.
    pub fn set_ranges(&mut self, cidrs: Vec<String>) -> bool {
        let changed = self.mesh.cidrs != cidrs;
        if changed {
            self.mesh.cidrs = cidrs;
            self.generation += 1;
            self.touched.insert(Dependency::Mesh, self.generation);
        }
        changed
    }

    /// Other roots of trust, or another issuer.
    pub fn set_issuer(&mut self, roots_der: Vec<Vec<u8>>, issuer: String) {
        if self.mesh.roots_der != roots_der || self.mesh.issuer != issuer {
            self.mesh.roots_der = roots_der;
            self.mesh.issuer = issuer;
            self.generation += 1;
            self.touched.insert(Dependency::Mesh, self.generation);
        }
    }

    /// A resource by name, as this asker is to see it. `None`: it does not
    /// exist (yet), or is not the asker's to know.
    pub fn resolve(&mut self, name: &str, asker: &Asker) -> Option<Arc<Resource>> {
        let scope = match name {
            names::INBOUND => format!("{}/{}", asker.namespace, asker.pod),
            _ if name.starts_with("dest/") => asker.namespace.clone(),
            _ => String::new(),
        };
        let key = (name.to_owned(), scope);
        if let Some(computed) = self.computed.get(&key)
            && !computed
                .dependencies
                .iter()
                .any(|d| self.touched.get(d).is_some_and(|at| *at > computed.at))
        {
            return computed.resource.clone();
        }
        let mut dependencies = Vec::new();
        let body = self.compute(name, asker, &mut dependencies);
        let resource = body.map(|body| Arc::new(versioned(name, body)));
        if self.computed.len() > MAX_COMPUTED {
            self.computed.clear();
        }
        self.computed.insert(
            key,
            Computed {
                at: self.generation,
                dependencies,
                resource: resource.clone(),
            },
        );
        resource
    }

    fn compute(&self, name: &str, asker: &Asker, on: &mut Vec<Dependency>) -> Option<Body> {
        match name.split_once('/') {
            None if name == names::MESH => {
                on.push(Dependency::Mesh);
                Some(Body::Mesh(self.mesh()))
            }
            None if name == names::INBOUND => self
                .inbound(&asker.namespace, &asker.pod, on)
                .map(Body::Inbound),
            Some(("dest", address)) => {
                let address = address.parse().ok()?;
                Some(Body::Destination(self.destination(address, asker, on)))
            }
            Some(("endpoints", rest)) => {
                let mut parts = rest.split('/');
                let (namespace, service, port) =
                    (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
                let family = parts.next();
                Some(Body::Endpoints(
                    self.endpoints(namespace, service, port, family, on),
                ))
            }
            Some(("name", host)) => Some(Body::NameAnswer(self.name_answer(host, on))),
            _ => None,
        }
    }

    fn mesh(&self) -> proto::Mesh {
        proto::Mesh {
            trust_domain: self.mesh.trust_domain.clone(),
            roots_der: self.mesh.roots_der.clone(),
            cidrs: self.mesh.cidrs.clone(),
            otlp_endpoint: self.mesh.otlp_endpoint.clone(),
            trace_sampling: self.mesh.trace_sampling,
            issuer: self.mesh.issuer.clone(),
        }
    }

    /// A pod by name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.tables
            .pods
            .get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The identity of a pod's service account.
    pub fn identity(&self, pod: &Pod) -> String {
        format!(
            "spiffe://{}/ns/{}/sa/{}",
            self.mesh.trust_domain,
            pod.metadata.namespace,
            pod.spec.account()
        )
    }

    /// Pods by name, `deploy/NAME`, or the service that leads to them.
    pub fn find_pods(&self, namespace: &str, name: &str) -> Vec<Name> {
        let in_namespace = self.tables.pods.keys().filter(|(ns, _)| ns == namespace);
        if let Some(owner) = name.strip_prefix("deploy/") {
            return in_namespace
                .filter(|key| self.owner(key) == owner)
                .cloned()
                .collect();
        }
        let key = (namespace.to_owned(), name.to_owned());
        if self.tables.pods.contains_key(&key) {
            return vec![key];
        }
        let slices = self.tables.slices(&key);
        let targets = slices
            .flat_map(|s| &s.endpoints)
            .filter_map(|e| e.target_ref.as_ref());
        let mut pods: Vec<_> = targets
            .map(|t| (t.namespace.clone(), t.name.clone()))
            .collect();
        pods.sort();
        pods.dedup();
        pods
    }

    /// Namespaces that have sidecars, or are to have them; not those that are
    /// going away, where nothing can be made any more.
    pub fn meshed_namespaces(&self) -> BTreeSet<String> {
        let with_sidecars: HashSet<&String> = self
            .tables
            .pods
            .iter()
            .filter(|(_, pod)| is_meshed(pod))
            .map(|((namespace, _), _)| namespace)
            .collect();
        let wanted = self.objects.values().filter_map(|object| match object {
            Object::Namespace(n) => Some(&n.metadata),
            _ => None,
        });
        wanted
            .filter(|n| n.deletion_timestamp.is_empty())
            .filter(|n| is_joined(n) || with_sidecars.contains(&n.name))
            .map(|n| n.name.clone())
            .collect()
    }

    /// Pods that run in a namespace of the mesh, do not opt out, and have no
    /// sidecar.
    pub fn unmeshed_pods(&self) -> Vec<UnmeshedPod> {
        let namespaces = self.objects.values().filter_map(|object| match object {
            Object::Namespace(n) if is_joined(&n.metadata) => Some(n.metadata.name.as_str()),
            _ => None,
        });
        let namespaces: HashSet<&str> = namespaces.collect();
        let should = |pod: &&Pod| {
            let metadata = &pod.metadata;
            let inject = metadata.annotations.get(ANNOTATION_INJECT);
            namespaces.contains(metadata.namespace.as_str())
                && inject.is_none_or(|v| v != "disabled")
                && metadata.deletion_timestamp.is_empty()
                && !pod.spec.host_network
                && !is_meshed(pod)
                && pod
                    .status
                    .as_ref()
                    .is_some_and(|s| s.phase == "Running" || s.phase == "Pending")
        };
        let pod = |pod: &Pod| UnmeshedPod {
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        };
        self.tables.pods.values().filter(should).map(pod).collect()
    }

    /// Name of the Deployment that a pod belongs to, or its own.
    fn owner(&self, key: &Name) -> String {
        let pod = self.tables.pods.get(key);
        let label = pod.and_then(|p| p.metadata.labels.get(LABEL_DEPLOYMENT));
        label.cloned().unwrap_or_else(|| key.1.clone())
    }
}

/// A pod that should have a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct UnmeshedPod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

fn is_joined(namespace: &Metadata) -> bool {
    namespace
        .labels
        .get(LABEL_INJECTION)
        .is_some_and(|v| v == "enabled")
}

/// Whether a pod has a sidecar.
pub fn is_meshed(pod: &Pod) -> bool {
    pod.metadata
        .labels
        .get(LABEL_INJECTED)
        .is_some_and(|v| v == "true")
}

/// A pod's own addresses; one on its node's network has none.
pub fn pod_addresses(pod: &Pod) -> Vec<IpAddr> {
    let status = pod.status.iter().filter(|_| !pod.spec.host_network);
    status
        .flat_map(|s| &s.pod_ips)
        .filter_map(|ip| ip.ip.parse().ok())
        .collect()
}

fn attached_to(services: &[Name]) -> Vec<Dependency> {
    services.iter().cloned().map(Dependency::Service).collect()
}

/// The services that a route is attached to.
fn parents(metadata: &Metadata, refs: &[ParentRef]) -> Vec<Name> {
    let own = &metadata.namespace;
    refs.iter()
        .map(|p| {
            (
                if p.namespace.is_empty() {
                    own.clone()
                } else {
                    p.namespace.clone()
                },
                p.name.clone(),
            )
        })
        .collect()
}

/// What may look different because of an object.
fn touches(object: &Object) -> Vec<Dependency> {
    let metadata = object.metadata();
    let namespace = metadata.namespace.clone();
    let name = (namespace.clone(), metadata.name.clone());
    match object {
        Object::Service(service) => {
            let mut touched = vec![Dependency::Service(name), Dependency::Services(namespace)];
            let addresses = service_addresses(service);
            touched.extend(addresses.into_iter().map(Dependency::Address));
            touched
        }
        Object::EndpointSlice(slice) => {
            vec![
                Dependency::Service(service_of(slice)),
                Dependency::Services(namespace),
            ]
        }
        Object::HTTPRoute(route) => attached_to(&parents(&route.metadata, &route.spec.parent_refs)),
        Object::GRPCRoute(route) => attached_to(&parents(&route.metadata, &route.spec.parent_refs)),
        Object::ReferenceGrant(_) => vec![Dependency::Grants(namespace)],
        Object::Pod(pod) => {
            let mut touched = vec![Dependency::Pod(name)];
            touched.extend(pod_addresses(pod).into_iter().map(Dependency::Address));
            touched
        }
        Object::AuthorizationPolicy(_) | Object::AuthenticationPolicy(_) => {
            vec![Dependency::Policies(namespace)]
        }
        // Only their labels are asked for, by who makes them part of the mesh.
        Object::Namespace(_) | Object::ServiceAccount(_) | Object::Deployment(_) => Vec::new(),
    }
}

/// The version is a hash of the content: the same on every replica.
fn versioned(name: &str, body: Body) -> Resource {
    let mut resource = Resource {
        name: name.to_owned(),
        version: String::new(),
        body: Some(body),
    };
    let hash = blake3::hash(&resource.encode_to_vec());
    resource.version = hash.to_hex().get(..32).unwrap_or_default().to_owned();
    resource
}

/// What a port is declared to speak (KEP-3726 and Kubernetes' standard values).
fn protocol(app_protocol: &str) -> proto::Protocol {
    match app_protocol {
        "http" | "kubernetes.io/ws" => proto::Protocol::Http1,
        "grpc" | "http2" | "kubernetes.io/h2c" => proto::Protocol::Http2,
        "tcp" | "tls" | "https" | "mysql" | "postgresql" | "redis" | "mongo"
        | "kubernetes.io/wss" => proto::Protocol::Tcp,
        _ => proto::Protocol::Detect,
    }
}

#[cfg(test)]
mod tests;
