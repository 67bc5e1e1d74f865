//! Service-account tokens, signed as the API server signs projected ones.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

/// The key that signs tokens, made anew for each mesh.
pub struct TokenSigner {
    key: EncodingKey,
    /// The public half, PEM.
    pub public_pem: String,
}

impl TokenSigner {
    /// Makes a key.
    pub fn new() -> anyhow::Result<Self> {
        let (private_pem, public_pem) = weft_identity::new_signing_key()?;
        let key = EncodingKey::from_ec_pem(private_pem.as_bytes()).context("the token key")?;
        Ok(Self { key, public_pem })
    }

    /// A token for the control plane, bound to a pod.
    pub fn token(
        &self,
        namespace: &str,
        account: &str,
        pod: &str,
        uid: &str,
    ) -> anyhow::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = json!({
            "iss": "weft-local",
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "aud": ["weft"],
            "iat": now,
            "nbf": now.saturating_sub(60),
            "exp": now + 365 * 86_400,
            "kubernetes.io": {
                "namespace": namespace,
                "pod": {"name": pod, "uid": uid},
                "serviceaccount": {"name": account, "uid": ""},
            },
        });
        Ok(encode(&Header::new(Algorithm::ES256), &claims, &self.key)?)
    }
}
