//! Asking the control plane.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use weft_local::MeshPaths;
use weft_proto::operator_client::OperatorClient;

/// A control plane that does not answer within this time is taken for lost.
const ANSWER: Duration = Duration::from_secs(5);

/// Runs a conversation with a mesh's control plane.
pub fn with_operator<T, F: Future<Output = anyhow::Result<T>>>(
    mesh: &str,
    talk: impl FnOnce(OperatorClient<Channel>) -> F,
) -> anyhow::Result<T> {
    let socket = MeshPaths::new(mesh).operator_socket();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = connect(socket)
            .await
            .with_context(|| format!("the control plane of the mesh {mesh} cannot be reached: is it up? (`meshctl local ps --name {mesh}`)"))?;
        talk(client).await
    })
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
    Ok(OperatorClient::new(channel).max_decoding_message_size(64 * 1024 * 1024))
}
