//! The way to nodes and pods: logs, exec, attach and port-forward through the node's kubelet, and the proxy
//! subresources of pods, services and nodes.
//!
//! Streams are relayed byte for byte: whatever of WebSocket and SPDY the client speaks, the kubelet answers.

mod dial;
pub(crate) mod headers;
mod location;
mod logs;
mod proxy;
pub(crate) mod relay;
mod rewrite;
pub(crate) mod service;
mod streams;

use std::collections::HashMap;
use std::sync::Arc;

use keelson_api::meta::GroupResource;
use serde_json::Value;

use crate::authz::{ClusterAuthorizer, forbidden_message};
use crate::extension::{
    AuthorizerAttributes, Connector, Decision, ExtensionKey, ObjectReader, RequestContext, Result,
    StatusError,
};

pub use dial::{DialError, Dialer, Duplex, Endpoint};
pub use service::ServiceError;

/// What the connectors share.
pub(crate) struct Backend {
    reader: Arc<dyn ObjectReader>,
    authorizer: Arc<ClusterAuthorizer>,
    dialer: Arc<Dialer>,
}

impl Backend {
    fn get(&self, resource: &str, namespace: Option<&str>, name: &str) -> Result<Arc<Value>> {
        let resource = GroupResource::new("", resource);
        self.reader.get(&resource, namespace, name).ok_or_else(|| StatusError::not_found(&resource, name))
    }

    /// A WebSocket starts with GET, which maps to the verb `get`; running a command takes `create` all the same.
    fn ensure_may_create(&self, context: &RequestContext) -> Result<()> {
        if context.info.verb == "create" {
            return Ok(());
        }
        let mut ask = AuthorizerAttributes::from_request(&context.user, &context.info);
        ask.verb = "create".to_owned();
        match self.authorizer.decide(&ask) {
            Decision::Allow => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => {
                let resource = GroupResource::new(&ask.group, &ask.resource);
                Err(StatusError::forbidden(&resource, &ask.name, forbidden_message(&ask, &reason)))
            }
        }
    }
}

/// All connectors by their subresource.
pub fn connectors(
    dialer: Arc<Dialer>,
    reader: Arc<dyn ObjectReader>,
    authorizer: Arc<ClusterAuthorizer>,
) -> HashMap<ExtensionKey, Arc<dyn Connector>> {
    let backend = Arc::new(Backend { reader, authorizer, dialer });
    let key = |resource: &str, subresource: &str| (GroupResource::new("", resource), subresource.to_owned());
    let stream = |kind| Arc::new(streams::Stream::new(backend.clone(), kind)) as Arc<dyn Connector>;
    let proxy = |target| Arc::new(proxy::Proxy::new(backend.clone(), target)) as Arc<dyn Connector>;
    HashMap::from([
        (key("pods", "log"), Arc::new(logs::Logs::new(backend.clone())) as Arc<dyn Connector>),
        (key("pods", "exec"), stream(streams::Kind::Exec)),
        (key("pods", "attach"), stream(streams::Kind::Attach)),
        (key("pods", "portforward"), stream(streams::Kind::PortForward)),
        (key("pods", "proxy"), proxy(proxy::Target::Pod)),
        (key("services", "proxy"), proxy(proxy::Target::Service)),
        (key("nodes", "proxy"), proxy(proxy::Target::Node)),
    ])
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt as _;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::authz::fake::FakeReader;
    use crate::extension::{Body, RequestInfo, UserInfo, full_body};
    use crate::pki::{Pki, PkiConfig, Profile, Usage};

    fn pki(dir: &std::path::Path) -> Pki {
        Pki::load_or_create(&PkiConfig {
            directory: dir.to_owned(),
            advertise_address: [127, 0, 0, 1].into(),
            service_address: [10, 96, 0, 1].into(),
            cluster_domain: "cluster.local".into(),
            extra_sans: vec![],
        })
        .unwrap()
    }

    /// What listens in a pod: a page that says what was asked, a redirect, or an echo of upgraded bytes.
    async fn pod(mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let header = |name: &str| {
            let value = request.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or("-").to_owned()
        };
        let (host, path, token) = (header("host"), header("x-forwarded-uri"), header("authorization"));
        let page = format!("{} {} {host} {path} {token} <a href=\"/y\">", request.method(), request.uri());
        let mut response = Response::new(full_body(page));
        response.headers_mut().insert("content-type", "text/html".parse().unwrap());
        if request.uri().path() == "/moved" {
            *response.status_mut() = StatusCode::FOUND;
            response.headers_mut().insert("location", "/here?x=1".parse().unwrap());
        }
        if headers::is_upgrade(request.headers()) {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.body_mut() = full_body("");
            for name in ["connection", "upgrade"] {
                response.headers_mut().insert(name, request.headers()[name].clone());
            }
            tokio::spawn(async move {
                let mut stream = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
                let mut buf = [0; 4];
                stream.read_exact(&mut buf).await.unwrap();
                stream.write_all(&buf).await.unwrap();
            });
        }
        Ok(response)
    }

    /// A kubelet. Answers with what it was asked, opens a way to the pod 10.9.9.9, refuses the container `sick`, and echoes upgraded bytes.
    async fn kubelet(mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let uri = request.uri().to_string();
        let mut response = Response::new(full_body(format!("{} {uri}", request.method())));
        if request.method() == Method::CONNECT {
            if uri != "10.9.9.9:80" {
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                *response.body_mut() = full_body(format!("dial tcp {uri}: connection refused\n"));
                return Ok(response);
            }
            *response.body_mut() = full_body("");
            tokio::spawn(async move {
                let stream = hyper::upgrade::on(&mut request).await.unwrap();
                let serve =
                    hyper::server::conn::http1::Builder::new().serve_connection(stream, service_fn(pod));
                let _ = serve.with_upgrades().await;
            });
            return Ok(response);
        }
        if uri.contains("/sick") {
            *response.status_mut() = StatusCode::BAD_REQUEST;
            *response.body_mut() = full_body("container \"sick\" in pod \"p\" is waiting to start");
        } else if headers::is_upgrade(request.headers()) {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.body_mut() = full_body("");
            for name in ["connection", "upgrade"] {
                response.headers_mut().insert(name, request.headers()[name].clone());
            }
            response.headers_mut().insert("x-target", uri.parse().unwrap());
            tokio::spawn(async move {
                let mut stream = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
                let mut buf = [0; 4];
                stream.read_exact(&mut buf).await.unwrap();
                stream.write_all(&buf).await.unwrap();
            });
        }
        Ok(response)
    }

    /// A kubelet on loopback with a certificate of `pki`; its port.
    async fn start_kubelet(pki: &Pki, name: &str) -> u16 {
        let names = vec![name.to_owned()];
        let pair = pki
            .issue(&Profile {
                common_name: "system:node:n1".into(),
                organization: None,
                usage: Usage::Server,
                names,
            })
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(pki.roots().unwrap()),
            provider.clone(),
        );
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap(),
            )
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let serve = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(kubelet));
                    let _ = serve.with_upgrades().await;
                });
            }
        });
        port
    }

    fn connectors_for(pki: &Pki, port: u16) -> HashMap<ExtensionKey, Arc<dyn Connector>> {
        let pod = |name: &str, node: &str| {
            (
                "",
                "pods",
                json!({"metadata": {"name": name, "namespace": "a"}, "spec": {"nodeName": node,
                "containers": [{"name": "c"}, {"name": "sick"}]}}),
            )
        };
        let reader: Arc<dyn ObjectReader> = Arc::new(FakeReader::new(vec![
            pod("p", "n1"),
            pod("homeless", ""),
            (
                "",
                "nodes",
                json!({"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}}),
            ),
        ]));
        connectors_over(pki, reader)
    }

    fn connectors_over(
        pki: &Pki,
        reader: Arc<dyn ObjectReader>,
    ) -> HashMap<ExtensionKey, Arc<dyn Connector>> {
        let dialer = Arc::new(Dialer::new(pki, reader.clone()).unwrap());
        connectors(dialer, reader.clone(), Arc::new(ClusterAuthorizer::new(reader)))
    }

    /// Two pods on one node, one of which refuses, and a service for each.
    fn pods_behind(pki: &Pki, port: u16) -> HashMap<ExtensionKey, Arc<dyn Connector>> {
        let pod = |name: &str, ip: &str| {
            let status = json!({"podIP": ip, "podIPs": [{"ip": ip}]});
            let metadata = json!({"name": name, "namespace": "a"});
            ("", "pods", json!({"metadata": metadata, "spec": {"nodeName": "n1"}, "status": status}))
        };
        let service = |name: &str| {
            let ports = json!([{"name": "web", "port": 8080, "targetPort": 80}]);
            ("", "services", json!({"metadata": {"name": name, "namespace": "a"}, "spec": {"ports": ports}}))
        };
        let slice = |name: &str, ip: &str, ready: bool| {
            let labels = json!({"kubernetes.io/service-name": name});
            let endpoint = json!({"addresses": [ip], "nodeName": "n1", "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": name}});
            let slice = json!({"metadata": {"name": name, "namespace": "a", "labels": labels},
                "addressType": "IPv4", "ports": [{"name": "web", "port": 80}], "endpoints": [endpoint]});
            ("discovery.k8s.io", "endpointslices", slice)
        };
        let addresses = json!([{"type": "InternalIP", "address": "127.0.0.1"}]);
        let status = json!({"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}});
        let reader: Arc<dyn ObjectReader> = Arc::new(FakeReader::new(vec![
            ("", "nodes", json!({"metadata": {"name": "n1"}, "status": status})),
            pod("web", "10.9.9.9"),
            pod("dead", "10.9.9.8"),
            pod("local", "127.0.0.1"),
            service("web"),
            service("dead"),
            service("idle"),
            slice("web", "10.9.9.9", true),
            slice("dead", "10.9.9.8", true),
            slice("idle", "10.9.9.9", false),
        ]));
        connectors_over(pki, reader)
    }

    #[tokio::test]
    async fn pods_and_services_are_reached_through_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki(dir.path());
        let connectors = pods_behind(&pki, start_kubelet(&pki, "127.0.0.1").await);
        // Status and Location or body; of an error its code and message.
        let ask = async |method: &str, resource: &str, name: &str, rest: &str| {
            let connector = &connectors[&(GroupResource::new("", resource), "proxy".to_owned())];
            let mut context = context("x", "get", name, &[]);
            (context.info.resource, context.info.subresource) = (resource.into(), "proxy".into());
            let request = Request::builder()
                .method(method)
                .uri(format!("/api/v1/namespaces/a/{resource}/{name}/proxy{rest}"))
                .header("host", "api:6443")
                .header("authorization", "Bearer secret")
                .body(full_body(""))
                .unwrap();
            match connector.connect(&context, request).await {
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    let location = answer.headers().get("location").cloned();
                    let body = answer.into_body().collect().await.unwrap().to_bytes();
                    let body = String::from_utf8(body.to_vec()).unwrap();
                    (status, location.map_or(body, |location| location.to_str().unwrap().to_owned()))
                }
                Err(error) => (error.code, error.message),
            }
        };
        let pods = "/api/v1/namespaces/a/pods";
        let services = "/api/v1/namespaces/a/services";
        assert_eq!(
            ask("GET", "pods", "web", "/x%2Fy?q=1").await,
            (
                200,
                format!("GET /x%2Fy?q=1 api:6443 {pods}/web/proxy/x%2Fy - <a href=\"{pods}/web/proxy/y\">")
            )
        );
        for name in ["web:web", "web:8080", "http:web:web"] {
            assert_eq!(
                ask("POST", "services", name, "/").await,
                (
                    200,
                    format!(
                        "POST / api:6443 {services}/{name}/proxy/ - <a href=\"{services}/{name}/proxy/y\">"
                    )
                )
            );
        }
        assert_eq!(
            ask("GET", "pods", "web:80", "/moved").await,
            (302, format!("{pods}/web:80/proxy/here?x=1"))
        );
        assert_eq!(ask("GET", "pods", "web", "?q=1").await, (301, format!("{pods}/web/proxy/?q=1")));
        // Anything else without the slash goes on: a redirect would lose its body.
        assert_eq!(ask("DELETE", "pods", "web", "").await.0, 200);

        let refused = |id: &str| format!("no endpoints available for service {id:?}");
        assert_eq!(ask("GET", "services", "idle:web", "/").await, (503, refused("idle:web")));
        assert_eq!(ask("GET", "services", "web", "/").await, (503, refused("web")));
        assert_eq!(
            ask("GET", "services", "web:81", "/").await,
            (503, "no service port 81 found for service \"web\"".to_owned())
        );
        assert_eq!(
            ask("GET", "services", "ftp:web:web", "/").await,
            (400, "invalid service request \"ftp:web:web\"".to_owned())
        );
        assert_eq!(ask("GET", "pods", "gone", "/").await.0, 404);
        assert_eq!(ask("GET", "pods", "local:80", "/").await, (400, "address not allowed".to_owned()));
        let (code, message) = ask("GET", "services", "dead:web", "/").await;
        assert_eq!(code, 503);
        assert!(
            message.starts_with("error trying to reach service: dial tcp 10.9.9.8:80: connection refused"),
            "{message}"
        );
    }

    fn context(user: &str, verb: &str, name: &str, query: &[(&str, &str)]) -> RequestContext {
        RequestContext {
            info: RequestInfo {
                is_resource_request: true,
                verb: verb.into(),
                namespace: "a".into(),
                resource: "pods".into(),
                subresource: "exec".into(),
                name: name.into(),
                ..RequestInfo::default()
            },
            user: UserInfo::new(user, if user == "root" { &["system:masters"] } else { &[] }),
            query: query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            dry_run: false,
        }
    }

    #[tokio::test]
    async fn logs_come_from_the_kubelet() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki(dir.path());
        let port = start_kubelet(&pki, "127.0.0.1").await;
        let connectors = connectors_for(&pki, port);
        let logs = &connectors[&(GroupResource::new("", "pods"), "log".to_owned())];
        let get = async |name: &str, query: &[(&str, &str)]| {
            let request = Request::builder().header("authorization", "Bearer x").body(full_body("")).unwrap();
            let answer =
                logs.connect(&context("x", "get", name, query), request).await.map_err(|e| e.message)?;
            let status = answer.status();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            Ok::<_, String>((status.as_u16(), String::from_utf8(body.to_vec()).unwrap()))
        };
        let ok = |text: &str| Ok((200, text.to_owned()));
        assert_eq!(
            get("p", &[("container", "c"), ("tailLines", "5")]).await,
            ok("GET /containerLogs/a/p/c?tailLines=5")
        );
        assert_eq!(
            get("p", &[("container", "sick")]).await,
            Err("container \"sick\" in pod \"p\" is waiting to start".to_owned())
        );
        assert_eq!(get("homeless", &[("container", "c")]).await, Ok((204, String::new())));
        assert_eq!(get("gone", &[]).await, Err("pods \"gone\" not found".to_owned()));
    }

    #[tokio::test]
    async fn a_kubelet_must_be_who_it_says() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (pki(ours.path()), pki(theirs.path()));
        for port in [start_kubelet(&theirs, "127.0.0.1").await, start_kubelet(&ours, "127.0.0.9").await] {
            let connectors = connectors_for(&ours, port);
            let logs = &connectors[&(GroupResource::new("", "pods"), "log".to_owned())];
            let request = Request::new(full_body(""));
            let error = logs
                .connect(&context("x", "get", "p", &[("container", "c")]), request)
                .await
                .err()
                .map(|e| e.message);
            assert!(error.as_ref().is_some_and(|e| e.contains("TLS handshake")), "{error:?}");
        }
    }

    /// A client of a server that answers everything by that connector.
    async fn client_of(
        connector: Arc<dyn Connector>,
        context: RequestContext,
    ) -> hyper::client::conn::http1::SendRequest<Body> {
        let (near, far) = tokio::io::duplex(4096);
        let context = Arc::new(context);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (connector, context) = (connector.clone(), context.clone());
                async move {
                    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
                    Ok::<_, Infallible>(connector.connect(&context, request).await.unwrap())
                }
            });
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(far), service)
                .with_upgrades()
                .await
        });
        let (sender, connection) =
            hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    /// Sends four bytes over the upgraded connection, and has them back.
    async fn echoes(mut answer: Response<Incoming>) {
        let mut stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
        stream.write_all(b"ping").await.unwrap();
        let mut buf = [0; 4];
        stream.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"ping");
    }

    #[tokio::test]
    async fn exec_joins_both_streams() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki(dir.path());
        let port = start_kubelet(&pki, "127.0.0.1").await;
        let exec = connectors_for(&pki, port)[&(GroupResource::new("", "pods"), "exec".to_owned())].clone();
        let query = [("container", "c"), ("command", "sh"), ("stdin", "true")];
        let mut sender = client_of(exec, context("root", "get", "p", &query)).await;
        let request = Request::get("/x")
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .body(full_body(""))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(answer.headers()["upgrade"], "SPDY/3.1");
        assert_eq!(answer.headers()["x-target"], "/exec/a/p/c?input=1&command=sh");
        echoes(answer).await;
    }

    #[tokio::test]
    async fn a_websocket_reaches_a_pod() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki(dir.path());
        let connectors = pods_behind(&pki, start_kubelet(&pki, "127.0.0.1").await);
        let proxy = connectors[&(GroupResource::new("", "pods"), "proxy".to_owned())].clone();
        let mut sender = client_of(proxy, context("root", "get", "web:80", &[])).await;
        let request = Request::get("/api/v1/namespaces/a/pods/web:80/proxy/ws")
            .header("host", "api:6443")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .body(full_body(""))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        echoes(answer).await;
    }

    #[tokio::test]
    async fn a_get_may_not_run_commands_without_create() {
        let dir = tempfile::tempdir().unwrap();
        let connectors = connectors_for(&pki(dir.path()), 1);
        let exec = &connectors[&(GroupResource::new("", "pods"), "exec".to_owned())];
        let refuse = async |user: &str, verb: &str, name: &str| {
            let query = [("container", "c")];
            exec.connect(&context(user, verb, name, &query), Request::new(full_body("")))
                .await
                .err()
                .map(|e| e.message)
                .unwrap_or_default()
        };
        assert_eq!(
            refuse("jane", "get", "p").await,
            "pods \"p\" is forbidden: User \"jane\" cannot create resource \"pods/exec\" in API group \"\" in the namespace \"a\""
        );
        assert_eq!(refuse("root", "get", "homeless").await, "pod homeless does not have a host assigned");
        assert!(refuse("jane", "create", "p").await.contains("error dialing backend"));
    }
}
