//! A whole server at a socket, and clients with or without certificates.

#![allow(dead_code, reason = "no test file uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use keelson_apiserver::auth::AuthConfig;
use keelson_apiserver::pki::{KeyPairPem, Pki, PkiConfig};
use keelson_apiserver::{Config, Server, StoreConfig, Timeouts};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// Issuer and audience of tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A whole server on a port of loopback.
pub struct Fixture {
    pub pki: Arc<Pki>,
    pub address: SocketAddr,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    pub dir: tempfile::TempDir,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub fn pki(directory: std::path::PathBuf) -> Pki {
    Pki::load_or_create(&PkiConfig {
        directory,
        advertise_address: [192, 0, 2, 1].into(),
        service_address: [10, 96, 0, 1].into(),
        cluster_domain: "cluster.local".into(),
        extra_sans: vec!["127.0.0.1".into()],
    })
    .unwrap()
}

impl Fixture {
    pub async fn new(timeouts: Timeouts) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Arc::new(pki(dir.path().join("pki")));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (server, mut serving) = Server::build(Config {
            store: StoreConfig::Embedded(dir.path().join("store.redb")),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            advertise_address: [192, 0, 2, 1].into(),
            advertise_port: address.port(),
            listen: Vec::new(),
            listeners: vec![listener],
            auth: AuthConfig {
                pki: pki.clone(),
                issuer: ISSUER.into(),
                api_audiences: Vec::new(),
                external_url: format!("https://{address}"),
            },
        })
        .await
        .unwrap();
        serving.timeouts = timeouts;
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let serving = tokio::spawn(async move { server.serve(serving, stop).await.unwrap() });
        Self { pki, address, shutdown, serving, dir }
    }

    /// Has the server end, and waits for that.
    pub async fn shut_down(&mut self) {
        self.shutdown.cancel();
        (&mut self.serving).await.unwrap();
    }

    pub async fn tls(&self, identity: Option<&KeyPairPem>) -> TlsStream<TcpStream> {
        self.tls_over(TcpStream::connect(self.address).await.unwrap(), identity).await
    }

    pub async fn tls_over(&self, stream: TcpStream, identity: Option<&KeyPairPem>) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.pki.roots().unwrap());
        let config = match identity {
            None => config.with_no_client_auth(),
            Some(pair) => {
                let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let name = ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    pub async fn connect(&self, identity: Option<&KeyPairPem>) -> Connection {
        Connection::over(self.tls(identity).await).await
    }
}

pub struct Connection(hyper::client::conn::http1::SendRequest<Full<Bytes>>);

impl Connection {
    pub async fn over(stream: TlsStream<TcpStream>) -> Self {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub async fn open(
        &mut self,
        method: &str,
        path: &str,
        token: &str,
        body: Value,
    ) -> http::Response<Incoming> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let mut request =
            Request::builder().method(method).uri(path).header("host", "x").header("content-type", kind);
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.0.ready().await.unwrap();
        self.0.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap()
    }

    pub async fn send(&mut self, method: &str, path: &str, token: &str, body: Value) -> (u16, Value) {
        let response = self.open(method, path, token, body).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub async fn make(&mut self, path: &str, object: Value) -> Value {
        let (code, made) = self.send("POST", path, "", object).await;
        assert_eq!(code, 201, "{path}: {made}");
        made
    }
}
