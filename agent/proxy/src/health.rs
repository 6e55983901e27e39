//! `healthCheckNodePort`: tells a load balancer whether this node has endpoints of a Service with
//! `externalTrafficPolicy: Local` (`k8s.io/kubernetes/pkg/proxy/healthcheck`).

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::compile::{SERVICE_NAME, is_ready};

/// By which upstream says how many endpoints there are, for balancers that weigh.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
/// A connection is one question; it gets this long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Questions of one port answered at a time.
const AT_ONCE: usize = 64;

/// A port to answer on, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    namespace: String,
    name: String,
    /// Ready endpoints on this node.
    endpoints: usize,
}

/// The ports that the API wants answered on this node.
pub(crate) fn checks<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: &[&EndpointSlice],
    node: &str,
) -> BTreeMap<u16, Check> {
    let mut out = BTreeMap::new();
    for service in services {
        let (Some(namespace), Some(name), Some(spec)) =
            (service.metadata.namespace.as_deref(), service.metadata.name.as_deref(), service.spec.as_ref())
        else {
            continue;
        };
        let port = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).unwrap_or_default();
        if port == 0
            || spec.type_.as_deref() != Some("LoadBalancer")
            || spec.external_traffic_policy.as_deref() != Some("Local")
        {
            continue;
        }
        let of_service = slices.iter().filter(|slice| {
            let labels = slice.metadata.labels.as_ref();
            slice.metadata.namespace.as_deref() == Some(namespace)
                && labels.and_then(|labels| labels.get(SERVICE_NAME)).is_some_and(|of| of == name)
        });
        // An endpoint with several ports counts once.
        let endpoints: BTreeSet<&str> = of_service
            .flat_map(|slice| slice.endpoints.iter().flatten())
            .filter(|endpoint| endpoint.node_name.as_deref() == Some(node) && is_ready(endpoint))
            .filter_map(|endpoint| endpoint.addresses.first().map(String::as_str))
            .collect();
        let check =
            Check { namespace: namespace.to_owned(), name: name.to_owned(), endpoints: endpoints.len() };
        out.insert(port, check);
    }
    out
}

/// What is answered now: the check, and whether Services are what the API says.
type State = (Check, bool);

/// The open ports.
#[derive(Default)]
pub(crate) struct HealthServer {
    open: BTreeMap<u16, Open>,
}

struct Open {
    state: watch::Sender<State>,
    /// Ends with the value.
    _task: JoinSet<()>,
}

impl HealthServer {
    /// Opens, changes and closes ports. One that another process holds is tried again at the next call.
    pub(crate) async fn sync(&mut self, wanted: &BTreeMap<u16, Check>, healthy: bool) {
        self.open.retain(|port, open| {
            let same = |check: &Check| {
                let known = open.state.borrow();
                (&known.0.namespace, &known.0.name) == (&check.namespace, &check.name)
            };
            wanted.get(port).is_some_and(same)
        });
        for (port, check) in wanted {
            let state = (check.clone(), healthy);
            if let Some(open) = self.open.get(port) {
                open.state.send_replace(state);
                continue;
            }
            match listen(*port).await {
                Ok(listener) => {
                    let (state, seen) = watch::channel(state);
                    let mut task = JoinSet::new();
                    task.spawn(serve(listener, seen));
                    self.open.insert(*port, Open { state, _task: task });
                }
                Err(error) => {
                    let service = format!("{}/{}", check.namespace, check.name);
                    tracing::error!(%error, port, service, "FailedToStartServiceHealthcheck");
                }
            }
        }
    }
}

/// On all addresses of both families, or of IPv4 where the kernel has no other.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await
        }
        other => other,
    }
}

async fn serve(listener: TcpListener, state: watch::Receiver<State>) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut connections = JoinSet::new();
    loop {
        // Never closed, so this can't fail.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(|_request| {
                let (check, healthy) = state.borrow().clone();
                async move { Ok::<_, Infallible>(answer(&check, healthy)) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            let serving = builder.serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, serving).await {
                tracing::debug!(%error, "health check");
            }
            drop(slot);
        });
    }
}

fn answer(check: &Check, healthy: bool) -> Response<Full<Bytes>> {
    let Check { namespace, name, endpoints } = check;
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
         \t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    let mut response = Response::new(Full::from(body));
    if *endpoints == 0 || !healthy {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(*endpoints));
    response
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{self, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn service(kind: &str, policy: &str, port: u16) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d"},
            "spec": {"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": port},
        }))
        .unwrap()
    }

    #[test]
    fn local_endpoints_are_counted() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "web-x", "namespace": "d", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.244.0.2"], "nodeName": "n1"},
                {"addresses": ["10.244.0.2"], "nodeName": "n1", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.3"], "nodeName": "n1", "conditions": {"ready": false}},
                {"addresses": ["10.244.1.2"], "nodeName": "n2"},
            ],
        }))
        .unwrap();
        let count = |service: Service, node: &str| {
            checks([&service], &[&slice], node).get(&32000).map(|check| check.endpoints)
        };
        assert_eq!(count(service("LoadBalancer", "Local", 32000), "n1"), Some(1));
        assert_eq!(count(service("LoadBalancer", "Local", 32000), "n3"), Some(0));
        assert_eq!(count(service("LoadBalancer", "Cluster", 32000), "n1"), None);
        assert_eq!(count(service("NodePort", "Local", 32000), "n1"), None);
        assert_eq!(count(service("LoadBalancer", "Local", 0), "n1"), None);
    }

    async fn ask(port: u16) -> std::io::Result<String> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn ports_follow_what_is_wanted() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let wanted = |endpoints| {
            BTreeMap::from([(port, Check { namespace: "d".into(), name: "web".into(), endpoints })])
        };
        let mut server = HealthServer::default();
        server.sync(&wanted(2), true).await;
        let answer = ask(port).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("x-load-balancing-endpoint-weight: 2\r\n"), "{answer}");
        let body: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let service = json!({"namespace": "d", "name": "web"});
        assert_eq!(body, json!({"service": service, "localEndpoints": 2, "serviceProxyHealthy": true}));

        server.sync(&wanted(0), true).await;
        assert!(ask(port).await.unwrap().starts_with("HTTP/1.1 503 "));
        server.sync(&wanted(1), false).await;
        assert!(ask(port).await.unwrap().starts_with("HTTP/1.1 503 "));
        server.sync(&BTreeMap::new(), true).await;
        // The task ends at its next turn.
        let mut closed = false;
        for _ in 0..100 {
            closed = ask(port).await.is_err();
            if closed {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(closed);
    }
}
