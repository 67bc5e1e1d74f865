//! Where requests and connections are sent: endpoints with their warm
//! connections, and the choice among them.

mod balancer;
mod connect;
mod endpoint;

pub use balancer::Balancer;
pub use connect::{ConnectError, connect_opaque};
pub use endpoint::{InFlight, Link, LocalEndpoint};
