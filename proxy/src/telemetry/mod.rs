//! What the proxy has seen: counters for each edge, kept by each worker alone
//! and merged once a second, so that a request touches no shared memory.

pub mod prometheus;
pub mod tap;
pub mod traces;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use weft_proto as proto;

/// Edges kept; further ones are counted together under empty names.
const MAX_EDGES: usize = 2_000;
/// An edge without traffic for this long is forgotten.
const EXPIRY: Duration = Duration::from_secs(3600);
/// Outcomes kept for each edge; further ones count as the last.
const MAX_OUTCOMES: usize = 24;

/// Why the proxy itself made a response or ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Flag {
    /// It did not: the application answered.
    #[default]
    None,
    /// A policy.
    Denied,
    /// Plaintext where mutual TLS is required.
    PlaintextRefused,
    /// No route matches.
    NoRoute,
    /// A route's backend does not resolve.
    NoBackend,
    /// The service has no endpoint.
    NoEndpoint,
    /// No connection to any endpoint.
    ConnectFailure,
    /// The connection or stream was lost before an answer.
    UpstreamReset,
    /// A timeout of a route.
    Timeout,
    /// The request or the answer is not HTTP.
    Malformed,
    /// The caller went away.
    ClientGone,
    /// A policy changed while it ran.
    PolicyChanged,
    /// A route sends the caller somewhere else.
    Redirected,
}

impl Flag {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Denied => "denied",
            Self::PlaintextRefused => "plaintext_refused",
            Self::NoRoute => "no_route",
            Self::NoBackend => "no_backend",
            Self::NoEndpoint => "no_endpoint",
            Self::ConnectFailure => "connect_failure",
            Self::UpstreamReset => "upstream_reset",
            Self::Timeout => "timeout",
            Self::Malformed => "malformed",
            Self::ClientGone => "client_gone",
            Self::PolicyChanged => "policy_changed",
            Self::Redirected => "redirected",
        }
    }
}

/// Which edge: who called whom, as what, by which route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)]
pub struct EdgeKey {
    /// Counted at the caller's proxy, or at the one called.
    pub outbound: bool,
    pub source: Arc<str>,
    pub source_namespace: Arc<str>,
    pub source_identity: Arc<str>,
    pub destination: Arc<str>,
    pub destination_namespace: Arc<str>,
    pub destination_identity: Arc<str>,
    pub service: Arc<str>,
    pub backend: Arc<str>,
    pub route: Arc<str>,
    /// `http`, `grpc` or `tcp`.
    pub protocol: &'static str,
    pub mtls: bool,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Outcome {
    /// HTTP status; 0 where none was sent.
    pub status: u16,
    /// gRPC status, where there is one.
    pub grpc: Option<u8>,
    /// Why the proxy answered.
    pub flag: Flag,
}

impl Outcome {
    /// Whether the callee, or what lies before it, failed.
    pub fn is_failure(self) -> bool {
        self.status >= 500
            || self.status == 0
            // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
            || matches!(self.grpc, Some(2 | 4 | 12 | 13 | 14 | 15))
    }
}

/// Durations in buckets that grow by the fourth root of two, from a microsecond.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    buckets: Vec<u32>,
    /// Sum in microseconds.
    pub sum_micros: u64,
}

impl Histogram {
    /// The bucket of a duration: the first i for which 2^(i/4) us is enough.
    fn index(micros: u64) -> usize {
        if micros <= 1 {
            return 0;
        }
        ((micros as f64).log2() * 4.0).ceil().min(119.0) as usize
    }

    /// Upper bound of a bucket, in seconds.
    pub fn bound(index: usize) -> f64 {
        (index as f64 / 4.0).exp2() * 1e-6
    }

    fn record(&mut self, micros: u64) {
        let index = Self::index(micros);
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, 0);
        }
        if let Some(bucket) = self.buckets.get_mut(index) {
            *bucket += 1;
        }
        self.sum_micros += micros;
    }

    fn merge(&mut self, other: &Self) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.sum_micros += other.sum_micros;
    }

    /// Counts by bucket.
    pub fn buckets(&self) -> &[u32] {
        &self.buckets
    }

    /// How many durations it holds.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|&n| u64::from(n)).sum()
    }
}

/// Counters of an edge.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Counts {
    pub outcomes: Vec<(Outcome, Histogram)>,
    pub retries: u64,
    pub connections: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Calls that a policy in dry run would have denied.
    pub would_deny: u64,
    /// Connections refused.
    pub denied_connections: u64,
}

impl Counts {
    fn record(&mut self, outcome: Outcome, micros: u64) {
        let at = match self.outcomes.iter().position(|(o, _)| *o == outcome) {
            Some(at) => at,
            None if self.outcomes.len() >= MAX_OUTCOMES => MAX_OUTCOMES - 1,
            None => {
                self.outcomes.push((outcome, Histogram::default()));
                self.outcomes.len() - 1
            }
        };
        if let Some((_, histogram)) = self.outcomes.get_mut(at) {
            histogram.record(micros);
        }
    }

    fn merge(&mut self, other: &Self) {
        for (outcome, histogram) in &other.outcomes {
            match self.outcomes.iter_mut().find(|(o, _)| o == outcome) {
                Some((_, mine)) => mine.merge(histogram),
                None => self.outcomes.push((*outcome, histogram.clone())),
            }
        }
        self.retries += other.retries;
        self.connections += other.connections;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.would_deny += other.would_deny;
        self.denied_connections += other.denied_connections;
    }
}

/// An edge as one worker counts it.
#[derive(Debug)]
pub struct Edge {
    key: Arc<EdgeKey>,
    counts: RefCell<Counts>,
    dirty: Cell<bool>,
}

impl Edge {
    fn count(&self, change: impl FnOnce(&mut Counts)) {
        self.dirty.set(true);
        change(&mut self.counts.borrow_mut());
    }

    /// A request has ended.
    pub fn request(&self, outcome: Outcome, took: Duration) {
        self.count(|c| c.record(outcome, took.as_micros() as u64));
    }

    /// A request was sent again.
    pub fn retry(&self) {
        self.count(|c| c.retries += 1);
    }

    /// A connection was opened.
    pub fn connection(&self) {
        self.count(|c| c.connections += 1);
    }

    /// A connection was refused by policy.
    pub fn denied_connection(&self) {
        self.count(|c| c.denied_connections += 1);
    }

    /// Body bytes went by.
    pub fn bytes(&self, sent: u64, received: u64) {
        self.count(|c| {
            c.sent_bytes += sent;
            c.received_bytes += received;
        });
    }

    /// A policy in dry run would have denied a call.
    pub fn would_deny(&self) {
        self.count(|c| c.would_deny += 1);
    }

    /// Who calls whom.
    pub fn key(&self) -> &Arc<EdgeKey> {
        &self.key
    }
}

/// All edges of a worker.
#[derive(Default)]
pub struct WorkerEdges {
    edges: RefCell<HashMap<Arc<EdgeKey>, std::rc::Rc<Edge>>>,
}

impl WorkerEdges {
    /// The edge of a key; made if it is new.
    pub fn edge(&self, key: EdgeKey) -> std::rc::Rc<Edge> {
        let mut edges = self.edges.borrow_mut();
        if let Some(edge) = edges.get(&key) {
            return edge.clone();
        }
        let key = if edges.len() >= MAX_EDGES {
            Arc::new(EdgeKey {
                outbound: key.outbound,
                protocol: key.protocol,
                ..EdgeKey::default()
            })
        } else {
            Arc::new(key)
        };
        let edge = std::rc::Rc::new(Edge {
            key: key.clone(),
            counts: RefCell::default(),
            dirty: Cell::new(false),
        });
        edges.entry(key).or_insert(edge).clone()
    }

    /// Hands the counts of the last second over.
    pub fn flush(&self, registry: &Registry) {
        let mut edges = self.edges.borrow_mut();
        let mut totals = registry.lock();
        for edge in edges.values().filter(|e| e.dirty.replace(false)) {
            let counts = std::mem::take(&mut *edge.counts.borrow_mut());
            let total = totals.entry(edge.key.clone()).or_insert_with(Total::new);
            total.counts.merge(&counts);
            total.unreported.merge(&counts);
            total.changed = Instant::now();
        }
        if edges.len() > MAX_EDGES / 2 {
            edges.retain(|_, edge| std::rc::Rc::strong_count(edge) > 1);
        }
    }
}

struct Total {
    counts: Counts,
    unreported: Counts,
    changed: Instant,
}

impl Total {
    fn new() -> Self {
        Self {
            counts: Counts::default(),
            unreported: Counts::default(),
            changed: Instant::now(),
        }
    }
}

/// All edges of the proxy.
#[derive(Default)]
pub struct Registry {
    edges: Mutex<HashMap<Arc<EdgeKey>, Total>>,
}

impl Registry {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<EdgeKey>, Total>> {
        self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All totals, in no particular order; forgets what has expired.
    pub fn totals(&self) -> Vec<(Arc<EdgeKey>, Counts)> {
        let mut edges = self.lock();
        edges.retain(|_, total| total.changed.elapsed() < EXPIRY);
        edges
            .iter()
            .map(|(key, total)| (key.clone(), total.counts.clone()))
            .collect()
    }

    /// What was counted since the last report.
    pub fn take_report(&self) -> Vec<proto::EdgeReport> {
        let mut edges = self.lock();
        edges
            .iter_mut()
            .map(|(key, total)| (key, std::mem::take(&mut total.unreported)))
            .map(|(key, counts)| report(key, &counts))
            .filter(|r| {
                r.requests + r.connections + r.denied + r.sent_bytes + r.received_bytes + r.retries
                    > 0
            })
            .collect()
    }
}

fn report(key: &EdgeKey, counts: &Counts) -> proto::EdgeReport {
    let mut latency = Histogram::default();
    let (mut requests, mut failures, mut denied) = (0, 0, counts.denied_connections);
    for (outcome, histogram) in &counts.outcomes {
        let n = histogram.count();
        requests += n;
        if outcome.flag == Flag::Denied {
            denied += n;
        }
        if outcome.is_failure() {
            failures += n;
        }
        latency.merge(histogram);
    }
    proto::EdgeReport {
        key: Some(proto::EdgeKey {
            outbound: key.outbound,
            source: key.source.to_string(),
            source_namespace: key.source_namespace.to_string(),
            source_identity: key.source_identity.to_string(),
            destination: key.destination.to_string(),
            destination_namespace: key.destination_namespace.to_string(),
            destination_identity: key.destination_identity.to_string(),
            service: key.service.to_string(),
            backend: key.backend.to_string(),
            route: key.route.to_string(),
            protocol: key.protocol.to_owned(),
            mtls: key.mtls,
        }),
        requests,
        failures,
        denied,
        retries: counts.retries,
        connections: counts.connections,
        sent_bytes: counts.sent_bytes,
        received_bytes: counts.received_bytes,
        latency_buckets: latency.buckets,
        would_deny: counts.would_deny,
    }
}
