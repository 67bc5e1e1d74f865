//! What is derived from the wanted objects and the pods' states, as
//! Kubernetes' controllers derive it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use weft_api::{
    EndpointSlice, LABEL_SERVICE_NAME, Metadata, Object, Pod, Service, ServicePort,
    SliceConditions, SliceEndpoint, SlicePort, TargetRef, contains_all,
};

/// A pod as the endpoint controller sees it.
pub struct PodView<'a> {
    /// The object, with its status.
    pub pod: &'a Pod,
    /// Its addresses.
    pub addresses: &'a [IpAddr],
    /// All containers are ready.
    pub serving: bool,
    /// It is being stopped.
    pub terminating: bool,
}

/// The EndpointSlices of a service, one for each family that it has.
pub fn endpoint_slices(service: &Service, pods: &[PodView<'_>]) -> Vec<Object> {
    if service.spec.selector.is_empty() {
        return Vec::new();
    }
    let chosen: Vec<&PodView<'_>> = pods
        .iter()
        .filter(|p| p.pod.metadata.namespace == service.metadata.namespace)
        .filter(|p| contains_all(&p.pod.metadata.labels, &service.spec.selector))
        .collect();
    let dual = service
        .spec
        .ip_family_policy
        .is_some_and(|p| p != weft_api::IpFamilyPolicy::SingleStack);
    let families: &[(&str, bool)] = if dual {
        &[("IPv4", false), ("IPv6", true)]
    } else {
        &[("IPv4", false)]
    };
    let mut slices = Vec::new();
    for (family, v6) in families {
        // Pods may give a named port different numbers: one slice for each set.
        let mut by_ports: BTreeMap<Vec<(String, u16, String)>, Vec<SliceEndpoint>> =
            BTreeMap::new();
        for view in &chosen {
            let Some(address) = view.addresses.iter().find(|a| a.is_ipv6() == *v6) else {
                continue;
            };
            by_ports
                .entry(ports(service, view.pod))
                .or_default()
                .push(endpoint(view, *address));
        }
        for (number, (ports, endpoints)) in by_ports.into_iter().enumerate() {
            slices.push(slice(service, family, number, ports, endpoints));
        }
    }
    slices
}

fn ports(service: &Service, pod: &Pod) -> Vec<(String, u16, String)> {
    let of = |port: &ServicePort| {
        Some((
            port.name.clone(),
            port.target_in(pod)?,
            port.app_protocol.clone(),
        ))
    };
    service.spec.ports.iter().filter_map(of).collect()
}

fn endpoint(view: &PodView<'_>, address: IpAddr) -> SliceEndpoint {
    SliceEndpoint {
        addresses: vec![address.to_string()],
        conditions: SliceConditions {
            ready: view.serving && !view.terminating,
            serving: view.serving,
            terminating: view.terminating,
        },
        target_ref: Some(TargetRef {
            kind: "Pod".to_owned(),
            namespace: view.pod.metadata.namespace.clone(),
            name: view.pod.metadata.name.clone(),
        }),
        node_name: "local".to_owned(),
        zone: String::new(),
    }
}

fn slice(
    service: &Service,
    family: &str,
    number: usize,
    ports: Vec<(String, u16, String)>,
    endpoints: Vec<SliceEndpoint>,
) -> Object {
    let suffix = family.to_ascii_lowercase();
    let label = (LABEL_SERVICE_NAME.to_owned(), service.metadata.name.clone());
    let port = |(name, port, app_protocol)| SlicePort {
        name,
        port,
        protocol: "TCP".to_owned(),
        app_protocol,
    };
    Object::EndpointSlice(EndpointSlice {
        api_version: "discovery.k8s.io/v1".to_owned(),
        metadata: Metadata {
            name: format!("{}-{suffix}-{number}", service.metadata.name),
            namespace: service.metadata.namespace.clone(),
            labels: [label].into(),
            ..Metadata::default()
        },
        address_type: family.to_owned(),
        endpoints,
        ports: ports.into_iter().map(port).collect(),
    })
}

/// What the name server answers, by `SERVICE.NAMESPACE`.
pub fn names(objects: &[Object]) -> HashMap<String, Vec<IpAddr>> {
    let mut names = HashMap::new();
    for object in objects {
        let Object::Service(service) = object else {
            continue;
        };
        let host = format!("{}.{}", service.metadata.name, service.metadata.namespace);
        let addresses = match service.is_headless() {
            false => service
                .cluster_ips()
                .iter()
                .filter_map(|ip| ip.parse().ok())
                .collect(),
            true => headless(service, objects),
        };
        names.insert(host, addresses);
    }
    names
}

fn headless(service: &Service, objects: &[Object]) -> Vec<IpAddr> {
    let slices = objects.iter().filter_map(|o| match o {
        Object::EndpointSlice(slice) => Some(slice),
        _ => None,
    });
    slices
        .filter(|s| s.metadata.namespace == service.metadata.namespace)
        .filter(|s| s.metadata.labels.get(LABEL_SERVICE_NAME) == Some(&service.metadata.name))
        .flat_map(|s| &s.endpoints)
        .filter(|e| e.conditions.ready)
        .flat_map(|e| e.addresses.iter().filter_map(|a| a.parse().ok()))
        .collect()
}
