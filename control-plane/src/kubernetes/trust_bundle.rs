//! The roots of trust, in a ConfigMap of each namespace that has sidecars: a
//! sidecar needs them before it can ask the control plane for anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;

use super::FIELD_MANAGER;
use super::lease::Turns;
use crate::State;

/// The ConfigMap; its key is `ca.crt`.
pub const NAME: &str = "weft-trust-bundle";

/// Keeps the ConfigMaps as they ought to be until the process ends.
pub async fn write(client: Client, state: Arc<State>, leader: watch::Receiver<bool>) {
    let mut turns = Turns::new(state.clone(), leader);
    // What was found to be there; a namespace that comes back is not in the index in between.
    let mut there: BTreeMap<String, String> = BTreeMap::new();
    let mut listed = tokio::time::Instant::now();
    let mut first = true;
    loop {
        turns.next().await;
        let roots = state.issuer.roots_pem();
        let wanted: BTreeSet<String> = state.index().meshed_namespaces();
        // Somebody may have changed them: looked at once in a while.
        if first || listed.elapsed().as_secs() >= 60 {
            match list(&client).await {
                Ok(found) => there = found,
                Err(error) => {
                    tracing::warn!(%error, "the trust bundles cannot be listed now");
                    continue;
                }
            }
            (first, listed) = (false, tokio::time::Instant::now());
        }
        there.retain(|namespace, _| wanted.contains(namespace));
        for namespace in wanted {
            if there.get(&namespace) == Some(&roots) {
                continue;
            }
            match apply(&client, &namespace, &roots).await {
                Ok(()) => {
                    there.insert(namespace, roots.clone());
                }
                Err(error) => {
                    tracing::warn!(namespace, %error, "the trust bundle cannot be written now")
                }
            }
        }
    }
}

async fn list(client: &Client) -> kube::Result<BTreeMap<String, String>> {
    let api: Api<ConfigMap> = Api::all(client.clone());
    let named = ListParams::default().fields(&format!("metadata.name={NAME}"));
    let found = api.list(&named).await?;
    let entry = |map: ConfigMap| {
        let roots = map
            .data
            .and_then(|mut d| d.remove("ca.crt"))
            .unwrap_or_default();
        Some((map.metadata.namespace?, roots))
    };
    Ok(found.items.into_iter().filter_map(entry).collect())
}

async fn apply(client: &Client, namespace: &str, roots: &str) -> kube::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let wanted = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "weft"}},
        "data": {"ca.crt": roots},
    });
    let force = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(NAME, &force, &Patch::Apply(&wanted))
        .await
        .map(|_| ())
}
