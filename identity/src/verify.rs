//! The decision whether a peer's certificate chain is to be believed.

use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyUsage};

use crate::spiffe::{SpiffeId, TrustDomain};

/// Longest chain looked at, leaf included.
const MAX_CHAIN: usize = 4;

/// Why a peer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Signature, validity or usage.
    #[error("its certificate is not valid: {0}")]
    Chain(String),
    /// Too many certificates.
    #[error("its certificate chain is longer than {MAX_CHAIN}")]
    Length,
    /// The leaf names no workload, or several.
    #[error("its certificate does not carry exactly one workload identity")]
    Identity,
    /// The leaf's issuer speaks for another trust domain, or for none.
    #[error("{identity} was issued by {issuer}, which does not speak for that trust domain")]
    Issuer {
        /// What the leaf claims.
        identity: SpiffeId,
        /// The issuer's own URI, or a word for its absence.
        issuer: String,
    },
}

/// The roots that are trusted. Always a set: a new root is added before it is
/// used, and the old one leaves last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrustBundle {
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl TrustBundle {
    /// Roots as DER. One that does not parse is an error.
    pub fn from_der(
        roots: impl IntoIterator<Item = impl Into<Vec<u8>>>,
    ) -> Result<Self, VerifyError> {
        let roots: Vec<CertificateDer<'static>> = roots
            .into_iter()
            .map(|der| CertificateDer::from(der.into()))
            .collect();
        let anchors = roots
            .iter()
            .map(|der| {
                webpki::anchor_from_trusted_cert(der)
                    .map(|anchor| anchor.to_owned())
                    .map_err(|e| VerifyError::Chain(e.to_string()))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { roots, anchors })
    }

    /// Roots as concatenated PEM.
    pub fn from_pem(pem: &str) -> Result<Self, VerifyError> {
        let roots = CertificateDer::pem_slice_iter(pem.as_bytes())
            .map(|r| r.map(|der| der.to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| VerifyError::Chain(e.to_string()))?;
        Self::from_der(roots)
    }

    /// These roots and another bundle's.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for (root, anchor) in other.roots.iter().zip(&other.anchors) {
            if !both.roots.contains(root) {
                both.roots.push(root.clone());
                both.anchors.push(anchor.clone());
            }
        }
        both
    }

    /// The roots, DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }
}

/// Verifies a chain up to a trusted root, and returns the identity that it
/// proves and when that proof ends.
///
/// Beyond X.509: exactly one URI name, a workload's (X509-SVID section 4.1),
/// and an issuer whose own certificate names the same trust domain.
pub fn verify_peer(
    bundle: &TrustBundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    usage: KeyUsage,
) -> Result<SpiffeId, VerifyError> {
    if intermediates.len() >= MAX_CHAIN {
        return Err(VerifyError::Length);
    }
    let chain = |e: webpki::Error| VerifyError::Chain(e.to_string());
    let leaf = EndEntityCert::try_from(leaf).map_err(chain)?;
    let path = leaf
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &bundle.anchors,
            intermediates,
            now,
            Usage(usage),
            None,
            None,
        )
        .map_err(chain)?;
    let mut uris = leaf.valid_uri_names();
    let identity: SpiffeId = match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|_| VerifyError::Identity)?,
        _ => return Err(VerifyError::Identity),
    };
    let issuer = path
        .intermediate_certificates()
        .next()
        .and_then(|issuer| issuer.valid_uri_names().next().map(str::to_owned));
    let speaks_for_it = issuer
        .as_deref()
        .and_then(TrustDomain::from_uri)
        .is_some_and(|td| td.as_str() == identity.trust_domain());
    if !speaks_for_it {
        return Err(VerifyError::Issuer {
            identity,
            issuer: issuer.unwrap_or_else(|| "an issuer that names no trust domain".to_owned()),
        });
    }
    Ok(identity)
}

/// `KeyUsage` is no `Copy`; this makes the validator's role plain.
struct Usage(KeyUsage);

impl ExtendedKeyUsageValidator for Usage {
    fn validate(&self, iter: webpki::KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        self.0.validate(iter)
    }
}

/// The time, as certificate checks want it.
pub(crate) fn unix_time(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(
        at.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO),
    )
}
