//! Health and metrics of the control plane.

use std::fmt::Write;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::Router;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::State;

#[derive(Clone)]
struct Health {
    state: Arc<State>,
    leader: watch::Receiver<bool>,
}

/// Opens the port; the future serves it.
pub async fn serve(
    address: SocketAddr,
    state: Arc<State>,
    leader: watch::Receiver<bool>,
) -> anyhow::Result<impl Future<Output = ()>> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("{address} cannot be opened"))?;
    let routes = Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Health { state, leader });
    Ok(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "health is not served any more");
        }
    })
}

async fn ready(Extract(health): Extract<Health>) -> (StatusCode, &'static str) {
    match *health.state.ready.borrow() {
        true => (StatusCode::OK, "ready\n"),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            "not everything was listed yet\n",
        ),
    }
}

async fn metrics(Extract(health): Extract<Health>) -> String {
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, value: f64| {
        let _ = writeln!(
            out,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}"
        );
    };
    let state = &health.state;
    let (proxies, unmeshed) = (state.proxies.all(), state.index().unmeshed_pods().len());
    let seconds = |t: SystemTime| t.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as f64;
    gauge(
        "weft_leader",
        "Whether this replica writes.",
        f64::from(u8::from(*health.leader.borrow())),
    );
    let connected = proxies.iter().filter(|p| p.connected).count();
    gauge(
        "weft_connected_proxies",
        "Proxies that follow this replica.",
        connected as f64,
    );
    let refusing = proxies.iter().filter(|p| !p.refused.is_empty()).count();
    gauge(
        "weft_refusing_proxies",
        "Proxies that refused something.",
        refusing as f64,
    );
    gauge(
        "weft_pods_without_sidecar",
        "Pods that should have a sidecar and have none.",
        unmeshed as f64,
    );
    gauge(
        "weft_issuer_not_after_seconds",
        "When the issuer ends, seconds since the epoch.",
        seconds(state.issuer.not_after()),
    );
    out
}
