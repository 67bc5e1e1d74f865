//! Requests as they end, for whoever looks: filtered here, and without a cost
//! where nobody does.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::sync::mpsc;

use super::{EdgeKey, Outcome};
use crate::http::head::RequestHead;
use crate::shared::unix;

/// Who may look at once.
const MAX_VIEWERS: usize = 8;
/// Lines that a viewer may be behind; more are left out.
const QUEUE: usize = 1024;

/// Which requests a viewer wants; what is empty holds for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    outbound: Option<bool>,
    method: String,
    path: String,
    /// First digit, or all three.
    status: String,
    /// Workload or service of the other side, NAME or NAMESPACE/NAME.
    peer: String,
}

impl Filter {
    /// From a query string, such as `direction=inbound&status=5`. An error
    /// names what is not known.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (name, value) {
                ("direction", "inbound") => filter.outbound = Some(false),
                ("direction", "outbound") => filter.outbound = Some(true),
                ("method", value) => filter.method = value.to_owned(),
                ("path", value) => filter.path = value.to_owned(),
                ("status", value) => filter.status = value.trim_end_matches('x').to_owned(),
                ("peer", value) => filter.peer = value.to_owned(),
                _ => {
                    return Err(format!(
                        "{pair:?} is not known: direction=inbound|outbound, method=, path=, status=, peer="
                    ));
                }
            }
        }
        Ok(filter)
    }

    fn wants(&self, head: &RequestHead, outcome: Outcome, edge: &EdgeKey) -> bool {
        let (name, namespace) = match edge.outbound {
            true => (&edge.destination, &edge.destination_namespace),
            false => (&edge.source, &edge.source_namespace),
        };
        let peer = self.peer.is_empty()
            || *self.peer == **name
            || *self.peer == *edge.service
            || self.peer.split_once('/') == Some((namespace, name));
        self.outbound.is_none_or(|o| o == edge.outbound)
            && (self.method.is_empty() || self.method.as_bytes() == head.method_bytes())
            && head.path_bytes().starts_with(self.path.as_bytes())
            && outcome.status.to_string().starts_with(&self.status)
            && peer
    }
}

/// Everybody who looks.
#[derive(Debug, Default)]
pub struct Tap {
    count: AtomicUsize,
    viewers: Mutex<Vec<(Filter, mpsc::Sender<String>)>>,
}

impl Tap {
    /// Lines of JSON from now on. `None`: too many look already.
    pub fn watch(&self, filter: Filter) -> Option<mpsc::Receiver<String>> {
        let mut viewers = self.viewers.lock().unwrap_or_else(PoisonError::into_inner);
        viewers.retain(|(_, sender)| !sender.is_closed());
        if viewers.len() >= MAX_VIEWERS {
            return None;
        }
        let (sender, lines) = mpsc::channel(QUEUE);
        viewers.push((filter, sender));
        self.count.store(viewers.len(), Ordering::Relaxed);
        Some(lines)
    }

    /// Whether anybody looks.
    pub fn is_watched(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Shows a request that has ended to those who want to see it.
    pub fn show(&self, head: &RequestHead, outcome: Outcome, took: Duration, edge: &EdgeKey) {
        let mut viewers = self.viewers.lock().unwrap_or_else(PoisonError::into_inner);
        viewers.retain(|(_, sender)| !sender.is_closed());
        self.count.store(viewers.len(), Ordering::Relaxed);
        let mut wanting = viewers
            .iter()
            .filter(|(filter, _)| filter.wants(head, outcome, edge))
            .peekable();
        if wanting.peek().is_none() {
            return;
        }
        let line = line(head, outcome, took, edge);
        for (_, sender) in wanting {
            // One who does not read misses some.
            let _ = sender.try_send(line.clone());
        }
    }
}

fn line(head: &RequestHead, outcome: Outcome, took: Duration, edge: &EdgeKey) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let line = json!({
        "time": unix(SystemTime::now()),
        "direction": if edge.outbound { "outbound" } else { "inbound" },
        "source": &*edge.source,
        "sourceNamespace": &*edge.source_namespace,
        "sourceIdentity": &*edge.source_identity,
        "destination": &*edge.destination,
        "destinationNamespace": &*edge.destination_namespace,
        "destinationIdentity": &*edge.destination_identity,
        "service": &*edge.service,
        "route": &*edge.route,
        "protocol": edge.protocol,
        "mtls": edge.mtls,
        "method": text(head.method_bytes()),
        "host": text(head.authority_bytes()),
        // Without its query, which may be a secret.
        "path": text(head.path_bytes()),
        "status": outcome.status,
        "grpcStatus": outcome.grpc,
        "reason": outcome.flag.as_str(),
        "milliseconds": took.as_micros() as f64 / 1000.0,
    });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_not_known_is_refused() {
        let filter = Filter::parse("direction=inbound&status=5xx").unwrap_or_default();
        assert_eq!(
            (filter.outbound, filter.status.as_str()),
            (Some(false), "5")
        );
        assert!(Filter::parse("verb=GET").is_err_and(|e| e.contains("verb=GET")));
    }
}
