//! What a burst of connections has freed goes back to the machine: the C
//! library keeps it otherwise, for as long as anything above it is in use.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::shared::Shared;

const INTERVAL: Duration = Duration::from_secs(3);
/// Connections whose end is worth the work.
const BURST: u64 = 100;

/// Gives memory back whenever many connections have ended, until the process
/// does.
pub async fn give_back(shared: Arc<Shared>) {
    let mut most = 0;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let open = shared.open_connections.load(Ordering::Relaxed);
        most = most.max(open);
        if most - open >= BURST {
            trim();
            most = open;
        }
    }
}

#[allow(unsafe_code)]
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no pointer and may be called from any thread
    // at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
