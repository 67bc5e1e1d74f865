//! Who may call what.
//!
//! A Deny that matches wins. Once an Allow selects the workload, what none
//! allows is denied. A policy in dry run decides nothing, but what it would
//! have decided is told.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_proto as proto;
use weft_proto::authorization_policy::Action;

use crate::matchers::{Named, Path, PolicyError, host_matches};
use crate::request::{Identity, RequestView};

/// A call to be decided. Without `http` it is an opaque connection.
pub struct Call<'a> {
    /// What the caller's TLS session proved; `None`: plaintext.
    pub identity: Option<Identity<'a>>,
    /// Where the connection comes from.
    pub source_ip: IpAddr,
    /// The port called, on the pod.
    pub port: u16,
    /// The request.
    pub http: Option<&'a dyn RequestView>,
}

/// Where a policy stands: which one, and which of its rules, from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the policy.
    pub policy: usize,
    /// Index of the rule in it; `None` where no rule matched.
    pub rule: Option<usize>,
}

/// What is decided, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// No policy selects the workload.
    AllowedByDefault,
    /// By this rule.
    Allowed(Place),
    /// By this rule.
    Denied(Place),
    /// Allow policies select the workload and none of them matches.
    DeniedByDefault,
}

impl Decision {
    /// Whether the call goes on.
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::AllowedByDefault | Self::Allowed(_))
    }
}

/// The decision in force, and the one that it would be if the policies in dry
/// run were enforced as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// What holds.
    pub decision: Decision,
    /// What would hold; the same where no policy is in dry run.
    pub dry_run: Decision,
}

/// The first part of a rule that a call does not meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// `sources`.
    Source,
    /// `networkAttributes.ports`.
    Port,
    /// The rule speaks of HTTP and the call is an opaque connection.
    NotHttp,
    /// `httpAttributes.methods`, of the nearest item.
    Method,
    /// `httpAttributes.paths`.
    Path,
    /// `httpAttributes.hosts`.
    Host,
    /// `httpAttributes.headers`.
    Header,
    /// `httpAttributes.grpcMethods`.
    GrpcMethod,
}

impl Mismatch {
    /// The field in a manifest.
    pub fn field(self) -> &'static str {
        match self {
            Self::Source => "sources",
            Self::Port => "networkAttributes.ports",
            Self::NotHttp => "httpAttributes (the connection is opaque TCP)",
            Self::Method => "httpAttributes.methods",
            Self::Path => "httpAttributes.paths",
            Self::Host => "httpAttributes.hosts",
            Self::Header => "httpAttributes.headers",
            Self::GrpcMethod => "httpAttributes.grpcMethods",
        }
    }
}

/// What one rule says of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleTrace {
    /// Where.
    pub place: Place,
    /// `None`: it matches.
    pub mismatch: Option<Mismatch>,
}

/// All policies that select one workload, compiled.
#[derive(Debug, Default)]
pub struct Policies {
    policies: Vec<Policy>,
    has_http_rules: bool,
}

/// One policy.
#[derive(Debug)]
pub struct Policy {
    /// `NAMESPACE/NAME`.
    pub name: String,
    deny: bool,
    dry_run: bool,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    sources: Vec<Source>,
    ports: Vec<u16>,
    http: Vec<Http>,
}

#[derive(Debug)]
enum Source {
    ServiceAccount {
        trust_domain: String,
        namespace: String,
        name: String,
    },
    Spiffe(String),
    Namespace(String),
    TrustDomain(String),
    IpBlock(IpNet, Vec<IpNet>),
}

#[derive(Debug)]
struct Http {
    methods: Vec<String>,
    paths: Vec<Path>,
    hosts: Vec<String>,
    headers: Vec<Named>,
    grpc_methods: Vec<String>,
}

impl Policies {
    /// Compiles what the control plane sent; an error names the policy.
    pub fn compile(policies: &[proto::AuthorizationPolicy]) -> Result<Self, (String, PolicyError)> {
        let policies = policies
            .iter()
            .map(|p| {
                let name = format!("{}/{}", p.namespace, p.name);
                Policy::compile(p, name.clone()).map_err(|e| (name, e))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let has_http_rules = policies
            .iter()
            .any(|p| p.rules.iter().any(|r| !r.http.is_empty()));
        Ok(Self {
            policies,
            has_http_rules,
        })
    }

    /// No policy selects the workload.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Whether requests on one connection can be decided differently.
    pub fn has_http_rules(&self) -> bool {
        self.has_http_rules
    }

    /// A policy by its place.
    pub fn policy(&self, place: Place) -> Option<&Policy> {
        self.policies.get(place.policy)
    }

    /// Decides a call.
    pub fn decide(&self, call: &Call<'_>) -> Verdict {
        let decision = self.decide_among(call, |p| !p.dry_run);
        let dry_run = if self.policies.iter().any(|p| p.dry_run) {
            self.decide_among(call, |_| true)
        } else {
            decision
        };
        Verdict { decision, dry_run }
    }

    fn decide_among(&self, call: &Call<'_>, in_force: impl Fn(&Policy) -> bool) -> Decision {
        let mut decision = Decision::AllowedByDefault;
        for (index, policy) in self.policies.iter().enumerate() {
            if !in_force(policy) {
                continue;
            }
            let rule = policy
                .rules
                .iter()
                .position(|rule| rule.mismatch(call, policy.deny).is_none());
            let place = Place {
                policy: index,
                rule,
            };
            match (policy.deny, rule) {
                (true, Some(_)) => return Decision::Denied(place),
                (false, Some(_)) if !matches!(decision, Decision::Allowed(_)) => {
                    decision = Decision::Allowed(place);
                }
                (false, None) if decision == Decision::AllowedByDefault => {
                    decision = Decision::DeniedByDefault;
                }
                _ => {}
            }
        }
        decision
    }

    /// Whether some request on an opaque connection's place could be allowed:
    /// whether only its not being HTTP is in the way.
    pub fn may_allow_a_request(&self, call: &Call<'_>) -> bool {
        let (mut selected, mut allowed) = (false, false);
        for policy in self.policies.iter().filter(|p| !p.dry_run) {
            let mut reached = policy
                .rules
                .iter()
                .filter(|rule| rule.connection_mismatch(call).is_none());
            if !policy.deny {
                selected = true;
                allowed |= reached.next().is_some();
            } else if reached.any(|rule| rule.http.is_empty()) {
                return false;
            }
        }
        allowed || !selected
    }

    /// What every rule says of a call, in order.
    pub fn trace(&self, call: &Call<'_>) -> Vec<RuleTrace> {
        let rules = |(policy, p): (usize, &Policy)| {
            let deny = p.deny;
            p.rules
                .iter()
                .enumerate()
                .map(|(rule, r)| RuleTrace {
                    place: Place {
                        policy,
                        rule: Some(rule),
                    },
                    mismatch: r.mismatch(call, deny),
                })
                .collect::<Vec<_>>()
        };
        self.policies.iter().enumerate().flat_map(rules).collect()
    }
}

impl Policy {
    fn compile(proto: &proto::AuthorizationPolicy, name: String) -> Result<Self, PolicyError> {
        Ok(Self {
            name,
            deny: proto.action() == Action::Deny,
            dry_run: proto.dry_run,
            rules: proto
                .rules
                .iter()
                .map(Rule::compile)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Whether it denies what it matches.
    pub fn is_deny(&self) -> bool {
        self.deny
    }

    /// Whether it only tells what it would decide.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }
}

impl Rule {
    fn compile(proto: &proto::PolicyRule) -> Result<Self, PolicyError> {
        Ok(Self {
            sources: proto
                .sources
                .iter()
                .map(Source::compile)
                .collect::<Result<_, _>>()?,
            ports: proto
                .ports
                .iter()
                .map(|p| u16::try_from(*p).map_err(|_| PolicyError::Missing("a port up to 65535")))
                .collect::<Result<_, _>>()?,
            http: proto
                .http
                .iter()
                .map(Http::compile)
                .collect::<Result<_, _>>()?,
        })
    }

    /// `deny`: for an opaque connection, a Deny that speaks of HTTP cannot be
    /// decided and therefore matches; an Allow does not.
    fn mismatch(&self, call: &Call<'_>, deny: bool) -> Option<Mismatch> {
        let mismatch = self.connection_mismatch(call);
        if mismatch.is_some() || self.http.is_empty() {
            return mismatch;
        }
        let Some(request) = call.http else {
            return (!deny).then_some(Mismatch::NotHttp);
        };
        // Of several items, the one that got farthest says most.
        let mut nearest = Mismatch::Method;
        for item in &self.http {
            match item.mismatch(request) {
                None => return None,
                Some(m) if m as u8 > nearest as u8 => nearest = m,
                Some(_) => {}
            }
        }
        Some(nearest)
    }

    fn connection_mismatch(&self, call: &Call<'_>) -> Option<Mismatch> {
        if !self.sources.is_empty() && !self.sources.iter().any(|s| s.matches(call)) {
            return Some(Mismatch::Source);
        }
        if !self.ports.is_empty() && !self.ports.contains(&call.port) {
            return Some(Mismatch::Port);
        }
        None
    }
}

impl Source {
    fn compile(proto: &proto::Source) -> Result<Self, PolicyError> {
        use proto::source::Kind;
        let cidr = |text: &String| {
            text.parse::<IpNet>()
                .map_err(|_| PolicyError::Cidr(text.clone()))
        };
        Ok(match proto.kind.as_ref() {
            Some(Kind::ServiceAccount(sa)) => Self::ServiceAccount {
                trust_domain: sa.trust_domain.clone(),
                namespace: sa.namespace.clone(),
                name: sa.name.clone(),
            },
            Some(Kind::Spiffe(uri)) => Self::Spiffe(uri.clone()),
            Some(Kind::Namespace(namespace)) => Self::Namespace(namespace.clone()),
            Some(Kind::TrustDomain(domain)) => Self::TrustDomain(domain.clone()),
            Some(Kind::IpBlock(block)) => Self::IpBlock(
                cidr(&block.cidr)?,
                block.except.iter().map(cidr).collect::<Result<_, _>>()?,
            ),
            None => return Err(PolicyError::Missing("the type of a source")),
        })
    }

    fn matches(&self, call: &Call<'_>) -> bool {
        let identity = call.identity;
        match self {
            Self::ServiceAccount {
                trust_domain,
                namespace,
                name,
            } => identity.is_some_and(|id| {
                id.trust_domain == trust_domain
                    && (namespace == "*" || id.namespace == namespace)
                    && (name == "*" || id.service_account == name)
            }),
            Self::Spiffe(uri) => identity.is_some_and(|id| id.uri == uri),
            Self::Namespace(namespace) => identity.is_some_and(|id| id.namespace == namespace),
            Self::TrustDomain(domain) => identity.is_some_and(|id| id.trust_domain == domain),
            Self::IpBlock(cidr, except) => {
                let ip = call.source_ip.to_canonical();
                cidr.contains(&ip) && !except.iter().any(|e| e.contains(&ip))
            }
        }
    }
}

impl Http {
    fn compile(proto: &proto::HttpAttributes) -> Result<Self, PolicyError> {
        Ok(Self {
            methods: proto.methods.clone(),
            paths: proto
                .paths
                .iter()
                .map(Path::compile)
                .collect::<Result<_, _>>()?,
            hosts: proto.hosts.clone(),
            headers: proto
                .headers
                .iter()
                .map(|h| Named::compile(h, true))
                .collect::<Result<_, _>>()?,
            grpc_methods: proto.grpc_methods.clone(),
        })
    }

    fn mismatch(&self, request: &dyn RequestView) -> Option<Mismatch> {
        let any = |empty: bool, matched: bool| empty || matched;
        let methods = &self.methods;
        if !any(
            methods.is_empty(),
            methods.iter().any(|m| m == request.method()),
        ) {
            return Some(Mismatch::Method);
        }
        let path = request.path();
        if !any(
            self.paths.is_empty(),
            self.paths.iter().any(|p| p.matches(path)),
        ) {
            return Some(Mismatch::Path);
        }
        let hosts = &self.hosts;
        if !any(
            hosts.is_empty(),
            hosts.iter().any(|h| host_matches(h, request.host())),
        ) {
            return Some(Mismatch::Host);
        }
        let has = |h: &Named| request.any_header(&h.name, &mut |value| h.value.matches(value));
        if !self.headers.iter().all(has) {
            return Some(Mismatch::Header);
        }
        let grpc = &self.grpc_methods;
        if !any(grpc.is_empty(), grpc.iter().any(|g| grpc_matches(g, path))) {
            return Some(Mismatch::GrpcMethod);
        }
        None
    }
}

/// `package.Service/Method` or `package.Service/*` against `/package.Service/Method`.
fn grpc_matches(pattern: &str, path: &str) -> bool {
    let Some(called) = path.strip_prefix('/') else {
        return false;
    };
    match pattern.strip_suffix('*') {
        Some(service) => called.starts_with(service),
        None => called == pattern,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::request::testing::Plain;

    const FRONTEND: &str = "spiffe://east.example/ns/shop/sa/frontend";

    fn account(namespace: &str, name: &str) -> proto::Source {
        proto::Source {
            kind: Some(proto::source::Kind::ServiceAccount(
                proto::ServiceAccountSource {
                    namespace: namespace.into(),
                    name: name.into(),
                    trust_domain: "east.example".into(),
                },
            )),
        }
    }

    fn policy(
        action: Action,
        dry_run: bool,
        rules: Vec<proto::PolicyRule>,
    ) -> proto::AuthorizationPolicy {
        proto::AuthorizationPolicy {
            namespace: "shop".into(),
            name: "p".into(),
            action: action.into(),
            dry_run,
            rules,
        }
    }

    fn from_frontend() -> proto::PolicyRule {
        proto::PolicyRule {
            sources: vec![account("shop", "frontend")],
            ..Default::default()
        }
    }

    fn admin_only() -> proto::PolicyRule {
        proto::PolicyRule {
            http: vec![proto::HttpAttributes {
                paths: vec![proto::PathMatch {
                    kind: proto::path_match::Kind::Prefix.into(),
                    value: "/admin".into(),
                }],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn decide(
        policies: &[proto::AuthorizationPolicy],
        identity: Option<&str>,
        http: Option<&dyn RequestView>,
    ) -> Verdict {
        Policies::compile(policies).unwrap().decide(&Call {
            identity: identity.and_then(Identity::from_uri),
            source_ip: [10, 0, 0, 9].into(),
            port: 8080,
            http,
        })
    }

    #[test]
    fn without_a_policy_everyone_may_call() {
        assert_eq!(decide(&[], None, None).decision, Decision::AllowedByDefault);
    }

    #[test]
    fn an_allow_denies_what_it_does_not_name() {
        let allow = [policy(Action::Allow, false, vec![from_frontend()])];
        assert!(decide(&allow, Some(FRONTEND), None).decision.is_allowed());
        for other in [
            None,
            Some("spiffe://east.example/ns/shop/sa/other"),
            Some("spiffe://west.example/ns/shop/sa/frontend"),
        ] {
            assert_eq!(
                decide(&allow, other, None).decision,
                Decision::DeniedByDefault
            );
        }
    }

    #[test]
    fn an_allow_without_rules_denies_everything() {
        let nothing = [policy(Action::Allow, false, vec![])];
        assert_eq!(
            decide(&nothing, Some(FRONTEND), None).decision,
            Decision::DeniedByDefault
        );
    }

    #[test]
    fn a_deny_wins_over_an_allow_before_or_after_it() {
        let allow = policy(Action::Allow, false, vec![from_frontend()]);
        let deny = policy(Action::Deny, false, vec![admin_only()]);
        for both in [[allow.clone(), deny.clone()], [deny, allow]] {
            let at = |path| decide(&both, Some(FRONTEND), Some(&Plain::get(path))).decision;
            assert!(at("/cart").is_allowed());
            assert!(!at("/admin/users").is_allowed());
        }
    }

    #[test]
    fn a_rule_about_http_fails_closed_on_an_opaque_connection() {
        let deny = [policy(Action::Deny, false, vec![admin_only()])];
        assert!(!decide(&deny, Some(FRONTEND), None).decision.is_allowed());
        let allow = [policy(Action::Allow, false, vec![admin_only()])];
        assert!(!decide(&allow, Some(FRONTEND), None).decision.is_allowed());
    }

    #[test]
    fn dry_run_decides_nothing_and_tells_what_it_would() {
        let dry = [policy(Action::Allow, true, vec![from_frontend()])];
        let verdict = decide(&dry, None, None);
        assert!(verdict.decision.is_allowed());
        assert_eq!(verdict.dry_run, Decision::DeniedByDefault);
    }

    #[test]
    fn every_kind_of_source_is_told_apart() {
        use proto::source::Kind;
        let matches = |kind: Kind, identity: Option<&str>| {
            let rule = proto::PolicyRule {
                sources: vec![proto::Source { kind: Some(kind) }],
                ..Default::default()
            };
            let allow = [policy(Action::Allow, false, vec![rule])];
            decide(&allow, identity, None).decision.is_allowed()
        };
        assert!(matches(Kind::Spiffe(FRONTEND.into()), Some(FRONTEND)));
        assert!(!matches(
            Kind::Spiffe(format!("{FRONTEND}x")),
            Some(FRONTEND)
        ));
        assert!(matches(Kind::Namespace("shop".into()), Some(FRONTEND)));
        assert!(!matches(Kind::Namespace("shop".into()), None));
        assert!(matches(
            Kind::TrustDomain("east.example".into()),
            Some(FRONTEND)
        ));
        let block = |cidr: &str, except: &[&str]| {
            Kind::IpBlock(proto::IpBlock {
                cidr: cidr.into(),
                except: except.iter().map(|e| (*e).to_owned()).collect(),
            })
        };
        assert!(matches(block("10.0.0.0/8", &[]), None));
        assert!(!matches(block("10.0.0.0/8", &["10.0.0.9/32"]), None));
        assert!(!matches(block("192.0.2.0/24", &[]), Some(FRONTEND)));
    }

    #[test]
    fn an_explanation_names_the_part_that_failed() {
        let rule = proto::PolicyRule {
            sources: vec![account("shop", "frontend")],
            ports: vec![8080],
            http: vec![proto::HttpAttributes {
                methods: vec!["GET".into()],
                headers: vec![proto::ValueMatch {
                    kind: proto::value_match::Kind::Exact.into(),
                    name: "X-Tier".into(),
                    value: "gold".into(),
                }],
                ..Default::default()
            }],
        };
        let policies = Policies::compile(&[policy(Action::Allow, false, vec![rule])]).unwrap();
        let mismatch = |identity: &str, port, headers: &[(&str, &str)]| {
            let request = Plain {
                headers,
                ..Plain::get("/")
            };
            let call = Call {
                identity: Identity::from_uri(identity),
                source_ip: [10, 0, 0, 9].into(),
                port,
                http: Some(&request),
            };
            policies.trace(&call)[0].mismatch
        };
        let gold = [("x-tier", "gold")];
        assert_eq!(mismatch(FRONTEND, 8080, &gold), None);
        assert_eq!(
            mismatch("spiffe://a/ns/b/sa/c", 8080, &gold),
            Some(Mismatch::Source)
        );
        assert_eq!(mismatch(FRONTEND, 81, &gold), Some(Mismatch::Port));
        assert_eq!(mismatch(FRONTEND, 8080, &[]), Some(Mismatch::Header));
    }

    #[test]
    fn a_silent_connection_is_told_from_one_that_nothing_could_save() {
        let may = |policies: &[proto::AuthorizationPolicy], identity| {
            Policies::compile(policies)
                .unwrap()
                .may_allow_a_request(&Call {
                    identity: Identity::from_uri(identity),
                    source_ip: [10, 0, 0, 9].into(),
                    port: 8080,
                    http: None,
                })
        };
        let pages = proto::PolicyRule {
            http: admin_only().http,
            ..from_frontend()
        };
        let allow = policy(Action::Allow, false, vec![pages]);
        let other = "spiffe://east.example/ns/shop/sa/other";
        assert!(may(std::slice::from_ref(&allow), FRONTEND));
        assert!(!may(std::slice::from_ref(&allow), other));
        // A Deny of some pages leaves others, a Deny of the caller does not.
        let some = policy(Action::Deny, false, vec![admin_only()]);
        assert!(may(&[some], FRONTEND));
        let all = policy(Action::Deny, false, vec![from_frontend()]);
        assert!(!may(&[allow, all], FRONTEND));
    }

    #[test]
    fn grpc_methods_match_whole_or_by_service() {
        assert!(grpc_matches("shop.Cart/Add", "/shop.Cart/Add"));
        assert!(grpc_matches("shop.Cart/*", "/shop.Cart/Add"));
        assert!(!grpc_matches("shop.Cart/*", "/shop.Cart2/Add"));
        assert!(!grpc_matches("shop.Cart/Add", "/shop.Cart/AddMore"));
    }
}
