//! The connection to the API: one for all that the node asks, where the server speaks HTTP/2, as upstream's kubelet does.
//!
//! kube's own client speaks HTTP/1.1 only. It makes a connection for each request that finds the others busy, with a TLS
//! handshake on both sides, and keeps them all: hundreds on a node whose pods start together.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_rustls::{DefaultServerNameResolver, FixedServerNameResolver, HttpsConnector, ResolveServerName};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use rustls::pki_types::ServerName;
use tower::retry::RetryLayer;
use tower::{BoxError, Service, ServiceBuilder};

use super::{Error, Result};

/// Requests at a time, watches among them, after which another connection is made: servers refuse more than 250 (Go's
/// default) or 1000 (upstream's API server), and what they refuse would wait for a watch to end.
const STREAMS: usize = 100;
/// Silence after which the server is asked whether it is there, as client-go does.
const PING: Duration = Duration::from_secs(30);
/// How long it may take to answer that.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Unread bytes that the server may send in answer to one request.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same of all requests of a connection together.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// An HTTP/1.1 connection that nobody needs is closed after this long.
const IDLE: Duration = Duration::from_secs(30);

/// A client of an API endpoint, with connections of its own.
pub(super) fn connect(config: &Config) -> Result<Client> {
    Transport::new(config)?.client(config)
}

/// Connections to one API endpoint with the credentials of one user, for any number of clients.
pub struct Transport(Connections);

impl Transport {
    /// Connects when it is first needed.
    ///
    /// # Errors
    /// Certificates, keys or a name of the server that can't be used.
    pub fn new(config: &Config) -> Result<Self> {
        let mut tls = config.rustls_client_config().map_err(Error::api("make API client"))?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let connector = HttpsConnector::new(tcp(config), tls, false, server_name(config)?);
        Ok(Self(Connections { connector, open: Arc::default() }))
    }

    /// A client over these connections. Its configuration may say whom it acts as.
    ///
    /// # Errors
    /// Credentials or names that can't be used.
    pub fn client(&self, config: &Config) -> Result<Client> {
        let api = |error: kube::Error| Error::api("make API client")(error);
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .layer(RetryLayer::new(RetryPolicy::server_retry()))
            .option_layer(config.auth_layer().map_err(api)?)
            .layer(config.extra_headers_layer().map_err(api)?)
            .map_err(BoxError::from)
            .service(self.0.clone());
        Ok(Client::new(service, config.default_namespace.clone()))
    }
}

/// TCP connections that notice a dead peer also where nothing is to be sent, as on a watch over HTTP/1.1.
fn tcp(config: &Config) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(config.connect_timeout);
    tcp.set_keepalive(Some(PING));
    tcp.set_keepalive_interval(Some(PING_TIMEOUT));
    tcp.set_keepalive_retries(Some(3));
    tcp
}

/// Whose certificate is expected.
fn server_name(config: &Config) -> Result<Arc<dyn ResolveServerName + Send + Sync>> {
    let Some(name) = &config.tls_server_name else {
        return Ok(Arc::new(DefaultServerNameResolver::default()));
    };
    let name = ServerName::try_from(name.clone()).map_err(|error| Error::Pem {
        origin: format!("tls-server-name {name:?}"),
        reason: error.to_string(),
    })?;
    Ok(Arc::new(FixedServerNameResolver::new(name)))
}

/// One HTTP/2 connection, or a pool of those of HTTP/1.1.
type Http = HttpClient<HttpsConnector<HttpConnector>, Body>;
/// Held by each request until its answer is read or dropped.
type Stream = Arc<()>;

/// As many connections as it takes for [`STREAMS`] on each.
#[derive(Clone)]
struct Connections {
    connector: HttpsConnector<HttpConnector>,
    open: Arc<Mutex<Vec<(Http, Stream)>>>,
}

impl Connections {
    /// The first connection with room.
    fn free(&self) -> (Http, Stream) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = open.iter().find(|(_, stream)| Arc::strong_count(stream) <= STREAMS) {
            return found.clone();
        }
        let fresh = (http(self.connector.clone()), Stream::default());
        open.push(fresh.clone());
        fresh
    }

    /// Lets connections go that were needed for a while.
    fn trim(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while open.len() > 1 && open.last().is_some_and(|(_, stream)| Arc::strong_count(stream) == 1) {
            open.pop();
        }
    }
}

fn http(connector: HttpsConnector<HttpConnector>) -> Http {
    HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .build(connector)
}

impl Service<Request<Body>> for Connections {
    type Response = Response<Held>;
    type Error = hyper_util::client::legacy::Error;
    type Future = BoxFuture<'static, std::result::Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<std::result::Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.trim();
        let (http, stream) = self.free();
        let answer = http.request(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Held { body, _stream: stream })) })
    }
}

/// The body of an answer.
struct Held {
    body: Incoming,
    _stream: Stream,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_connection_when_one_is_full() {
        // Set already by another test: as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = Config::new("https://127.0.0.1:1".parse().unwrap());
        // The machine may have no certificates of authorities.
        config.accept_invalid_certs = true;
        let tls = config.rustls_client_config().unwrap();
        let connector = HttpsConnector::new(tcp(&config), tls, false, server_name(&config).unwrap());
        let connections = Connections { connector, open: Arc::default() };
        let count = || connections.open.lock().unwrap().len();
        let streams: Vec<_> = (0..STREAMS).map(|_| connections.free()).collect();
        assert_eq!(count(), 1);
        let more = connections.free();
        assert_eq!(count(), 2);
        drop(streams);
        // Room on the first again; the second goes when nobody needs it.
        let _first = connections.free();
        connections.trim();
        assert_eq!(count(), 2);
        drop(more);
        connections.trim();
        assert_eq!(count(), 1);
    }
}
