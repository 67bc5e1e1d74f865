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
/// `/shutdown`; at once after a second signal.
pub async fn wait_and_drain(shared: Arc<Shared>, settings: &Settings) {
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return tracing::error!("signals cannot be received");
    };
    let mut phase = shared.phase.subscribe();
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        _ = phase.wait_for(|p| *p >= Phase::Draining) => {}
    }
    tracing::info!("draining");
    shared.phase.send_modify(|p| *p = (*p).max(Phase::Draining));
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(settings.drain_seconds)) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    shared.phase.send_modify(|p| *p = Phase::Stopping);
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
