//! A load generator: open loop, so that a slow answer does not slow the next
//! request.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

#[derive(Default)]
struct Seen {
    good: u64,
    bad: u64,
    last: String,
}

/// Calls `url` `rate` times a second and prints a line each second.
pub async fn run(url: &str, rate: u64, seconds: u64) -> anyhow::Result<()> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let seen = Rc::new(RefCell::new(Seen::default()));
    let local = tokio::task::LocalSet::new();
    let start = Instant::now();
    let calls = async {
        let mut beat = tokio::time::interval(Duration::from_micros(1_000_000 / rate.max(1)));
        let mut told = Instant::now();
        while seconds == 0 || start.elapsed() < Duration::from_secs(seconds) {
            beat.tick().await;
            let (client, counted, url) = (client.clone(), seen.clone(), url.to_owned());
            tokio::task::spawn_local(async move {
                let outcome = call(&client, &url).await;
                let mut seen = counted.borrow_mut();
                match outcome {
                    Ok(()) => seen.good += 1,
                    Err(error) => {
                        seen.bad += 1;
                        seen.last = format!("{error:#}");
                    }
                }
            });
            if told.elapsed() > Duration::from_secs(1) {
                told = Instant::now();
                let seen = seen.borrow();
                println!("good {} bad {} {}", seen.good, seen.bad, seen.last);
            }
        }
    };
    local.run_until(calls).await;
    tokio::time::timeout(Duration::from_secs(5), local)
        .await
        .ok();
    let seen = seen.borrow();
    println!("good {} bad {} {}", seen.good, seen.bad, seen.last);
    Ok(())
}

async fn call(
    client: &Client<hyper_util::client::legacy::connect::HttpConnector, Empty<Bytes>>,
    url: &str,
) -> anyhow::Result<()> {
    let response = client.get(url.parse()?).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    anyhow::ensure!(
        status.is_success(),
        "{status}: {}",
        String::from_utf8_lossy(&body).trim()
    );
    Ok(())
}
