//! What holds for a pod itself: who may call it, and how.

use weft_api::{
    AuthenticationPolicy, AuthorizationPolicy, AuthorizationRule, HttpAttributes, MtlsMode, Pod,
    PolicyAction, PolicyMode, PolicySource, PolicyTarget, ROOT_NAMESPACE, Service,
};
use weft_proto as proto;

use super::destination::{path_match, value_match};
use super::{Dependency, Index, protocol};

/// How closely a policy is aimed at a pod: the closest one holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    Mesh,
    Namespace,
    Workload,
}

/// Whether a policy selects a pod, and how closely.
pub(super) fn reach(namespace: &str, targets: &[PolicyTarget], pod: &Pod) -> Option<Reach> {
    let of_root = namespace == ROOT_NAMESPACE;
    if !of_root && namespace != pod.metadata.namespace {
        return None;
    }
    let labels = &pod.metadata.labels;
    targets
        .iter()
        .filter(|t| t.selector.matches(labels))
        .map(|t| match (t.selector.match_labels.is_empty(), of_root) {
            (false, _) => Reach::Workload,
            (true, true) => Reach::Mesh,
            (true, false) => Reach::Namespace,
        })
        .max()
}

impl Index {
    pub(super) fn inbound(
        &self,
        namespace: &str,
        name: &str,
        on: &mut Vec<Dependency>,
    ) -> Option<proto::Inbound> {
        let key = (namespace.to_owned(), name.to_owned());
        on.push(Dependency::Pod(key.clone()));
        on.push(Dependency::Services(namespace.to_owned()));
        on.push(Dependency::Policies(namespace.to_owned()));
        on.push(Dependency::Policies(ROOT_NAMESPACE.to_owned()));
        let pod = self.tables.pods.get(&key)?;
        let authentication = self.authentication_of(pod);
        let mut ports = self.inbound_ports(pod);
        for own in authentication.iter().flat_map(|p| &p.spec.mtls.ports) {
            let mtls = Some(mode(own.mode).into());
            match ports.iter_mut().find(|p| p.port == u32::from(own.port)) {
                Some(port) => port.mtls = mtls,
                None => ports.push(proto::InboundPort {
                    port: own.port.into(),
                    mtls,
                    ..Default::default()
                }),
            }
        }
        Some(proto::Inbound {
            workload: Some(proto::Workload {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                service_account: pod.spec.account().to_owned(),
                owner: self.owner(&key),
                node: pod.spec.node_name.clone(),
                zone: String::new(),
                spiffe_id: self.identity(pod),
            }),
            policies: self.authorization_of(pod),
            mtls: mode(authentication.map_or(MtlsMode::Permissive, |p| p.spec.mtls.mode)).into(),
            ports,
        })
    }

    fn authorization_of(&self, pod: &Pod) -> Vec<proto::AuthorizationPolicy> {
        let mut namespaces = vec![ROOT_NAMESPACE, &pod.metadata.namespace];
        namespaces.dedup();
        namespaces
            .into_iter()
            .flat_map(|ns| self.tables.authorization(ns))
            .filter(|p| reach(&p.metadata.namespace, &p.spec.target_refs, pod).is_some())
            .map(|p| self.authorization_policy(p))
            .collect()
    }

    /// The closest one; among equals the oldest, then the first by name.
    pub(super) fn authentication_of(&self, pod: &Pod) -> Option<&AuthenticationPolicy> {
        let mut namespaces = vec![ROOT_NAMESPACE, &pod.metadata.namespace];
        namespaces.dedup();
        namespaces
            .into_iter()
            .flat_map(|ns| self.tables.authentication(ns))
            .filter_map(|p| Some((reach(&p.metadata.namespace, &p.spec.target_refs, pod)?, p)))
            .min_by_key(|(reach, p)| {
                (
                    std::cmp::Reverse(*reach),
                    &p.metadata.creation_timestamp,
                    &p.metadata.name,
                )
            })
            .map(|(_, p)| p)
    }

    /// Ports that services lead to, with what they are declared to speak.
    fn inbound_ports(&self, pod: &Pod) -> Vec<proto::InboundPort> {
        let namespace = &pod.metadata.namespace;
        let mut services: Vec<&Service> = self
            .tables
            .services
            .values()
            .filter(|s| s.metadata.namespace == *namespace)
            .filter(|s| {
                !s.spec.selector.is_empty()
                    && weft_api::contains_all(&pod.metadata.labels, &s.spec.selector)
            })
            .collect();
        services.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let mut ports: Vec<proto::InboundPort> = Vec::new();
        for service in services {
            let name = format!("{namespace}/{}", service.metadata.name);
            for service_port in &service.spec.ports {
                let Some(port) = service_port.target_in(pod) else {
                    continue;
                };
                let declared = protocol(&service_port.app_protocol);
                match ports.iter_mut().find(|p| p.port == u32::from(port)) {
                    Some(known) => known.services.push(name.clone()),
                    None => ports.push(proto::InboundPort {
                        port: port.into(),
                        mtls: None,
                        protocol: declared.into(),
                        services: vec![name.clone()],
                    }),
                }
            }
        }
        ports
    }

    fn authorization_policy(&self, policy: &AuthorizationPolicy) -> proto::AuthorizationPolicy {
        use proto::authorization_policy::Action;
        let action = match policy.spec.action {
            PolicyAction::Allow => Action::Allow,
            PolicyAction::Deny => Action::Deny,
        };
        proto::AuthorizationPolicy {
            namespace: policy.metadata.namespace.clone(),
            name: policy.metadata.name.clone(),
            action: action.into(),
            dry_run: policy.spec.mode == PolicyMode::DryRun,
            rules: policy
                .spec
                .rules
                .iter()
                .map(|r| self.policy_rule(policy, r))
                .collect(),
        }
    }

    fn policy_rule(
        &self,
        policy: &AuthorizationPolicy,
        rule: &AuthorizationRule,
    ) -> proto::PolicyRule {
        let ports = rule.network_attributes.iter().flat_map(|n| &n.ports);
        proto::PolicyRule {
            sources: rule
                .sources
                .iter()
                .map(|s| self.source(policy, s))
                .collect(),
            ports: ports.map(|p| u32::from(*p)).collect(),
            http: rule.http_attributes.iter().map(http_attributes).collect(),
        }
    }

    fn source(&self, policy: &AuthorizationPolicy, source: &PolicySource) -> proto::Source {
        use proto::source::Kind;
        let kind = match source {
            PolicySource::ServiceAccount {
                service_account: sa,
            } => {
                let own = &policy.metadata.namespace;
                Kind::ServiceAccount(proto::ServiceAccountSource {
                    namespace: if sa.namespace.is_empty() {
                        own
                    } else {
                        &sa.namespace
                    }
                    .clone(),
                    name: sa.name.clone(),
                    trust_domain: self.mesh.trust_domain.clone(),
                })
            }
            PolicySource::Spiffe { spiffe } => Kind::Spiffe(spiffe.clone()),
            PolicySource::Namespace { namespace } => Kind::Namespace(namespace.clone()),
            PolicySource::TrustDomain { trust_domain } => Kind::TrustDomain(trust_domain.clone()),
            PolicySource::IpBlock { ip_block } => Kind::IpBlock(proto::IpBlock {
                cidr: ip_block.cidr.clone(),
                except: ip_block.except.clone(),
            }),
        };
        proto::Source { kind: Some(kind) }
    }
}

fn http_attributes(http: &HttpAttributes) -> proto::HttpAttributes {
    proto::HttpAttributes {
        methods: http.methods.clone(),
        paths: http.paths.iter().map(path_match).collect(),
        hosts: http.hosts.clone(),
        headers: http.headers.iter().map(value_match).collect(),
        grpc_methods: http.grpc_methods.clone(),
    }
}

fn mode(mode: MtlsMode) -> proto::MtlsMode {
    match mode {
        MtlsMode::Permissive => proto::MtlsMode::Permissive,
        MtlsMode::Strict => proto::MtlsMode::Strict,
    }
}
