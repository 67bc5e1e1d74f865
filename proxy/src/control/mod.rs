//! The proxy's side of the control protocol: its identity, and what it
//! subscribes to. Runs on the control thread, never on a data thread.

mod cache;
mod channel;
mod identity;
mod watch;

pub use cache::Cache;
pub use identity::keep_identity;
pub use watch::watch;
