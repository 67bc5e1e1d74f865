//! What is said of each object: whether it is in force, and why not.

use weft_api::{AuthenticationPolicy, HttpRoute, Object};
use weft_proto::{Condition, ObjectStatus};

use super::inbound::reach;
use super::{Index, Name};

impl Index {
    /// The conditions of every route and policy.
    pub fn status(&self) -> Vec<ObjectStatus> {
        self.objects
            .values()
            .filter_map(|object| {
                let conditions = match object {
                    Object::HTTPRoute(route) => self.route_conditions(object.kind(), route),
                    Object::GRPCRoute(route) => {
                        self.route_conditions(object.kind(), &route.as_http())
                    }
                    Object::AuthenticationPolicy(policy) => {
                        vec![self.authentication_condition(policy)]
                    }
                    Object::AuthorizationPolicy(_) => {
                        vec![condition("Accepted", true, "Accepted", "")]
                    }
                    _ => return None,
                };
                Some(ObjectStatus {
                    kind: object.kind().to_owned(),
                    namespace: object.metadata().namespace.clone(),
                    name: object.metadata().name.clone(),
                    conditions,
                    proxies: 0,
                })
            })
            .collect()
    }

    /// `Accepted` and `ResolvedRefs`, with the Gateway API's reasons.
    fn route_conditions(&self, kind: &str, route: &HttpRoute) -> Vec<Condition> {
        let missing: Vec<String> = super::parents(&route.metadata, &route.spec.parent_refs)
            .iter()
            .zip(&route.spec.parent_refs)
            .filter(|(key, parent)| !self.has_port(key, parent.port))
            .map(|(key, _)| format!("{}/{}", key.0, key.1))
            .collect();
        let accepted = match missing.as_slice() {
            [] => condition("Accepted", true, "Accepted", ""),
            names => condition(
                "Accepted",
                false,
                "NoMatchingParent",
                &format!("no such Service or port: {}", names.join(", ")),
            ),
        };
        vec![accepted, self.resolved_refs(kind, route)]
    }

    fn resolved_refs(&self, kind: &str, route: &HttpRoute) -> Condition {
        let own = &route.metadata.namespace;
        for backend in route.spec.rules.iter().flat_map(|r| &r.backend_refs) {
            let namespace = if backend.namespace.is_empty() {
                own
            } else {
                &backend.namespace
            };
            let name = format!("{namespace}/{}", backend.name);
            let key = (namespace.clone(), backend.name.clone());
            if !self.may_name(kind, route, &key) {
                let text = format!(
                    "{name} is in another namespace: a ReferenceGrant there must allow {kind}s of {own}"
                );
                return condition("ResolvedRefs", false, "RefNotPermitted", &text);
            }
            if !self.has_port(&key, backend.port) {
                let text = format!("no such Service or port: {name}");
                return condition("ResolvedRefs", false, "BackendNotFound", &text);
            }
        }
        condition("ResolvedRefs", true, "ResolvedRefs", "")
    }

    fn has_port(&self, key: &Name, port: Option<u16>) -> bool {
        let service = self.services.get(key);
        service.is_some_and(|s| port.is_none_or(|port| s.spec.ports.iter().any(|p| p.port == port)))
    }

    /// Two that are aimed at a pod equally closely: one of them has no effect.
    fn authentication_condition(&self, policy: &AuthenticationPolicy) -> Condition {
        let selects =
            |p: &AuthenticationPolicy, pod| reach(&p.metadata.namespace, &p.spec.target_refs, pod);
        for pod in self.pods.values() {
            let Some(own) = selects(policy, pod) else {
                continue;
            };
            if let Some(chosen) = self.authentication_of(pod)
                && chosen.metadata != policy.metadata
                && selects(chosen, pod) == Some(own)
            {
                let text = format!(
                    "AuthenticationPolicy {}/{} says the same pods' mode and is older: merge the two",
                    chosen.metadata.namespace, chosen.metadata.name
                );
                return condition("Accepted", false, "Conflicted", &text);
            }
        }
        condition("Accepted", true, "Accepted", "")
    }
}

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> Condition {
    Condition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}
