//! The gRPC contracts of the mesh, generated from `weft.proto`.
//!
//! `weft.proto` is the documentation of every message and field.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("weft.v1");

/// Clocks of a proxy and its control plane that differ by more are told of:
/// certificates are valid from five minutes before they are made, and no earlier.
pub const MAX_CLOCK_SKEW_MILLIS: u64 = 60_000;

/// What a status says, without what its transport adds.
pub fn brief(status: &tonic::Status) -> String {
    let text = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    format!("{:?}: {text}", status.code())
}

/// Names of resources, as `weft.proto` lists them.
pub mod names {
    use std::net::SocketAddr;

    /// The proxy's own pod.
    pub const INBOUND: &str = "inbound";
    /// What holds for the whole mesh.
    pub const MESH: &str = "mesh";

    /// What an address leads to.
    pub fn destination(address: SocketAddr) -> String {
        format!("dest/{address}")
    }

    /// The addresses of a host name.
    pub fn name(host: &str) -> String {
        format!("name/{host}")
    }

    /// The endpoints of a service's port.
    pub fn endpoints(namespace: &str, service: &str, port: u16) -> String {
        format!("endpoints/{namespace}/{service}/{port}")
    }
}

impl EdgeReport {
    /// Adds another report's counts, those of the same or of another edge.
    pub fn absorb(&mut self, more: &Self) {
        self.requests += more.requests;
        self.failures += more.failures;
        self.denied += more.denied;
        self.retries += more.retries;
        self.connections += more.connections;
        self.sent_bytes += more.sent_bytes;
        self.received_bytes += more.received_bytes;
        self.would_deny += more.would_deny;
        if self.latency_buckets.len() < more.latency_buckets.len() {
            self.latency_buckets
                .resize(more.latency_buckets.len().min(128), 0);
        }
        for (to, from) in self.latency_buckets.iter_mut().zip(&more.latency_buckets) {
            *to = to.saturating_add(*from);
        }
    }
}
