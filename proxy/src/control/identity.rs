//! Gets a certificate, and a new one at half of its life.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rustls::pki_types::CertificateDer;
use tonic::metadata::MetadataValue;
use weft_identity::{ALPN_GRPC, PeerRule, Svid, TrustBundle, client_config, new_key_and_csr};
use weft_proto::identity_client::IdentityClient;
use weft_proto::{CertifyRequest, CertifyResponse};

use super::cache::Cache;
use super::channel::connect;
use crate::settings::Settings;
use crate::shared::{Shared, TlsMaterial};

const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Within this time all proxies have a certificate of a new issuer.
const RENEWAL_SPREAD: Duration = Duration::from_secs(3);

static GENERATION: AtomicU64 = AtomicU64::new(1);

/// Keeps the proxy's identity valid until the process ends.
pub async fn keep_identity(shared: Arc<Shared>, settings: Arc<Settings>, cache: Cache) {
    let mut renew_at = SystemTime::now();
    if let Some((svid, bundle)) = cache.identity()
        && svid.not_after > SystemTime::now()
    {
        tracing::info!(identity = %svid.identity, "identity taken from the cache");
        renew_at = svid.renew_at(svid.not_before + Duration::from_secs(300));
        install(&shared, svid, &bundle);
    }
    let mut backoff = MIN_BACKOFF;
    loop {
        // A clock that is set while this sleeps is noticed within a second, and so
        // is a new issuer.
        let mut hurried = false;
        while SystemTime::now() < renew_at {
            if !hurried && issuer_changed(&shared) {
                // Not all at once: a mesh has many proxies, and few issuers.
                let soon = SystemTime::now() + RENEWAL_SPREAD.mul_f64(rand::random::<f64>());
                renew_at = renew_at.min(soon);
                hurried = true;
            }
            let left = renew_at
                .duration_since(SystemTime::now())
                .unwrap_or_default();
            tokio::time::sleep(left.min(Duration::from_secs(1))).await;
        }
        match certify(&shared, &settings, &cache).await {
            Ok((svid, bundle)) => {
                tracing::info!(identity = %svid.identity, "certificate received");
                let issued = SystemTime::now();
                let at = svid.renew_at(issued);
                let life = at.duration_since(issued).unwrap_or_default();
                // Ten percent of jitter: pods that started together part.
                renew_at = at - life.mul_f64(0.1 * rand::random::<f64>());
                install(&shared, svid, &bundle);
                if issuer_changed(&shared) {
                    // A replica that has not heard of the new issuer yet has signed.
                    renew_at = SystemTime::now() + backoff.mul_f64(0.5 + rand::random::<f64>());
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                } else {
                    backoff = MIN_BACKOFF;
                }
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "no certificate yet");
                renew_at = SystemTime::now() + backoff.mul_f64(0.5 + rand::random::<f64>());
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
        }
    }
}

/// Whether another issuer signs now than signed the own certificate.
fn issuer_changed(shared: &Shared) -> bool {
    let mesh = shared.mesh.load();
    let own = shared.tls.load();
    let own = own.as_ref().map(|tls| tls.svid.issuer());
    !mesh.issuer.is_empty() && own.is_some_and(|own| own != mesh.issuer)
}

/// Puts an identity in force, with the roots that came with it and those that
/// the control plane named: either may be behind. What it names next replaces
/// both (`rebuild`).
fn install(shared: &Shared, svid: Svid, bundle: &TrustBundle) {
    let bundle = shared.mesh.load().bundle.and(bundle);
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    match TlsMaterial::new(generation, svid, bundle) {
        Ok(material) => shared.tls.store(Some(Arc::new(material))),
        Err(error) => tracing::error!(%error, "a certificate cannot be used"),
    }
}

/// Makes the TLS configurations anew for other roots.
pub fn rebuild(shared: &Shared, bundle: &TrustBundle) {
    let Some(old) = shared.tls.load_full() else {
        return;
    };
    // Nothing was named yet, or nothing new.
    if bundle.roots().is_empty() || old.bundle == *bundle {
        return;
    }
    if let Ok(svid) = Svid::new(old.svid.chain.clone(), old.svid.key_der.clone()) {
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        match TlsMaterial::new(generation, svid, bundle.clone()) {
            Ok(material) => shared.tls.store(Some(Arc::new(material))),
            Err(error) => tracing::error!(%error, "the new roots cannot be used"),
        }
    }
}

async fn certify(
    shared: &Shared,
    settings: &Settings,
    cache: &Cache,
) -> anyhow::Result<(Svid, TrustBundle)> {
    let roots = std::fs::read_to_string(&settings.trust_bundle).with_context(|| {
        format!(
            "the trust bundle {} cannot be read",
            settings.trust_bundle.display()
        )
    })?;
    let bundle = TrustBundle::from_pem(&roots).context("the trust bundle cannot be used")?;
    // The file follows a new root a minute later (kubelet's period), the stream at once.
    let bundle = bundle.and(&shared.mesh.load().bundle);
    let token = std::fs::read_to_string(&settings.token)
        .with_context(|| format!("the token {} cannot be read", settings.token.display()))?;
    let rule = PeerRule::Exactly(settings.control_plane_identity.parse()?);
    let tls = client_config(None, &bundle, rule, &[ALPN_GRPC])?;
    let channel = connect(&settings.control_plane, tls)
        .await
        .with_context(|| {
            format!(
                "the control plane {} cannot be reached",
                settings.control_plane
            )
        })?;
    let (key_der, csr_der) = new_key_and_csr()?;
    let mut request = tonic::Request::new(CertifyRequest { csr_der });
    let bearer: MetadataValue<_> = format!("Bearer {}", token.trim()).parse()?;
    request.metadata_mut().insert("authorization", bearer);
    request.set_timeout(Duration::from_secs(10));
    let response: CertifyResponse = IdentityClient::new(channel)
        .certify(request)
        .await
        .context("the control plane refused")?
        .into_inner();
    let chain = response
        .chain_der
        .iter()
        .cloned()
        .map(CertificateDer::from)
        .collect();
    let svid = Svid::new(chain, key_der.clone())?;
    let bundle = TrustBundle::from_der(response.roots_der.iter().cloned())?;
    cache.put_identity(&key_der, &response);
    Ok((svid, bundle))
}
