//! The certificate authority: an offline root, an intermediate for each trust
//! domain, and the leaves it signs.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;

use crate::spiffe::{SpiffeId, TrustDomain};

/// Certificates are valid from this long before they are made, so that a peer
/// whose clock is behind accepts them.
const BACKDATE: Duration = Duration::from_secs(300);
const DAY: Duration = Duration::from_secs(86_400);
/// Largest certificate signing request looked at, in bytes.
const MAX_CSR: usize = 8 * 1024;

/// Why an authority could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The request does not parse, or does not prove that its key is the caller's.
    #[error("the certificate signing request is refused: {0}")]
    Csr(String),
    /// Only P-256 keys are signed.
    #[error("the certificate signing request is refused: its key is not ECDSA P-256")]
    KeyType,
    /// The signer's own certificate is at its end.
    #[error("the issuer's certificate has ended or is about to: renew it with `meshctl ca init`")]
    IssuerExpired,
    /// Key or certificate files that do not fit.
    #[error("{what} cannot be used: {why}")]
    Material {
        /// Which file or part.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

fn material(what: &'static str) -> impl Fn(rcgen::Error) -> AuthorityError {
    move |e| AuthorityError::Material {
        what,
        why: e.to_string(),
    }
}

/// A root's certificate and key; the key is needed only to make intermediates.
pub struct Root {
    /// PEM.
    pub certificate_pem: String,
    /// PKCS#8, PEM.
    pub key_pem: String,
}

/// Makes a self-signed root, valid for ten years.
pub fn new_root(common_name: &str) -> Result<Root, AuthorityError> {
    let key = KeyPair::generate().map_err(material("the root's key"))?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Weft");
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, SystemTime::now(), 3650 * DAY);
    let certificate = params
        .self_signed(&key)
        .map_err(material("the root's certificate"))?;
    Ok(Root {
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
    })
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, lifetime: Duration) {
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(now + lifetime);
}

/// What a leaf is to say.
pub struct LeafRequest<'a> {
    /// The caller's PKCS#10 request, DER.
    pub csr_der: &'a [u8],
    /// The identity that the caller has proved.
    pub identity: &'a SpiffeId,
    /// How long it is to be valid; shortened to the issuer's own end.
    pub lifetime: Duration,
}

/// An intermediate: signs the leaves of one trust domain.
pub struct Authority {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
}

impl Root {
    /// Makes the intermediate of a trust domain, valid for `lifetime`.
    /// Returns its certificate and key, PEM.
    pub fn sign_intermediate(
        &self,
        trust_domain: &TrustDomain,
        lifetime: Duration,
    ) -> Result<(String, String), AuthorityError> {
        let root_key = KeyPair::from_pem(&self.key_pem).map_err(material("the root's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate_pem, root_key)
            .map_err(material("the root's certificate"))?;
        let key = KeyPair::generate().map_err(material("the intermediate's key"))?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Weft");
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Weft issuer of {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&trust_domain.uri())?];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, SystemTime::now(), lifetime);
        let certificate = params
            .signed_by(&key, &issuer)
            .map_err(material("the intermediate's certificate"))?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn uri(text: &str) -> Result<SanType, AuthorityError> {
    let name = text.try_into().map_err(material("a URI name"))?;
    Ok(SanType::URI(name))
}

impl Authority {
    /// Reads an intermediate's certificate and key, PEM. Its certificate must
    /// carry the URI of its trust domain.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let what = "the issuer's certificate";
        let bad = |why: String| AuthorityError::Material { what, why };
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| bad(e.to_string()))?;
        let facts = crate::svid::facts(&certificate).map_err(|e| bad(e.to_string()))?;
        let trust_domain = facts
            .uris
            .iter()
            .find_map(|u| TrustDomain::from_uri(u))
            .ok_or_else(
                || bad("it names no trust domain (URI spiffe://TRUST-DOMAIN)".to_owned()),
            )?;
        let key = KeyPair::from_pem(key_pem).map_err(material("the issuer's key"))?;
        if facts.public_key != key.subject_public_key_info() {
            return Err(bad("its key is another one".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(material(what))?;
        Ok(Self {
            trust_domain,
            issuer,
            certificate: certificate.into_owned(),
            not_after: facts.not_after,
        })
    }

    /// The trust domain it speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Its own certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// When it ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Signs a leaf for a proved identity. Of the request only the public key
    /// and the proof that the caller holds the private one are used.
    ///
    /// Returns the leaf and this intermediate, DER.
    pub fn sign(
        &self,
        request: &LeafRequest<'_>,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        if request.identity.trust_domain() != self.trust_domain.as_str() {
            return Err(AuthorityError::Csr(format!(
                "{} is not of the trust domain {}",
                request.identity, self.trust_domain
            )));
        }
        if request.csr_der.len() > MAX_CSR {
            return Err(AuthorityError::Csr(format!("larger than {MAX_CSR} bytes")));
        }
        let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(
            request.csr_der,
        ))
        .map_err(|e| AuthorityError::Csr(e.to_string()))?;
        if csr.public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(AuthorityError::KeyType);
        }
        let now = SystemTime::now();
        let left = self
            .not_after
            .duration_since(now)
            .map_err(|_| AuthorityError::IssuerExpired)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![uri(request.identity.as_str())?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, request.lifetime.min(left));
        let leaf = params
            .signed_by(&csr.public_key, &self.issuer)
            .map_err(|e| AuthorityError::Csr(e.to_string()))?;
        Ok(vec![leaf.der().clone(), self.certificate.clone()])
    }

    /// Makes a key and a certificate for DNS names: for a server that is
    /// called by those who do not know identities, such as an API server that
    /// calls a webhook. Returns chain and key, PEM.
    pub fn sign_server(
        &self,
        names: &[String],
        lifetime: Duration,
    ) -> Result<(String, String), AuthorityError> {
        let what = "the server's certificate";
        let now = SystemTime::now();
        let left = self
            .not_after
            .duration_since(now)
            .map_err(|_| AuthorityError::IssuerExpired)?;
        let key = KeyPair::generate().map_err(material(what))?;
        let mut params = CertificateParams::new(names).map_err(material(what))?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, lifetime.min(left));
        let leaf = params
            .signed_by(&key, &self.issuer)
            .map_err(material(what))?;
        let intermediate = pem::Pem::new("CERTIFICATE", self.certificate.to_vec());
        Ok((
            leaf.pem() + &pem::encode(&intermediate),
            key.serialize_pem(),
        ))
    }
}
