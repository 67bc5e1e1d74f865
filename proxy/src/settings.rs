//! How the proxy is started.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Parser;

use crate::probe::Probes;

/// The data plane of Weft: one process for each pod.
///
/// `weft-proxy drain` and `weft-proxy wait`, from within the pod: tell callers to
/// choose other pods; wait until the sidecar is ready.
///
/// Exit codes: 0 stopped in order, 1 could not start.
#[derive(Parser, Debug, Clone)]
#[command(name = "weft-proxy", version)]
pub struct Settings {
    /// Control plane, as HOST:PORT
    #[arg(long, env = "WEFT_CONTROL_PLANE")]
    pub control_plane: String,
    /// Identity that the control plane must prove
    #[arg(long, env = "WEFT_CONTROL_PLANE_IDENTITY")]
    pub control_plane_identity: String,
    /// Roots of trust, PEM; read again when it changes
    #[arg(long, env = "WEFT_TRUST_BUNDLE")]
    pub trust_bundle: PathBuf,
    /// Service-account token for the control plane; read anew each time
    #[arg(long, env = "WEFT_TOKEN")]
    pub token: PathBuf,
    /// Name of the pod
    #[arg(long, env = "POD_NAME")]
    pub pod: String,
    /// Namespace of the pod
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Not ready unless connections to this address, the pod's own, are redirected
    #[arg(long, env = "WEFT_REQUIRE_CAPTURE", value_name = "IP")]
    pub require_capture: Option<IpAddr>,
    /// Folder, in memory, that survives the container: key, certificate,
    /// configuration
    #[arg(long, env = "WEFT_CACHE")]
    pub cache: Option<PathBuf>,
    /// Data threads
    #[arg(long, env = "WEFT_WORKERS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Domain of the mesh's names
    #[arg(long, env = "WEFT_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Name servers for all other names; those of /etc/resolv.conf if absent
    #[arg(long, env = "WEFT_NAME_SERVERS", value_delimiter = ',')]
    pub name_servers: Vec<IpAddr>,
    /// Port of metrics and health
    #[arg(long, env = "WEFT_ADMIN_PORT", default_value_t = 15020)]
    pub admin_port: u16,
    /// Probes and hooks to make for kubelet, JSON; the injector writes it
    #[arg(
        long,
        env = "WEFT_PROBES",
        default_value = "{}",
        hide_env_values = true
    )]
    pub probes: Probes,
    /// Seconds for callers to go elsewhere after SIGTERM
    #[arg(long, env = "WEFT_DRAIN_SECONDS", default_value_t = 5)]
    pub drain_seconds: u64,
    /// What is logged: error, warn, info, debug
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub log: String,
}
