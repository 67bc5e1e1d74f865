//! The application.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Redirect;
use axum::routing::get;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
}

pub async fn serve(health_token: String, tcp_after: u64) -> anyhow::Result<()> {
    let name = std::env::var("HOSTNAME").unwrap_or_default();
    let redirect = format!("/health?token={health_token}");
    let routes = Router::new()
        .route("/health", get(health))
        .route(
            "/moved",
            get(move || async move { Redirect::temporary(&redirect) }),
        )
        .route(
            "/",
            get(move |headers: HeaderMap| async move {
                let agent = headers
                    .get("user-agent")
                    .and_then(|v| v.to_str().ok())
                    .unwrap_or_default();
                format!("{name} {agent}\n")
            }),
        )
        .with_state(health_token);
    let http = TcpListener::bind("[::]:8080").await.context("8080")?;
    let (reporter, grpc) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    let grpc = tonic::transport::Server::builder()
        .add_service(grpc)
        .serve("[::]:9090".parse()?);
    tokio::select! {
        ended = async { axum::serve(http, routes).await } => Ok(ended?),
        ended = grpc => Ok(ended?),
        ended = greet(tcp_after) => ended,
    }
}

async fn health(State(wanted): State<String>, Query(query): Query<Token>) -> StatusCode {
    match query.token == wanted {
        true => StatusCode::OK,
        false => StatusCode::FORBIDDEN,
    }
}

async fn greet(after: u64) -> anyhow::Result<()> {
    tokio::time::sleep(Duration::from_secs(after)).await;
    let listener = TcpListener::bind("[::]:7000").await.context("7000")?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move { stream.write_all(b"hello\n").await });
    }
}
