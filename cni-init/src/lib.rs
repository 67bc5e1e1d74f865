//! Redirect rules: lead every TCP connection and DNS question of a pod into
//! its proxy. As a library, as the program `weft-init`, and as the CNI plugin
//! `weft-cni`.
//!
//! The rules of a family are set in one `iptables-restore` transaction, may be
//! set again at any time, and are read back afterwards.

mod apply;
mod nft;
pub mod plugin;
mod rules;

pub use apply::{CaptureError, apply, enter_network_namespace, remove, verify};
pub use rules::{CaptureRules, Family};

/// Where outbound connections are led.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where inbound connections are led.
pub const INBOUND_PORT: u16 = 15006;
/// Metrics and health; never led anywhere.
pub const ADMIN_PORT: u16 = 15020;
/// Where DNS questions are led.
pub const DNS_PORT: u16 = 15053;
/// The user that the proxy runs as; its own connections are not redirected.
pub const PROXY_UID: u32 = 1337;
/// Source address by which a proxy marks a connection to its own pod, which
/// never leaves the host and yet is inbound.
pub const SELF_CALL_SOURCE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 6);
