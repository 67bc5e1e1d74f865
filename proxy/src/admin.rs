//! Health, metrics and configuration, on the control thread: a large page
//! never slows a request.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

use crate::settings::Settings;
use crate::shared::{Phase, Shared, unix};
use crate::telemetry::prometheus::{put_edges, put_single};
use crate::telemetry::tap::Filter;

type Answer = Response<Either<Full<Bytes>, StreamBody<Lines>>>;
/// The requests that somebody looks at, a line each.
type Lines = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

/// Serves the admin port until the process ends.
pub async fn serve(shared: Arc<Shared>, settings: Arc<Settings>) -> io::Result<()> {
    let port = settings.admin_port;
    let listener = listen(port).await.map_err(|e| {
        io::Error::new(e.kind(), format!("admin port {port} cannot be opened: {e}"))
    })?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let Ok(own) = stream.local_addr() else {
                continue;
            };
            let (shared, settings) = (shared.clone(), settings.clone());
            tokio::spawn(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let (shared, settings) = (shared.clone(), settings.clone());
                    async move {
                        let answer = respond(&shared, &settings, &request, peer, own.ip()).await;
                        Ok::<_, Infallible>(answer)
                    }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(10))
                    .serve_connection(TokioIo::new(stream), service);
                let _ = served.await;
            });
        }
    });
    Ok(())
}

/// Both families, or IPv4 where there is no IPv6.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

async fn respond(
    shared: &Shared,
    settings: &Settings,
    request: &Request<Incoming>,
    peer: SocketAddr,
    own: IpAddr,
) -> Answer {
    match request.uri().path().strip_prefix("/probe/") {
        Some(name) => {
            let pod = own.to_canonical();
            probed(settings.probes.make(name, pod, request.headers()).await)
        }
        None => answer(shared, request, peer),
    }
}

fn probed(made: Option<Result<(), String>>) -> Answer {
    match made {
        None => text(StatusCode::NOT_FOUND, "the pod has no such probe\n"),
        Some(Ok(())) => text(StatusCode::OK, "ok\n"),
        Some(Err(why)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body.into())));
    *answer.status_mut() = status;
    answer
}

fn answer(shared: &Shared, request: &Request<Incoming>, peer: SocketAddr) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/live") => text(StatusCode::OK, "live\n"),
        (&Method::GET, "/ready") => ready(shared),
        (&Method::GET, "/metrics") => {
            let mut answer = text(StatusCode::OK, metrics(shared));
            let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            answer
                .headers_mut()
                .insert(http::header::CONTENT_TYPE, kind);
            answer
        }
        (_, "/config" | "/drain" | "/shutdown" | "/tap")
            if !peer.ip().to_canonical().is_loopback() =>
        {
            text(StatusCode::FORBIDDEN, "only from within the pod\n")
        }
        (&Method::GET, "/config") => text(StatusCode::OK, shared.describe().to_string()),
        (&Method::GET, "/tap") => tap(shared, request.uri().query().unwrap_or_default()),
        (&Method::POST, "/drain") => {
            shared.advance(Phase::Draining);
            text(StatusCode::OK, "draining\n")
        }
        (&Method::POST, "/shutdown") => {
            shared.advance(Phase::Leaving);
            text(StatusCode::OK, "draining, then ending\n")
        }
        (_, "/live" | "/ready" | "/metrics" | "/config" | "/tap" | "/drain" | "/shutdown") => {
            text(StatusCode::METHOD_NOT_ALLOWED, "another method is needed\n")
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "/ready /live /metrics /config /tap /drain /shutdown\n",
        ),
    }
}

fn tap(shared: &Shared, query: &str) -> Answer {
    let filter = match Filter::parse(query) {
        Ok(filter) => filter,
        Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    let Some(lines) = shared.tap.watch(filter) else {
        return text(StatusCode::TOO_MANY_REQUESTS, "too many look already\n");
    };
    let frames = ReceiverStream::new(lines).map(|line| Ok(Frame::data(Bytes::from(line))));
    Response::new(Either::Right(StreamBody::new(Box::pin(frames))))
}

fn ready(shared: &Shared) -> Answer {
    let missing = if shared.tls.load().is_none() {
        "no certificate yet\n"
    } else if !shared.ready.load(Ordering::Acquire) {
        "no configuration yet\n"
    } else if !shared.captured.load(Ordering::Acquire) {
        "the pod's traffic is not redirected\n"
    } else {
        return text(StatusCode::OK, "ready\n");
    };
    text(StatusCode::SERVICE_UNAVAILABLE, missing)
}

fn metrics(shared: &Shared) -> String {
    let mut out = String::new();
    let totals = shared.registry.totals();
    put_edges(&mut out, &totals);
    let open = shared.open_connections.load(Ordering::Relaxed) as f64;
    put_single(
        &mut out,
        "weft_open_connections",
        "gauge",
        "Connections open.",
        open,
    );
    let tls = shared.tls.load();
    if let Some(tls) = &*tls {
        let end = unix(tls.svid.not_after) as f64;
        let help = "When the certificate ends, seconds since the epoch.";
        put_single(
            &mut out,
            "weft_certificate_not_after_seconds",
            "gauge",
            help,
            end,
        );
        let left = end - unix(SystemTime::now()) as f64;
        put_single(
            &mut out,
            "weft_certificate_seconds_left",
            "gauge",
            "Life left of the certificate.",
            left,
        );
    }
    let skew = shared.clock_skew_millis.load(Ordering::Relaxed) as f64 / 1000.0;
    put_single(
        &mut out,
        "weft_clock_skew_seconds",
        "gauge",
        "The control plane's clock less this one.",
        skew,
    );
    let dropped = shared.spans.dropped() as f64;
    put_single(
        &mut out,
        "weft_spans_dropped_total",
        "counter",
        "Spans that could not be sent.",
        dropped,
    );
    out
}
