//! What survives the proxy's container, on a volume in memory: key,
//! certificates and configuration. A proxy that restarts while the control
//! plane is away comes back from here.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use prost::Message;
use rustls::pki_types::CertificateDer;
use weft_identity::{Svid, TrustBundle};
use weft_proto::{CertifyResponse, Resource, Update};

/// Largest cache file read, in bytes.
const MAX: u64 = 64 * 1024 * 1024;
const KEY: &str = "key.der";
const CERTIFICATES: &str = "certificates.pb";
const RESOURCES: &str = "resources.pb";

/// The cache's folder, if there is one.
#[derive(Clone)]
pub struct Cache(Option<PathBuf>);

impl Cache {
    /// Opens the folder, and makes it if need be; only this user may enter.
    pub fn open(folder: Option<&Path>) -> io::Result<Self> {
        if let Some(folder) = folder {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
        }
        Ok(Self(folder.map(Path::to_owned)))
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let Some(folder) = &self.0 else { return };
        let write = || {
            let new = folder.join(format!("{name}.new"));
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, folder.join(name))
        };
        if let Err(error) = write() {
            // The proxy works without; only a restart during an outage would not.
            tracing::warn!(%error, name, "the cache cannot be written");
        }
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.0.as_ref()?.join(name);
        let size = fs::metadata(&path).ok()?.len();
        (size <= MAX).then(|| fs::read(&path).ok()).flatten()
    }

    /// Keeps an identity.
    pub fn put_identity(&self, key_der: &[u8], response: &CertifyResponse) {
        self.write(KEY, key_der);
        self.write(CERTIFICATES, &response.encode_to_vec());
    }

    /// The kept identity, if it is whole.
    pub fn identity(&self) -> Option<(Svid, TrustBundle)> {
        let key = self.read(KEY)?;
        let response = CertifyResponse::decode(self.read(CERTIFICATES)?.as_slice()).ok()?;
        let chain = response
            .chain_der
            .into_iter()
            .map(CertificateDer::from)
            .collect();
        let bundle = TrustBundle::from_der(response.roots_der).ok()?;
        Some((Svid::new(chain, key).ok()?, bundle))
    }

    /// Keeps the configuration.
    pub fn put_resources<'a>(&self, resources: impl Iterator<Item = &'a Resource>) {
        if self.0.is_some() {
            let resources = resources.cloned().collect();
            self.write(
                RESOURCES,
                &Update {
                    number: 0,
                    resources,
                }
                .encode_to_vec(),
            );
        }
    }

    /// The kept configuration; what does not parse is as good as nothing.
    pub fn resources(&self) -> Vec<Resource> {
        let read = || Update::decode(self.read(RESOURCES)?.as_slice()).ok();
        read().map(|u| u.resources).unwrap_or_default()
    }
}
