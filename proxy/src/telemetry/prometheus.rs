//! The text that Prometheus reads (exposition format 0.0.4). Names and labels
//! follow the OpenTelemetry semantic conventions for HTTP, with the mesh's own
//! beside them.

use std::fmt::Write;

use super::{Counts, EdgeKey, Histogram, Outcome};

/// Bounds of `http.*.request.duration` in the semantic conventions, and three
/// below them: calls within a cluster are fast.
const BOUNDS: [f64; 17] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
    7.5, 10.0,
];

/// A counter or gauge without labels.
pub fn put_single(out: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    let _ = writeln!(
        out,
        "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
    );
}

/// Writes all edges.
pub fn put_edges(out: &mut String, totals: &[(std::sync::Arc<EdgeKey>, Counts)]) {
    for (outbound, name, help) in [
        (
            false,
            "http_server_request_duration_seconds",
            "Duration of requests to this workload.",
        ),
        (
            true,
            "http_client_request_duration_seconds",
            "Duration of requests from this workload.",
        ),
    ] {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (key, counts) in totals.iter().filter(|(key, _)| key.outbound == outbound) {
            let labels = edge_labels(key);
            for (outcome, histogram) in &counts.outcomes {
                put_histogram(out, name, &outcome_labels(&labels, *outcome), histogram);
            }
        }
    }
    type Read = fn(&Counts) -> u64;
    let counters: [(&str, &str, Read); 6] = [
        ("weft_request_retries_total", "Requests sent again.", |c| {
            c.retries
        }),
        (
            "weft_connections_opened_total",
            "Connections opened.",
            |c| c.connections,
        ),
        ("weft_sent_bytes_total", "Bytes sent to the callee.", |c| {
            c.sent_bytes
        }),
        (
            "weft_received_bytes_total",
            "Bytes received from the callee.",
            |c| c.received_bytes,
        ),
        (
            "weft_policy_would_deny_total",
            "Calls that a policy in dry run would deny.",
            |c| c.would_deny,
        ),
        (
            "weft_connections_denied_total",
            "Connections refused by policy.",
            |c| c.denied_connections,
        ),
    ];
    for (name, help, read) in counters {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
        for (key, counts) in totals.iter().filter(|(_, counts)| read(counts) > 0) {
            let _ = writeln!(out, "{name}{{{}}} {}", edge_labels(key), read(counts));
        }
    }
}

fn edge_labels(key: &EdgeKey) -> String {
    let mut out = String::with_capacity(256);
    let pairs: [(&str, &str); 11] = [
        (
            "direction",
            if key.outbound { "outbound" } else { "inbound" },
        ),
        ("source_workload", &key.source),
        ("source_namespace", &key.source_namespace),
        ("source_identity", &key.source_identity),
        ("destination_workload", &key.destination),
        ("destination_namespace", &key.destination_namespace),
        ("destination_identity", &key.destination_identity),
        ("destination_service", &key.service),
        ("backend", &key.backend),
        ("route", &key.route),
        ("network_protocol_name", key.protocol),
    ];
    for (name, value) in pairs {
        let _ = write!(out, "{name}=\"");
        for c in value.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push_str("\",");
    }
    let _ = write!(out, "mtls=\"{}\"", key.mtls);
    out
}

fn outcome_labels(edge: &str, outcome: Outcome) -> String {
    let grpc = outcome.grpc.map(|s| s.to_string()).unwrap_or_default();
    format!(
        "{edge},http_response_status_code=\"{}\",rpc_grpc_status_code=\"{grpc}\",response_flags=\"{}\"",
        outcome.status,
        outcome.flag.as_str()
    )
}

fn put_histogram(out: &mut String, name: &str, labels: &str, histogram: &Histogram) {
    let mut buckets = histogram.buckets().iter().enumerate().peekable();
    let mut sum = 0u64;
    for bound in BOUNDS {
        while let Some((_, n)) = buckets.next_if(|(i, _)| Histogram::bound(*i) <= bound * 1.0001) {
            sum += u64::from(*n);
        }
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {sum}");
    }
    let count = histogram.count();
    let seconds = histogram.sum_micros as f64 / 1e6;
    let _ = writeln!(
        out,
        "{name}_bucket{{{labels},le=\"+Inf\"}} {count}\n{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {count}"
    );
}
