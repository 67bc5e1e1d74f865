//! The tables by which objects are found. A change of an object changes only
//! the entries that it has in them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

use weft_api::{
    AuthenticationPolicy, AuthorizationPolicy, EndpointSlice, HttpRoute, LABEL_SERVICE_NAME,
    Object, ObjectKey, Pod, ReferenceGrant, Service,
};

use super::{Name, parents, pod_addresses};

/// A route attached to services, as the HTTPRoute that says it.
#[derive(Debug, PartialEq)]
pub struct Route {
    pub grpc: bool,
    pub http: HttpRoute,
}

impl Route {
    pub fn kind(&self) -> &'static str {
        if self.grpc { "GRPCRoute" } else { "HTTPRoute" }
    }
}

/// Objects by what they belong to, each group in the order of its keys, so that
/// every replica sees the same.
type Groups<K, V> = HashMap<K, BTreeMap<ObjectKey, V>>;

#[derive(Debug, Default, PartialEq)]
pub struct Tables {
    pub services: HashMap<Name, Service>,
    pub pods: HashMap<Name, Pod>,
    /// Several pods may show an address while one takes it over from another.
    pods_by_address: HashMap<IpAddr, BTreeSet<Name>>,
    services_by_address: HashMap<IpAddr, BTreeSet<Name>>,
    /// By their service.
    slices: Groups<Name, EndpointSlice>,
    /// By the service that they are attached to.
    routes: Groups<Name, Route>,
    grants: Groups<String, ReferenceGrant>,
    authorization: Groups<String, AuthorizationPolicy>,
    authentication: Groups<String, AuthenticationPolicy>,
}

impl Tables {
    pub fn service_at(&self, ip: &IpAddr) -> Option<&Name> {
        self.services_by_address.get(ip)?.last()
    }

    pub fn pod_at(&self, ip: &IpAddr) -> Option<&Pod> {
        self.pods.get(self.pods_by_address.get(ip)?.last()?)
    }

    pub fn slices(&self, service: &Name) -> impl Iterator<Item = &EndpointSlice> {
        members(&self.slices, service)
    }

    pub fn routes(&self, service: &Name) -> impl Iterator<Item = &Route> {
        members(&self.routes, service)
    }

    pub fn grants(&self, namespace: &str) -> impl Iterator<Item = &ReferenceGrant> {
        members(&self.grants, namespace)
    }

    pub fn authorization(&self, namespace: &str) -> impl Iterator<Item = &AuthorizationPolicy> {
        members(&self.authorization, namespace)
    }

    pub fn authentication(&self, namespace: &str) -> impl Iterator<Item = &AuthenticationPolicy> {
        members(&self.authentication, namespace)
    }

    /// Takes an object in.
    pub fn put(&mut self, key: &ObjectKey, object: &Object) {
        let name = (key.namespace.clone(), key.name.clone());
        match object {
            Object::Service(service) => {
                for ip in service_addresses(service) {
                    join(&mut self.services_by_address, ip, &name);
                }
                self.services.insert(name, service.clone());
            }
            Object::Pod(pod) => {
                for ip in pod_addresses(pod) {
                    join(&mut self.pods_by_address, ip, &name);
                }
                self.pods.insert(name, pod.clone());
            }
            Object::EndpointSlice(slice) => {
                add(&mut self.slices, service_of(slice), key, slice.clone());
            }
            Object::HTTPRoute(route) => self.attach(key, false, route),
            Object::GRPCRoute(route) => self.attach(key, true, &route.as_http()),
            Object::ReferenceGrant(grant) => {
                add(&mut self.grants, name.0, key, grant.clone());
            }
            Object::AuthorizationPolicy(policy) => {
                add(&mut self.authorization, name.0, key, policy.clone());
            }
            Object::AuthenticationPolicy(policy) => {
                add(&mut self.authentication, name.0, key, policy.clone());
            }
            Object::Namespace(_) | Object::ServiceAccount(_) | Object::Deployment(_) => {}
        }
    }

    /// Takes an object out, as it was put in.
    pub fn take(&mut self, key: &ObjectKey, object: &Object) {
        let name = (key.namespace.clone(), key.name.clone());
        match object {
            Object::Service(service) => {
                for ip in service_addresses(service) {
                    leave(&mut self.services_by_address, ip, &name);
                }
                self.services.remove(&name);
            }
            Object::Pod(pod) => {
                for ip in pod_addresses(pod) {
                    leave(&mut self.pods_by_address, ip, &name);
                }
                self.pods.remove(&name);
            }
            Object::EndpointSlice(slice) => remove(&mut self.slices, &service_of(slice), key),
            Object::HTTPRoute(route) => self.detach(key, route),
            Object::GRPCRoute(route) => self.detach(key, &route.as_http()),
            Object::ReferenceGrant(_) => remove(&mut self.grants, &name.0, key),
            Object::AuthorizationPolicy(_) => remove(&mut self.authorization, &name.0, key),
            Object::AuthenticationPolicy(_) => remove(&mut self.authentication, &name.0, key),
            Object::Namespace(_) | Object::ServiceAccount(_) | Object::Deployment(_) => {}
        }
    }

    fn attach(&mut self, key: &ObjectKey, grpc: bool, route: &HttpRoute) {
        for parent in parents(&route.metadata, &route.spec.parent_refs) {
            let http = route.clone();
            add(&mut self.routes, parent, key, Route { grpc, http });
        }
    }

    fn detach(&mut self, key: &ObjectKey, route: &HttpRoute) {
        for parent in parents(&route.metadata, &route.spec.parent_refs) {
            remove(&mut self.routes, &parent, key);
        }
    }
}

/// The service that a slice is of.
pub fn service_of(slice: &EndpointSlice) -> Name {
    let metadata = &slice.metadata;
    let service = metadata.labels.get(LABEL_SERVICE_NAME);
    (
        metadata.namespace.clone(),
        service.cloned().unwrap_or_default(),
    )
}

/// A service's own addresses.
pub fn service_addresses(service: &Service) -> Vec<IpAddr> {
    let ips = service.cluster_ips();
    ips.iter().filter_map(|ip| ip.parse().ok()).collect()
}

fn members<'a, K, Q, V>(groups: &'a Groups<K, V>, group: &Q) -> impl Iterator<Item = &'a V>
where
    K: Hash + Eq + std::borrow::Borrow<Q>,
    Q: Hash + Eq + ?Sized,
{
    groups.get(group).into_iter().flat_map(BTreeMap::values)
}

fn add<K: Hash + Eq, V>(groups: &mut Groups<K, V>, group: K, key: &ObjectKey, value: V) {
    groups.entry(group).or_default().insert(key.clone(), value);
}

fn remove<K, Q, V>(groups: &mut Groups<K, V>, group: &Q, key: &ObjectKey)
where
    K: Hash + Eq + std::borrow::Borrow<Q>,
    Q: Hash + Eq + ?Sized,
{
    if let Some(members) = groups.get_mut(group) {
        members.remove(key);
        if members.is_empty() {
            groups.remove(group);
        }
    }
}

fn join(table: &mut HashMap<IpAddr, BTreeSet<Name>>, ip: IpAddr, name: &Name) {
    table.entry(ip).or_default().insert(name.clone());
}

fn leave(table: &mut HashMap<IpAddr, BTreeSet<Name>>, ip: IpAddr, name: &Name) {
    if let Some(names) = table.get_mut(&ip) {
        names.remove(name);
        if names.is_empty() {
            table.remove(&ip);
        }
    }
}
