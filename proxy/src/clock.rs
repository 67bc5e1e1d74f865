//! A worker's clock for what need not be known to the second: no look at the
//! machine's.

use std::cell::Cell;
use std::time::Instant;

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The time of the worker's last tick, at most about a second ago.
pub fn coarse() -> Instant {
    NOW.get().unwrap_or_else(Instant::now)
}

/// Sets it: called by the worker's tick, once a second.
pub fn set(now: Instant) {
    NOW.set(Some(now));
}
