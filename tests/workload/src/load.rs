//! Callers: open loop, so that a slow answer does not slow the next request.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use tonic::body::Body;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

type Http = Client<HttpConnector, Empty<Bytes>>;

#[derive(Default, Serialize)]
struct Count {
    good: u64,
    bad: u64,
    last_error: String,
}

#[derive(Default, Serialize)]
struct Counts {
    /// HTTP/1.1 on connections that are kept.
    http: Count,
    /// HTTP/1.1 on a new connection each time.
    fresh: Count,
    /// gRPC by a client that sends again what it has not sent yet when its
    /// connection ends, as gRPC demands (proposal A6, transparent retries).
    grpc: Count,
    /// gRPC by tonic's channel, which gives such a request up.
    channel: Count,
}

const ANSWER: Duration = Duration::from_secs(10);

pub async fn run(host: &str, rate: u64) -> anyhow::Result<()> {
    let counts: Rc<RefCell<Counts>> = Rc::default();
    let kept: Http = Client::builder(TokioExecutor::new()).build_http();
    let fresh: Http = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build_http();
    let url = format!("http://{host}:8080/");
    let grpc_url = format!("http://{host}:9090");
    let channel = tonic::transport::Endpoint::from_shared(grpc_url.clone())?.connect_lazy();
    let pooled = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http::<Body>();
    let channel = HealthClient::new(channel);
    let pooled = HealthClient::with_origin(pooled, grpc_url.parse()?);
    let local = tokio::task::LocalSet::new();
    let calls = async {
        let mut beat = tokio::time::interval(Duration::from_micros(1_000_000 / rate.max(1)));
        for n in 0u64.. {
            beat.tick().await;
            let get = |client: &Http| {
                let (client, url) = (client.clone(), url.clone());
                async move { call(&client, &url).await.map(drop) }
            };
            spawn(&counts, |c| &mut c.http, get(&kept));
            spawn(&counts, |c| &mut c.fresh, get(&fresh));
            let (mut pooled, mut channel) = (pooled.clone(), channel.clone());
            spawn(&counts, |c| &mut c.grpc, async move {
                pooled.check(HealthCheckRequest::default()).await?;
                Ok(())
            });
            spawn(&counts, |c| &mut c.channel, async move {
                channel.check(HealthCheckRequest::default()).await?;
                Ok(())
            });
            if n % rate.max(1) == 0 {
                println!(
                    "{}",
                    serde_json::to_string(&*counts.borrow()).unwrap_or_default()
                );
            }
        }
    };
    local.run_until(calls).await;
    Ok(())
}

/// Makes a call aside, and counts what came of it.
fn spawn(
    counts: &Rc<RefCell<Counts>>,
    count: fn(&mut Counts) -> &mut Count,
    call: impl Future<Output = anyhow::Result<()>> + 'static,
) {
    let counts = counts.clone();
    tokio::task::spawn_local(async move {
        let outcome = bounded(call).await;
        let mut counts = counts.borrow_mut();
        let count = count(&mut counts);
        match outcome {
            Ok(()) => count.good += 1,
            Err(error) => {
                count.bad += 1;
                let at = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
                count.last_error = format!("at {:.3}: {error:#}", at.as_secs_f64());
            }
        }
    });
}

async fn bounded<T>(call: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(ANSWER, call)
        .await
        .context("no answer")?
}

async fn call(client: &Http, url: &str) -> anyhow::Result<(u16, String)> {
    let response = client.get(url.parse()?).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    ensure!(status.is_success(), "{status}: {}", body.trim());
    Ok((status.as_u16(), body))
}

pub async fn get(url: &str, wait: bool) -> anyhow::Result<()> {
    let client: Http = Client::builder(TokioExecutor::new()).build_http();
    loop {
        match bounded(call(&client, url)).await {
            Ok((status, body)) => {
                print!("{status} {body}");
                return Ok(());
            }
            Err(error) if wait => {
                eprintln!("{error:#}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error),
        }
    }
}
