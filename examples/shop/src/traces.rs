//! A trace collector: OTLP in, whole traces as text out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tonic::{Request, Response, Status};

/// Traces kept while they are incomplete.
const MAX_TRACES: usize = 500;

struct Span {
    id: Vec<u8>,
    parent: Vec<u8>,
    service: String,
    name: String,
    kind: i32,
    start: u64,
    micros: u64,
}

struct Collector {
    wanted: usize,
    traces: Mutex<HashMap<Vec<u8>, Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let service = attributes
                .into_iter()
                .find(|a| a.key == "service.name")
                .and_then(|a| a.value?.value)
                .map(|v| match v {
                    Value::StringValue(text) => text,
                    _ => String::new(),
                })
                .unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|s| s.spans) {
                if traces.len() > MAX_TRACES {
                    traces.clear();
                }
                let spans = traces.entry(span.trace_id.clone()).or_default();
                spans.push(Span {
                    micros: span
                        .end_time_unix_nano
                        .saturating_sub(span.start_time_unix_nano)
                        / 1000,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    service: service.clone(),
                    name: span.name,
                    kind: span.kind,
                    start: span.start_time_unix_nano,
                });
                if spans.len() == self.wanted {
                    print(&span.trace_id, spans);
                }
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn print(trace: &[u8], spans: &mut [Span]) {
    spans.sort_by_key(|s| s.start);
    let hex: String = trace.iter().map(|b| format!("{b:02x}")).collect();
    println!("TRACE {hex}");
    for span in spans.iter() {
        let mut depth = 0;
        let mut parent = &span.parent;
        while let Some(above) = spans.iter().find(|s| s.id == *parent) {
            depth += 1;
            parent = &above.parent;
        }
        // OTLP: 2 is a server's span, 3 a client's.
        let side = if span.kind == 3 { "calls" } else { "answers" };
        let indent = "  ".repeat(depth);
        println!(
            "  {indent}{} {side} {} ({} us)",
            span.service, span.name, span.micros
        );
    }
    println!("END");
}

/// Serves until the process ends.
pub async fn serve(port: u16, wanted: usize) -> anyhow::Result<()> {
    let collector = Collector {
        wanted,
        traces: Mutex::default(),
    };
    tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(collector))
        .serve((std::net::Ipv6Addr::UNSPECIFIED, port).into())
        .await?;
    Ok(())
}
