//! The proxy subresources of pods, services and nodes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::client::conn::http1::SendRequest;

use super::Backend;
use super::dial::{DialError, Endpoint, Trust};
use super::headers::is_upgrade;
use super::location::{is_global_unicast, kubelet, pod_address, service_port, split_name};
use super::relay::{Destination, relay};
use super::rewrite::Links;
use super::service::{candidates, node_of, of_pods, slices};
use super::streams::authority;
use crate::extension::{Body, Connector, RequestContext, Result, StatusError, full_body};

/// What is proxied to may think for long: it's the client's business.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// The path by which the client knows what it asks.
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// What the name in the path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// A pod's port.
    Pod,
    /// A service's port: one of its pods.
    Service,
    /// A node's kubelet, or another port of the node.
    Node,
}

/// A connector that sends the request on as it is.
pub(super) struct Proxy {
    backend: Arc<Backend>,
    target: Target,
}

/// Where a request may go.
enum Place {
    /// One of these pods.
    Pods(Vec<Endpoint>),
    /// A node's kubelet.
    Kubelet(String, u16),
    /// Another port of a node.
    Node(String, u16),
}

impl Proxy {
    pub(super) fn new(backend: Arc<Backend>, target: Target) -> Self {
        Self { backend, target }
    }

    /// The place, and whether to speak TLS there.
    fn place(&self, context: &RequestContext) -> Result<(Place, bool)> {
        let (namespace, id) = (context.info.namespace.as_str(), context.info.name.as_str());
        let what = match self.target {
            Target::Pod => "pod",
            Target::Service => "service",
            Target::Node => "node",
        };
        let (scheme, name, port) = split_name(id)
            .ok_or_else(|| StatusError::bad_request(format!("invalid {what} request {id:?}")))?;
        let place = match self.target {
            Target::Pod => {
                let pod = self.backend.get("pods", Some(namespace), name)?;
                let (ip, port) = pod_address(&pod, scheme, port)?;
                let node = node_of(&pod);
                Place::Pods(vec![Endpoint { address: SocketAddr::new(ip, port), node }])
            }
            Target::Service => {
                let service = self.backend.get("services", Some(namespace), name)?;
                let port = service_port(&service, port)?;
                let found = candidates(&slices(&*self.backend.reader, namespace, name), &port);
                let found = of_pods(found, |pod| self.backend.get("pods", Some(namespace), pod).ok());
                if found.is_empty() {
                    return Err(StatusError::service_unavailable(format!(
                        "no endpoints available for service {id:?}"
                    )));
                }
                Place::Pods(found)
            }
            Target::Node => {
                let (host, own_port) = kubelet(&*self.backend.get("nodes", None, name)?)?;
                if host.parse().is_ok_and(|ip| !is_global_unicast(&ip)) {
                    return Err(StatusError::bad_request("address not allowed"));
                }
                if port.is_empty() || port == own_port.to_string() {
                    Place::Kubelet(host, own_port)
                } else {
                    let number = port
                        .parse()
                        .map_err(|_not_a_port| StatusError::bad_request(format!("invalid port {port:?}")))?;
                    Place::Node(host, number)
                }
            }
        };
        Ok((place, scheme == "https"))
    }

    /// A connection to the place, and its `host:port`.
    async fn open(&self, place: Place, tls: bool) -> Result<(SendRequest<Body>, String), DialError> {
        let dialer = &self.backend.dialer;
        match place {
            Place::Pods(endpoints) => {
                let (stream, endpoint) = dialer.dial_any(endpoints).await?;
                Ok((dialer.http(&endpoint, tls, stream).await?, endpoint.address.to_string()))
            }
            Place::Kubelet(host, port) => {
                Ok((dialer.kubelet(&host, port, Trust::Signed).await?, authority(&host, port)))
            }
            Place::Node(host, port) => Ok((dialer.node(&host, port, tls).await?, authority(&host, port))),
        }
    }
}

#[async_trait::async_trait]
impl Connector for Proxy {
    fn verbs(&self) -> &'static [&'static str] {
        // OPTIONS has no verb.
        &["create", "delete", "get", "patch", "update", ""]
    }

    async fn connect(&self, context: &RequestContext, mut request: Request<Body>) -> Result<Response<Body>> {
        let path = request.uri().path().to_owned();
        let path = path.as_str();
        let rest = after_proxy(path);
        if rest.is_none() && redirects(request.method()) && !is_upgrade(request.headers()) {
            // Relative links of what is behind must resolve below this path.
            let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
            return redirect(&format!("{path}/{query}"));
        }
        let rest = rest.unwrap_or("/");
        let target = match request.uri().query() {
            Some(query) => format!("{rest}?{query}"),
            None => rest.to_owned(),
        };
        let prefix = path.strip_suffix(rest).unwrap_or(path).to_owned();
        let (place, tls) = self.place(context)?;
        let (sender, source) = self.open(place, tls).await.map_err(|error| {
            StatusError::service_unavailable(format!("error trying to reach service: {error}"))
        })?;
        // The server behind sees the name by which the client knows it.
        let host = host(&request).unwrap_or(&source).to_owned();
        let destination = Destination {
            sender,
            authority: host.clone(),
            target,
            patience: PATIENCE,
            headers: HeaderMap::new(),
        };
        if is_upgrade(request.headers()) {
            return relay(request, destination).await;
        }
        if let Ok(path) = HeaderValue::from_str(path) {
            request.headers_mut().insert(FORWARDED_URI, path);
        }
        let head = *request.method() == Method::HEAD;
        let answer = relay(request, destination).await?;
        Links { prefix, source, host }.answered(answer, head).await
    }
}

/// The host that a client asks: the `Host` header, or in HTTP/2 the authority.
fn host(request: &Request<Body>) -> Option<&str> {
    let header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    header.or_else(|| request.uri().authority().map(http::uri::Authority::as_str))
}

/// Whether a client follows a redirect of that method without changing what it asks.
fn redirects(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// What follows `/NAME/proxy` in a path, still encoded; `None` if nothing does.
fn after_proxy(path: &str) -> Option<&str> {
    // pods and services: /api/v1/namespaces/NS/RESOURCE/NAME/proxy; nodes: /api/v1/nodes/NAME/proxy.
    let depth = if path.split('/').nth(3) == Some("namespaces") { 7 } else { 5 };
    let proxy = path.match_indices('/').nth(depth - 1)?.0;
    let end = proxy + "/proxy".len();
    path.get(end..).filter(|rest| rest.starts_with('/'))
}

fn redirect(location: &str) -> Result<Response<Body>> {
    let location = HeaderValue::try_from(location).map_err(|e| StatusError::bad_request(e.to_string()))?;
    let mut response = Response::new(full_body(bytes::Bytes::new()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_on_as_they_are() {
        for (path, want) in [
            ("/api/v1/namespaces/a/pods/p:80/proxy", None),
            ("/api/v1/namespaces/a/pods/p:80/proxy/", Some("/")),
            ("/api/v1/namespaces/a/pods/p/proxy/x%2Fy/", Some("/x%2Fy/")),
            ("/api/v1/namespaces/a/pods/p/proxy/proxy/z", Some("/proxy/z")),
            ("/api/v1/nodes/n/proxy/metrics", Some("/metrics")),
            ("/api/v1/namespaces/proxy/pods/proxy/proxy/x", Some("/x")),
        ] {
            assert_eq!(after_proxy(path), want, "{path}");
        }
    }
}
