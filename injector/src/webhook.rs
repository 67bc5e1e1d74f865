//! The webhooks (admission.k8s.io/v1): pods get a sidecar, and what an operator
//! writes is told at once what the mesh will not run. Which objects come here is
//! in the webhooks' configuration, for the API server to decide.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use futures_util::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{DefaultBackoff, watch_object};
use kube::{Api, Client};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use weft_api::ROOT_NAMESPACE;

use crate::{InjectorSettings, Outcome, inject};

/// Largest review that is read, in bytes: an object may have 1.5 MiB, and a
/// review holds it twice.
const MAX_REVIEW: usize = 4 * 1024 * 1024;
const HANDSHAKE: Duration = Duration::from_secs(5);
const CONCURRENT: usize = 64;
/// An API server passes few of them on.
const MAX_WARNINGS: usize = 8;

/// Secret with the webhook's certificate; the control plane fills it.
const SECRET: &str = "weft-injector-tls";

/// Shared by all requests.
pub struct Injector {
    settings: InjectorSettings,
    tls: RwLock<Option<Arc<ServerConfig>>>,
}

impl Injector {
    /// The certificate comes later.
    pub fn new(settings: InjectorSettings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            tls: RwLock::new(None),
        })
    }

    fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes each certificate that the Secret holds, until the process ends.
    pub async fn follow_certificate(&self, client: Client) {
        let secrets: Api<Secret> = Api::namespaced(client, ROOT_NAMESPACE);
        let stream = watch_object(secrets, SECRET).backoff(DefaultBackoff::default());
        let mut stream = std::pin::pin!(stream);
        while let Some(secret) = stream.next().await {
            let data = match secret {
                Ok(secret) => secret.and_then(|s| s.data).unwrap_or_default(),
                Err(error) => {
                    tracing::warn!(%error, "the Secret {SECRET} cannot be watched now");
                    continue;
                }
            };
            let (Some(chain), Some(key)) = (data.get("tls.crt"), data.get("tls.key")) else {
                tracing::info!("the Secret {SECRET} is not filled yet");
                continue;
            };
            match server_config(&chain.0, &key.0) {
                Ok(config) => {
                    *self.tls.write().unwrap_or_else(PoisonError::into_inner) = Some(config);
                    tracing::info!("the certificate is in use");
                }
                Err(error) => tracing::error!("the certificate stays as it was: {error:#}"),
            }
        }
    }
}

fn server_config(chain: &[u8], key: &[u8]) -> anyhow::Result<Arc<ServerConfig>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key)?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Health, in plaintext.
pub fn health_routes(injector: Arc<Injector>) -> Router {
    let ready = |State(injector): State<Arc<Injector>>| async move {
        match injector.tls().is_some() {
            true => (axum::http::StatusCode::OK, "ready\n"),
            false => (
                axum::http::StatusCode::SERVICE_UNAVAILABLE,
                "no certificate yet\n",
            ),
        }
    };
    Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .with_state(injector)
}

/// Serves the webhook until the process ends.
pub async fn serve(listener: TcpListener, injector: Arc<Injector>) {
    let routes = Router::new()
        .route("/inject", post(review))
        .route(
            "/validate",
            post(async |body: Bytes| Json(validation(&body))),
        )
        .layer(DefaultBodyLimit::max(MAX_REVIEW))
        .with_state(injector.clone());
    let slots = Arc::new(Semaphore::new(CONCURRENT));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let Ok((tcp, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // The newest certificate for each connection.
        let Some(tls) = injector.tls() else {
            continue;
        };
        let service = TowerToHyperService::new(routes.clone());
        tokio::spawn(async move {
            let accepted =
                tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(tcp)).await;
            match accepted {
                Ok(Ok(stream)) => {
                    let served = Builder::new(TokioExecutor::new());
                    if let Err(error) = served.serve_connection(TokioIo::new(stream), service).await
                    {
                        tracing::debug!(%error, "a connection ended");
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "a handshake failed"),
                Err(_) => tracing::debug!("a handshake took too long"),
            }
            drop(slot);
        });
    }
}

async fn review(State(injector): State<Arc<Injector>>, body: Bytes) -> Json<Value> {
    Json(answer(&body, &injector.settings))
}

/// The answer to a review.
fn reviewed(mut response: Value, review: &Value) -> Value {
    if let Some(response) = response.as_object_mut() {
        let uid = review.pointer("/request/uid").cloned();
        response.insert("uid".to_owned(), uid.unwrap_or_default());
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

fn refusal(message: &str) -> Value {
    json!({"allowed": false, "status": {"code": 422, "message": format!("weft: {message}")}})
}

/// What the schema of a kind cannot say. Objects of our own kinds are refused;
/// those of the Gateway API may be meant for somebody else too: their author is
/// warned, and the object's status says the same.
pub fn validation(body: &[u8]) -> Value {
    let review: Value = serde_json::from_slice(body).unwrap_or_default();
    let object = review.pointer("/request/object").cloned();
    let object = object.unwrap_or_default();
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or_default().to_owned();
    let own = text("/apiVersion").is_some_and(|v| v.starts_with("weft.dev/"));
    let response = match weft_api::parse_live(&kind, object) {
        Ok(_) => json!({"allowed": true}),
        Err(problems) if own => {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            refusal(&all.join("; "))
        }
        Err(problems) => {
            let told = problems.iter().take(MAX_WARNINGS);
            let told: Vec<String> = told
                .map(|p| format!("the mesh will not run this: {p}"))
                .collect();
            json!({"allowed": true, "warnings": told})
        }
    };
    reviewed(response, &review)
}

/// The answer to the review of a pod.
pub fn answer(body: &[u8], settings: &InjectorSettings) -> Value {
    let review: Value = serde_json::from_slice(body).unwrap_or_default();
    let said = |response: Value| reviewed(response, &review);
    let denied = |why: &str| said(refusal(&format!("no sidecar can be added: {why}")));
    let Some(object) = review.pointer("/request/object") else {
        return denied("the review has no object");
    };
    let mut changed = object.clone();
    if let Some(pod) = changed.as_object_mut() {
        pod.insert("kind".to_owned(), json!("Pod"));
    }
    let name = object
        .pointer("/metadata/name")
        .or_else(|| object.pointer("/metadata/generateName"));
    let namespace = review
        .pointer("/request/namespace")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let pod = name.and_then(Value::as_str).unwrap_or_default();
    match inject(&mut changed, settings) {
        Err(error) => {
            tracing::warn!(namespace, pod, %error, "a pod is refused");
            denied(&error.0)
        }
        Ok(Outcome::Skipped(why)) => {
            tracing::info!(namespace, pod, why, "a pod is left as it is");
            said(json!({"allowed": true}))
        }
        Ok(Outcome::Injected) => {
            tracing::info!(namespace, pod, "a pod gets a sidecar");
            let mut before = object.clone();
            if let Some(pod) = before.as_object_mut() {
                pod.insert("kind".to_owned(), json!("Pod"));
            }
            let patch = json!(json_patch::diff(&before, &changed)).to_string();
            let patch = base64::engine::general_purpose::STANDARD.encode(patch);
            said(json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}))
        }
    }
}
