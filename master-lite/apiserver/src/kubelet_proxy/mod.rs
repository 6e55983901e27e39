//! The way to nodes and pods: logs, exec, attach and port-forward through the node's kubelet, and the proxy
//! subresources of pods, services and nodes.
//!
//! Streams are relayed byte for byte: whatever of WebSocket and SPDY the client speaks, the kubelet answers.

mod dial;
mod headers;
mod location;
mod logs;
mod proxy;
mod relay;
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
use crate::pki::{Pki, PkiError};
use dial::Dialer;

/// What the connectors share.
pub(crate) struct Backend {
    reader: Arc<dyn ObjectReader>,
    authorizer: Arc<ClusterAuthorizer>,
    dialer: Dialer,
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
///
/// # Errors
/// When the certificate shown to kubelets can't be used.
pub fn connectors(
    pki: &Pki,
    reader: Arc<dyn ObjectReader>,
    authorizer: Arc<ClusterAuthorizer>,
) -> Result<HashMap<ExtensionKey, Arc<dyn Connector>>, PkiError> {
    let backend = Arc::new(Backend { reader, authorizer, dialer: Dialer::new(pki)? });
    let key = |resource: &str, subresource: &str| (GroupResource::new("", resource), subresource.to_owned());
    let stream = |kind| Arc::new(streams::Stream::new(backend.clone(), kind)) as Arc<dyn Connector>;
    let proxy = |target| Arc::new(proxy::Proxy::new(backend.clone(), target)) as Arc<dyn Connector>;
    Ok(HashMap::from([
        (key("pods", "log"), Arc::new(logs::Logs::new(backend.clone())) as Arc<dyn Connector>),
        (key("pods", "exec"), stream(streams::Kind::Exec)),
        (key("pods", "attach"), stream(streams::Kind::Attach)),
        (key("pods", "portforward"), stream(streams::Kind::PortForward)),
        (key("pods", "proxy"), proxy(proxy::Target::Pod)),
        (key("services", "proxy"), proxy(proxy::Target::Service)),
        (key("nodes", "proxy"), proxy(proxy::Target::Node)),
    ]))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response, StatusCode};
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
    use crate::pki::{PkiConfig, Profile, Usage};

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

    /// Answers with what it was asked, refuses the container `sick`, and echoes upgraded bytes.
    async fn kubelet(mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let uri = request.uri().to_string();
        let mut response = Response::new(full_body(format!("{} {uri}", request.method())));
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
        connectors(pki, reader.clone(), Arc::new(ClusterAuthorizer::new(reader))).unwrap()
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

    #[tokio::test]
    async fn exec_joins_both_streams() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki(dir.path());
        let port = start_kubelet(&pki, "127.0.0.1").await;
        let exec = connectors_for(&pki, port)[&(GroupResource::new("", "pods"), "exec".to_owned())].clone();
        let (near, far) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let exec = exec.clone();
                async move {
                    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
                    let context = context(
                        "root",
                        "get",
                        "p",
                        &[("container", "c"), ("command", "sh"), ("stdin", "true")],
                    );
                    Ok::<_, Infallible>(exec.connect(&context, request).await.unwrap())
                }
            });
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(far), service)
                .with_upgrades()
                .await
        });
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let request = Request::get("/x")
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .body(full_body(""))
            .unwrap();
        let mut answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(answer.headers()["upgrade"], "SPDY/3.1");
        assert_eq!(answer.headers()["x-target"], "/exec/a/p/c?input=1&command=sh");
        let mut stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
        stream.write_all(b"ping").await.unwrap();
        let mut buf = [0; 4];
        stream.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"ping");
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
