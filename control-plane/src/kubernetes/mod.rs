//! The control plane of a Kubernetes cluster, from within.
//!
//! `watch` fills the index; the other modules are what the mesh writes back.
//! Every replica serves; the holder of the Lease alone writes.

mod convert;
mod events;
mod health;
mod injector;
mod issuer;
mod lease;
mod ranges;
mod status;
pub mod token_review;
mod trust_bundle;
mod unmeshed;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use kube::Client;

use crate::serve::{Operators, serve};
use crate::token::TokenReviewer;
use crate::{Settings, State};

pub use convert::read_object;
pub use status::accepted;
pub use watch::{Written, WrittenObjects};

/// By this name the API server knows who wrote a field (server-side apply).
pub const FIELD_MANAGER: &str = "weft-control-plane";

/// The mesh of the cluster that this process runs in.
#[derive(Args, Debug, Clone)]
#[group(multiple = true)]
pub struct KubernetesSettings {
    /// Run the mesh of the Kubernetes cluster that this process is in
    #[arg(long, required = false)]
    pub kubernetes: bool,
    /// Name of this pod
    #[arg(long, env = "POD_NAME", default_value = "weft-control-plane")]
    pub pod: String,
    /// Address of health and metrics
    #[arg(long, default_value = "0.0.0.0:15014")]
    pub health: SocketAddr,
    /// Address for operators, who come through the API server: loopback
    #[arg(long, default_value = "127.0.0.1:15011")]
    pub operators: SocketAddr,
    /// Evict pods that should have a sidecar and have none, so that they come back with one
    #[arg(long)]
    pub evict_unmeshed: bool,
}

/// Runs until the process is told to stop.
pub async fn run(settings: &Settings, own: KubernetesSettings) -> anyhow::Result<()> {
    let client = Client::try_default().await.context(
        "the API server cannot be reached: does this run in a pod with a service account?",
    )?;
    let issuer = issuer::open(&client, settings.leaf_lifetime).await?;
    let state = State::new(settings, issuer);
    let leader = lease::campaign(client.clone(), own.pod.clone());
    tokio::spawn(health::serve(own.health, state.clone(), leader.clone()).await?);
    tokio::spawn(watch::follow(client.clone(), state.clone()));
    tokio::spawn(issuer::follow(client.clone(), state.clone()));
    tokio::spawn(issuer::renew(client.clone(), state.clone(), leader.clone()));
    tokio::spawn(status::write(client.clone(), state.clone(), leader.clone()));
    tokio::spawn(trust_bundle::write(
        client.clone(),
        state.clone(),
        leader.clone(),
    ));
    tokio::spawn(injector::keep_trusted(
        client.clone(),
        state.clone(),
        leader.clone(),
    ));
    tokio::spawn(unmeshed::reconcile(
        client.clone(),
        state.clone(),
        leader,
        own.evict_unmeshed,
    ));
    // Half of a cluster would be served as if it were all.
    let _ = state.ready.subscribe().wait_for(|ready| *ready).await;
    let tokens = TokenReviewer::Kubernetes(client);
    serve(
        Arc::clone(&state),
        tokens,
        settings.listen,
        Operators::Loopback(own.operators),
    )
    .await
}
