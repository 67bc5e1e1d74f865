//! The issuer: an intermediate and its key from files, read again when they
//! change, and the control plane's own certificate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rustls::ServerConfig;
use weft_identity::{
    ALPN_GRPC, Authority, AuthorityError, LeafRequest, SpiffeId, Svid, TrustBundle, fingerprint,
    new_key_and_csr, server_config_optional_client,
};

use crate::State;

/// Service account of the control plane, in the mesh's root namespace.
pub const SERVICE_ACCOUNT: &str = "weft-control-plane";
const LOOK: Duration = Duration::from_secs(2);

/// An issuer's files, in cert-manager's layout, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Material {
    /// `tls.crt`: the intermediate.
    pub certificate: String,
    /// `tls.key`: its key.
    pub key: String,
    /// `ca.crt`: the roots that are trusted.
    pub roots: String,
}

impl Material {
    /// Reads `tls.crt`, `tls.key` and `ca.crt` of a folder.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "{} cannot be read: make an issuer with `meshctl ca init`",
                    path.display()
                )
            })
        };
        Ok(Self {
            certificate: read("tls.crt")?,
            key: read("tls.key")?,
            roots: read("ca.crt")?,
        })
    }
}

/// Signs certificates.
pub struct Issuer {
    lifetime: Duration,
    current: RwLock<Current>,
}

struct Current {
    material: Material,
    authority: Authority,
    bundle: TrustBundle,
    server: Arc<ServerConfig>,
    renew_at: SystemTime,
}

impl Issuer {
    /// An issuer of leaves that live this long.
    pub fn new(material: Material, lifetime: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            lifetime,
            current: RwLock::new(Current::new(material, lifetime)?),
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

    /// When the intermediate ends.
    pub fn not_after(&self) -> SystemTime {
        self.current().authority.not_after()
    }

    /// The roots that are trusted, PEM.
    pub fn roots_pem(&self) -> String {
        self.current().material.roots.clone()
    }

    /// Signs a certificate for a server that is called by DNS names rather
    /// than by its identity. Returns chain and key, PEM.
    pub fn sign_server(&self, names: &[String]) -> Result<(String, String), AuthorityError> {
        self.current().authority.sign_server(names, self.lifetime)
    }

    /// Takes other files, if they are other, and renews the own certificate
    /// when that is due. `true`: something changed.
    pub fn refresh(&self, material: Material) -> anyhow::Result<bool> {
        let stale = {
            let current = self.current();
            current.material != material || SystemTime::now() >= current.renew_at
        };
        if stale {
            let new = Current::new(material, self.lifetime)?;
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        }
        Ok(stale)
    }
}

impl Current {
    fn new(material: Material, lifetime: Duration) -> anyhow::Result<Self> {
        let authority = Authority::from_pem(&material.certificate, &material.key)?;
        let bundle = TrustBundle::from_pem(&material.roots)?;
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
            material,
            authority,
            bundle,
            server,
            renew_at,
        })
    }
}

/// Brings an issuer's files in force; what cannot be used changes nothing.
pub fn take(state: &State, material: Material) {
    match state.issuer.refresh(material) {
        Ok(false) => {}
        Ok(true) => {
            let issuer = fingerprint(&state.issuer.certificate_der());
            state.index().set_issuer(state.issuer.roots_der(), issuer);
            state.changes.send_modify(|n| *n += 1);
        }
        Err(error) => tracing::error!("the issuer stays as it was: {error:#}"),
    }
}

/// Follows the files of a folder until the process ends.
pub async fn follow_folder(state: Arc<State>, folder: PathBuf) {
    loop {
        tokio::time::sleep(LOOK).await;
        match Material::read(&folder) {
            Ok(material) => take(&state, material),
            Err(error) => tracing::error!("the issuer stays as it was: {error:#}"),
        }
    }
}
