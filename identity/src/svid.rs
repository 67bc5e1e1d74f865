//! An X.509-SVID: a workload's key and certificate chain, and what the leaf says.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::spiffe::SpiffeId;

/// Why a chain cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// No certificate at all.
    #[error("the certificate chain is empty")]
    Empty,
    /// Not X.509.
    #[error("a certificate does not parse: {0}")]
    Parse(String),
    /// No URI, several, or one that is not a workload's.
    #[error("the leaf does not carry exactly one workload identity")]
    Identity,
    /// Key generation or serialization.
    #[error("a key pair cannot be made: {0}")]
    Key(String),
}

/// A workload's key and chain. Cloning copies the key.
pub struct Svid {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8, DER.
    pub key_der: Vec<u8>,
    /// What the leaf says.
    pub identity: SpiffeId,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
}

impl Svid {
    /// Puts a key and a chain together.
    pub fn new(chain: Vec<CertificateDer<'static>>, key_der: Vec<u8>) -> Result<Self, SvidError> {
        let facts = facts(chain.first().ok_or(SvidError::Empty)?)?;
        let [uri] = facts.uris.as_slice() else {
            return Err(SvidError::Identity);
        };
        Ok(Self {
            identity: uri.parse().map_err(|_| SvidError::Identity)?,
            not_before: facts.not_before,
            not_after: facts.not_after,
            chain,
            key_der,
        })
    }

    /// The private key, for rustls.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key_der.clone()).into()
    }

    /// Fingerprint of the certificate that signed the leaf; empty: it is not
    /// in the chain.
    pub fn issuer(&self) -> String {
        self.chain
            .get(1)
            .map(|c| fingerprint(c))
            .unwrap_or_default()
    }

    /// When to ask for the next one: at half of its life. `notBefore` is
    /// backdated, so life is counted from `issued`.
    pub fn renew_at(&self, issued: SystemTime) -> SystemTime {
        let life = self
            .not_after
            .duration_since(issued)
            .unwrap_or(Duration::ZERO);
        issued + life / 2
    }
}

/// What is read of a certificate.
pub(crate) struct Facts {
    pub uris: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
}

pub(crate) fn facts(der: &CertificateDer<'_>) -> Result<Facts, SvidError> {
    let parse = |e: String| SvidError::Parse(e);
    let (_, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|e| parse(e.to_string()))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|e| parse(e.to_string()))?;
    let uris = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect();
    let at = |t: x509_parser::time::ASN1Time| {
        UNIX_EPOCH + Duration::from_secs(t.timestamp().try_into().unwrap_or(0))
    };
    Ok(Facts {
        uris,
        not_before: at(certificate.validity().not_before),
        not_after: at(certificate.validity().not_after),
        public_key: certificate.public_key().raw.to_vec(),
    })
}

/// Makes a P-256 key and a signing request for it. Returns the key (PKCS#8)
/// and the request, both DER.
pub fn new_key_and_csr() -> Result<(Vec<u8>, Vec<u8>), SvidError> {
    let bad = |e: rcgen::Error| SvidError::Key(e.to_string());
    let key = KeyPair::generate().map_err(bad)?;
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .map_err(bad)?;
    Ok((key.serialize_der(), csr.der().to_vec()))
}

/// Makes a P-256 key for signing tokens. Returns the private (PKCS#8) and the
/// public half, both PEM.
pub fn new_signing_key() -> Result<(String, String), SvidError> {
    let key = KeyPair::generate().map_err(|e| SvidError::Key(e.to_string()))?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

/// A short name of a certificate, DER: the first half of its SHA-256, in hex.
pub fn fingerprint(der: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    let bytes = digest.as_ref().iter().take(16);
    bytes.map(|b| format!("{b:02x}")).collect()
}

/// Start and end of a certificate's validity.
pub fn certificate_dates(der: &[u8]) -> Result<(SystemTime, SystemTime), SvidError> {
    let facts = facts(&CertificateDer::from(der))?;
    Ok((facts.not_before, facts.not_after))
}
