//! Answers the plugin: is this pod the mesh's, and what are its rules?

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use weft_api::LABEL_INJECTED;
use weft_cni_init::CaptureRules;
use weft_cni_init::plugin::{Answer, Question};

const MAX_QUESTION: u64 = 4096;
const CONVERSATION: Duration = Duration::from_secs(8);

/// Opens the socket; the future answers until the process ends.
pub fn serve(socket: &Path, client: Client) -> anyhow::Result<impl Future<Output = ()>> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // A socket file that an earlier process left.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("{} cannot be opened", socket.display()))?;
    Ok(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let client = client.clone();
            tokio::spawn(async move {
                match tokio::time::timeout(CONVERSATION, converse(stream, &client)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!("a question was not answered: {error:#}"),
                    Err(_) => tracing::warn!("a question took too long"),
                }
            });
        }
    })
}

async fn converse(stream: UnixStream, client: &Client) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_QUESTION))
        .read_line(&mut line)
        .await?;
    if line.is_empty() {
        // Only asked whether anybody is here.
        return Ok(());
    }
    let question: Question = serde_json::from_str(&line)?;
    let answer = answer(client, &question).await;
    tracing::info!(
        namespace = question.namespace,
        pod = question.name,
        ?answer,
        "asked for a pod"
    );
    write.write_all(&serde_json::to_vec(&answer)?).await?;
    Ok(())
}

async fn answer(client: &Client, question: &Question) -> Answer {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &question.namespace);
    let pod = match pods.get(&question.name).await {
        Ok(pod) => pod,
        Err(error) => return Answer::Failed(format!("the pod cannot be looked up: {error}")),
    };
    if !question.uid.is_empty() && pod.metadata.uid.as_deref() != Some(&question.uid) {
        return Answer::Failed("the pod was replaced".to_owned());
    }
    match rules(&pod) {
        Ok(Some(rules)) => Answer::Capture(rules),
        Ok(None) => Answer::Leave,
        Err(why) => Answer::Failed(why),
    }
}

/// Whether the pod has a sidecar and expects its node to set the rules.
pub fn is_captured_here(pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let injected = labels.is_some_and(|l| l.get(LABEL_INJECTED).is_some_and(|v| v == "true"));
    let inits = pod
        .spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten());
    injected && !inits.into_iter().any(|c| c.name == "weft-init")
}

/// The pod's rules, from its annotations; `None`: it is not captured from here.
fn rules(pod: &Pod) -> Result<Option<CaptureRules>, String> {
    if !is_captured_here(pod) {
        return Ok(None);
    }
    fn list<T: std::str::FromStr>(pod: &Pod, name: &str) -> Result<Vec<T>, String> {
        let key = format!("weft.dev/{name}");
        let value = pod.metadata.annotations.as_ref().and_then(|a| a.get(&key));
        let items = value
            .map(String::as_str)
            .unwrap_or_default()
            .split(',')
            .filter(|i| !i.is_empty());
        let parsed = items.map(|i| {
            i.parse()
                .map_err(|_| format!("the annotation {key} holds {i:?}"))
        });
        parsed.collect()
    }
    Ok(Some(CaptureRules {
        exclude_inbound_ports: list(pod, "exclude-inbound-ports")?,
        exclude_outbound_ports: list(pod, "exclude-outbound-ports")?,
        exclude_outbound_cidrs: list(pod, "exclude-outbound-cidrs")?,
        dns: false,
        ..CaptureRules::default()
    }))
}
