//! The issuer: an intermediate and its key from files, read again when they
//! change, and the control plane's own certificate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rustls::ServerConfig;
use weft_identity::{
    ALPN_GRPC, Authority, AuthorityError, LeafRequest, SpiffeId, Svid, TrustBundle,
    new_key_and_csr, server_config_optional_client,
};

use crate::State;

/// Service account of the control plane, in the mesh's root namespace.
pub const SERVICE_ACCOUNT: &str = "weft-control-plane";
const LOOK: Duration = Duration::from_secs(2);

/// Signs certificates.
pub struct Issuer {
    folder: PathBuf,
    lifetime: Duration,
    current: RwLock<Current>,
}

struct Current {
    authority: Authority,
    bundle: TrustBundle,
    server: Arc<ServerConfig>,
    renew_at: SystemTime,
    read_at: Option<SystemTime>,
}

impl Issuer {
    /// Reads `tls.crt`, `tls.key` and `ca.crt` of a folder.
    pub fn open(folder: &Path, lifetime: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            folder: folder.to_owned(),
            lifetime,
            current: RwLock::new(Current::read(folder, lifetime)?),
        })
    }

    fn current(&self) -> std::sync::RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The trust domain it speaks for.
    pub fn trust_domain(&self) -> String {
        self.current().authority.trust_domain().to_string()
    }

    /// Roots, DER.
    pub fn roots_der(&self) -> Vec<Vec<u8>> {
        self.current()
            .bundle
            .roots()
            .iter()
            .map(|r| r.to_vec())
            .collect()
    }

    /// The intermediate, DER.
    pub fn certificate_der(&self) -> Vec<u8> {
        self.current().authority.certificate().to_vec()
    }

    /// The control plane's own TLS configuration.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.current().server.clone()
    }

    /// Signs a leaf. Returns the chain, DER.
    pub fn sign(
        &self,
        csr_der: &[u8],
        identity: &SpiffeId,
    ) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let lifetime = self.lifetime;
        let chain = self.current().authority.sign(&LeafRequest {
            csr_der,
            identity,
            lifetime,
        })?;
        Ok(chain.into_iter().map(|c| c.to_vec()).collect())
    }

    /// Reads changed files, and renews the own certificate. `true`: the roots
    /// may have changed.
    fn refresh(&self) -> anyhow::Result<bool> {
        let stale = {
            let current = self.current();
            current.read_at != modified(&self.folder) || SystemTime::now() >= current.renew_at
        };
        if stale {
            let new = Current::read(&self.folder, self.lifetime)?;
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        }
        Ok(stale)
    }
}

fn modified(folder: &Path) -> Option<SystemTime> {
    let of = |name| {
        std::fs::metadata(folder.join(name))
            .and_then(|m| m.modified())
            .ok()
    };
    ["tls.crt", "tls.key", "ca.crt"]
        .into_iter()
        .filter_map(of)
        .max()
}

impl Current {
    fn read(folder: &Path, lifetime: Duration) -> anyhow::Result<Self> {
        let read_at = modified(folder);
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "{} cannot be read: make an issuer with `meshctl ca init`",
                    path.display()
                )
            })
        };
        let authority = Authority::from_pem(&read("tls.crt")?, &read("tls.key")?)?;
        let bundle = TrustBundle::from_pem(&read("ca.crt")?)?;
        let identity = SpiffeId::new(
            authority.trust_domain(),
            weft_api::ROOT_NAMESPACE,
            SERVICE_ACCOUNT,
        )?;
        let (key_der, csr_der) = new_key_and_csr()?;
        let chain = authority.sign(&LeafRequest {
            csr_der: &csr_der,
            identity: &identity,
            lifetime,
        })?;
        let svid = Svid::new(chain, key_der)?;
        let server = server_config_optional_client(&svid, &bundle, &[ALPN_GRPC])?;
        let renew_at = svid.renew_at(SystemTime::now());
        Ok(Self {
            authority,
            bundle,
            server,
            renew_at,
            read_at,
        })
    }
}

/// Follows the files until the process ends. What cannot be used changes nothing.
pub async fn keep_current(state: Arc<State>) {
    loop {
        tokio::time::sleep(LOOK).await;
        match state.issuer.refresh() {
            Ok(false) => {}
            Ok(true) => {
                state.index().set_roots(state.issuer.roots_der());
                state.changes.send_modify(|n| *n += 1);
            }
            Err(error) => tracing::error!("the issuer stays as it was: {error:#}"),
        }
    }
}
