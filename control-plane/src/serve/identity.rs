//! `Certify`: a token in, a certificate out.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};
use weft_identity::SpiffeId;
use weft_proto::identity_server::Identity;
use weft_proto::{CertifyRequest, CertifyResponse};

use crate::State;
use crate::token::{TokenReviewer, TokenSubject};

/// How long a new pod's watch may lag behind its token.
const PATIENCE: Duration = Duration::from_secs(2);

/// Issues certificates.
pub struct IdentityService {
    state: Arc<State>,
    tokens: TokenReviewer,
}

impl IdentityService {
    /// Asks `tokens` who a caller is.
    pub fn new(state: Arc<State>, tokens: TokenReviewer) -> Self {
        Self { state, tokens }
    }

    /// Waits a moment for a pod that the API server told the token's reviewer of
    /// and has not told the index of yet.
    async fn await_pod(&self, subject: &TokenSubject) -> Result<(), String> {
        let mut changes = self.state.changes.subscribe();
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let checked = self.check_pod(subject);
            if checked.is_ok() {
                return checked;
            }
            let changed = tokio::time::timeout_at(until, changes.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return checked;
            }
        }
    }

    /// The pod must exist, run as that service account, and be the very one
    /// that the token was bound to.
    fn check_pod(&self, subject: &TokenSubject) -> Result<(), String> {
        let index = self.state.index();
        let pod = index.pod(&subject.namespace, &subject.pod);
        let pod = pod.ok_or_else(|| {
            format!(
                "the pod {}/{} does not exist",
                subject.namespace, subject.pod
            )
        })?;
        if pod.metadata.uid != subject.pod_uid {
            return Err("the token is of a pod that was replaced".to_owned());
        }
        if pod.spec.account() != subject.service_account {
            return Err(format!(
                "the pod does not run as {}",
                subject.service_account
            ));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn certify(
        &self,
        request: Request<CertifyRequest>,
    ) -> Result<Response<CertifyResponse>, Status> {
        let header = request
            .metadata()
            .get("authorization")
            .and_then(|v| v.to_str().ok());
        let token = header
            .and_then(|v| v.strip_prefix("Bearer "))
            .ok_or_else(|| {
                Status::unauthenticated(
                    "a service-account token is needed: authorization: Bearer TOKEN",
                )
            })?;
        let subject = self
            .tokens
            .review(token)
            .await
            .map_err(Status::unauthenticated)?;
        self.await_pod(&subject)
            .await
            .map_err(Status::permission_denied)?;
        let trust_domain = self.state.issuer.trust_domain();
        let trust_domain = trust_domain
            .parse()
            .map_err(|_| Status::internal("no trust domain"))?;
        let identity = SpiffeId::new(&trust_domain, &subject.namespace, &subject.service_account)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let chain_der = self
            .state
            .issuer
            .sign(&request.get_ref().csr_der, &identity)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        tracing::info!(%identity, pod = subject.pod, "certificate issued");
        Ok(Response::new(CertifyResponse {
            chain_der,
            roots_der: self.state.issuer.roots_der(),
            spiffe_id: identity.to_string(),
        }))
    }
}
