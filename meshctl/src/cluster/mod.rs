//! A mesh in a Kubernetes cluster, through its API server and with the user's
//! own kubeconfig: nothing is exposed for operators.

pub mod apply;
pub mod chart;
pub mod check;
pub mod forward;
pub mod install;
pub mod rotate;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::cli::ClusterArgs;

/// A client of the cluster that was meant.
pub async fn client(args: &ClusterArgs) -> anyhow::Result<Client> {
    // Where two providers are linked, none is chosen by itself.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let kubeconfig = match &args.kubeconfig {
        Some(path) => Kubeconfig::read_from(path).with_context(|| path.display().to_string())?,
        None => Kubeconfig::read()
            .context("no kubeconfig is found: set KUBECONFIG, or give --kubeconfig")?,
    };
    let options = KubeConfigOptions {
        context: args.context.clone(),
        ..KubeConfigOptions::default()
    };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    Ok(Client::try_from(config)?)
}

/// Runs something that talks to a cluster.
pub fn block_on<T>(talk: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(talk)
}
