//! Spans with W3C trace context, sent by OTLP gRPC from the control thread.
//! A full queue drops spans and counts them; it never holds up a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use tokio::sync::mpsc;

use super::{EdgeKey, Outcome};
use crate::shared::{Phase, Shared};

/// Spans waiting to be sent.
const QUEUE: usize = 4096;
/// Spans sent at once.
const BATCH: usize = 512;
const INTERVAL: Duration = Duration::from_secs(1);

/// `traceparent` (W3C Trace Context, level 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// Never zero.
    pub trace: [u8; 16],
    /// Never zero.
    pub parent: [u8; 8],
    /// Whether spans are recorded.
    pub sampled: bool,
}

impl TraceParent {
    /// Parses a field's value; `None`: it is not one, and a new trace starts.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut parts = text.split('-');
        let version = parts.next().filter(|v| v.len() == 2 && *v != "ff")?;
        let trace = hex::<16>(parts.next()?)?;
        let parent = hex::<8>(parts.next()?)?;
        let [flags] = hex::<1>(parts.next()?)?;
        let fine = hex::<1>(version).is_some() && (version != "00" || parts.next().is_none());
        (fine && trace != [0; 16] && parent != [0; 8]).then_some(Self {
            trace,
            parent,
            sampled: flags & 1 == 1,
        })
    }

    /// The field's value.
    pub fn format(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        format!(
            "00-{}-{}-{:02x}",
            hex(&self.trace),
            hex(&self.parent),
            u8::from(self.sampled)
        )
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != N * 2 || !text.bytes().all(lower) {
        return None;
    }
    let mut out = [0; N];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(i * 2..i * 2 + 2)?, 16).ok()?;
    }
    Some(out)
}

/// A request that was recorded.
pub struct FinishedSpan {
    /// Trace, and this span as the parent of the next.
    pub context: TraceParent,
    /// The span before it; zero: none.
    pub parent: [u8; 8],
    /// When it began.
    pub start: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// `METHOD /route` without values, or the gRPC method.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Who called whom.
    pub edge: Option<Arc<EdgeKey>>,
}

/// Where workers put spans.
#[derive(Clone)]
pub struct SpanSender {
    queue: mpsc::Sender<FinishedSpan>,
    dropped: Arc<AtomicU64>,
}

impl SpanSender {
    /// A queue, and its end.
    pub fn new() -> (Self, mpsc::Receiver<FinishedSpan>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let dropped = Arc::default();
        (Self { queue, dropped }, receiver)
    }

    /// Queues a span.
    pub fn send(&self, span: FinishedSpan) {
        if self.queue.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Spans that were lost.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Sends spans until every connection is gone, and the last ones then.
pub async fn export(shared: Arc<Shared>, mut queue: mpsc::Receiver<FinishedSpan>) {
    let mut client = None;
    let mut batch = Vec::new();
    let mut last = false;
    while !last {
        last = tokio::select! {
            () = tokio::time::sleep(INTERVAL) => false,
            () = shared.reached(Phase::Gone) => true,
        };
        while batch.len() < BATCH
            && let Ok(span) = queue.try_recv()
        {
            batch.push(encode(span));
        }
        let Some(endpoint) = shared.mesh.load().otlp_endpoint.clone() else {
            batch.clear();
            continue;
        };
        if batch.is_empty() {
            continue;
        }
        let request = request(&shared, std::mem::take(&mut batch));
        let count = request.resource_spans.len() as u64;
        if let Err(error) = send(&mut client, &endpoint, request).await {
            tracing::debug!(%error, "spans were not taken");
            shared.spans.dropped.fetch_add(count, Ordering::Relaxed);
            client = None;
        }
    }
}

type Client = TraceServiceClient<tonic::transport::Channel>;

async fn send(
    client: &mut Option<(String, Client)>,
    endpoint: &str,
    request: ExportTraceServiceRequest,
) -> anyhow::Result<()> {
    if client.as_ref().is_none_or(|(of, _)| of != endpoint) {
        let channel = tonic::transport::Endpoint::from_shared(endpoint.to_owned())?
            .connect_timeout(Duration::from_secs(3))
            .timeout(Duration::from_secs(5));
        *client = Some((
            endpoint.to_owned(),
            TraceServiceClient::new(channel.connect().await?),
        ));
    }
    if let Some((_, client)) = client {
        client.export(request).await?;
    }
    Ok(())
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.to_owned()))
}

fn request(shared: &Shared, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let inbound = shared.inbound.load();
    let workload = &inbound.workload;
    let resource = Resource {
        attributes: vec![
            text("service.name", &workload.owner),
            text("service.namespace", &workload.namespace),
            text("k8s.namespace.name", &workload.namespace),
            text("k8s.pod.name", &workload.name),
        ],
        ..Default::default()
    };
    let scope = InstrumentationScope {
        name: "weft-proxy".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope),
                spans,
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

fn encode(span: FinishedSpan) -> Span {
    let outbound = span.edge.as_ref().is_some_and(|e| e.outbound);
    let mut attributes = Vec::new();
    if span.outcome.status > 0 {
        let status = any_value::Value::IntValue(span.outcome.status.into());
        attributes.push(attribute("http.response.status_code", status));
    }
    if let Some(code) = span.outcome.grpc {
        attributes.push(attribute(
            "rpc.grpc.status_code",
            any_value::Value::IntValue(code.into()),
        ));
    }
    if let Some(edge) = &span.edge {
        attributes.push(text("weft.source.workload", &edge.source));
        attributes.push(text("weft.source.identity", &edge.source_identity));
        attributes.push(text("weft.destination.workload", &edge.destination));
        attributes.push(text(
            "weft.destination.identity",
            &edge.destination_identity,
        ));
        attributes.push(text("weft.route", &edge.route));
        attributes.push(text("server.address", &edge.service));
    }
    if !span.outcome.flag.as_str().is_empty() {
        attributes.push(text("weft.response_flags", span.outcome.flag.as_str()));
    }
    let failed = span.outcome.is_failure();
    Span {
        trace_id: span.context.trace.to_vec(),
        span_id: span.context.parent.to_vec(),
        parent_span_id: if span.parent == [0; 8] {
            Vec::new()
        } else {
            span.parent.to_vec()
        },
        name: span.name,
        kind: if outbound {
            SpanKind::Client
        } else {
            SpanKind::Server
        } as i32,
        start_time_unix_nano: nanos(span.start),
        end_time_unix_nano: nanos(span.start + span.took),
        attributes,
        status: Some(Status {
            code: if failed {
                StatusCode::Error
            } else {
                StatusCode::Unset
            } as i32,
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_parent_survives() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(TraceParent::parse(text.as_bytes()).unwrap().format(), text);
    }

    #[test]
    fn what_is_not_a_trace_parent_is_not_believed() {
        for text in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert_eq!(TraceParent::parse(text.as_bytes()), None, "{text}");
        }
        assert!(
            TraceParent::parse(b"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what")
                .is_some()
        );
    }
}
