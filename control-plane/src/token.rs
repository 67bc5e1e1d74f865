//! Service-account tokens: signed JWTs, bound to an audience and a pod, as
//! Kubernetes projects them (KEP-1205). On Kubernetes TokenReview checks them.

use std::path::Path;

use anyhow::Context;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;

/// Whom tokens for the control plane are for.
pub const AUDIENCE: &str = "weft";
/// Largest token looked at, in bytes.
const MAX_TOKEN: usize = 16 * 1024;

/// What a token proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSubject {
    /// Namespace of the service account and its pod.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The pod that the token is bound to.
    pub pod: String,
    /// That pod's UID: one that was replaced is another pod.
    pub pod_uid: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: KubernetesClaims,
}

#[derive(Deserialize)]
struct KubernetesClaims {
    namespace: String,
    pod: BoundObject,
    serviceaccount: BoundObject,
}

#[derive(Deserialize)]
struct BoundObject {
    name: String,
    #[serde(default)]
    uid: String,
}

/// Who says whether a token is good.
pub enum TokenReviewer {
    /// A public key, without Kubernetes.
    Key(TokenKey),
    /// The API server.
    Kubernetes(kube::Client),
}

impl TokenReviewer {
    /// Checks a token. The error says what is wrong.
    pub async fn review(&self, token: &str) -> Result<TokenSubject, String> {
        if token.len() > MAX_TOKEN {
            return Err(format!("the token is larger than {MAX_TOKEN} bytes"));
        }
        match self {
            Self::Key(key) => key.review(token),
            Self::Kubernetes(client) => {
                crate::kubernetes::token_review::review(client, token).await
            }
        }
    }
}

/// The key that tokens are checked with.
pub struct TokenKey(DecodingKey);

impl TokenKey {
    /// Reads a public key, PEM.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let pem =
            std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let key =
            DecodingKey::from_ec_pem(&pem).context("the token key is not an EC public key")?;
        Ok(Self(key))
    }

    /// Checks signature, audience and times. The error says what is wrong.
    pub fn review(&self, token: &str) -> Result<TokenSubject, String> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        validation.validate_nbf = true;
        let claims = decode::<Claims>(token, &self.0, &validation)
            .map_err(|e| format!("the service-account token is refused: {e}"))?
            .claims;
        let Claims { sub, kubernetes: k } = claims;
        let wanted = format!(
            "system:serviceaccount:{}:{}",
            k.namespace, k.serviceaccount.name
        );
        if sub != wanted {
            return Err("the service-account token contradicts itself".to_owned());
        }
        Ok(TokenSubject {
            namespace: k.namespace,
            service_account: k.serviceaccount.name,
            pod: k.pod.name,
            pod_uid: k.pod.uid,
        })
    }
}
