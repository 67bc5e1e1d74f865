//! Service-account tokens, as the API server judges them (TokenReview).

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::token::{AUDIENCE, TokenSubject};

/// Asks the API server whether a token is good, for whom, and for which pod.
pub async fn review(client: &Client, token: &str) -> Result<TokenSubject, String> {
    let asked = TokenReview {
        spec: TokenReviewSpec {
            audiences: Some(vec![AUDIENCE.to_owned()]),
            token: Some(token.to_owned()),
        },
        ..TokenReview::default()
    };
    let api: Api<TokenReview> = Api::all(client.clone());
    let answer = api.create(&PostParams::default(), &asked).await;
    let answer = answer.map_err(|e| format!("the token cannot be checked now: {e}"))?;
    let status = answer
        .status
        .ok_or("the API server did not judge the token")?;
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "it is not valid".to_owned());
        return Err(format!("the service-account token is refused: {why}"));
    }
    if !status.audiences.iter().flatten().any(|a| a == AUDIENCE) {
        return Err(format!(
            "the service-account token is for another audience than {AUDIENCE:?}"
        ));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let (namespace, service_account) = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .ok_or_else(|| format!("{name:?} is not a service account"))?;
    let bound = |field: &str| {
        let extra = user
            .extra
            .as_ref()?
            .get(&format!("authentication.kubernetes.io/{field}"))?;
        extra.first().cloned()
    };
    let unbound = "the service-account token is not bound to a pod: use a projected one";
    Ok(TokenSubject {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: bound("pod-name").ok_or(unbound)?,
        pod_uid: bound("pod-uid").ok_or(unbound)?,
    })
}
