//! The control plane: identity, discovery and policy.
//!
//! Data flows one way: `source` (a watched directory; Kubernetes watches come
//! next) to `index` (plain data, one synchronous computation) to `serve` (gRPC).

pub mod edges;
pub mod index;
pub mod issuer;
pub mod proxies;
pub mod serve;
pub mod source;
pub mod token;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Parser;
use ipnet::IpNet;
use tokio::sync::watch;

use index::Index;

/// The control plane of a Weft mesh.
///
/// Exit codes: 0 stopped in order, 1 could not start.
#[derive(Parser, Debug, Clone)]
#[command(name = "weft-control-plane", version)]
pub struct Settings {
    /// Address for proxies
    #[arg(long, default_value = "0.0.0.0:15010")]
    pub listen: SocketAddr,
    /// Unix socket for operators
    #[arg(long)]
    pub operator_socket: PathBuf,
    /// Folder of manifests to watch
    #[arg(long)]
    pub manifests: PathBuf,
    /// Folder with the issuer: tls.crt, tls.key, ca.crt (cert-manager's layout)
    #[arg(long)]
    pub issuer: PathBuf,
    /// Public key (PEM) that service-account tokens are signed with
    #[arg(long)]
    pub token_key: PathBuf,
    /// Life of a workload's certificate, like 24h or 1m
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub leaf_lifetime: Duration,
    /// Addresses of pods and services
    #[arg(long, value_delimiter = ',')]
    pub mesh_cidrs: Vec<IpNet>,
    /// Domain of services' names
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// OTLP gRPC collector for traces, http://HOST:PORT
    #[arg(long, default_value = "")]
    pub otlp_endpoint: String,
    /// Part of new traces that are recorded, 0 to 1
    #[arg(long, default_value_t = 0.01)]
    pub trace_sampling: f64,
    /// What is logged: error, warn, info, debug
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub log: String,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = weft_api::GatewayDuration::parse(text);
    parsed
        .map(|d| d.0)
        .ok_or_else(|| "write it like 24h, 10m or 90s".to_owned())
}

/// What the parts of the control plane share.
pub struct State {
    index: Mutex<Index>,
    /// Grows with each change of the index.
    pub changes: watch::Sender<u64>,
    /// Signs certificates.
    pub issuer: issuer::Issuer,
    /// What proxies counted.
    pub edges: edges::EdgeStore,
    /// Who is connected.
    pub proxies: proxies::ProxyStore,
}

impl State {
    /// The index, for the length of one computation.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until the process is told to stop.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let issuer = issuer::Issuer::open(&settings.issuer, settings.leaf_lifetime)?;
    let index = Index::new(index::MeshSettings {
        trust_domain: issuer.trust_domain(),
        roots_der: issuer.roots_der(),
        cidrs: settings
            .mesh_cidrs
            .iter()
            .map(ToString::to_string)
            .collect(),
        otlp_endpoint: settings.otlp_endpoint.clone(),
        trace_sampling: settings.trace_sampling,
    });
    let tokens = token::TokenKey::open(&settings.token_key)?;
    let state = Arc::new(State {
        index: Mutex::new(index),
        changes: watch::Sender::new(0),
        issuer,
        edges: edges::EdgeStore::default(),
        proxies: proxies::ProxyStore::default(),
    });
    let mut directory = source::Directory::new(&settings.manifests)?;
    directory.refresh(&state);
    tokio::spawn(directory.watch(state.clone()));
    tokio::spawn(issuer::keep_current(state.clone()));
    serve::serve(state, tokens, &settings).await
}
