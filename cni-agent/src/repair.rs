//! Pods of this node that were made before the plugin was there, or while the
//! configuration was somebody else's. Their sidecars see that nothing is
//! redirected and hold the application back; here they are replaced.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::answer::is_captured_here;

const LOOK: Duration = Duration::from_secs(5);
/// A sidecar that says so for this long will say so for ever.
const PATIENCE: Duration = Duration::from_secs(10);
const ADMIN: u16 = 15020;

/// Looks until the process ends.
pub async fn follow(client: Client, node: &str) {
    let pods: Api<Pod> = Api::all(client.clone());
    let here = ListParams::default()
        .fields(&format!("spec.nodeName={node}"))
        .labels("weft.dev/injected=true");
    let mut unredirected: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let found = match pods.list(&here).await {
            Ok(found) => found.items,
            Err(error) => {
                tracing::warn!(%error, "the node's pods cannot be listed now");
                continue;
            }
        };
        let mut seen = HashMap::new();
        for pod in found
            .iter()
            .filter(|p| is_captured_here(p) && p.metadata.deletion_timestamp.is_none())
        {
            let Some(uid) = pod.metadata.uid.clone() else {
                continue;
            };
            if !is_unredirected(pod).await {
                continue;
            }
            let since = unredirected.get(&uid).copied().unwrap_or_else(Instant::now);
            if since.elapsed() >= PATIENCE {
                replace(&client, pod).await;
            }
            seen.insert(uid, since);
        }
        unredirected = seen;
    }
}

/// What the sidecar itself says.
async fn is_unredirected(pod: &Pod) -> bool {
    let Some(ip) = pod.status.as_ref().and_then(|s| s.pod_ip.clone()) else {
        return false;
    };
    let asked = async {
        let mut stream = TcpStream::connect((ip.as_str(), ADMIN)).await?;
        stream
            .write_all(b"GET /ready HTTP/1.1\r\nHost: sidecar\r\nConnection: close\r\n\r\n")
            .await?;
        let mut text = String::new();
        stream.take(4096).read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
    matches!(answer, Ok(Ok(text)) if text.contains("is not redirected"))
}

async fn replace(client: &Client, pod: &Pod) {
    let (Some(namespace), Some(name)) = (pod.metadata.namespace.clone(), pod.metadata.name.clone())
    else {
        return;
    };
    let text = "The pod's traffic is not redirected: it was made before the node's CNI plugin was there. It never ran, and is deleted so that its replacement is captured.";
    tracing::warn!(namespace, pod = name, "{text}");
    let now = Timestamp::now();
    let event = Event {
        metadata: ObjectMeta {
            generate_name: Some("weft-".to_owned()),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some("NotRedirected".to_owned()),
        message: Some(text.to_owned()),
        source: Some(EventSource {
            component: Some("weft-cni".to_owned()),
            host: None,
        }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    };
    let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
    if let Err(error) = events.create(&PostParams::default(), &event).await {
        tracing::warn!(%error, "an event could not be written");
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    if let Err(error) = pods.delete(&name, &DeleteParams::default()).await {
        tracing::warn!(namespace, pod = name, %error, "the pod cannot be deleted now");
    }
}
