//! Pods that should have a sidecar and have none: made while the injector was
//! away and its webhook let them pass, or before their namespace joined.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::api::EvictParams;
use kube::{Api, Client};
use tokio::sync::watch;

use super::events;
use super::lease::Turns;
use crate::State;

/// Tells of them, and evicts them where that was asked for, until the process ends.
pub async fn reconcile(
    client: Client,
    state: Arc<State>,
    leader: watch::Receiver<bool>,
    evict: bool,
) {
    let mut turns = Turns::new(state.clone(), leader);
    let mut told: HashSet<String> = HashSet::new();
    loop {
        turns.next().await;
        let unmeshed = state.index().unmeshed_pods();
        told.retain(|uid| unmeshed.iter().any(|pod| pod.uid == *uid));
        for pod in unmeshed {
            if told.insert(pod.uid.clone()) {
                let text = "This pod should have a sidecar and has none: it was made before its namespace joined the mesh, or while the injector was away. Delete it, so that its replacement gets one.";
                let about = events::reference("v1", "Pod", &pod.namespace, &pod.name);
                tracing::warn!(
                    namespace = pod.namespace,
                    pod = pod.name,
                    "a pod should have a sidecar and has none"
                );
                events::warn(&client, about, "SidecarMissing", text).await;
            }
            if evict {
                let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
                // A disruption budget may refuse: asked again at the next turn.
                if let Err(error) = api.evict(&pod.name, &EvictParams::default()).await {
                    tracing::warn!(namespace = pod.namespace, pod = pod.name, %error, "a pod without sidecar cannot be evicted now");
                }
            }
        }
    }
}
