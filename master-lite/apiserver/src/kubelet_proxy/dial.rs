//! Connections to kubelets, pods and services: one for each request, since streams hold theirs anyway.
//!
//! The master's machine usually has no route to the pod network, so a pod is reached through the agent of its node, which
//! answers `CONNECT address:port` on its API and copies bytes both ways. What has no node is dialled directly, and so are
//! a node's own addresses (those of its hostNetwork pods): the agent is at one of them.

use std::fmt::Display;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use keelson_api::meta::GroupResource;
use rand::seq::SliceRandom as _;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::location::{is_global_unicast, kubelet};
use super::service::{self, ServiceError};
use crate::authz::rbac::text;
use crate::backend_tls::AnyServer;
use crate::extension::{Body, ObjectReader, StatusError, full_body};
use crate::pki::{Pki, PkiError};

/// TCP, TLS and HTTP handshakes each get this long.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How much of an agent's refusal is shown.
const MAX_REFUSAL: usize = 4096;

/// Endpoints of a service to try before giving up.
const TRIES: usize = 3;

/// How to talk to a kubelet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Mutual TLS with a kubelet whose certificate the cluster CA signed.
    Signed,
    /// Mutual TLS with a kubelet whose certificate isn't checked, because the client asked so.
    Anyone,
}

/// Where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Address and port.
    pub address: SocketAddr,
    /// The node that has the address, or a pod with it; none for what is outside of the cluster.
    pub node: Option<String>,
}

/// An open connection, whatever it goes over.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// A step failed.
    #[error("{step} {to}: {reason}")]
    Failed {
        /// Which step.
        step: &'static str,
        /// Host and port.
        to: String,
        /// The error.
        reason: String,
    },
    /// A step took too long.
    #[error("{step} {to}: i/o timeout")]
    Timeout {
        /// Which step.
        step: &'static str,
        /// Host and port.
        to: String,
    },
    /// The host's name can't be that of a certificate.
    #[error("{0:?} is no server name")]
    Name(String),
    /// The address is the master's own or only local to it.
    #[error("address {0} not allowed")]
    Address(IpAddr),
    /// There is no such node.
    #[error("node {0:?} not found")]
    NoNode(String),
    /// Nobody knows how to reach the node.
    #[error("{0}")]
    NodeAddress(String),
    /// The node's agent can't or won't.
    #[error("{message} (through node {node}: {status})")]
    Refused {
        /// The node.
        node: String,
        /// Its answer.
        status: StatusCode,
        /// What it says.
        message: String,
    },
    /// The service has nowhere to go.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl From<DialError> for StatusError {
    fn from(error: DialError) -> Self {
        Self::internal(format!("error dialing backend: {error}"))
    }
}

/// Opens connections.
pub struct Dialer {
    kubelet: Arc<ClientConfig>,
    kubelet_unverified: Arc<ClientConfig>,
    unverified: Arc<ClientConfig>,
    reader: Arc<dyn ObjectReader>,
}

impl Dialer {
    /// A dialer that shows kubelets the certificate for them, and finds nodes and services in `reader`.
    ///
    /// # Errors
    /// When the certificate can't be used.
    pub fn new(pki: &Pki, reader: Arc<dyn ObjectReader>) -> Result<Self, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let anyone = Arc::new(AnyServer::new(&provider));
        let mut kubelet_unverified = pki.kubelet_tls()?;
        kubelet_unverified.dangerous().set_certificate_verifier(anyone.clone());
        let unverified = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(anyone)
            .with_no_client_auth();
        Ok(Self {
            kubelet: Arc::new(pki.kubelet_tls()?),
            kubelet_unverified: Arc::new(kubelet_unverified),
            unverified: Arc::new(unverified),
            reader,
        })
    }

    /// A connection to an endpoint, through its node if it has one.
    ///
    /// # Errors
    /// When it can't be had.
    pub async fn dial(&self, to: &Endpoint) -> Result<Box<dyn Duplex>, DialError> {
        let ip = to.address.ip();
        if !is_global_unicast(&ip) {
            return Err(DialError::Address(ip));
        }
        match &to.node {
            Some(node) => self.dial_through(node, to.address).await,
            None => Ok(Box::new(tcp(&ip.to_string(), to.address.port()).await?)),
        }
    }

    /// A connection to one of a service's ready endpoints, for `port` of the service. TLS, if any, is the caller's: it
    /// knows which certificate to expect.
    ///
    /// # Errors
    /// When there is no such service or port, or none of the endpoints tried can be reached.
    pub async fn dial_service(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<Box<dyn Duplex>, DialError> {
        let found = service::resolve(&*self.reader, namespace, name, port)?;
        let (found, _) = self.dial_any(found).await?;
        Ok(found)
    }

    /// An HTTP/1.1 connection over TLS to a service, whose server must show that it is `NAME.NAMESPACE.svc` (unless
    /// `tls` takes anyone).
    ///
    /// # Errors
    /// As [`Self::dial_service`], and when the handshake fails.
    pub(crate) async fn https_service(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
        tls: Arc<ClientConfig>,
    ) -> Result<http1::SendRequest<Body>, DialError> {
        let stream = self.dial_service(namespace, name, port).await?;
        self::tls(&format!("{name}.{namespace}.svc"), port, tls, stream).await
    }

    /// A connection to one of the endpoints, tried in random order.
    pub(super) async fn dial_any(
        &self,
        mut endpoints: Vec<Endpoint>,
    ) -> Result<(Box<dyn Duplex>, Endpoint), DialError> {
        endpoints.shuffle(&mut rand::rng());
        let mut last = DialError::Service(ServiceError::NoEndpoints(String::new()));
        for endpoint in endpoints.into_iter().take(TRIES) {
            match self.dial(&endpoint).await {
                Ok(stream) => return Ok((stream, endpoint)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// A tunnel through a node's agent, unless the address is the node's own.
    async fn dial_through(&self, node: &str, to: SocketAddr) -> Result<Box<dyn Duplex>, DialError> {
        let object = self
            .reader
            .get(&GroupResource::new("", "nodes"), None, node)
            .ok_or_else(|| DialError::NoNode(node.to_owned()))?;
        if has_address(&object, to.ip()) {
            return Ok(Box::new(tcp(&to.ip().to_string(), to.port()).await?));
        }
        let (host, port) = kubelet_of(&object)?;
        let mut sender = self.kubelet(&host, port, Trust::Signed).await?;
        let shown = to.to_string();
        let request = Request::connect(&shown)
            .header(http::header::HOST, &shown)
            .body(full_body(Bytes::new()))
            .map_err(|e| failed("CONNECT", &shown, e))?;
        let response = within(&shown, "CONNECT", sender.send_request(request)).await?;
        let status = response.status();
        if status != StatusCode::OK {
            let body = Limited::new(response.into_body(), MAX_REFUSAL).collect();
            let message = match tokio::time::timeout(HANDSHAKE, body).await {
                Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).trim_end().to_owned(),
                _ => format!("CONNECT {shown}"),
            };
            return Err(DialError::Refused { node: node.to_owned(), status, message });
        }
        let stream = within(&shown, "CONNECT", hyper::upgrade::on(response)).await?;
        Ok(Box::new(TokioIo::new(stream)))
    }

    /// An HTTP/1.1 connection to a kubelet, ready for one request (which may upgrade it).
    pub(super) async fn kubelet(
        &self,
        host: &str,
        port: u16,
        trust: Trust,
    ) -> Result<http1::SendRequest<Body>, DialError> {
        let config = match trust {
            Trust::Signed => self.kubelet.clone(),
            Trust::Anyone => self.kubelet_unverified.clone(),
        };
        let stream = tcp(host, port).await?;
        self::tls(host, port, config, stream).await
    }

    /// An HTTP/1.1 connection over an open one; `tls`: with TLS, whatever certificate the other side has, since nobody
    /// here could check it.
    pub(super) async fn http(
        &self,
        to: &Endpoint,
        tls: bool,
        stream: Box<dyn Duplex>,
    ) -> Result<http1::SendRequest<Body>, DialError> {
        let (host, port) = (to.address.ip().to_string(), to.address.port());
        if tls {
            return self::tls(&host, port, self.unverified.clone(), stream).await;
        }
        handshake(&to.address.to_string(), stream).await
    }

    /// An HTTP/1.1 connection to another port of a node.
    pub(super) async fn node(
        &self,
        host: &str,
        port: u16,
        tls: bool,
    ) -> Result<http1::SendRequest<Body>, DialError> {
        let stream = tcp(host, port).await?;
        if tls {
            return self::tls(host, port, self.unverified.clone(), stream).await;
        }
        handshake(&super::streams::authority(host, port), stream).await
    }
}

fn kubelet_of(node: &Value) -> Result<(String, u16), DialError> {
    kubelet(node).map_err(|error| DialError::NodeAddress(error.message))
}

fn has_address(node: &Value, ip: IpAddr) -> bool {
    let mut addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    addresses.any(|known| text(known, "/address").parse() == Ok(ip))
}

fn failed(step: &'static str, to: &str, reason: impl Display) -> DialError {
    DialError::Failed { step, to: to.to_owned(), reason: reason.to_string() }
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let shown = super::streams::authority(host, port);
    let stream = within(&shown, "dial", TcpStream::connect((host, port))).await?;
    // Keystrokes of an exec must not wait for the answer to the last ones.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, to = shown, "TCP_NODELAY");
    }
    Ok(stream)
}

async fn tls(
    host: &str,
    port: u16,
    config: Arc<ClientConfig>,
    stream: impl Duplex + 'static,
) -> Result<http1::SendRequest<Body>, DialError> {
    let shown = super::streams::authority(host, port);
    let name = match host.parse::<IpAddr>() {
        Ok(ip) => ServerName::IpAddress(ip.into()),
        Err(_) => {
            ServerName::try_from(host.to_owned()).map_err(|_invalid_name| DialError::Name(host.to_owned()))?
        }
    };
    let stream =
        within(&shown, "TLS handshake with", TlsConnector::from(config).connect(name, stream)).await?;
    handshake(&shown, stream).await
}

async fn handshake(
    shown: &str,
    stream: impl Duplex + 'static,
) -> Result<http1::SendRequest<Body>, DialError> {
    let (sender, connection) =
        within(shown, "HTTP handshake with", http1::handshake(TokioIo::new(stream))).await?;
    // Ends with the answer's body, or when the upgraded stream is taken out of it.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to backend");
        }
    });
    Ok(sender)
}

async fn within<T, E: Display>(
    to: &str,
    step: &'static str,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, DialError> {
    match tokio::time::timeout(HANDSHAKE, future).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(failed(step, to, error)),
        Err(_elapsed) => Err(DialError::Timeout { step, to: to.to_owned() }),
    }
}
