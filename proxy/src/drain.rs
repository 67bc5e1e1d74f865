//! The way out: callers are asked to leave first, the application's own calls
//! go on until it is gone, and then the process ends with 0.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::settings::Settings;
use crate::shared::{Phase, Shared};

/// After the stop, for connections that are still open.
const LAST: Duration = Duration::from_secs(5);

/// Returns when the proxy ought to stop: a while after SIGTERM, SIGINT or
/// `/shutdown`; at once after a second signal. What it drained before that,
/// because the pod is to end (`/drain`), counts.
pub async fn wait_and_drain(shared: Arc<Shared>, settings: &Settings) {
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return tracing::error!("signals cannot be received");
    };
    let drained = tokio::spawn({
        let shared = shared.clone();
        async move {
            shared.reached(Phase::Draining).await;
            tracing::info!("draining");
            tokio::time::Instant::now()
        }
    });
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = shared.reached(Phase::Leaving) => {}
    }
    shared.advance(Phase::Leaving);
    let since = drained
        .await
        .unwrap_or_else(|_| tokio::time::Instant::now());
    tokio::select! {
        () = tokio::time::sleep_until(since + Duration::from_secs(settings.drain_seconds)) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    shared.advance(Phase::Stopping);
}

/// Waits until no connection is open, for a bounded time.
pub async fn wait_for_connections(shared: &Shared) {
    let all_gone = async {
        while shared.open_connections.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(LAST, all_gone).await.is_err() {
        let left = shared.open_connections.load(Ordering::Relaxed);
        tracing::info!(left, "connections were still open");
    }
}
