//! SPIFFE IDs of the form that Kubernetes meshes use.

use std::fmt;
use std::str::FromStr;

/// Longest trust domain accepted, in bytes (SPIFFE-ID section 2.1).
const MAX_TRUST_DOMAIN: usize = 255;
/// Longest SPIFFE ID accepted, in bytes (SPIFFE-ID section 2.3).
const MAX_ID: usize = 2048;

/// Why a text is not a SPIFFE ID of a workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// It does not have the form of the specification.
    #[error(
        "{0:?} is not a workload identity: expected spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT"
    )]
    Form(String),
    /// The trust domain has other characters than the specification allows.
    #[error(
        "{0:?} is not a trust domain: use lower-case letters, digits, '.', '-' and '_', at most 255 of them"
    )]
    TrustDomain(String),
}

/// The name under which one authority issues identities, such as
/// `cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The name, without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URI that the trust domain's issuer carries in its certificate.
    pub fn uri(&self) -> String {
        format!("spiffe://{}", self.0)
    }

    /// The trust domain of an issuer's URI; `None` if it names anything else.
    pub fn from_uri(uri: &str) -> Option<Self> {
        uri.strip_prefix("spiffe://")?.parse().ok()
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN || !text.bytes().all(allowed) {
            return Err(SpiffeIdError::TrustDomain(text.chars().take(64).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: String,
    trust_domain_end: usize,
    namespace_end: usize,
}

const SCHEME: &str = "spiffe://";
const NS: &str = "/ns/";
const SA: &str = "/sa/";

impl SpiffeId {
    /// The identity of a service account.
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        format!("{SCHEME}{trust_domain}{NS}{namespace}{SA}{service_account}").parse()
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// Its trust domain's name.
    pub fn trust_domain(&self) -> &str {
        self.uri
            .get(SCHEME.len()..self.trust_domain_end)
            .unwrap_or_default()
    }

    /// Its Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        self.uri
            .get(self.trust_domain_end + NS.len()..self.namespace_end)
            .unwrap_or_default()
    }

    /// Its Kubernetes service account.
    pub fn service_account(&self) -> &str {
        self.uri
            .get(self.namespace_end + SA.len()..)
            .unwrap_or_default()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(uri: &str) -> Result<Self, SpiffeIdError> {
        let form = || SpiffeIdError::Form(uri.chars().take(128).collect());
        if uri.len() > MAX_ID {
            return Err(form());
        }
        let rest = uri.strip_prefix(SCHEME).ok_or_else(form)?;
        let (trust_domain, path) = rest.split_once('/').ok_or_else(form)?;
        TrustDomain::from_str(trust_domain)?;
        let mut segments = path.split('/');
        let (Some("ns"), Some(namespace), Some("sa"), Some(account), None) = (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) else {
            return Err(form());
        };
        if !is_segment(namespace) || !is_segment(account) {
            return Err(form());
        }
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        Ok(Self {
            uri: uri.to_owned(),
            trust_domain_end,
            namespace_end: trust_domain_end + NS.len() + namespace.len(),
        })
    }
}

/// A path segment as SPIFFE-ID section 2.2 has it.
fn is_segment(text: &str) -> bool {
    !text.is_empty()
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_identity_gives_back_its_parts() {
        let id: SpiffeId = "spiffe://east.example/ns/shop/sa/web".parse().unwrap();
        assert_eq!(id.trust_domain(), "east.example");
        assert_eq!(id.namespace(), "shop");
        assert_eq!(id.service_account(), "web");
    }

    #[test]
    fn what_is_not_exactly_a_workload_identity_is_refused() {
        for text in [
            "",
            "spiffe://",
            "https://east.example/ns/shop/sa/web",
            "spiffe://east.example/ns/shop/sa/",
            "spiffe://east.example/ns//sa/web",
            "spiffe://east.example/ns/shop/sa/web/",
            "spiffe://east.example/ns/shop/sa/web/more",
            "spiffe://East.example/ns/shop/sa/web",
            "spiffe://east.example:8443/ns/shop/sa/web",
            "spiffe://east.example/ns/../sa/web",
            "spiffe://east.example/ns/sh%6fp/sa/web",
            "spiffe://east.example/ns/shop/sa/web?x",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_prints_back_the_same(text in "spiffe://[a-z./-]{0,12}/ns/[a-z./]{0,8}/sa/[a-z./]{0,8}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                let td: TrustDomain = id.trust_domain().parse().unwrap();
                prop_assert_eq!(SpiffeId::new(&td, id.namespace(), id.service_account()).unwrap(), id);
            }
        }
    }
}
