//! gRPC channels to the control plane, with the mesh's own TLS.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

const CONNECT: Duration = Duration::from_secs(5);

/// Connects to HOST:PORT now; an error says why not.
pub async fn connect(
    address: &str,
    tls: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let address = address.to_owned();
    let connector = service_fn(move |_: Uri| {
        let tls = TlsConnector::from(tls.clone());
        let address = address.clone();
        async move {
            let connecting = async {
                let tcp = TcpStream::connect(&address).await?;
                tcp.set_nodelay(true)?;
                // Whom it must prove to be is an identity, not this.
                tls.connect(ServerName::from(tcp.peer_addr()?.ip()), tcp)
                    .await
            };
            // A control plane that accepts and then says nothing is away too.
            let stream = tokio::time::timeout(CONNECT, connecting).await??;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://control-plane.weft")
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .connect_with_connector(connector)
        .await
}
