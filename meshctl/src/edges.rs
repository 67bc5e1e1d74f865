//! `meshctl stat` and `meshctl edges`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;
use weft_proto::{EdgeKey, EdgeReport, EdgesRequest};

use crate::cli::StatArgs;
use crate::operator::ask_all;
use crate::output::{green, print, red, table};

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Row {
    source: String,
    source_namespace: String,
    source_identity: String,
    destination: String,
    destination_namespace: String,
    destination_identity: String,
    service: String,
    backend: String,
    route: String,
    protocol: String,
    mtls: bool,
    requests: u64,
    requests_per_second: f64,
    success_rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    denied: u64,
    would_deny: u64,
    retries: u64,
    connections: u64,
    sent_bytes: u64,
    received_bytes: u64,
}

/// Upper bound of the bucket in which a quantile lies, in milliseconds.
pub fn quantile_ms(buckets: &[u32], quantile: f64) -> f64 {
    let total: u64 = buckets.iter().map(|&n| u64::from(n)).sum();
    let wanted = (total as f64 * quantile).ceil() as u64;
    let mut seen = 0;
    for (index, n) in buckets.iter().enumerate() {
        seen += u64::from(*n);
        if seen >= wanted && seen > 0 {
            return (index as f64 / 4.0).exp2() / 1000.0;
        }
    }
    0.0
}

fn row(key: EdgeKey, sum: &EdgeReport, seconds: f64) -> Row {
    let requests = sum.requests;
    Row {
        source: key.source,
        source_namespace: key.source_namespace,
        source_identity: key.source_identity,
        destination: key.destination,
        destination_namespace: key.destination_namespace,
        destination_identity: key.destination_identity,
        service: key.service,
        backend: key.backend,
        route: key.route,
        protocol: key.protocol,
        mtls: key.mtls,
        requests,
        requests_per_second: requests as f64 / seconds.max(1.0),
        success_rate: if requests == 0 {
            1.0
        } else {
            1.0 - sum.failures as f64 / requests as f64
        },
        p50_ms: quantile_ms(&sum.latency_buckets, 0.5),
        p99_ms: quantile_ms(&sum.latency_buckets, 0.99),
        denied: sum.denied,
        would_deny: sum.would_deny,
        retries: sum.retries,
        connections: sum.connections,
        sent_bytes: sum.sent_bytes,
        received_bytes: sum.received_bytes,
    }
}

fn fetch(args: &StatArgs) -> anyhow::Result<(Vec<EdgeReport>, f64)> {
    let window_seconds = args.window;
    let answers = ask_all(&args.mesh, |mut operator| async move {
        let found = operator.edges(EdgesRequest { window_seconds }).await?;
        Ok(found.into_inner())
    })?;
    // Each replica has counted for the proxies that follow it.
    let seconds = answers.iter().map(|a| a.seconds).fold(0.0, f64::max);
    let mut sums: Vec<EdgeReport> = Vec::new();
    for report in answers.into_iter().flat_map(|a| a.edges) {
        match sums.iter_mut().find(|sum| sum.key == report.key) {
            Some(sum) => sum.absorb(&report),
            None => sums.push(report),
        }
    }
    Ok((sums, seconds))
}

fn success(rate: f64) -> String {
    let text = format!("{:.2}%", rate * 100.0);
    if rate >= 0.999 {
        green(&text)
    } else {
        red(&text)
    }
}

/// Edges as the callers' proxies saw them, and those of callers without one.
pub fn edges(args: &StatArgs) -> anyhow::Result<ExitCode> {
    let (found, seconds) = fetch(args)?;
    let mut rows: Vec<Row> = found
        .iter()
        .filter_map(|e| Some((e.key.clone()?, e)))
        .filter(|(key, _)| key.outbound || !key.mtls)
        .filter(|(key, _)| {
            let wanted = args.namespace.as_deref();
            wanted.is_none_or(|ns| key.source_namespace == ns || key.destination_namespace == ns)
        })
        .map(|(key, e)| row(key, e, seconds))
        .collect();
    rows.sort_by(|a, b| {
        (&a.source, &a.destination, &a.service, &a.route).cmp(&(
            &b.source,
            &b.destination,
            &b.service,
            &b.route,
        ))
    });
    print(args.mesh.output, &rows, || {
        let cells = rows.iter().map(|r| {
            let name = |ns: &str, name: &str| {
                if ns.is_empty() {
                    name.to_owned()
                } else {
                    format!("{ns}/{name}")
                }
            };
            let source = if r.source.is_empty() {
                "(not meshed)".to_owned()
            } else {
                name(&r.source_namespace, &r.source)
            };
            let identities = match r.mtls {
                true => format!("{} > {}", r.source_identity, r.destination_identity),
                // The caller closed before anybody was called.
                false if r.destination.is_empty() => "-".to_owned(),
                false => "plaintext".to_owned(),
            };
            vec![
                source,
                name(&r.destination_namespace, &r.destination),
                if r.service.is_empty() {
                    "(by address)".to_owned()
                } else {
                    r.service.clone()
                },
                r.protocol.clone(),
                r.route.clone(),
                format!("{:.1}", r.requests_per_second),
                success(r.success_rate),
                format!("{:.1}", r.p50_ms),
                format!("{:.1}", r.p99_ms),
                identities,
            ]
        });
        table(
            &[
                "SOURCE",
                "DESTINATION",
                "SERVICE",
                "PROTOCOL",
                "ROUTE",
                "RPS",
                "SUCCESS",
                "P50 MS",
                "P99 MS",
                "IDENTITIES PROVED",
            ],
            cells,
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Workloads, as their own proxies saw the requests that came to them.
pub fn stat(args: &StatArgs) -> anyhow::Result<ExitCode> {
    let (found, seconds) = fetch(args)?;
    let mut workloads: BTreeMap<(String, String), EdgeReport> = BTreeMap::new();
    for report in &found {
        let Some(key) = report.key.as_ref().filter(|k| !k.outbound) else {
            continue;
        };
        if args
            .namespace
            .as_ref()
            .is_some_and(|ns| *ns != key.destination_namespace)
        {
            continue;
        }
        let name = (key.destination_namespace.clone(), key.destination.clone());
        workloads.entry(name).or_default().absorb(report);
    }
    let rows: Vec<Row> = workloads
        .into_iter()
        .map(|((destination_namespace, destination), sum)| {
            let key = EdgeKey {
                destination,
                destination_namespace,
                ..EdgeKey::default()
            };
            row(key, &sum, seconds)
        })
        .collect();
    print(args.mesh.output, &rows, || {
        let cells = rows.iter().map(|r| {
            vec![
                r.destination_namespace.clone(),
                r.destination.clone(),
                format!("{:.1}", r.requests_per_second),
                success(r.success_rate),
                format!("{:.1}", r.p50_ms),
                format!("{:.1}", r.p99_ms),
                r.denied.to_string(),
                r.connections.to_string(),
            ]
        });
        table(
            &[
                "NAMESPACE",
                "WORKLOAD",
                "RPS",
                "SUCCESS",
                "P50 MS",
                "P99 MS",
                "DENIED",
                "CONNECTIONS",
            ],
            cells,
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
