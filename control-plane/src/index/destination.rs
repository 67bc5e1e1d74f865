//! What an address or a name leads to: services, their routes and endpoints.

use std::net::{IpAddr, SocketAddr};

use weft_api::{
    GatewayDuration, HeaderFilter, HttpBackendRef, HttpPathMatch, HttpRoute, HttpRouteFilter,
    HttpRouteMatch, HttpRouteRule, HttpValueMatch, PathMatchType, PathModifier, Pod, Service,
    ServicePort, SliceEndpoint, ValueMatchType,
};
use weft_policy::route::precedence;
use weft_proto as proto;
use weft_proto::destination::Kind;
use weft_proto::names;

use super::{Asker, Dependency, Index, Name, Route, is_meshed, parents, protocol};

impl Index {
    /// What an address leads to. Within the mesh, an address that nobody has
    /// leads to a service without endpoints: it is refused, not guessed.
    pub(super) fn destination(
        &self,
        address: SocketAddr,
        asker: &Asker,
        on: &mut Vec<Dependency>,
    ) -> proto::Destination {
        let ip = address.ip().to_canonical();
        on.push(Dependency::Address(ip));
        let kind = if let Some(name) = self.tables.service_at(&ip) {
            on.push(Dependency::Service(name.clone()));
            let port =
                self.tables.services.get(name).and_then(|s| {
                    Some((s, s.spec.ports.iter().find(|p| p.port == address.port())?))
                });
            match port {
                Some((service, port)) => {
                    let mut made = self.service(service, port, asker, on);
                    self.keep_family(ip, &mut made);
                    Kind::Service(made)
                }
                None => nothing(name),
            }
        } else if let Some(pod) = self.tables.pod_at(&ip) {
            let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
            on.push(Dependency::Pod(key));
            Kind::Workload(self.workload_endpoint(pod, address, proto::Protocol::Detect))
        } else if self.is_inside(ip) {
            nothing(&(String::new(), String::new()))
        } else {
            Kind::External(proto::External {})
        };
        proto::Destination { kind: Some(kind) }
    }

    fn is_inside(&self, ip: IpAddr) -> bool {
        let cidrs = self
            .mesh
            .cidrs
            .iter()
            .filter_map(|c| c.parse::<ipnet::IpNet>().ok());
        cidrs.into_iter().any(|cidr| cidr.contains(&ip))
    }

    fn service(
        &self,
        service: &Service,
        port: &ServicePort,
        asker: &Asker,
        on: &mut Vec<Dependency>,
    ) -> proto::ServiceDestination {
        let metadata = &service.metadata;
        proto::ServiceDestination {
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            port: port.port.into(),
            protocol: protocol(&port.app_protocol).into(),
            rules: self.rules(service, port.port, asker, on),
            endpoints: names::endpoints(&metadata.namespace, &metadata.name, port.port),
        }
    }

    /// A route in the service's own namespace holds for everybody; one in the
    /// caller's namespace for the callers there, in place of the former
    /// (GEP-1426, producer and consumer routes).
    fn rules(
        &self,
        service: &Service,
        port: u16,
        asker: &Asker,
        on: &mut Vec<Dependency>,
    ) -> Vec<proto::RouteRule> {
        let metadata = &service.metadata;
        let key = (metadata.namespace.clone(), metadata.name.clone());
        let attached = |route: &&Route| {
            route.http.spec.parent_refs.iter().any(|p| {
                let namespace = if p.namespace.is_empty() {
                    &route.http.metadata.namespace
                } else {
                    &p.namespace
                };
                *namespace == key.0 && p.name == key.1 && p.port.is_none_or(|p| p == port)
            })
        };
        let routes: Vec<_> = self.tables.routes(&key).filter(attached).collect();
        let of = |namespace: &str| {
            let of = routes
                .iter()
                .copied()
                .filter(|r| r.http.metadata.namespace == namespace);
            of.collect::<Vec<_>>()
        };
        let consumer = of(&asker.namespace);
        let mut chosen = if consumer.is_empty() {
            of(&metadata.namespace)
        } else {
            consumer
        };
        // The more specific kind alone holds (GEP-1426, route types).
        if chosen.iter().any(|r| r.grpc) {
            chosen.retain(|r| r.grpc);
        }
        let mut rules = Vec::new();
        for attached in chosen {
            let route = &attached.http;
            let name = format!("{}/{}", route.metadata.namespace, route.metadata.name);
            for (position, rule) in route.spec.rules.iter().enumerate() {
                let made = self.route_rules(&name, attached, rule, position, on);
                let created = &route.metadata.creation_timestamp;
                rules.extend(
                    made.into_iter()
                        .map(|r| (precedence(&r, created, &name, position), r)),
                );
            }
        }
        rules.sort_by(|(a, _), (b, _)| a.cmp(b));
        rules.into_iter().map(|(_, rule)| rule).collect()
    }

    /// A rule of a route is one rule here for each of its matches.
    fn route_rules(
        &self,
        name: &str,
        route: &Route,
        rule: &HttpRouteRule,
        position: usize,
        on: &mut Vec<Dependency>,
    ) -> Vec<proto::RouteRule> {
        let label = if rule.name.is_empty() {
            position.to_string()
        } else {
            rule.name.clone()
        };
        let millis = |d: Option<GatewayDuration>| {
            d.map_or(0, |d| u32::try_from(d.0.as_millis()).unwrap_or(u32::MAX))
        };
        let (request_headers, response_headers) = header_changes(&rule.filters);
        let (redirect, rewrite) = url_changes(&rule.filters);
        let backends = rule
            .backend_refs
            .iter()
            .map(|b| self.backend(route, b, on))
            .collect();
        let one = proto::RouteRule {
            route: format!("{name}/{label}"),
            r#match: None,
            request_headers,
            response_headers,
            request_timeout_ms: rule.timeouts.as_ref().map_or(0, |t| millis(t.request)),
            backend_timeout_ms: rule
                .timeouts
                .as_ref()
                .map_or(0, |t| millis(t.backend_request)),
            retry: rule.retry.as_ref().map(|r| proto::RetryPolicy {
                attempts: r.attempts.unwrap_or(1),
                backoff_ms: millis(r.backoff),
                codes: r.codes.iter().map(|c| u32::from(*c)).collect(),
            }),
            backends,
            redirect,
            rewrite,
        };
        if rule.matches.is_empty() {
            return vec![one];
        }
        let with = |m: &HttpRouteMatch| proto::RouteRule {
            r#match: Some(route_match(m)),
            ..one.clone()
        };
        rule.matches.iter().map(with).collect()
    }

    fn backend(
        &self,
        route: &Route,
        backend: &HttpBackendRef,
        on: &mut Vec<Dependency>,
    ) -> proto::WeightedBackend {
        let own = &route.http.metadata.namespace;
        let namespace = if backend.namespace.is_empty() {
            own
        } else {
            &backend.namespace
        };
        let key = (namespace.clone(), backend.name.clone());
        on.push(Dependency::Service(key.clone()));
        let port = backend.port.unwrap_or_default();
        on.push(Dependency::Grants(namespace.clone()));
        let exists = self.may_name(route.kind(), &route.http, &key)
            && self
                .tables
                .services
                .get(&key)
                .is_some_and(|s| s.spec.ports.iter().any(|p| p.port == port));
        let (request_headers, response_headers) = header_changes(&backend.filters);
        proto::WeightedBackend {
            weight: backend.weight.unwrap_or(1),
            endpoints: if exists {
                names::endpoints(namespace, &backend.name, port)
            } else {
                String::new()
            },
            request_headers,
            response_headers,
            service: format!("{namespace}/{}", backend.name),
        }
    }

    /// Whether a route may name a service: one of its own namespace, one that
    /// its callers asked for anyway, or one whose namespace grants it (GEP-709).
    pub(super) fn may_name(&self, kind: &str, route: &HttpRoute, service: &Name) -> bool {
        let own = &route.metadata.namespace;
        let parents = parents(&route.metadata, &route.spec.parent_refs);
        let mut grants = self.tables.grants(&service.0);
        *own == service.0
            || parents.contains(service)
            || grants.any(|g| g.spec.allows(kind, own, &service.1))
    }

    /// The ready endpoints of a service's port, of one address family if one is
    /// given; where there are none, those that are going away but still serve
    /// (KEP-1669).
    pub(super) fn endpoints(
        &self,
        namespace: &str,
        service: &str,
        port: u16,
        family: Option<&str>,
        on: &mut Vec<Dependency>,
    ) -> proto::EndpointSet {
        let key = (namespace.to_owned(), service.to_owned());
        on.push(Dependency::Service(key.clone()));
        let found = self
            .tables
            .services
            .get(&key)
            .and_then(|s| s.spec.ports.iter().find(|p| p.port == port));
        let Some(service_port) = found else {
            return proto::EndpointSet::default();
        };
        let collect = |wanted: &dyn Fn(&SliceEndpoint) -> bool, on: &mut Vec<Dependency>| {
            let mut endpoints = Vec::new();
            let slices = self.tables.slices(&key);
            for slice in slices.filter(|s| family.is_none_or(|f| s.address_type == f)) {
                let Some(port) = slice.ports.iter().find(|p| p.name == service_port.name) else {
                    continue;
                };
                for endpoint in slice.endpoints.iter().filter(|e| wanted(e)) {
                    endpoints.extend(self.slice_endpoint(
                        endpoint,
                        port.port,
                        &service_port.app_protocol,
                        on,
                    ));
                }
            }
            endpoints.sort_by(|a, b| a.address.cmp(&b.address));
            endpoints.dedup_by(|a, b| a.address == b.address);
            endpoints
        };
        let mut endpoints = collect(&|e| e.conditions.ready, on);
        if endpoints.is_empty() {
            endpoints = collect(&|e| e.conditions.serving, on);
        }
        proto::EndpointSet { endpoints }
    }

    fn slice_endpoint(
        &self,
        endpoint: &SliceEndpoint,
        port: u16,
        app_protocol: &str,
        on: &mut Vec<Dependency>,
    ) -> Option<proto::Endpoint> {
        let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let address = SocketAddr::new(ip, port);
        let target = endpoint
            .target_ref
            .as_ref()
            .map(|t| (t.namespace.clone(), t.name.clone()));
        let Some(key) = target else {
            // Somebody else's slice: an address without a pod is not meshed.
            return Some(proto::Endpoint {
                address: address.to_string(),
                ..Default::default()
            });
        };
        on.push(Dependency::Pod(key.clone()));
        // A pod that is gone is no endpoint, whatever the slice still says.
        let pod = self.tables.pods.get(&key)?;
        let mut made = self.workload_endpoint(pod, address, protocol(app_protocol));
        made.zone.clone_from(&endpoint.zone);
        Some(made)
    }

    fn workload_endpoint(
        &self,
        pod: &Pod,
        address: SocketAddr,
        protocol: proto::Protocol,
    ) -> proto::Endpoint {
        let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        proto::Endpoint {
            address: address.to_string(),
            spiffe_id: if is_meshed(pod) {
                self.identity(pod)
            } else {
                String::new()
            },
            workload: self.owner(&key),
            namespace: pod.metadata.namespace.clone(),
            zone: String::new(),
            protocol: protocol.into(),
        }
    }

    /// `SERVICE.NAMESPACE` within the mesh's domain.
    pub(super) fn name_answer(&self, host: &str, on: &mut Vec<Dependency>) -> proto::NameAnswer {
        let mut addresses = Vec::new();
        if let Some((service, namespace)) = host.rsplit_once('.') {
            let key = (namespace.to_owned(), service.to_owned());
            on.push(Dependency::Service(key.clone()));
            if let Some(service) = self.tables.services.get(&key) {
                addresses = match service.is_headless() {
                    false => service
                        .cluster_ips()
                        .iter()
                        .map(|ip| (*ip).to_owned())
                        .collect(),
                    true => self.headless(&key),
                };
            }
        }
        proto::NameAnswer {
            addresses,
            authoritative: true,
        }
    }

    fn headless(&self, key: &(String, String)) -> Vec<String> {
        let slices = self.tables.slices(key);
        let ready = slices
            .flat_map(|s| &s.endpoints)
            .filter(|e| e.conditions.ready);
        let mut addresses: Vec<String> = ready.flat_map(|e| e.addresses.iter().cloned()).collect();
        addresses.sort();
        addresses
    }
}

fn nothing(name: &(String, String)) -> Kind {
    Kind::Service(proto::ServiceDestination {
        namespace: name.0.clone(),
        name: name.1.clone(),
        ..Default::default()
    })
}

fn header_changes(
    filters: &[HttpRouteFilter],
) -> (Option<proto::HeaderModifier>, Option<proto::HeaderModifier>) {
    let (mut request, mut response) = (None, None);
    for filter in filters {
        match filter {
            HttpRouteFilter::RequestHeaderModifier {
                request_header_modifier: m,
            } => {
                request = Some(header_modifier(m));
            }
            HttpRouteFilter::ResponseHeaderModifier {
                response_header_modifier: m,
            } => {
                response = Some(header_modifier(m));
            }
            HttpRouteFilter::RequestRedirect { .. } | HttpRouteFilter::UrlRewrite { .. } => {}
        }
    }
    (request, response)
}

fn url_changes(filters: &[HttpRouteFilter]) -> (Option<proto::Redirect>, Option<proto::Rewrite>) {
    let (mut redirect, mut rewrite) = (None, None);
    for filter in filters {
        match filter {
            HttpRouteFilter::RequestRedirect {
                request_redirect: r,
            } => {
                redirect = Some(proto::Redirect {
                    scheme: r.scheme.clone().unwrap_or_default(),
                    hostname: r.hostname.clone().unwrap_or_default(),
                    port: r.port.unwrap_or_default().into(),
                    path: r.path.as_ref().map(path_change),
                    status: r.status_code.unwrap_or(302).into(),
                });
            }
            HttpRouteFilter::UrlRewrite { url_rewrite: r } => {
                rewrite = Some(proto::Rewrite {
                    hostname: r.hostname.clone().unwrap_or_default(),
                    path: r.path.as_ref().map(path_change),
                });
            }
            HttpRouteFilter::RequestHeaderModifier { .. }
            | HttpRouteFilter::ResponseHeaderModifier { .. } => {}
        }
    }
    (redirect, rewrite)
}

fn path_change(path: &PathModifier) -> proto::PathChange {
    use proto::path_change::Change;
    let change = match path {
        PathModifier::ReplaceFullPath { replace_full_path } => {
            Change::Full(replace_full_path.clone())
        }
        PathModifier::ReplacePrefixMatch {
            replace_prefix_match,
        } => Change::Prefix(replace_prefix_match.clone()),
    };
    proto::PathChange {
        change: Some(change),
    }
}

fn header_modifier(filter: &HeaderFilter) -> proto::HeaderModifier {
    let values = |list: &[weft_api::HttpHeader]| {
        let value = |h: &weft_api::HttpHeader| proto::HeaderValue {
            name: h.name.clone(),
            value: h.value.clone(),
        };
        list.iter().map(value).collect()
    };
    proto::HeaderModifier {
        set: values(&filter.set),
        add: values(&filter.add),
        remove: filter.remove.clone(),
    }
}

fn route_match(m: &HttpRouteMatch) -> proto::RouteMatch {
    proto::RouteMatch {
        path: m.path.as_ref().map(path_match),
        headers: m.headers.iter().map(value_match).collect(),
        query: m.query_params.iter().map(value_match).collect(),
        method: m.method.clone(),
    }
}

pub(super) fn path_match(path: &HttpPathMatch) -> proto::PathMatch {
    use proto::path_match::Kind;
    let kind = match path.match_type {
        PathMatchType::Exact => Kind::Exact,
        PathMatchType::PathPrefix => Kind::Prefix,
        PathMatchType::RegularExpression => Kind::Regex,
    };
    proto::PathMatch {
        kind: kind.into(),
        value: path.value.clone(),
    }
}

pub(super) fn value_match(m: &HttpValueMatch) -> proto::ValueMatch {
    use proto::value_match::Kind;
    let kind = match m.match_type {
        ValueMatchType::Exact => Kind::Exact,
        ValueMatchType::RegularExpression => Kind::Regex,
    };
    proto::ValueMatch {
        kind: kind.into(),
        name: m.name.clone(),
        value: m.value.clone(),
    }
}
