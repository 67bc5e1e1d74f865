//! Which certificate chains are believed.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use rustls_pki_types::UnixTime;
use webpki::KeyUsage;
use weft_identity::{
    Authority, LeafRequest, Root, SpiffeId, TrustBundle, TrustDomain, VerifyError, new_key_and_csr,
    new_root, verify_peer,
};

const HOUR: Duration = Duration::from_secs(3600);

fn authority(root: &Root, trust_domain: &str) -> Authority {
    let td: TrustDomain = trust_domain.parse().unwrap();
    let (certificate, key) = root.sign_intermediate(&td, 24 * HOUR).unwrap();
    Authority::from_pem(&certificate, &key).unwrap()
}

fn leaf(
    by: &Authority,
    id: &str,
    lifetime: Duration,
) -> Vec<rustls_pki_types::CertificateDer<'static>> {
    let (_, csr_der) = new_key_and_csr().unwrap();
    by.sign(&LeafRequest {
        csr_der: &csr_der,
        identity: &id.parse().unwrap(),
        lifetime,
    })
    .unwrap()
}

fn verify(
    bundle: &Root,
    chain: &[rustls_pki_types::CertificateDer<'_>],
) -> Result<SpiffeId, VerifyError> {
    let bundle = TrustBundle::from_pem(&bundle.certificate_pem).unwrap();
    verify_peer(
        &bundle,
        &chain[0],
        &chain[1..],
        UnixTime::now(),
        KeyUsage::server_auth(),
    )
}

#[test]
fn a_leaf_of_the_mesh_proves_its_identity() {
    let root = new_root("test").unwrap();
    let chain = leaf(
        &authority(&root, "east.example"),
        "spiffe://east.example/ns/shop/sa/web",
        HOUR,
    );
    assert_eq!(verify(&root, &chain).unwrap().service_account(), "web");
}

#[test]
fn a_leaf_of_another_root_is_refused() {
    let (root, foreign) = (new_root("test").unwrap(), new_root("test").unwrap());
    let chain = leaf(
        &authority(&foreign, "east.example"),
        "spiffe://east.example/ns/shop/sa/web",
        HOUR,
    );
    assert!(matches!(verify(&root, &chain), Err(VerifyError::Chain(_))));
}

#[test]
fn an_expired_leaf_is_refused() {
    let root = new_root("test").unwrap();
    let chain = leaf(
        &authority(&root, "east.example"),
        "spiffe://east.example/ns/shop/sa/web",
        HOUR,
    );
    let bundle = TrustBundle::from_pem(&root.certificate_pem).unwrap();
    let later = SystemTime::now() + 2 * HOUR;
    let later = UnixTime::since_unix_epoch(later.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let verdict = verify_peer(
        &bundle,
        &chain[0],
        &chain[1..],
        later,
        KeyUsage::server_auth(),
    );
    assert!(matches!(verdict, Err(VerifyError::Chain(_))));
}

#[test]
fn an_issuer_speaks_for_its_own_trust_domain_only() {
    let root = new_root("test").unwrap();
    let west = authority(&root, "west.example");
    // The authority itself refuses to sign for another trust domain...
    let (_, csr_der) = new_key_and_csr().unwrap();
    let east_id: SpiffeId = "spiffe://east.example/ns/shop/sa/web".parse().unwrap();
    let request = LeafRequest {
        csr_der: &csr_der,
        identity: &east_id,
        lifetime: HOUR,
    };
    assert!(west.sign(&request).is_err());
    // ...and a leaf made with its stolen key is refused by every peer.
    let td: TrustDomain = "west.example".parse().unwrap();
    let (certificate_pem, key_pem) = root.sign_intermediate(&td, 24 * HOUR).unwrap();
    let key = rcgen::KeyPair::from_pem(&key_pem).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&certificate_pem, key).unwrap();
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(east_id.as_str().try_into().unwrap())];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let forged = params.signed_by(&leaf_key, &issuer).unwrap();
    let chain = [forged.der().clone(), west_certificate(&certificate_pem)];
    assert!(matches!(
        verify(&root, &chain),
        Err(VerifyError::Issuer { .. })
    ));
}

fn west_certificate(pem: &str) -> rustls_pki_types::CertificateDer<'static> {
    use rustls_pki_types::pem::PemObject;
    rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn the_names_in_a_request_are_ignored() {
    let root = new_root("test").unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["admin.example".to_owned()]).unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(
        "spiffe://east.example/ns/admin/sa/root".try_into().unwrap(),
    ));
    let csr = params.serialize_request(&key).unwrap();
    let chain = authority(&root, "east.example")
        .sign(&LeafRequest {
            csr_der: csr.der(),
            identity: &"spiffe://east.example/ns/shop/sa/web".parse().unwrap(),
            lifetime: HOUR,
        })
        .unwrap();
    assert_eq!(
        verify(&root, &chain).unwrap().as_str(),
        "spiffe://east.example/ns/shop/sa/web"
    );
}

#[test]
fn a_request_with_a_broken_proof_is_refused() {
    let root = new_root("test").unwrap();
    let (_, mut csr_der) = new_key_and_csr().unwrap();
    let last = csr_der.len() - 1;
    csr_der[last] ^= 1;
    let request = LeafRequest {
        csr_der: &csr_der,
        identity: &"spiffe://east.example/ns/shop/sa/web".parse().unwrap(),
        lifetime: HOUR,
    };
    assert!(authority(&root, "east.example").sign(&request).is_err());
}

#[test]
fn a_leaf_never_outlives_its_issuer() {
    let root = new_root("test").unwrap();
    let td: TrustDomain = "east.example".parse().unwrap();
    let (certificate, key) = root.sign_intermediate(&td, HOUR).unwrap();
    let by = Authority::from_pem(&certificate, &key).unwrap();
    let chain = leaf(&by, "spiffe://east.example/ns/shop/sa/web", 48 * HOUR);
    let (key_der, _) = new_key_and_csr().unwrap();
    let svid = weft_identity::Svid::new(chain, key_der).unwrap();
    assert!(svid.not_after <= by.not_after());
}
