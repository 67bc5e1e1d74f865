//! The control plane: identity, discovery and policy.
//!
//! Data flows one way: `source` (a watched directory) or `kubernetes` (watches)
//! to `index` (plain data, one synchronous computation) to `serve` (gRPC).

pub mod edges;
pub mod index;
pub mod issuer;
pub mod kubernetes;
pub mod proxies;
pub mod serve;
pub mod source;
pub mod token;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser};
use ipnet::IpNet;
use tokio::sync::watch;

use index::Index;

/// The control plane of a Weft mesh: of a Kubernetes cluster that it runs in,
/// or of a folder of manifests.
///
/// Exit codes: 0 stopped in order, 1 could not start.
#[derive(Parser, Debug, Clone)]
#[command(name = "weft-control-plane", version)]
pub struct Settings {
    /// Address for proxies
    #[arg(long, default_value = "0.0.0.0:15010")]
    pub listen: SocketAddr,
    /// Where everything comes from
    #[command(flatten)]
    pub source: Source,
    /// Life of a workload's certificate, like 24h or 1m
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub leaf_lifetime: Duration,
    /// Addresses of pods and services; of Kubernetes they are asked for if absent
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

/// Where objects, the issuer and proof of tokens come from.
#[derive(Args, Debug, Clone)]
pub struct Source {
    /// A cluster
    #[command(flatten)]
    pub kubernetes: Option<kubernetes::KubernetesSettings>,
    /// A folder
    #[command(flatten)]
    pub directory: Option<DirectorySettings>,
}

/// The mesh of a folder of manifests.
#[derive(Args, Debug, Clone)]
#[group(conflicts_with = "KubernetesSettings", multiple = true)]
pub struct DirectorySettings {
    /// Folder of manifests to watch
    #[arg(long, required = false)]
    pub manifests: PathBuf,
    /// Folder with the issuer: tls.crt, tls.key, ca.crt (cert-manager's layout)
    #[arg(long, required = false)]
    pub issuer: PathBuf,
    /// Public key (PEM) that service-account tokens are signed with
    #[arg(long, required = false)]
    pub token_key: PathBuf,
    /// Unix socket for operators
    #[arg(long, required = false)]
    pub operator_socket: PathBuf,
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
    /// Whether the index is complete: nothing is served before.
    pub ready: watch::Sender<bool>,
    /// The objects whose status is written back; empty without Kubernetes.
    pub written: watch::Sender<Arc<kubernetes::WrittenObjects>>,
    /// The ranges were given, and are not asked for.
    pub ranges_given: bool,
    /// Signs certificates.
    pub issuer: issuer::Issuer,
    /// What proxies counted.
    pub edges: edges::EdgeStore,
    /// Who is connected.
    pub proxies: proxies::ProxyStore,
}

impl State {
    fn new(settings: &Settings, issuer: issuer::Issuer) -> Arc<Self> {
        let ranges = settings.mesh_cidrs.iter().map(ToString::to_string);
        let index = Index::new(index::MeshSettings {
            trust_domain: issuer.trust_domain(),
            roots_der: issuer.roots_der(),
            issuer: weft_identity::fingerprint(&issuer.certificate_der()),
            cidrs: ranges.collect(),
            otlp_endpoint: settings.otlp_endpoint.clone(),
            trace_sampling: settings.trace_sampling,
        });
        Arc::new(Self {
            index: Mutex::new(index),
            changes: watch::Sender::new(0),
            ready: watch::Sender::new(false),
            written: watch::Sender::default(),
            ranges_given: !settings.mesh_cidrs.is_empty(),
            issuer,
            edges: edges::EdgeStore::default(),
            proxies: proxies::ProxyStore::default(),
        })
    }

    /// The index, for the length of one computation.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until the process is told to stop.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    if let Some(directory) = &settings.source.directory {
        return run_directory(&settings, directory).await;
    }
    let own = settings.source.kubernetes.clone();
    let own = own.context("say where the mesh is: --kubernetes, or --manifests FOLDER")?;
    kubernetes::run(&settings, own).await
}

async fn run_directory(settings: &Settings, own: &DirectorySettings) -> anyhow::Result<()> {
    let material = issuer::Material::read(&own.issuer)?;
    let issuer = issuer::Issuer::new(material, settings.leaf_lifetime)?;
    let tokens = token::TokenReviewer::Key(token::TokenKey::open(&own.token_key)?);
    let state = State::new(settings, issuer);
    let mut directory = source::Directory::new(&own.manifests)?;
    directory.refresh(&state);
    state.ready.send_replace(true);
    tokio::spawn(directory.watch(state.clone()));
    tokio::spawn(issuer::follow_folder(state.clone(), own.issuer.clone()));
    let operators = serve::Operators::Socket(own.operator_socket.clone());
    serve::serve(state, tokens, settings.listen, operators).await
}
