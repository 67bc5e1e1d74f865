//! What the injector needs so that API servers trust it: a certificate by its
//! DNS name, in a Secret that it watches, and the root in its webhooks'
//! configurations. The injector itself may write nothing.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use weft_api::ROOT_NAMESPACE;
use weft_identity::certificate_dates;

use super::FIELD_MANAGER;
use super::lease::Turns;
use crate::State;

/// Made by the installation and filled here.
const SECRET: &str = "weft-injector-tls";
/// The webhook's configuration and the injector's Service.
const NAME: &str = "weft-injector";

/// Keeps both current until the process ends.
pub async fn keep_trusted(client: Client, state: Arc<State>, leader: watch::Receiver<bool>) {
    let mut turns = Turns::new(state.clone(), leader);
    loop {
        turns.next().await;
        if let Err(error) = certify(&client, &state).await {
            tracing::warn!("the injector's certificate cannot be renewed now: {error:#}");
        }
        if let Err(error) = entrust(&client, &state).await {
            tracing::warn!(
                "the webhook's configuration cannot be brought up to date now: {error:#}"
            );
        }
    }
}

fn names() -> Vec<String> {
    ["", ".cluster.local"]
        .map(|domain| format!("{NAME}.{ROOT_NAMESPACE}.svc{domain}"))
        .to_vec()
}

async fn certify(client: &Client, state: &State) -> anyhow::Result<()> {
    let api: Api<Secret> = Api::namespaced(client.clone(), ROOT_NAMESPACE);
    let Some(secret) = api.get_opt(SECRET).await? else {
        return Ok(());
    };
    let data = secret.data.unwrap_or_default();
    let chain = data
        .get("tls.crt")
        .map(|b| b.0.as_slice())
        .unwrap_or_default();
    if !is_due(chain, &state.issuer.certificate_der()) {
        return Ok(());
    }
    let (chain, key) = state.issuer.sign_server(&names())?;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let filled = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": SECRET},
        "data": {"tls.crt": encode(&chain), "tls.key": encode(&key)},
    });
    let force = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(SECRET, &force, &Patch::Apply(&filled)).await?;
    tracing::info!("the injector has a new certificate");
    Ok(())
}

/// At half of its life, or where another issuer has signed it.
fn is_due(chain_pem: &[u8], issuer_der: &[u8]) -> bool {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain_pem)
        .flatten()
        .collect();
    let [leaf, intermediate] = chain.as_slice() else {
        return true;
    };
    if intermediate.as_ref() != issuer_der {
        return true;
    }
    certificate_dates(leaf).map_or(true, |(start, end)| {
        let half = end.duration_since(start).unwrap_or(Duration::ZERO) / 2;
        SystemTime::now() >= start + half
    })
}

/// Both configurations, whose webhooks are alike as far as trust goes.
async fn entrust(client: &Client, state: &State) -> anyhow::Result<()> {
    let roots = state.issuer.roots_pem();
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    if let Some(found) = mutating.get_opt(NAME).await? {
        let hooks = found.webhooks.unwrap_or_default();
        let hooks = hooks.into_iter().map(|h| (h.name, h.client_config));
        trust_in(&mutating, hooks.collect(), &roots).await?;
    }
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    if let Some(found) = validating.get_opt(NAME).await? {
        let hooks = found.webhooks.unwrap_or_default();
        let hooks = hooks.into_iter().map(|h| (h.name, h.client_config));
        trust_in(&validating, hooks.collect(), &roots).await?;
    }
    Ok(())
}

async fn trust_in<K: Clone + DeserializeOwned + Debug>(
    api: &Api<K>,
    hooks: Vec<(String, WebhookClientConfig)>,
    roots: &str,
) -> kube::Result<()> {
    let trusts = |config: &WebhookClientConfig| {
        let bundle = config.ca_bundle.as_ref();
        bundle.is_some_and(|b| b.0 == roots.as_bytes())
    };
    if hooks.iter().all(|(_, config)| trusts(config)) {
        return Ok(());
    }
    let bundle = base64::engine::general_purpose::STANDARD.encode(roots);
    let hooks = hooks
        .iter()
        .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}}));
    // Merged by name: everything else stays as the installation wrote it.
    let patch = json!({"webhooks": hooks.collect::<Vec<_>>()});
    api.patch(NAME, &PatchParams::default(), &Patch::Strategic(&patch))
        .await?;
    tracing::info!("a webhook's configuration has the current root");
    Ok(())
}
