//! Connections to kubelets and pods: one for each request, since streams hold theirs anyway.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::extension::{Body, Result, StatusError};
use crate::pki::{Pki, PkiError};

/// TCP, TLS and HTTP handshakes each get this long.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How to talk to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Security {
    /// Mutual TLS with a kubelet whose certificate the cluster CA signed.
    Kubelet,
    /// Mutual TLS with a kubelet whose certificate isn't checked, because the client asked so.
    KubeletUnverified,
    /// TLS with a pod, whose certificate nobody here can check.
    Unverified,
    /// No TLS.
    Plain,
}

/// Opens connections.
pub(super) struct Dialer {
    kubelet: Arc<ClientConfig>,
    kubelet_unverified: Arc<ClientConfig>,
    unverified: Arc<ClientConfig>,
}

impl Dialer {
    pub(super) fn new(pki: &Pki) -> Result<Self, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let anyone = Arc::new(AnyServer(provider.signature_verification_algorithms));
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
        })
    }

    /// An HTTP/1.1 connection, ready for one request (which may upgrade it).
    pub(super) async fn connect(
        &self,
        host: &str,
        port: u16,
        security: Security,
    ) -> Result<http1::SendRequest<Body>> {
        let config = match security {
            Security::Plain => None,
            Security::Kubelet => Some(self.kubelet.clone()),
            Security::KubeletUnverified => Some(self.kubelet_unverified.clone()),
            Security::Unverified => Some(self.unverified.clone()),
        };
        open(host.to_owned(), port, config).await
    }
}

async fn open(
    host: String,
    port: u16,
    config: Option<Arc<ClientConfig>>,
) -> Result<http1::SendRequest<Body>> {
    let shown = super::streams::authority(&host, port);
    let stream = within(&shown, "dial", TcpStream::connect((host.clone(), port))).await?;
    // Keystrokes of an exec must not wait for the answer to the last ones.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, to = shown, "TCP_NODELAY");
    }
    let Some(config) = config else { return handshake(&shown, stream).await };
    let name = match host.parse::<IpAddr>() {
        Ok(ip) => ServerName::IpAddress(ip.into()),
        Err(_) => ServerName::try_from(host.clone())
            .map_err(|e| StatusError::internal(format!("error dialing backend: {host}: {e}")))?,
    };
    let stream =
        within(&shown, "TLS handshake with", TlsConnector::from(config).connect(name, stream)).await?;
    handshake(&shown, stream).await
}

async fn handshake<S>(shown: &str, stream: S) -> Result<http1::SendRequest<Body>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
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

async fn within<T, E: std::fmt::Display>(
    to: &str,
    what: &str,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T> {
    match tokio::time::timeout(HANDSHAKE, future).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(StatusError::internal(format!("error dialing backend: {what} {to}: {error}"))),
        Err(_elapsed) => {
            Err(StatusError::internal(format!("error dialing backend: {what} {to}: i/o timeout")))
        }
    }
}

/// Takes any certificate, but not a handshake that its key didn't sign.
#[derive(Debug)]
struct AnyServer(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
