//! Into a pod through the API server, as `kubectl port-forward` goes.

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams};
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncWrite};
use weft_api::ROOT_NAMESPACE;

/// The control plane's port for operators, on its loopback.
pub const OPERATORS: u16 = 15011;
/// A sidecar's port for health and configuration.
pub const ADMIN: u16 = 15020;

/// A connection to a pod's own port.
pub async fn connect(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
) -> anyhow::Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut forwarder = api.portforward(pod, &[port]).await.with_context(|| {
        format!(
            "the pod {namespace}/{pod} cannot be reached (permission pods/portforward is needed)"
        )
    })?;
    forwarder
        .take_stream(port)
        .context("the API server gave no stream")
}

/// The running replicas of the control plane.
pub async fn control_planes(client: &Client) -> anyhow::Result<Vec<String>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), ROOT_NAMESPACE);
    let labelled = ListParams::default().labels("app.kubernetes.io/name=weft-control-plane");
    let pods = api
        .list(&labelled)
        .await
        .context("the control plane's pods cannot be listed")?;
    let ready = |pod: &Pod| {
        let conditions = pod
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten());
        pod.metadata.deletion_timestamp.is_none()
            && conditions
                .into_iter()
                .any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let names: Vec<String> = pods
        .items
        .iter()
        .filter(|p| ready(p))
        .filter_map(|p| p.metadata.name.clone())
        .collect();
    if names.is_empty() {
        bail!(
            "no control plane is ready in {ROOT_NAMESPACE}: install one with `meshctl install`, or see `kubectl -n {ROOT_NAMESPACE} get pods`"
        );
    }
    Ok(names)
}

/// A sidecar's answer, as it begins.
pub async fn get_from_sidecar(
    client: &Client,
    namespace: &str,
    pod: &str,
    path: &str,
) -> anyhow::Result<Response<Incoming>> {
    let stream = connect(client, namespace, pod, ADMIN).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = hyper::Request::get(path)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await;
    response.context("the sidecar does not answer")
}

/// What a sidecar answers.
pub async fn ask_sidecar(
    client: &Client,
    namespace: &str,
    pod: &str,
    path: &str,
) -> anyhow::Result<String> {
    let response = get_from_sidecar(client, namespace, pod, path).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    if !status.is_success() {
        bail!("the sidecar answered {status}: {}", text.trim());
    }
    Ok(text)
}

/// A pod by its name, or the running ones of `deploy/NAME`.
pub async fn find_pods(
    client: &Client,
    namespace: &str,
    name: &str,
) -> anyhow::Result<Vec<String>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let Some(deployment) = name.strip_prefix("deploy/") else {
        return Ok(vec![name.to_owned()]);
    };
    let pods = api.list(&ListParams::default()).await?;
    let of = |pod: &Pod| {
        let hash = pod
            .metadata
            .labels
            .as_ref()?
            .get("pod-template-hash")?
            .clone();
        let owner = pod
            .metadata
            .owner_references
            .as_ref()?
            .first()?
            .name
            .clone();
        owner.strip_suffix(&format!("-{hash}")).map(str::to_owned)
    };
    let running = |pod: &&Pod| {
        pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
            && pod.metadata.deletion_timestamp.is_none()
    };
    let found = pods
        .items
        .iter()
        .filter(running)
        .filter(|p| of(p).as_deref() == Some(deployment));
    let names: Vec<String> = found.filter_map(|p| p.metadata.name.clone()).collect();
    if names.is_empty() {
        bail!("no pod of the Deployment {namespace}/{deployment} is running");
    }
    Ok(names)
}

/// What a sidecar wrote.
pub async fn sidecar_log(client: &Client, namespace: &str, pod: &str) -> anyhow::Result<String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let of_sidecar = LogParams {
        container: Some("weft-proxy".to_owned()),
        ..LogParams::default()
    };
    api.logs(pod, &of_sidecar)
        .await
        .with_context(|| format!("{namespace}/{pod} has no sidecar, or it wrote nothing"))
}
