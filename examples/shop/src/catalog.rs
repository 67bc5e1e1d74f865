//! Items over HTTP.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

#[derive(Clone)]
struct Catalog {
    version: String,
    fail: f64,
}

/// Serves until the process ends.
pub async fn serve(port: u16, version: String, fail: f64) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/items", get(items))
        .route("/echo/{*path}", get(echo).post(echo).put(echo))
        .route("/admin", get(|| async { "the administrator's page\n" }))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(Catalog { version, fail });
    let listener = tokio::net::TcpListener::bind(("::", port)).await?;
    axum::serve(listener, router).await?;
    Ok(())
}

async fn items(State(catalog): State<Catalog>) -> Response {
    if rand::random::<f64>() < catalog.fail {
        return (StatusCode::SERVICE_UNAVAILABLE, "try again\n").into_response();
    }
    axum::Json(json!({"version": catalog.version, "items": ["loom", "shuttle", "thread"]}))
        .into_response()
}

/// What was asked, as it arrived.
async fn echo(
    State(catalog): State<Catalog>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: bytes::Bytes,
) -> Response {
    let headers: Vec<(String, String)> = headers
        .iter()
        .map(|(n, v)| {
            (
                n.to_string(),
                String::from_utf8_lossy(v.as_bytes()).into_owned(),
            )
        })
        .collect();
    axum::Json(
        json!({"version": catalog.version, "path": path, "headers": headers, "bytes": body.len()}),
    )
    .into_response()
}
