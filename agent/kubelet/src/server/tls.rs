//! Listening: TLS with optional client certificates, and the loopback's plain `/healthz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig as TlsConfig};
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::auth::User;
use super::{Backend, routes};
use crate::certs::ServingCertificate;

/// Deadline of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Deadline for a request's headers.
const HEADERS: Duration = Duration::from_secs(32);

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The cluster's certificate authorities are unusable.
    #[error("client certificate authorities: {0}")]
    Authorities(String),
    /// TLS could not be set up.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
}

/// Serves on `listener` until `shutdown`. Connections under way are cut then: their streams end in this process.
pub async fn serve(
    listener: TcpListener,
    backend: Backend,
    certificate: Arc<ServingCertificate>,
    client_authorities: &[CertificateDer<'static>],
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let acceptor = TlsAcceptor::from(Arc::new(tls_config(certificate, client_authorities)?));
    let slots = Arc::new(Semaphore::new(backend.config.max_connections));
    let router = routes::router(Arc::new(backend));
    let work = async {
        loop {
            // Never closed, so this can't fail.
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    // Out of descriptors, most likely: give some time to be closed.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, router, shutdown) = (acceptor.clone(), router.clone(), shutdown.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = connection(stream, acceptor, router) => {}
                    () = shutdown.cancelled() => {}
                }
                drop(slot);
            });
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
    Ok(())
}

fn tls_config(
    certificate: Arc<ServingCertificate>,
    client_authorities: &[CertificateDer<'static>],
) -> Result<TlsConfig, ServeError> {
    let mut roots = RootCertStore::empty();
    for authority in client_authorities {
        roots.add(authority.clone())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| ServeError::Authorities(error.to_string()))?;
    let mut config = TlsConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    // Keystrokes of an exec session must not wait for Nagle.
    let _ = stream.set_nodelay(true);
    let tls = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_elapsed) => return,
    };
    let user =
        tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(User::from_certificate);
    let service = router.map_request(move |mut request: Request<hyper::body::Incoming>| {
        if let Some(user) = &user {
            request.extensions_mut().insert(user.clone());
        }
        request.map(axum::body::Body::new)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
    let served =
        builder.serve_connection_with_upgrades(TokioIo::new(tls), TowerToHyperService::new(service)).await;
    if let Err(error) = served {
        tracing::debug!(error = &*error, "connection ended");
    }
}

/// Serves `/healthz` without TLS and without authentication, on the loopback: kubelet's --healthz-port.
pub async fn serve_healthz(address: SocketAddr, shutdown: CancellationToken) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let router = Router::new().route("/healthz", get("ok"));
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}
