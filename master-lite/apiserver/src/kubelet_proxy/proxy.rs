//! The proxy subresources of pods, services and nodes.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode, header};
use rand::seq::SliceRandom as _;

use super::Backend;
use super::dial::Security;
use super::location::{endpoints, is_global_unicast, kubelet, pod_address, service_port, split_name};
use super::relay::{Destination, relay};
use super::streams::authority;
use crate::extension::{Body, Connector, RequestContext, Result, StatusError, full_body};

/// What is proxied to may think for long: it's the client's business.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// Endpoints of a service to try before giving up.
const TRIES: usize = 3;

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

/// Places to try, in order.
struct Places {
    security: Security,
    addresses: Vec<(String, u16)>,
}

impl Proxy {
    pub(super) fn new(backend: Arc<Backend>, target: Target) -> Self {
        Self { backend, target }
    }

    fn places(&self, context: &RequestContext) -> Result<Places> {
        let (namespace, id) = (context.info.namespace.as_str(), context.info.name.as_str());
        let what = match self.target {
            Target::Pod => "pod",
            Target::Service => "service",
            Target::Node => "node",
        };
        let (scheme, name, port) = split_name(id)
            .ok_or_else(|| StatusError::bad_request(format!("invalid {what} request {id:?}")))?;
        let security = if scheme == "https" { Security::Unverified } else { Security::Plain };
        match self.target {
            Target::Pod => {
                let pod = self.backend.get("pods", Some(namespace), name)?;
                let (ip, port) = pod_address(&pod, scheme, port)?;
                Ok(Places { security, addresses: vec![(ip.to_string(), port)] })
            }
            Target::Service => {
                let service = self.backend.get("services", Some(namespace), name)?;
                let port = service_port(&service, port)?;
                let object = self.backend.get("endpoints", Some(namespace), name)?;
                let mut found = endpoints(&object, &port);
                if found.is_empty() {
                    return Err(StatusError::service_unavailable(format!(
                        "no endpoints available for service {id:?}"
                    )));
                }
                found.shuffle(&mut rand::rng());
                let addresses =
                    found.into_iter().take(TRIES).map(|(ip, port)| (ip.to_string(), port)).collect();
                Ok(Places { security, addresses })
            }
            Target::Node => {
                let (host, own_port) = kubelet(&*self.backend.get("nodes", None, name)?)?;
                if host.parse().is_ok_and(|ip| !is_global_unicast(&ip)) {
                    return Err(StatusError::bad_request("address not allowed"));
                }
                if port.is_empty() || port == own_port.to_string() {
                    return Ok(Places { security: Security::Kubelet, addresses: vec![(host, own_port)] });
                }
                let number = port
                    .parse()
                    .map_err(|_bad| StatusError::bad_request(format!("invalid port {port:?}")))?;
                Ok(Places { security, addresses: vec![(host, number)] })
            }
        }
    }
}

#[async_trait::async_trait]
impl Connector for Proxy {
    fn verbs(&self) -> &'static [&'static str] {
        &["create", "delete", "get", "patch", "update"]
    }

    async fn connect(&self, context: &RequestContext, request: Request<Body>) -> Result<Response<Body>> {
        let path = request.uri().path();
        let Some(rest) = after_proxy(path) else {
            // Relative links of what is behind must resolve below this path.
            let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
            return redirect(&format!("{path}/{query}"));
        };
        let target = match request.uri().query() {
            Some(query) => format!("{rest}?{query}"),
            None => rest.to_owned(),
        };
        let places = self.places(context)?;
        let mut last = StatusError::service_unavailable("no endpoints available");
        for (host, port) in places.addresses {
            match self.backend.dialer.connect(&host, port, places.security).await {
                Ok(sender) => {
                    let authority = authority(&host, port);
                    return relay(request, Destination { sender, authority, target, patience: PATIENCE })
                        .await;
                }
                Err(error) => {
                    last = StatusError::service_unavailable(format!(
                        "error trying to reach service: {}",
                        error.message
                    ))
                }
            }
        }
        Err(last)
    }
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
