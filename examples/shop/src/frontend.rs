//! Web pages, made of what the other services say.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::TRACE_HEADERS;
use crate::cart::api::CartRequest;
use crate::cart::api::cart_client::CartClient;

#[derive(Clone)]
struct Shop {
    http: Client<HttpConnector, Empty<Bytes>>,
    cart: CartClient<Channel>,
}

/// Serves until the process ends.
pub async fn serve(port: u16) -> anyhow::Result<()> {
    let cart = Endpoint::from_static("http://cart:9090").timeout(Duration::from_secs(5));
    let shop = Shop {
        http: Client::builder(TokioExecutor::new()).build_http(),
        cart: CartClient::new(cart.connect_lazy()),
    };
    let router = Router::new()
        .route("/", get(page))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(shop);
    let listener = tokio::net::TcpListener::bind(("::", port)).await?;
    axum::serve(listener, router).await?;
    Ok(())
}

async fn page(State(shop): State<Shop>, headers: HeaderMap) -> Response {
    match shop.page(&headers).await {
        Ok(page) => axum::Json(page).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}\n")).into_response(),
    }
}

impl Shop {
    async fn page(&self, headers: &HeaderMap) -> anyhow::Result<Value> {
        let catalog = self
            .fetch("http://catalog/items", headers)
            .await
            .context("catalog")?;
        let recommend = self
            .fetch("http://recommend/items", headers)
            .await
            .context("recommend")?;
        let cart = self.cart(headers).await.context("cart")?;
        let stock = stock().await.context("stock")?;
        Ok(json!({"catalog": catalog, "recommend": recommend, "cart": cart, "stock": stock}))
    }

    async fn fetch(&self, url: &str, headers: &HeaderMap) -> anyhow::Result<Value> {
        let mut request = http::Request::get(url);
        for name in TRACE_HEADERS {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value);
            }
        }
        let response = self.http.request(request.body(Empty::new())?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::ensure!(status.is_success(), "status {status}");
        Ok(serde_json::from_slice(&body)?)
    }

    async fn cart(&self, headers: &HeaderMap) -> anyhow::Result<Value> {
        let mut request = tonic::Request::new(CartRequest {
            user: "ada".to_owned(),
        });
        for name in TRACE_HEADERS {
            if let Some(value) = headers.get(name) {
                request
                    .metadata_mut()
                    .insert(name, value.to_str()?.parse()?);
            }
        }
        let reply = self.cart.clone().get(request).await?.into_inner();
        Ok(json!({"items": reply.items, "version": reply.version}))
    }
}

/// The server says how much there is as soon as it is called.
async fn stock() -> anyhow::Result<String> {
    let stream = TcpStream::connect("stock:7000").await?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await?;
    Ok(line.trim().to_owned())
}
