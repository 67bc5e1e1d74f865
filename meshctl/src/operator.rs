//! Asking the control plane.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use kube::Client;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use weft_api::ROOT_NAMESPACE;
use weft_local::MeshPaths;
use weft_proto::operator_client::OperatorClient;

use crate::cli::{ClusterArgs, MeshArgs};
use crate::cluster::{block_on, client, forward};

/// A control plane that does not answer within this time is taken for lost.
const ANSWER: Duration = Duration::from_secs(5);
/// Largest answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Where a mesh is.
pub enum Mesh {
    /// On this machine, by its name.
    Local(String),
    /// In a cluster.
    Cluster(ClusterArgs),
}

impl Mesh {
    /// The one that was meant.
    pub fn find(args: &MeshArgs) -> Self {
        let usual = "weft";
        let said = args.cluster.kubeconfig.is_some() || args.cluster.context.is_some();
        match &args.name {
            Some(name) => Self::Local(name.clone()),
            None if !said && MeshPaths::new(usual).operator_socket().exists() => {
                Self::Local(usual.to_owned())
            }
            None => Self::Cluster(args.cluster.clone()),
        }
    }
}

/// Asks every replica of a mesh's control plane the same; at least one answers.
pub fn ask_all<T, F: Future<Output = anyhow::Result<T>>>(
    args: &MeshArgs,
    talk: impl Fn(OperatorClient<Channel>) -> F,
) -> anyhow::Result<Vec<T>> {
    block_on(async {
        let mut answers = Vec::new();
        match Mesh::find(args) {
            Mesh::Local(name) => answers.push(talk(local(&name).await?).await?),
            Mesh::Cluster(cluster) => {
                let client = client(&cluster).await?;
                for pod in forward::control_planes(&client).await? {
                    let operator = in_cluster(&client, &pod).await;
                    let operator = operator.with_context(|| format!("the control plane {pod}"))?;
                    answers.push(talk(operator).await?);
                }
            }
        }
        Ok(answers)
    })
}

/// Asks one replica what all of them know.
pub fn ask<T, F: Future<Output = anyhow::Result<T>>>(
    args: &MeshArgs,
    talk: impl FnOnce(OperatorClient<Channel>) -> F,
) -> anyhow::Result<T> {
    block_on(async {
        let operator = match Mesh::find(args) {
            Mesh::Local(name) => local(&name).await?,
            Mesh::Cluster(cluster) => {
                let client = client(&cluster).await?;
                let pods = forward::control_planes(&client).await?;
                let pod = pods.first().context("no control plane")?;
                in_cluster(&client, pod).await?
            }
        };
        talk(operator).await
    })
}

/// Runs a conversation with the control plane of a mesh on this machine.
pub fn with_operator<T, F: Future<Output = anyhow::Result<T>>>(
    mesh: &str,
    talk: impl FnOnce(OperatorClient<Channel>) -> F,
) -> anyhow::Result<T> {
    block_on(async { talk(local(mesh).await?).await })
}

async fn local(mesh: &str) -> anyhow::Result<OperatorClient<Channel>> {
    let socket = MeshPaths::new(mesh).operator_socket();
    connect(socket).await.with_context(|| format!("the control plane of the mesh {mesh} cannot be reached: is it up? (`meshctl local ps --name {mesh}`)"))
}

/// One connection is enough for one conversation: it is not made again.
pub async fn in_cluster(client: &Client, pod: &str) -> anyhow::Result<OperatorClient<Channel>> {
    let stream = forward::connect(client, ROOT_NAMESPACE, pod, forward::OPERATORS).await?;
    let mut stream = Some(stream);
    let connector = service_fn(move |_: Uri| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| std::io::Error::other("the connection has ended")) }
    });
    let endpoint = Endpoint::from_static("http://operator.weft").timeout(ANSWER);
    let channel = endpoint.connect_with_connector(connector).await?;
    Ok(OperatorClient::new(channel).max_decoding_message_size(MAX_ANSWER))
}

async fn connect(socket: PathBuf) -> anyhow::Result<OperatorClient<Channel>> {
    let connector = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://operator.weft").timeout(ANSWER);
    let connecting = endpoint.connect_with_connector(connector);
    let channel = tokio::time::timeout(ANSWER, connecting)
        .await
        .context("it does not answer")??;
    Ok(OperatorClient::new(channel).max_decoding_message_size(MAX_ANSWER))
}
