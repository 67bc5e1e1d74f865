//! What is said of each object: whether it is in force, and why not.

use weft_api::{AuthenticationPolicy, HttpRoute, Object, ObjectKey, ParentRef};
use weft_proto::{Condition, ObjectStatus};

use super::inbound::reach;
use super::{Index, Name};

impl Index {
    /// The conditions of every route and policy.
    pub fn status(&self) -> Vec<ObjectStatus> {
        let status = |key: &ObjectKey| {
            Some(ObjectStatus {
                kind: key.kind.clone(),
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                conditions: self.conditions(key)?,
                proxies: 0,
            })
        };
        self.objects.keys().filter_map(status).collect()
    }

    /// The conditions of a route or policy; of a route with several parents,
    /// those of the first that does not accept it.
    pub fn conditions(&self, key: &ObjectKey) -> Option<Vec<Condition>> {
        match self.objects.get(key)? {
            Object::HTTPRoute(_) | Object::GRPCRoute(_) => {
                let parents = self.parent_conditions(key);
                let fine = |conditions: &&Vec<Condition>| conditions.iter().all(|c| c.status);
                let refusing = parents.iter().find(|c| !fine(c));
                refusing.or(parents.first()).cloned()
            }
            Object::AuthenticationPolicy(policy) => {
                Some(vec![self.authentication_condition(policy)])
            }
            Object::AuthorizationPolicy(_) => {
                Some(vec![condition("Accepted", true, "Accepted", "")])
            }
            _ => None,
        }
    }

    /// `Accepted` and `ResolvedRefs` of a route, with the Gateway API's
    /// reasons, for each of its parents.
    pub fn parent_conditions(&self, key: &ObjectKey) -> Vec<Vec<Condition>> {
        let route = match self.objects.get(key) {
            Some(Object::HTTPRoute(route)) => route.clone(),
            Some(Object::GRPCRoute(route)) => route.as_http(),
            _ => return Vec::new(),
        };
        let resolved = self.resolved_refs(&key.kind, &route);
        let parents = super::parents(&route.metadata, &route.spec.parent_refs);
        let accepted = |(parent, wanted): (&Name, &ParentRef)| {
            if self.has_port(parent, wanted.port) {
                return condition("Accepted", true, "Accepted", "");
            }
            let text = format!("no such Service or port: {}/{}", parent.0, parent.1);
            condition("Accepted", false, "NoMatchingParent", &text)
        };
        let both = parents.iter().zip(&route.spec.parent_refs).map(accepted);
        both.map(|accepted| vec![accepted, resolved.clone()])
            .collect()
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
        let service = self.tables.services.get(key);
        service.is_some_and(|s| port.is_none_or(|port| s.spec.ports.iter().any(|p| p.port == port)))
    }

    /// Two that are aimed at a pod equally closely: one of them has no effect.
    fn authentication_condition(&self, policy: &AuthenticationPolicy) -> Condition {
        let selects =
            |p: &AuthenticationPolicy, pod| reach(&p.metadata.namespace, &p.spec.target_refs, pod);
        for pod in self.tables.pods.values() {
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
