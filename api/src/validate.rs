//! What the types alone cannot say.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    AuthorizationPolicySpec, Container, GrpcRouteSpec, HeaderFilter, HttpPathMatch,
    HttpRouteFilter, HttpRouteMatch, HttpRouteRule, HttpRouteSpec, HttpValueMatch, Object,
    PathMatchType, PathModifier, PodSpec, PolicySource, PolicyTarget, RedirectFilter, Service,
    ValueMatchType,
};

/// Memory that a compiled expression may take, in bytes; the proxies' limit.
const REGEX_SIZE: usize = 256 * 1024;
const MAX_RULES: usize = 64;
const MAX_WEIGHT: u32 = 1_000_000;
const MAX_ATTEMPTS: u32 = 10;

/// One thing that is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field.
    pub path: String,
    /// What is wrong, and how to mend it.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() || self.path == "." {
            f.write_str(&self.text)
        } else {
            write!(f, "{}: {}", self.path, self.text)
        }
    }
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.0.push(Problem {
            path: path.into(),
            text: text.into(),
        });
    }

    fn unless(&mut self, fine: bool, path: &str, text: impl FnOnce() -> String) {
        if !fine {
            self.add(path, text());
        }
    }
}

/// A label as RFC 1123 has it: names of namespaces, services, ports.
pub fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Labels joined by dots: names of most objects.
pub fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// Everything that is wrong with an object; empty when it can be used.
pub fn validate(object: &Object) -> Vec<Problem> {
    let mut problems = Problems::default();
    let metadata = object.metadata();
    problems.unless(is_dns_name(&metadata.name), "metadata.name", || {
        format!(
            "{:?} is not a name: use lower-case letters, digits, '-' and '.', at most 253",
            metadata.name
        )
    });
    let namespace = &metadata.namespace;
    problems.unless(
        namespace.is_empty() || is_dns_label(namespace),
        "metadata.namespace",
        || format!("{namespace:?} is not the name of a namespace"),
    );
    match object {
        Object::Service(service) => validate_service(service, &mut problems),
        Object::Pod(pod) => validate_pod(&pod.spec, "spec", &mut problems),
        Object::Deployment(deployment) => {
            let spec = &deployment.spec;
            validate_pod(&spec.template.spec, "spec.template.spec", &mut problems);
            problems.unless(
                !spec.selector.match_labels.is_empty()
                    && spec.selector.matches(&spec.template.metadata.labels),
                "spec.selector.matchLabels",
                || "must name labels that spec.template.metadata.labels has".to_owned(),
            );
        }
        Object::HTTPRoute(route) => validate_route(&route.spec, &mut problems),
        Object::GRPCRoute(route) => validate_grpc_route(&route.spec, &mut problems),
        Object::AuthorizationPolicy(policy) => {
            validate_authorization(&policy.spec, &mut problems);
        }
        Object::AuthenticationPolicy(policy) => {
            validate_targets(&policy.spec.target_refs, &mut problems);
        }
        Object::Namespace(_)
        | Object::ServiceAccount(_)
        | Object::EndpointSlice(_)
        | Object::ReferenceGrant(_) => {}
    }
    problems.0
}

fn validate_service(service: &Service, problems: &mut Problems) {
    let spec = &service.spec;
    problems.unless(
        is_dns_label(&service.metadata.name),
        "metadata.name",
        || "the name of a Service has no dots".to_owned(),
    );
    let kind = spec.service_type.as_str();
    problems.unless(matches!(kind, "" | "ClusterIP"), "spec.type", || {
        format!("{kind:?} is not run here: use ClusterIP, or clusterIP: None")
    });
    for ip in spec.cluster_ips.iter().chain([&spec.cluster_ip]) {
        let fine = ip.is_empty() || ip == "None" || ip.parse::<IpAddr>().is_ok();
        problems.unless(fine, "spec.clusterIP", || {
            format!("{ip:?} is not an address")
        });
    }
    problems.unless(!spec.ports.is_empty(), "spec.ports", || {
        "name at least one".to_owned()
    });
    for (i, port) in spec.ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        problems.unless(port.port > 0, &at, || "port must be 1 to 65535".to_owned());
        problems.unless(matches!(port.protocol.as_str(), "" | "TCP"), &at, || {
            format!(
                "protocol {:?} is not run here: the mesh carries TCP",
                port.protocol
            )
        });
        problems.unless(
            spec.ports.len() == 1 || is_dns_label(&port.name),
            &at,
            || "several ports need a name each".to_owned(),
        );
        let twin = spec
            .ports
            .iter()
            .take(i)
            .any(|p| p.port == port.port || p.name == port.name);
        problems.unless(!twin, &at, || {
            "another one has this name or number".to_owned()
        });
    }
}

fn validate_pod(spec: &PodSpec, at: &str, problems: &mut Problems) {
    problems.unless(
        !spec.containers.is_empty(),
        &format!("{at}.containers"),
        || "name at least one".to_owned(),
    );
    for (i, container) in spec.containers.iter().enumerate() {
        let path = format!("{at}.containers[{i}]");
        validate_container(container, &path, problems);
        let twin = spec
            .containers
            .iter()
            .take(i)
            .any(|c| c.name == container.name);
        problems.unless(!twin, &format!("{path}.name"), || {
            "is used twice".to_owned()
        });
    }
}

fn validate_container(container: &Container, at: &str, problems: &mut Problems) {
    problems.unless(is_dns_label(&container.name), &format!("{at}.name"), || {
        format!("{:?} is not the name of a container", container.name)
    });
    for (i, variable) in container.env.iter().enumerate() {
        let fine = !variable.name.is_empty() && !variable.name.contains(['=', '\0']);
        problems.unless(fine, &format!("{at}.env[{i}].name"), || {
            "is not usable".to_owned()
        });
        if let Some(source) = &variable.value_from {
            const FIELDS: [&str; 4] = [
                "metadata.name",
                "metadata.namespace",
                "status.podIP",
                "spec.serviceAccountName",
            ];
            let path = source.field_ref.field_path.as_str();
            problems.unless(
                FIELDS.contains(&path),
                &format!("{at}.env[{i}].valueFrom"),
                || {
                    format!(
                        "fieldPath {path:?} is not known here: {}",
                        FIELDS.join(", ")
                    )
                },
            );
        }
    }
    if let Some(probe) = &container.readiness_probe {
        let kinds = usize::from(probe.http_get.is_some()) + usize::from(probe.tcp_socket.is_some());
        problems.unless(kinds == 1, &format!("{at}.readinessProbe"), || {
            "needs exactly one of httpGet and tcpSocket".to_owned()
        });
    }
}

fn validate_route(spec: &HttpRouteSpec, problems: &mut Problems) {
    problems.unless(!spec.parent_refs.is_empty(), "spec.parentRefs", || {
        "name the Service that the route is for".to_owned()
    });
    for (i, parent) in spec.parent_refs.iter().enumerate() {
        let group = parent
            .group
            .as_deref()
            .unwrap_or("gateway.networking.k8s.io");
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        let fine = matches!((group, kind), ("" | "core", "Service"));
        problems.unless(fine, &format!("spec.parentRefs[{i}]"), || {
            format!("{group}/{kind} is not run here: write group: \"\" and kind: Service")
        });
    }
    problems.unless(spec.rules.len() <= MAX_RULES, "spec.rules", || {
        format!("more than {MAX_RULES}")
    });
    for (i, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        for (j, m) in rule.matches.iter().enumerate() {
            let at = format!("{at}.matches[{j}]");
            validate_path(m.path.as_ref(), &format!("{at}.path"), problems);
            validate_values(&m.headers, &format!("{at}.headers"), problems);
            validate_values(&m.query_params, &format!("{at}.queryParams"), problems);
        }
        validate_filters(&rule.filters, &format!("{at}.filters"), problems);
        validate_url_filters(rule, &at, problems);
        for (j, backend) in rule.backend_refs.iter().enumerate() {
            let at = format!("{at}.backendRefs[{j}]");
            let kind = backend.kind.as_deref().unwrap_or("Service");
            let group = backend.group.as_deref().unwrap_or("");
            problems.unless(kind == "Service" && group.is_empty(), &at, || {
                format!("{group}/{kind} is not run here: only Services")
            });
            problems.unless(backend.port.is_some(), &at, || "port is missing".to_owned());
            problems.unless(backend.weight.unwrap_or(1) <= MAX_WEIGHT, &at, || {
                format!("weight is above {MAX_WEIGHT}")
            });
            let at = format!("{at}.filters");
            validate_filters(&backend.filters, &at, problems);
            let headers_only = backend.filters.iter().all(|f| !changes_url(f));
            problems.unless(headers_only, &at, || {
                "RequestRedirect and URLRewrite are not run on a backend: put them on the rule"
                    .to_owned()
            });
        }
        if let Some(retry) = &rule.retry {
            let at = format!("{at}.retry");
            problems.unless(retry.attempts.unwrap_or(1) <= MAX_ATTEMPTS, &at, || {
                format!("attempts is above {MAX_ATTEMPTS}")
            });
            let fine = retry.codes.iter().all(|c| (400..=599).contains(c));
            problems.unless(fine, &at, || "codes must be 400 to 599".to_owned());
        }
        if let Some(timeouts) = &rule.timeouts
            && let (Some(request), Some(backend)) = (timeouts.request, timeouts.backend_request)
        {
            let fine = request.0.is_zero() || backend.0 <= request.0;
            problems.unless(fine, &format!("{at}.timeouts"), || {
                "backendRequest is longer than request".to_owned()
            });
        }
    }
}

fn validate_grpc_route(spec: &GrpcRouteSpec, problems: &mut Problems) {
    for (i, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        for (j, m) in rule.matches.iter().enumerate() {
            let at = format!("{at}.matches[{j}].method");
            let Some(method) = &m.method else { continue };
            let named = !method.service.is_empty() || !method.method.is_empty();
            problems.unless(named, &at, || "name a service or a method".to_owned());
            let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.');
            let fine = method.match_type == ValueMatchType::RegularExpression
                || (method.service.bytes().all(name) && method.method.bytes().all(name));
            problems.unless(fine, &at, || {
                "write service: package.Service and method: Method".to_owned()
            });
        }
        let headers_only = rule.filters.iter().all(|f| !changes_url(f));
        problems.unless(headers_only, &format!("{at}.filters"), || {
            "a GRPCRoute has neither RequestRedirect nor URLRewrite".to_owned()
        });
    }
    validate_route(&spec.as_http(), problems);
}

fn validate_filters(filters: &[HttpRouteFilter], at: &str, problems: &mut Problems) {
    for (i, filter) in filters.iter().enumerate() {
        let twin = filters
            .iter()
            .take(i)
            .any(|f| std::mem::discriminant(f) == std::mem::discriminant(filter));
        let at = format!("{at}[{i}]");
        problems.unless(!twin, &at, || "another one is of this type".to_owned());
        match filter {
            HttpRouteFilter::RequestHeaderModifier {
                request_header_modifier: m,
            }
            | HttpRouteFilter::ResponseHeaderModifier {
                response_header_modifier: m,
            } => validate_header_filter(m, &at, problems),
            HttpRouteFilter::RequestRedirect {
                request_redirect: r,
            } => validate_redirect(r, &at, problems),
            HttpRouteFilter::UrlRewrite { url_rewrite: r } => {
                validate_hostname(r.hostname.as_deref(), &at, problems);
                validate_path_modifier(r.path.as_ref(), &at, problems);
            }
        }
    }
}

fn changes_url(filter: &HttpRouteFilter) -> bool {
    matches!(
        filter,
        HttpRouteFilter::RequestRedirect { .. } | HttpRouteFilter::UrlRewrite { .. }
    )
}

/// What Gateway API's CEL rules say of filters and their rule.
fn validate_url_filters(rule: &HttpRouteRule, at: &str, problems: &mut Problems) {
    let redirects = |f: &HttpRouteFilter| matches!(f, HttpRouteFilter::RequestRedirect { .. });
    let at_most_one = rule.filters.iter().filter(|f| changes_url(f)).count() < 2;
    problems.unless(at_most_one, &format!("{at}.filters"), || {
        "RequestRedirect and URLRewrite exclude each other".to_owned()
    });
    let redirect = rule.filters.iter().any(redirects);
    problems.unless(
        !redirect || rule.backend_refs.is_empty(),
        &format!("{at}.backendRefs"),
        || "a rule that redirects has none".to_owned(),
    );
    let replaces_prefix = rule.filters.iter().any(|f| {
        let path = match f {
            HttpRouteFilter::RequestRedirect {
                request_redirect: r,
            } => &r.path,
            HttpRouteFilter::UrlRewrite { url_rewrite: r } => &r.path,
            _ => &None,
        };
        matches!(path, Some(PathModifier::ReplacePrefixMatch { .. }))
    });
    let prefix = |m: &HttpRouteMatch| {
        let kind = m.path.as_ref().map(|p| p.match_type);
        kind.unwrap_or_default() == PathMatchType::PathPrefix
    };
    problems.unless(
        !replaces_prefix || (rule.matches.len() <= 1 && rule.matches.iter().all(prefix)),
        &format!("{at}.filters"),
        || "ReplacePrefixMatch needs one match, and that of type PathPrefix".to_owned(),
    );
}

fn validate_redirect(redirect: &RedirectFilter, at: &str, problems: &mut Problems) {
    let scheme = redirect.scheme.as_deref();
    problems.unless(matches!(scheme, None | Some("http" | "https")), at, || {
        "scheme must be http or https".to_owned()
    });
    let status = redirect.status_code.unwrap_or(302);
    problems.unless(matches!(status, 301 | 302 | 303 | 307 | 308), at, || {
        format!("statusCode {status} is not 301, 302, 303, 307 or 308")
    });
    problems.unless(redirect.port != Some(0), at, || {
        "port must be 1 to 65535".to_owned()
    });
    validate_hostname(redirect.hostname.as_deref(), at, problems);
    validate_path_modifier(redirect.path.as_ref(), at, problems);
}

fn validate_hostname(hostname: Option<&str>, at: &str, problems: &mut Problems) {
    let fine = hostname.is_none_or(is_dns_name);
    problems.unless(fine, at, || {
        format!(
            "hostname {:?} is not a host name",
            hostname.unwrap_or_default()
        )
    });
}

fn validate_path_modifier(path: Option<&PathModifier>, at: &str, problems: &mut Problems) {
    let text = match path {
        None => return,
        Some(PathModifier::ReplaceFullPath { replace_full_path }) => replace_full_path,
        Some(PathModifier::ReplacePrefixMatch {
            replace_prefix_match,
        }) => replace_prefix_match,
    };
    let visible = text.bytes().all(|b| b.is_ascii_graphic());
    let fine = (text.is_empty() || text.starts_with('/')) && visible && !text.contains(['?', '#']);
    problems.unless(fine, at, || {
        format!("{text:?} is not a path: it starts with '/', without query and spaces")
    });
}

/// Fields that frame a message or name its host are not a filter's to change.
fn validate_header_filter(filter: &HeaderFilter, at: &str, problems: &mut Problems) {
    const FORBIDDEN: [&str; 6] = [
        "connection",
        "content-length",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    let names = filter
        .set
        .iter()
        .chain(&filter.add)
        .map(|h| &h.name)
        .chain(&filter.remove);
    for name in names {
        let fine = is_token(name) && !FORBIDDEN.contains(&name.to_ascii_lowercase().as_str());
        problems.unless(fine, at, || {
            format!("the header {name:?} cannot be changed")
        });
    }
    for header in filter.set.iter().chain(&filter.add) {
        let fine = header
            .value
            .bytes()
            .all(|b| b == b'\t' || (b >= b' ' && b != 0x7f));
        problems.unless(fine, at, || {
            format!("the value of {:?} has control characters", header.name)
        });
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let special = |b: u8| b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || special(b))
}

fn validate_path(path: Option<&HttpPathMatch>, at: &str, problems: &mut Problems) {
    let Some(path) = path else { return };
    match path.match_type {
        PathMatchType::RegularExpression => validate_regex(&path.value, at, problems),
        PathMatchType::Exact | PathMatchType::PathPrefix => {
            problems.unless(path.value.starts_with('/'), at, || {
                format!("{:?} does not start with '/'", path.value)
            });
            let fine = !path.value.contains("//") && !path.value.contains("/../");
            problems.unless(fine, at, || {
                format!(
                    "{:?} is not in normal form: no '//' and no '/../'",
                    path.value
                )
            });
        }
    }
}

fn validate_values(values: &[HttpValueMatch], at: &str, problems: &mut Problems) {
    for (i, value) in values.iter().enumerate() {
        let at = format!("{at}[{i}]");
        problems.unless(!value.name.is_empty(), &at, || "name is missing".to_owned());
        if value.match_type == ValueMatchType::RegularExpression {
            validate_regex(&value.value, &at, problems);
        }
    }
}

fn validate_regex(expression: &str, at: &str, problems: &mut Problems) {
    let compiled = regex::RegexBuilder::new(&format!("^(?:{expression})$"))
        .size_limit(REGEX_SIZE)
        .build();
    if let Err(error) = compiled {
        problems.add(
            at,
            format!("{expression:?} is not a usable regular expression: {error}"),
        );
    }
}

fn validate_targets(targets: &[PolicyTarget], problems: &mut Problems) {
    problems.unless(!targets.is_empty(), "spec.targetRefs", || {
        "name what the policy is for; an empty selector means every pod of the namespace".to_owned()
    });
    for (i, target) in targets.iter().enumerate() {
        let fine = target.group.is_empty() && target.kind == "Pod";
        problems.unless(fine, &format!("spec.targetRefs[{i}]"), || {
            "write group: \"\" and kind: Pod".to_owned()
        });
    }
}

fn validate_authorization(spec: &AuthorizationPolicySpec, problems: &mut Problems) {
    validate_targets(&spec.target_refs, problems);
    problems.unless(spec.rules.len() <= MAX_RULES, "spec.rules", || {
        format!("more than {MAX_RULES}")
    });
    for (i, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        for (j, source) in rule.sources.iter().enumerate() {
            validate_source(source, &format!("{at}.sources[{j}]"), problems);
        }
        for (j, http) in rule.http_attributes.iter().enumerate() {
            let at = format!("{at}.httpAttributes[{j}]");
            for (k, path) in http.paths.iter().enumerate() {
                validate_path(Some(path), &format!("{at}.paths[{k}]"), problems);
            }
            validate_values(&http.headers, &format!("{at}.headers"), problems);
            for (k, method) in http.grpc_methods.iter().enumerate() {
                let fine = method.split_once('/').is_some_and(|(s, m)| {
                    !s.is_empty() && (m == "*" || (!m.is_empty() && !m.contains(['*', '/'])))
                });
                problems.unless(fine, &format!("{at}.grpcMethods[{k}]"), || {
                    format!("{method:?}: write package.Service/Method or package.Service/*")
                });
            }
            let empty = http.methods.is_empty()
                && http.paths.is_empty()
                && http.hosts.is_empty()
                && http.headers.is_empty()
                && http.grpc_methods.is_empty();
            problems.unless(!empty, &at, || "says nothing: leave it out".to_owned());
        }
    }
}

fn validate_source(source: &PolicySource, at: &str, problems: &mut Problems) {
    match source {
        PolicySource::ServiceAccount { service_account } => {
            problems.unless(!service_account.name.is_empty(), at, || {
                "name is missing".to_owned()
            });
        }
        PolicySource::Spiffe { spiffe } => {
            problems.unless(spiffe.starts_with("spiffe://"), at, || {
                format!("{spiffe:?} is not a SPIFFE ID")
            });
        }
        PolicySource::Namespace { namespace } => {
            problems.unless(is_dns_label(namespace), at, || {
                format!("{namespace:?} is not the name of a namespace")
            });
        }
        PolicySource::TrustDomain { trust_domain } => {
            problems.unless(is_dns_name(trust_domain), at, || {
                format!("{trust_domain:?} is not a trust domain")
            });
        }
        PolicySource::IpBlock { ip_block } => {
            for cidr in ip_block.except.iter().chain([&ip_block.cidr]) {
                problems.unless(cidr.parse::<IpNet>().is_ok(), at, || {
                    format!("{cidr:?} is not an address range (like 192.0.2.0/24)")
                });
            }
        }
    }
}
