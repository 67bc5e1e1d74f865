//! The issuer in a Secret, in cert-manager's layout (`tls.crt`, `tls.key`,
//! `ca.crt`); and, where the root's key is in the cluster too, its renewal.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use futures_util::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{DefaultBackoff, watch_object};
use kube::{Api, Client};
use tokio::sync::watch;
use weft_api::ROOT_NAMESPACE;
use weft_identity::{Root, TrustDomain, certificate_dates};

use super::events;
use crate::State;
use crate::issuer::{Issuer, Material, take};

/// The Secret with the issuer.
pub const ISSUER: &str = "weft-issuer";
/// The Secret with the root's key, where it was left in the cluster.
pub const ROOT: &str = "weft-root";
const LOOK: Duration = Duration::from_secs(30);

fn secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), ROOT_NAMESPACE)
}

fn text(secret: &Secret, key: &str) -> anyhow::Result<String> {
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let value = secret.data.as_ref().and_then(|d| d.get(key));
    let value =
        value.with_context(|| format!("the Secret {ROOT_NAMESPACE}/{name} has no {key}"))?;
    Ok(String::from_utf8(value.0.clone())?)
}

fn material(secret: &Secret) -> anyhow::Result<Material> {
    Ok(Material {
        certificate: text(secret, "tls.crt")?,
        key: text(secret, "tls.key")?,
        roots: text(secret, "ca.crt")?,
    })
}

/// Reads the issuer.
pub async fn open(client: &Client, lifetime: Duration) -> anyhow::Result<Issuer> {
    let secret = secrets(client).get(ISSUER).await.with_context(|| {
        format!("the Secret {ROOT_NAMESPACE}/{ISSUER} cannot be read: `meshctl install` makes it")
    })?;
    Issuer::new(material(&secret)?, lifetime)
}

/// Takes what the Secret says when it changes, until the process ends.
pub async fn follow(client: Client, state: Arc<State>) {
    let stream = watch_object(secrets(&client), ISSUER).backoff(DefaultBackoff::default());
    let mut stream = std::pin::pin!(stream);
    let mut last = None;
    let mut renew = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            Some(secret) = stream.next() => match secret {
                Ok(Some(secret)) => match material(&secret) {
                    Ok(material) => last = Some(material),
                    Err(error) => tracing::error!("the issuer stays as it was: {error:#}"),
                },
                Ok(None) => tracing::error!("the Secret {ROOT_NAMESPACE}/{ISSUER} is gone; the issuer stays as it was"),
                Err(error) => tracing::warn!(%error, "the issuer's Secret cannot be watched now"),
            },
            _ = renew.tick() => {}
        }
        if let Some(material) = last.clone() {
            take(&state, material);
        }
    }
}

/// Makes a new intermediate when two thirds of the old one's life are over,
/// where the root's key is at hand; tells of it in good time where it is not.
pub async fn renew(client: Client, state: Arc<State>, leader: watch::Receiver<bool>) {
    let mut told = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let due = match is_due(&state) {
            Ok(due) => due,
            Err(error) => {
                tracing::error!("the issuer's dates cannot be read: {error:#}");
                continue;
            }
        };
        if !due || !*leader.borrow() {
            told &= due;
            continue;
        }
        match renew_once(&client, &state).await {
            Ok(()) => tracing::info!("the issuer was renewed"),
            Err(error) if !told => {
                told = true;
                let text = format!(
                    "The issuer ends at {:?} and cannot be renewed: {error:#}",
                    state.issuer.not_after()
                );
                tracing::error!("{text}");
                let about = events::reference("v1", "Secret", ROOT_NAMESPACE, ISSUER);
                events::warn(&client, about, "IssuerNotRenewed", &text).await;
            }
            Err(_) => {}
        }
    }
}

fn is_due(state: &State) -> anyhow::Result<bool> {
    let (start, end) = certificate_dates(&state.issuer.certificate_der())?;
    let life = end.duration_since(start).unwrap_or_default();
    Ok(SystemTime::now() >= start + life * 2 / 3)
}

async fn renew_once(client: &Client, state: &State) -> anyhow::Result<()> {
    let secrets = secrets(client);
    let root = secrets.get_opt(ROOT).await?.with_context(|| {
        format!("there is no Secret {ROOT}: put a new issuer into {ISSUER} (`meshctl ca init`, cert-manager)")
    })?;
    let root = Root {
        certificate_pem: text(&root, "tls.crt")?,
        key_pem: text(&root, "tls.key")?,
    };
    let mut secret = secrets.get(ISSUER).await?;
    let old = material(&secret)?;
    if !old.roots.contains(root.certificate_pem.trim()) {
        bail!("the root in {ROOT} is not among those that {ISSUER} trusts");
    }
    let trust_domain: TrustDomain = state.issuer.trust_domain().parse()?;
    let (start, end) = certificate_dates(&state.issuer.certificate_der())?;
    let life = end.duration_since(start).unwrap_or_default();
    let (certificate, key) = root.sign_intermediate(&trust_domain, life)?;
    let data = secret.data.get_or_insert_default();
    data.insert("tls.crt".to_owned(), ByteString(certificate.into_bytes()));
    data.insert("tls.key".to_owned(), ByteString(key.into_bytes()));
    // Its resource version goes along: of two writers one is refused.
    secrets
        .replace(ISSUER, &PostParams::default(), &secret)
        .await?;
    Ok(())
}
