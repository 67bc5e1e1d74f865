//! `meshctl authz explain`: the proxies' own decision, step by step.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::json;
use weft_policy::authorization::{Call, Decision, Policies};
use weft_policy::path::normalize;
use weft_policy::{Identity, RequestView};
use weft_proto::{DescribeWorkloadRequest, DescribedWorkload, MtlsMode};

use crate::cli::{AuthzCommand, ExplainArgs};
use crate::operator::ask;
use crate::output::{green, print, red};

/// Exit code of a call that would be denied.
const DENIED: u8 = 3;

struct Request<'a> {
    method: &'a str,
    path: String,
    query: Option<String>,
    host: &'a str,
    headers: Vec<(String, String)>,
}

impl RequestView for Request<'_> {
    fn method(&self) -> &str {
        self.method
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    fn host(&self) -> &str {
        self.host
    }

    fn any_header(&self, name: &str, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.headers.iter().any(|(n, v)| n == name && test(v))
    }
}

pub fn run(AuthzCommand::Explain(args): AuthzCommand) -> anyhow::Result<ExitCode> {
    let (to, port) = match args.to.rsplit_once(':') {
        Some((to, port)) => (
            to.to_owned(),
            Some(
                port.parse::<u16>()
                    .context("the port of --to is not a number")?,
            ),
        ),
        None => (args.to.clone(), None),
    };
    let (from_ns, from) = split(&args.from, &args.namespace);
    let (to_ns, to) = split(&to, &args.namespace);
    let (source, target) = ask(&args.mesh, |mut operator| async move {
        let mut ask = async |namespace: String, name: String| {
            let request = DescribeWorkloadRequest { namespace, name };
            let found = operator
                .describe_workload(request)
                .await
                .map_err(|s| anyhow::anyhow!(s.message().to_owned()))?;
            found
                .into_inner()
                .workloads
                .into_iter()
                .next()
                .context("nothing was found")
        };
        Ok((ask(from_ns, from).await?, ask(to_ns, to).await?))
    })?;
    explain(&args, &source, &target, port)
}

fn split(name: &str, namespace: &str) -> (String, String) {
    match name.split_once('/') {
        Some((ns, rest)) if ns != "deploy" => (ns.to_owned(), rest.to_owned()),
        _ => (namespace.to_owned(), name.to_owned()),
    }
}

fn request(args: &ExplainArgs) -> anyhow::Result<Option<Request<'_>>> {
    if args.method.is_none() && args.path.is_none() && args.headers.is_empty() {
        return Ok(None);
    }
    let target = args.path.as_deref().unwrap_or("/");
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    let path = normalize(path.as_bytes()).context("--path")?;
    let headers = args.headers.iter().map(|h| {
        let (name, value) = h
            .split_once(':')
            .with_context(|| format!("{h:?}: write -H 'name: value'"))?;
        Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    });
    Ok(Some(Request {
        method: args.method.as_deref().unwrap_or("GET"),
        path: String::from_utf8_lossy(&path).into_owned(),
        query,
        host: &args.host,
        headers: headers.collect::<anyhow::Result<_>>()?,
    }))
}

fn explain(
    args: &ExplainArgs,
    source: &DescribedWorkload,
    target: &DescribedWorkload,
    port: Option<u16>,
) -> anyhow::Result<ExitCode> {
    let inbound = target.inbound.as_ref().context("the callee has no proxy")?;
    let own = inbound.workload.clone().unwrap_or_default();
    if !target.meshed {
        bail!(
            "{}/{} has no proxy: nothing is enforced there",
            own.namespace,
            own.name
        );
    }
    let port = port.or_else(|| {
        inbound
            .ports
            .first()
            .and_then(|p| u16::try_from(p.port).ok())
    });
    let port = port.context("name the pod's port: --to NAME:PORT")?;
    let caller = source
        .inbound
        .as_ref()
        .and_then(|i| i.workload.clone())
        .unwrap_or_default();
    let identity = source.meshed.then_some(caller.spiffe_id.as_str());
    let own_mode = inbound
        .ports
        .iter()
        .find(|p| p.port == u32::from(port))
        .filter(|p| p.mtls.is_some());
    let strict = own_mode.map_or(inbound.mtls(), |p| p.mtls()) == MtlsMode::Strict;
    let policies =
        Policies::compile(&inbound.policies).map_err(|(name, e)| anyhow::anyhow!("{name}: {e}"))?;
    let http = request(args)?;
    let source_ip: IpAddr = source.address.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let call = Call {
        identity: identity.and_then(Identity::from_uri),
        source_ip,
        port,
        http: http.as_ref().map(|r| r as &dyn RequestView),
    };
    let verdict = policies.decide(&call);
    let refused_plain = strict && identity.is_none();
    let allowed = verdict.decision.is_allowed() && !refused_plain;
    let mut lines = Vec::new();
    let mut rules = Vec::new();
    for trace in policies.trace(&call) {
        let Some(policy) = policies.policy(trace.place) else {
            continue;
        };
        let rule = trace.place.rule.unwrap_or_default();
        let field = trace.mismatch.map(|m| m.field());
        let kind = if policy.is_deny() { "Deny" } else { "Allow" };
        let dry = if policy.is_dry_run() { ", dry run" } else { "" };
        let says = field.map_or("matches".to_owned(), |f| format!("does not match: {f}"));
        lines.push(format!("  {kind} {} rule {rule}{dry}: {says}", policy.name));
        rules.push(json!({
            "policy": policy.name, "rule": rule, "action": kind, "dryRun": policy.is_dry_run(),
            "matches": field.is_none(), "failedField": field,
        }));
    }
    let by = |decision: Decision| match decision {
        Decision::AllowedByDefault => "no policy selects the callee".to_owned(),
        Decision::DeniedByDefault => {
            "Allow policies select the callee, and none of them matches".to_owned()
        }
        Decision::Allowed(p) | Decision::Denied(p) => {
            let name = policies
                .policy(p)
                .map(|p| p.name.clone())
                .unwrap_or_default();
            format!(
                "AuthorizationPolicy {name}, rule {}",
                p.rule.unwrap_or_default()
            )
        }
    };
    let reason = if refused_plain {
        "the callee requires mutual TLS and the caller has no proxy".to_owned()
    } else {
        by(verdict.decision)
    };
    let value = json!({
        "allowed": allowed, "reason": reason,
        "identity": identity, "target": own.spiffe_id, "port": port,
        "path": http.as_ref().map(|r| r.path.clone()),
        "dryRun": {"allowed": verdict.dry_run.is_allowed(), "reason": by(verdict.dry_run)},
        "rules": rules,
    });
    print(args.mesh.output, &value, || {
        let word = if allowed {
            green("ALLOWED")
        } else {
            red("DENIED")
        };
        let caller = identity.map_or_else(
            || format!("plaintext from {}", source.address),
            str::to_owned,
        );
        let mut text = format!(
            "{word}: {reason}\n  caller  {caller}\n  callee  {} port {port}",
            own.spiffe_id
        );
        if verdict.dry_run.is_allowed() != verdict.decision.is_allowed() {
            let word = if verdict.dry_run.is_allowed() {
                "allow"
            } else {
                "deny"
            };
            text.push_str(&format!(
                "\n  with the policies in dry run enforced it would {word}: {}",
                by(verdict.dry_run)
            ));
        }
        for line in lines {
            text.push('\n');
            text.push_str(&line);
        }
        text
    })?;
    Ok(if allowed {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DENIED)
    })
}
