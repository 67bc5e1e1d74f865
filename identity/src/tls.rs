//! rustls configurations: TLS 1.3 only, both sides proved, X25519MLKEM768
//! preferred.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};
use webpki::KeyUsage;

use crate::spiffe::SpiffeId;
use crate::svid::{Svid, facts};
use crate::verify::{TrustBundle, VerifyError, unix_time, verify_peer};

/// Between proxies: requests in the shared framing.
pub const ALPN_HTTP: &[u8] = b"weft/http";
/// Between proxies: one opaque connection.
pub const ALPN_TCP: &[u8] = b"weft/tcp";
/// Between proxy and control plane.
pub const ALPN_GRPC: &[u8] = b"h2";

/// TLS sessions a client keeps for each configuration.
const CLIENT_SESSIONS: usize = 64;

/// Why a configuration could not be made or a peer not be accepted.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refused the key or chain.
    #[error("the TLS configuration cannot be made: {0}")]
    Config(#[from] Error),
    /// The session proves no identity, or one that has ended.
    #[error("the peer's identity cannot be used: {0}")]
    Peer(String),
}

/// Which peers are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerRule {
    /// Exactly this workload.
    Exactly(SpiffeId),
    /// Any workload that the bundle's roots vouch for.
    AnyTrusted,
}

#[derive(Debug)]
struct Verifier {
    bundle: TrustBundle,
    rule: PeerRule,
    provider: Arc<CryptoProvider>,
    client_required: bool,
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let identity =
            verify_peer(&self.bundle, leaf, intermediates, now, usage).map_err(refuse)?;
        match &self.rule {
            PeerRule::Exactly(expected) if *expected != identity => Err(Error::InvalidCertificate(
                CertificateError::Other(OtherError(Arc::new(WrongPeer {
                    expected: expected.clone(),
                    identity,
                }))),
            )),
            _ => Ok(()),
        }
    }
}

fn refuse(error: VerifyError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// The peer is trusted, but is not the one that was to be called.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected}, but the peer proved to be {identity}")]
struct WrongPeer {
    expected: SpiffeId,
    identity: SpiffeId,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.client_required
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

fn verifier(bundle: &TrustBundle, rule: PeerRule, client_required: bool) -> Arc<Verifier> {
    Arc::new(Verifier {
        bundle: bundle.clone(),
        rule,
        provider: Arc::new(aws_lc_rs::default_provider()),
        client_required,
    })
}

/// The calling side. `svid` is `None` only before the first certificate has
/// been issued. Sessions resume within this configuration alone, so that they
/// end with the leaf that made them.
pub fn client_config(
    svid: Option<&Svid>,
    bundle: &TrustBundle,
    rule: PeerRule,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = verifier(bundle, rule, true);
    let builder = ClientConfig::builder_with_provider(verifier.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match svid {
        Some(svid) => builder.with_client_auth_cert(svid.chain.clone(), svid.private_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS);
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// The called side: the peer must prove who it is.
pub fn server_config(
    svid: &Svid,
    bundle: &TrustBundle,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    server(svid, bundle, alpn, true)
}

/// The control plane's side: a caller without a certificate may still ask for
/// its first one.
pub fn server_config_optional_client(
    svid: &Svid,
    bundle: &TrustBundle,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    server(svid, bundle, alpn, false)
}

fn server(
    svid: &Svid,
    bundle: &TrustBundle,
    alpn: &[&[u8]],
    client_required: bool,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = verifier(bundle, PeerRule::AnyTrusted, client_required);
    let mut config = ServerConfig::builder_with_provider(verifier.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(svid.chain.clone(), svid.private_key())?;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// The identity of an established session's peer, and when its certificate
/// ends. A resumed session is checked like a new one: a leaf that has ended
/// meanwhile is refused.
pub fn peer_identity(
    certificates: Option<&[CertificateDer<'_>]>,
) -> Result<(SpiffeId, SystemTime), TlsError> {
    let leaf = certificates
        .and_then(<[_]>::first)
        .ok_or_else(|| TlsError::Peer("it sent no certificate".to_owned()))?;
    let facts = facts(leaf).map_err(|e| TlsError::Peer(e.to_string()))?;
    if unix_time(facts.not_after) < UnixTime::now() {
        return Err(TlsError::Peer("its certificate has ended".to_owned()));
    }
    let identity = facts
        .uris
        .first()
        .and_then(|uri| uri.parse().ok())
        .ok_or_else(|| TlsError::Peer("it names no workload".to_owned()))?;
    Ok((identity, facts.not_after))
}
