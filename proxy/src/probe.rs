//! Probes and hooks that kubelet would make over the network, made from within
//! the pod instead: strict mutual TLS and policies stay as they are, and a TCP
//! probe meets the application rather than the proxy.
//!
//! Exactly those are made that the pod's author wrote; of the answer only
//! success or failure is passed on.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

/// Probes by CONTAINER/KIND, as the injector wrote them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Probes(HashMap<String, Probe>);

impl std::str::FromStr for Probes {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

/// A probe as Kubernetes writes it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Probe {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    timeout_seconds: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HttpGet {
    path: String,
    port: u16,
    scheme: String,
    http_headers: Vec<Header>,
}

#[derive(Debug, Clone, Deserialize)]
struct Header {
    name: String,
    value: String,
}

#[derive(Debug, Clone, Deserialize)]
struct TcpSocket {
    port: u16,
}

#[derive(Debug, Clone, Deserialize)]
struct Grpc {
    port: u16,
    #[serde(default)]
    service: Option<String>,
}

/// Where kubelet's own limits are.
const MAX_REDIRECTS: usize = 10;
const MAX_BODY: usize = 10 * 1024;
/// A probe that says nothing else; hooks may take their time.
const PROBE: Duration = Duration::from_secs(1);
const HOOK: Duration = Duration::from_secs(60);

impl Probes {
    /// Makes the probe of a path under `/probe/`. `None`: there is none of
    /// that name. An error says what failed.
    pub async fn make(
        &self,
        name: &str,
        pod: IpAddr,
        asked: &HeaderMap,
    ) -> Option<Result<(), String>> {
        let probe = self.0.get(name)?;
        let usual = if name.ends_with("/preStop") || name.ends_with("/postStart") {
            HOOK
        } else {
            PROBE
        };
        let limit = probe.timeout_seconds.map_or(usual, Duration::from_secs);
        let made = tokio::time::timeout(limit, probe.make(pod, asked)).await;
        Some(made.unwrap_or_else(|_| Err(format!("no answer within {limit:?}"))))
    }
}

impl Probe {
    async fn make(&self, pod: IpAddr, asked: &HeaderMap) -> Result<(), String> {
        if let Some(get) = &self.http_get {
            return get.make(pod, asked).await;
        }
        if let Some(tcp) = &self.tcp_socket {
            let connected = TcpStream::connect((pod, tcp.port)).await;
            return connected.map(|_| ()).map_err(|e| e.to_string());
        }
        match &self.grpc {
            Some(grpc) => grpc.make(pod).await,
            None => Err("the probe asks for nothing".to_owned()),
        }
    }
}

impl HttpGet {
    async fn make(&self, pod: IpAddr, asked: &HeaderMap) -> Result<(), String> {
        let address = SocketAddr::new(pod, self.port);
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        let mut target = format!("{slash}{}", self.path);
        let mut tls = self.scheme == "HTTPS";
        for _ in 0..=MAX_REDIRECTS {
            let response = self.get(address, tls, &target, asked).await?;
            let status = response.status();
            if !status.is_redirection() {
                let fine = status.is_success();
                // Read as kubelet reads it: an answer that breaks off is a failure.
                let _ = Limited::new(response.into_body(), MAX_BODY).collect().await;
                return if fine {
                    Ok(())
                } else {
                    Err(format!("HTTP {status}"))
                };
            }
            let location = response
                .headers()
                .get(header::LOCATION)
                .and_then(|l| l.to_str().ok());
            match location.and_then(|l| l.parse::<Uri>().ok()) {
                // Only within the pod; elsewhere counts as success, as it does for kubelet.
                Some(uri)
                    if uri.host().is_none_or(|h| h == pod.to_string())
                        && uri.port_u16().is_none_or(|p| p == self.port) =>
                {
                    tls = uri.scheme_str().map_or(tls, |s| s == "https");
                    target = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
                }
                _ => return Ok(()),
            }
        }
        Err(format!("more than {MAX_REDIRECTS} redirects"))
    }

    async fn get(
        &self,
        address: SocketAddr,
        tls: bool,
        target: &str,
        asked: &HeaderMap,
    ) -> Result<Response<Incoming>, String> {
        let tcp = TcpStream::connect(address)
            .await
            .map_err(|e| e.to_string())?;
        let request = self.request(address, target, asked)?;
        let sent = if tls {
            let name = ServerName::from(address.ip());
            let stream = TlsConnector::from(any_server()?).connect(name, tcp).await;
            send(TokioIo::new(stream.map_err(|e| e.to_string())?), request).await
        } else {
            send(TokioIo::new(tcp), request).await
        };
        sent.map_err(|e| e.to_string())
    }

    fn request(
        &self,
        address: SocketAddr,
        target: &str,
        asked: &HeaderMap,
    ) -> Result<Request<Empty<Bytes>>, String> {
        let mut request = Request::get(target)
            .body(Empty::new())
            .map_err(|e| e.to_string())?;
        let fields = request.headers_mut();
        let host = HeaderValue::from_str(&address.to_string()).map_err(|e| e.to_string())?;
        fields.insert(header::HOST, host);
        fields.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if let Some(agent) = asked.get(header::USER_AGENT) {
            fields.insert(header::USER_AGENT, agent.clone());
        }
        for Header { name, value } in &self.http_headers {
            let name = HeaderName::try_from(name).map_err(|e| e.to_string())?;
            let value = HeaderValue::try_from(value).map_err(|e| e.to_string())?;
            if name == header::HOST {
                fields.insert(name, value);
            } else {
                fields.append(name, value);
            }
        }
        Ok(request)
    }
}

async fn send<T>(
    io: TokioIo<T>,
    request: Request<Empty<Bytes>>,
) -> hyper::Result<Response<Incoming>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl Grpc {
    async fn make(&self, pod: IpAddr) -> Result<(), String> {
        let address = SocketAddr::new(pod, self.port);
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
        let channel = endpoint
            .map_err(|e| e.to_string())?
            .connect()
            .await
            .map_err(|e| e.to_string())?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|e| e.to_string())?;
        let request = HealthCheckRequest {
            service: self.service.clone().unwrap_or_default(),
        };
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
        let answer = client
            .unary(tonic::Request::new(request), path, codec)
            .await;
        match answer.map_err(|e| e.to_string())?.into_inner().status {
            1 => Ok(()),
            other => Err(format!("its health is {other}, not SERVING (1)")),
        }
    }
}

/// Kubelet does not check the certificate of an HTTPS probe either.
#[derive(Debug)]
struct AnyServer(WebPkiSupportedAlgorithms);

fn any_server() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyServer(provider.signature_verification_algorithms));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Asks the sidecar of this pod from another process in it: `weft-proxy drain`
/// and `weft-proxy wait`.
pub mod own {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    const ADMIN: (&str, u16) = ("127.0.0.1", 15020);
    const WAIT: Duration = Duration::from_secs(120);

    fn ask(method: &str, path: &str) -> super::io::Result<bool> {
        let mut stream = TcpStream::connect(ADMIN)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    }

    /// Tells callers to choose other pods; the sidecar goes on.
    pub fn drain() -> super::io::Result<bool> {
        ask("POST", "/drain")
    }

    /// Returns when the sidecar is ready; `false`: it did not get ready.
    pub fn wait() -> bool {
        let start = Instant::now();
        while start.elapsed() < WAIT {
            if ask("GET", "/ready").unwrap_or(false) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }
}
