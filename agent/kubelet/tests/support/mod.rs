//! A kubelet API server with a made-up runtime, and clients for it.

mod runtime;
mod spdy;

use std::path::PathBuf;
use std::sync::Arc;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use keelson_kubelet::certs::{Identity, ServingCertificate};
use keelson_kubelet::server::auth::{Attributes, ReviewError, User};
use keelson_kubelet::server::{AccessReview, Backend, PodSource, ServerConfig, serve};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_util::sync::CancellationToken;

pub use spdy::Spdy;

/// How a client says who it is.
#[derive(Clone, Copy)]
pub enum Who<'a> {
    /// A client certificate for that user.
    Certificate(&'a str),
    /// A bearer token.
    Token(&'a str),
}

/// A running server.
pub struct Kubelet {
    address: std::net::SocketAddr,
    roots: rustls::RootCertStore,
    clients: rcgen::Issuer<'static, rcgen::KeyPair>,
    shutdown: CancellationToken,
    _logs: tempfile::TempDir,
}

impl Kubelet {
    /// Starts a server with one pod, `default/web`, whose container is `app`.
    pub async fn start() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let identity = Identity::from_pem(&(certificate.pem() + &key.serialize_pem()), "test").unwrap();
        let serving = Arc::new(ServingCertificate::default());
        serving.set(&identity).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let logs = tempfile::tempdir().unwrap();
        let log = logs.path().join("0.log");
        std::fs::write(
            &log,
            "2026-01-01T00:00:00.000000001Z stdout F one\n2026-01-01T00:00:01.000000001Z stdout F two\n",
        )
        .unwrap();
        let backend = Backend {
            config: ServerConfig::new("n1"),
            pods: Arc::new(OnePod { log }),
            runtime: Arc::new(runtime::FakeRuntime::default()),
            reviews: Arc::new(Reviews),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authorities = [authority.self_signed(&key).unwrap().der().clone()];
        let clients = rcgen::Issuer::new(authority, key);
        tokio::spawn(async move { serve(listener, backend, serving, &authorities, token).await.unwrap() });
        Self { address, roots, clients, shutdown, _logs: logs }
    }

    /// A TLS connection without client certificate.
    pub async fn connect(&self) -> TlsStream<TcpStream> {
        self.connect_as(Who::Token("")).await
    }

    /// A TLS connection, with a client certificate if that is who asks.
    async fn connect_as(&self, who: Who<'_>) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone());
        let config = match who {
            Who::Token(_) => config.with_no_client_auth(),
            Who::Certificate(user) => {
                let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
                params.distinguished_name = rcgen::DistinguishedName::new();
                params.distinguished_name.push(rcgen::DnType::CommonName, user);
                params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
                let key = rcgen::KeyPair::generate().unwrap();
                let certificate = params.signed_by(&key, &self.clients).unwrap();
                let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                config.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
        };
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// CONNECT to that address: the tunnel, or why not.
    pub async fn tunnel(
        &self,
        who: Who<'_>,
        to: &str,
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>, (StatusCode, String)> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect_as(who).await)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::connect(to).header("host", to);
        if let Who::Token(token) = who {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response =
            sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
        if response.status() == StatusCode::OK {
            return Ok(TokioIo::new(hyper::upgrade::on(response).await.unwrap()));
        }
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Err((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    /// GET as somebody who may everything.
    pub async fn get(&self, path: &str) -> (StatusCode, String) {
        self.get_as(Some("admin"), path).await
    }

    /// GET with a token.
    pub async fn get_as(&self, token: Option<&str>, path: &str) -> (StatusCode, String) {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::get(path).header("host", "localhost");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response =
            sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A WebSocket with that one protocol offered ("": none), and the protocol chosen; or the status of the refusal.
pub async fn connect_websocket(
    kubelet: &Kubelet,
    protocol: &str,
    path: &str,
) -> Result<(WebSocketStream<TlsStream<TcpStream>>, String), StatusCode> {
    use tokio_tungstenite::tungstenite::Error;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    let mut request = format!("wss://localhost{path}").into_client_request().unwrap();
    if !protocol.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    }
    request.headers_mut().insert("authorization", "Bearer admin".parse().unwrap());
    match tokio_tungstenite::client_async(request, kubelet.connect().await).await {
        Ok((socket, response)) => {
            let chosen = response.headers().get("sec-websocket-protocol");
            Ok((socket, chosen.map(|name| name.to_str().unwrap().to_owned()).unwrap_or_default()))
        }
        Err(Error::Http(response)) => Err(response.status()),
        Err(error) => panic!("{error}"),
    }
}

struct OnePod {
    log: PathBuf,
}

impl OnePod {
    fn pod() -> Arc<Pod> {
        let pod = serde_json::json!({
            "metadata": { "namespace": "default", "name": "web", "uid": "u1" },
            "spec": { "containers": [{ "name": "app" }] },
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }
}

impl PodSource for OnePod {
    fn pods(&self) -> Vec<Arc<Pod>> {
        vec![Self::pod()]
    }

    fn get_pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        (namespace == "default" && name == "web").then(Self::pod)
    }

    fn container_id(&self, _pod_uid: &str, container_name: &str, previous: bool) -> Option<String> {
        (container_name == "app" && !previous).then(|| "c1".to_owned())
    }

    fn sandbox_id(&self, _pod_uid: &str) -> Option<String> {
        Some("s1".to_owned())
    }

    fn log_path(&self, _pod_uid: &str, _container_name: &str, previous: bool) -> Option<PathBuf> {
        (!previous).then(|| self.log.clone())
    }
}

/// `admin` may everything, `reader` may read stats; both have a token.
struct Reviews;

#[async_trait::async_trait]
impl AccessReview for Reviews {
    async fn authenticate(&self, token: &str) -> Result<Option<User>, ReviewError> {
        let known = matches!(token, "admin" | "reader");
        Ok(known.then(|| User { name: token.to_owned(), ..User::default() }))
    }

    async fn allowed(&self, user: &User, attributes: &Attributes) -> Result<bool, ReviewError> {
        Ok(user.name == "admin" || (attributes.verb == "get" && attributes.subresource == "stats"))
    }
}
