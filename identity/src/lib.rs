//! Who a workload is, and how it proves that: SPIFFE IDs, the certificate
//! authority, the verification of peers and the rustls configurations.
//!
//! Follows the SPIFFE ID, X.509-SVID and trust bundle specifications. One rule
//! goes further: the trust domain of a leaf must be the one that its issuer's
//! own certificate names, so that an intermediate speaks for its own trust
//! domain only, under a root that several of them share.

mod authority;
mod spiffe;
mod svid;
mod tls;
mod verify;

pub use authority::{Authority, AuthorityError, LeafRequest, Root, new_root};
pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
pub use svid::{Svid, SvidError, certificate_dates, fingerprint, new_key_and_csr, new_signing_key};
pub use tls::{
    ALPN_GRPC, ALPN_HTTP, ALPN_TCP, PeerRule, TlsError, client_config, peer_identity,
    server_config, server_config_optional_client,
};
pub use verify::{TrustBundle, VerifyError, verify_peer};
