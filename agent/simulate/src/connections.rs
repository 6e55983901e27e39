//! Many nodes over few connections: each connection is HTTP/2 and carries the watches of some tens of nodes, each of which
//! acts as its own user (`Impersonate-User: system:node:NAME`), so that what a node may do is decided as for a real one.

use http::{HeaderName, HeaderValue, Request};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

use crate::Error;

/// Nodes to a connection. A node keeps three watches or a few more; servers allow 100 streams at least (Go: 250).
pub const NODES: usize = 25;
/// After so long without a byte the server is asked whether it is still there.
const PING: std::time::Duration = std::time::Duration::from_secs(30);

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");

type Https = hyper_rustls::HttpsConnector<HttpConnector>;

/// One connection, made when it is first used and again when it breaks.
#[derive(Clone)]
pub struct Connection {
    config: kube::Config,
    http: HttpClient<Https, Body>,
}

impl Connection {
    /// To the server of a kubeconfig, with its credentials.
    ///
    /// # Errors
    /// Certificates or keys that can't be used.
    pub fn new(config: &kube::Config) -> Result<Self, Error> {
        let tls = config.rustls_client_config().map_err(Error::Client)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let https =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http2().wrap_connector(tcp);
        let http = HttpClient::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .http2_only(true)
            .http2_keep_alive_interval(PING)
            .build(https);
        Ok(Self { config: config.clone(), http })
    }

    /// A client as the user of the kubeconfig.
    ///
    /// # Errors
    /// Credentials that can't be used.
    pub fn client(&self) -> Result<kube::Client, Error> {
        self.with_headers(Vec::new())
    }

    /// A client as a node.
    ///
    /// # Errors
    /// As [`Connection::client`], and a name that no header can hold.
    pub fn node(&self, name: &str) -> Result<kube::Client, Error> {
        let user = HeaderValue::from_str(&format!("system:node:{name}"))
            .map_err(|_invalid| Error::Name(name.to_owned()))?;
        self.with_headers(vec![(USER, user), (GROUP, HeaderValue::from_static("system:nodes"))])
    }

    fn with_headers(&self, headers: Vec<(HeaderName, HeaderValue)>) -> Result<kube::Client, Error> {
        let auth = self.config.auth_layer().map_err(Error::Client)?;
        let service = ServiceBuilder::new()
            .layer(self.config.base_uri_layer())
            // As kube's own clients and client-go's: a server that is busy says when to come back.
            .layer(RetryLayer::new(RetryPolicy::server_retry()))
            .option_layer(auth)
            .map_request(move |mut request: Request<Body>| {
                request.headers_mut().extend(headers.iter().cloned());
                request
            })
            .map_err(BoxError::from)
            .service(self.http.clone());
        Ok(kube::Client::new(service, self.config.default_namespace.clone()))
    }
}
