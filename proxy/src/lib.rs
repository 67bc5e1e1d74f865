//! The data plane: a sidecar that carries every connection of its pod.
//!
//! A connection goes through `accept`, then `inbound` or `outbound`, then
//! `http` or `tcp`, and `upstream`. `control` brings the configuration.

mod accept;
mod admin;
mod buffers;
mod capture;
mod clock;
mod config;
mod control;
mod detect;
mod dns;
mod drain;
mod first;
mod http;
mod inbound;
mod memory;
mod outbound;
mod probe;
mod settings;
mod shared;
mod tcp;
mod telemetry;
mod transport;
mod upstream;
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::{Builder, LocalOptions};

use accept::{Direction, listen};
pub use probe::own::{drain, wait};
pub use settings::Settings;
use shared::{Phase, Shared};
use telemetry::traces::{SpanSender, export};
use worker::Worker;

/// How long the process waits until what it counted last is taken.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs until the process is told to stop and has drained.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    raise_file_limit();
    let settings = Arc::new(settings);
    let cache = control::Cache::open(settings.cache.as_deref())
        .context("the cache folder cannot be made")?;
    let (spans, span_queue) = SpanSender::new();
    let (shared, wants) = Shared::new(spans);
    let control = Builder::new_current_thread().enable_all().build()?;
    control.block_on(async {
        admin::serve(shared.clone(), settings.clone()).await?;
        dns::serve(shared.clone(), settings.clone())
            .await
            .context("DNS port 15053 cannot be opened")?;
        tokio::spawn(control::keep_identity(
            shared.clone(),
            settings.clone(),
            cache.clone(),
        ));
        let watch = tokio::spawn(control::watch(
            shared.clone(),
            settings.clone(),
            cache,
            wants,
        ));
        let export = tokio::spawn(export(shared.clone(), span_queue));
        tokio::spawn(memory::give_back(shared.clone()));
        match settings.require_capture {
            Some(pod) => drop(tokio::spawn(capture::watch(shared.clone(), pod))),
            None => shared.captured.store(true, Ordering::Release),
        }
        let workers = start_workers(&shared, &settings)?;
        drain::wait_and_drain(shared.clone(), &settings).await;
        let joined = tokio::task::spawn_blocking(move || {
            for worker in workers {
                // A worker that panicked has said so.
                let _ = worker.join();
            }
        });
        let _ = joined.await;
        shared.advance(Phase::Gone);
        let told = async { tokio::join!(watch, export) };
        let _ = tokio::time::timeout(LAST_WORDS, told).await;
        Ok(())
    })
}

type Joined = std::thread::JoinHandle<()>;

/// Opens the ports, then starts the data threads on them.
fn start_workers(shared: &Arc<Shared>, settings: &Settings) -> anyhow::Result<Vec<Joined>> {
    let mut workers = Vec::new();
    for index in 0..settings.workers {
        let shared = shared.clone();
        let (opened, result) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || run_worker(shared, &opened))?;
        result.recv().context("a worker did not start")??;
        workers.push(thread);
    }
    Ok(workers)
}

fn run_worker(shared: Arc<Shared>, opened: &std::sync::mpsc::Sender<anyhow::Result<()>>) {
    let runtime = match Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = opened.send(Err(error.into()));
            return;
        }
    };
    runtime.block_on(async {
        let worker = Worker::new(shared.clone());
        for direction in [Direction::Outbound, Direction::Inbound] {
            let listeners = match listen(direction) {
                Ok(listeners) => listeners,
                Err(error) => {
                    let _ = opened.send(Err(error.into()));
                    return;
                }
            };
            for listener in listeners {
                tokio::task::spawn_local(accept::accept(worker.clone(), listener, direction));
            }
        }
        tokio::task::spawn_local(worker.clone().tick());
        tokio::task::spawn_local(worker.clone().watch_policy());
        tokio::task::spawn_local(worker.clone().watch_phase());
        let _ = opened.send(Ok(()));
        shared.reached(Phase::Stopping).await;
        drain::wait_for_connections(&shared).await;
        worker.edges.flush(&shared.registry);
    });
}

/// A sidecar holds two connections for each of its pod's.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}
