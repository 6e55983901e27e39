//! API aggregation: a server of another group behind TLS on the loopback, reached through a node as in a cluster.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/socket.rs"]
mod socket;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keelson_apiserver::Timeouts;
use keelson_apiserver::extension::{Body, full_body};
use keelson_apiserver::pki::{Profile, Usage};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use socket::{Connection, Fixture};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const SERVICE: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1.wardle.example.com";
const FLUNDERS: &str = "/apis/wardle.example.com/v1/namespaces/default/flunders";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// What the server behind answers.
async fn respond(mut request: Request<Incoming>, healthy: bool) -> Response<Body> {
    let header = |name: &str| {
        let values = request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.collect::<Vec<_>>().join(",")
    };
    let path = request.uri().path().to_owned();
    let mut code = StatusCode::OK;
    let mut kind = "application/json";
    let body = match path.as_str() {
        _ if !healthy => {
            code = StatusCode::INTERNAL_SERVER_ERROR;
            Value::Null
        }
        "/apis" if header("accept").contains("g=apidiscovery.k8s.io") => {
            kind = AGGREGATED;
            json!({"kind": "APIGroupDiscoveryList", "items": [{"metadata": {"name": "wardle.example.com"}, "versions": [
                {"version": "v1", "resources": [{"resource": "flunders", "scope": "Namespaced", "verbs": ["get", "list"],
                 "responseKind": {"group": "", "version": "", "kind": "Flunder"}}]},
            ]}]})
        }
        "/apis/wardle.example.com/v1" => {
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1", "resources": [
                {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list"]},
            ]})
        }
        "/openapi/v3" => {
            json!({"paths": {"apis/wardle.example.com/v1": {"serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1?hash=A"}}})
        }
        "/openapi/v3/apis/wardle.example.com/v1" => json!({"openapi": "3.0.0", "paths": {"theirs": {}}}),
        FLUNDERS if request.uri().query() == Some("watch=true") => {
            let event = Bytes::from_static(b"{\"type\":\"ADDED\"}\n");
            // One event, and then none for ever.
            let events = futures::stream::iter([Ok(Frame::data(event))]).chain(futures::stream::pending());
            return Response::new(BodyExt::boxed_unsync(StreamBody::new(events)));
        }
        path if path.ends_with("/elsewhere") => {
            let mut response = Response::new(full_body(""));
            *response.status_mut() = StatusCode::FOUND;
            response.headers_mut().insert("location", "https://192.0.2.1/".parse().unwrap());
            return response;
        }
        path if path.ends_with("/shell") => {
            let mut response = Response::new(full_body(""));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            for name in ["connection", "upgrade"] {
                response.headers_mut().insert(name, request.headers()[name].clone());
            }
            tokio::spawn(async move {
                let mut stream = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
                let mut bytes = [0; 4];
                stream.read_exact(&mut bytes).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            });
            return response;
        }
        _ => {
            let said = json!({
                "method": request.method().as_str(), "uri": request.uri().to_string(), "host": header("host"),
                "user": header("x-remote-user"), "groups": header("x-remote-group"), "extra": header("x-remote-extra-a"),
                "authorization": header("authorization"), "for": header("x-forwarded-for"),
            });
            let body = request.into_body().collect().await.unwrap().to_bytes();
            json!({"kind": "Said", "said": said, "body": String::from_utf8_lossy(&body)})
        }
    };
    let mut response = Response::new(full_body(body.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", kind.parse().unwrap());
    response
}

/// The server behind: its port, its certificate (which is its authority too), and whether it answers.
struct Backend {
    port: u16,
    ca: String,
    healthy: Arc<AtomicBool>,
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Backend {
    /// Takes only clients that `front_proxy_ca` vouches for.
    async fn start(front_proxy_ca: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["sample.default.svc".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(front_proxy_ca.as_bytes()).unwrap()).unwrap();
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let healthy = Arc::new(AtomicBool::new(true));
        let state = healthy.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, state) = (acceptor.clone(), state.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| {
                        let healthy = state.load(Ordering::Relaxed);
                        async move { Ok::<_, Infallible>(respond(request, healthy).await) }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    // A caller that gave up has hung up.
                    let _ = served.await;
                });
            }
        });
        let ca = base64::engine::general_purpose::STANDARD.encode(certificate.pem());
        Self { port, ca, healthy }
    }
}

/// A node's agent, which opens ways to pods; all of them lead to one port of loopback.
async fn start_node(fixture: &Fixture, leads_to: u16) -> u16 {
    let profile = Profile {
        common_name: "system:node:n1".into(),
        organization: None,
        usage: Usage::Server,
        names: vec!["127.0.0.1".into()],
    };
    let pair = fixture.pki.issue(&profile).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(move |mut request: Request<Incoming>| async move {
                    assert_eq!(request.uri().to_string(), "10.9.9.9:8443");
                    tokio::spawn(async move {
                        let near = hyper::upgrade::on(&mut request).await.unwrap();
                        let mut far = TcpStream::connect(("127.0.0.1", leads_to)).await.unwrap();
                        // Ends when either side does.
                        let _ = copy_bidirectional(&mut TokioIo::new(near), &mut far).await;
                    });
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                let _ = served.await;
            });
        }
    });
    port
}

struct Cluster {
    fixture: Fixture,
    backend: Backend,
    admin: Connection,
}

impl Cluster {
    async fn new() -> Self {
        let fixture = Fixture::new(Timeouts::default()).await;
        let mut admin = fixture.connect(Some(fixture.pki.admin())).await;
        let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
        let (code, trust) = admin.send("GET", path, "", Value::Null).await;
        assert_eq!(code, 200, "{trust}");
        assert_eq!(trust["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
        assert_eq!(trust["data"]["client-ca-file"], fixture.pki.ca_certificate_pem());
        let backend = Backend::start(trust["data"]["requestheader-client-ca-file"].as_str().unwrap()).await;
        Self { fixture, backend, admin }
    }

    async fn get(&mut self, path: &str) -> Value {
        let (code, value) = self.admin.send("GET", path, "", Value::Null).await;
        assert_eq!(code, 200, "{path}: {value}");
        value
    }

    /// Waits until what is at a path satisfies a condition.
    async fn wait(&mut self, path: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..300 {
            last = self.admin.send("GET", path, "", Value::Null).await.1;
            if good(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{what}: {last}");
    }

    async fn wait_for_reason(&mut self, reason: &str) -> Value {
        let has = |object: &Value| object["status"]["conditions"][0]["reason"] == reason;
        self.wait(SERVICE, reason, has).await
    }

    async fn register(&mut self) {
        let object = json!({"metadata": {"name": "v1.wardle.example.com"}, "spec": {
            "group": "wardle.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 200,
            "caBundle": self.backend.ca, "service": {"namespace": "default", "name": "sample"},
        }});
        let made = self.admin.make(API_SERVICES, object).await;
        assert_eq!((&made["spec"]["service"]["port"], &made["status"]), (&json!(443), &json!({})));
    }

    /// A node, and a service with a pod on it.
    async fn serve(&mut self) {
        let port = start_node(&self.fixture, self.backend.port).await;
        let status = json!({"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}});
        self.admin.make("/api/v1/nodes", json!({"metadata": {"name": "n1"}, "status": status})).await;
        let service =
            json!({"metadata": {"name": "sample"}, "spec": {"ports": [{"port": 443, "targetPort": 8443}]}});
        self.admin.make("/api/v1/namespaces/default/services", service).await;
        self.wait_for_reason("EndpointsNotFound").await;
        let slice = json!({
            "metadata": {"name": "sample-1", "labels": {"kubernetes.io/service-name": "sample"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8443}],
            "endpoints": [{"addresses": ["10.9.9.9"], "nodeName": "n1", "conditions": {"ready": true}}],
        });
        self.admin.make("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
        self.wait_for_reason("Passed").await;
    }

    /// GET of a path, as text, with headers.
    async fn text(&mut self, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let response = self.ask(path, headers).await;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn ask(&mut self, path: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
        let stream = self.fixture.tls(Some(self.fixture.pki.admin())).await;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().uri(path).header("host", "x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        sender.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap()
    }

    /// The entry of the group in aggregated discovery.
    async fn discovered(&mut self) -> Option<Value> {
        let (code, text) = self.text("/apis", &[("accept", AGGREGATED)]).await;
        assert_eq!(code, 200);
        let list: Value = serde_json::from_str(&text).unwrap();
        let items = list["items"].as_array().unwrap();
        items.iter().find(|group| group["metadata"]["name"] == "wardle.example.com").cloned()
    }
}

#[tokio::test]
async fn requests_go_to_the_server_of_their_group() {
    let mut cluster = Cluster::new().await;
    assert_eq!(cluster.admin.send("GET", FLUNDERS, "", Value::Null).await.0, 404);
    cluster.register().await;
    cluster.wait_for_reason("ServiceNotFound").await;
    assert_eq!(cluster.text(FLUNDERS, &[]).await, (503, "service unavailable\n".to_owned()));
    let stale = json!({"metadata": {"name": "wardle.example.com"}, "versions": [{"version": "v1", "freshness": "Stale"}]});
    assert_eq!(cluster.discovered().await, Some(stale));
    cluster.serve().await;
    cluster.wait(FLUNDERS, "an answer", |answer| answer["kind"] == "Said").await;

    // The user is the one that was authenticated here, whatever the client says.
    let lies = [
        ("x-remote-user", "somebody"),
        ("x-remote-group", "system:masters"),
        ("x-remote-extra-a", "lie"),
        ("connection", "close, x-private"),
        ("x-private", "1"),
    ];
    let (code, text) = cluster.text(&format!("{FLUNDERS}/a%2Fb?pretty=true"), &lies).await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, 200);
    assert_eq!(
        answer["said"],
        json!({
            "method": "GET", "uri": format!("{FLUNDERS}/a%2Fb?pretty=true"), "host": "sample.default.svc:443",
            "user": "kubernetes-admin", "groups": "system:masters,system:authenticated", "extra": "",
            "authorization": "", "for": "127.0.0.1",
        })
    );
    let (code, answer) = cluster.admin.send("POST", FLUNDERS, "", json!({"a": 1})).await;
    assert_eq!(
        (code, &answer["said"]["method"], &answer["body"]),
        (200, &json!("POST"), &json!("{\"a\":1}"))
    );
    let mut stranger = cluster.fixture.connect(None).await;
    let (code, _) = stranger.send("GET", FLUNDERS, "no-such-token", Value::Null).await;
    assert_eq!(code, 401, "credentials are checked here");

    // Nobody without rights gets through.
    let nobody = cluster.fixture.pki.issue(&Profile::client("nobody", None)).unwrap();
    let (code, status) =
        cluster.fixture.connect(Some(&nobody)).await.send("GET", FLUNDERS, "", Value::Null).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));

    // A watch flows as it comes.
    let mut watch = cluster.ask(&format!("{FLUNDERS}?watch=true"), &[]).await;
    let frame = tokio::time::timeout(Duration::from_secs(5), watch.body_mut().frame()).await.unwrap();
    assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "{\"type\":\"ADDED\"}\n");

    // Nor does a redirect lead anyone elsewhere.
    let (code, text) = cluster.text(&format!("{FLUNDERS}/elsewhere"), &[]).await;
    assert_eq!((code, text.contains("not permitted")), (502, true));

    // An upgraded connection is one between client and server behind.
    let upgrade = [("connection", "Upgrade"), ("upgrade", "echo")];
    let response = cluster.ask(&format!("{FLUNDERS}/x/shell"), &upgrade).await;
    assert_eq!(response.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(&bytes, b"ping");
}

#[tokio::test]
async fn discovery_shows_all_groups_as_one() {
    let mut cluster = Cluster::new().await;
    cluster.register().await;
    cluster.serve().await;
    let current = |group: &Value| group["versions"][0]["freshness"] == "Current";
    for _ in 0..100 {
        if cluster.discovered().await.as_ref().is_some_and(current) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let group = cluster.discovered().await.unwrap();
    assert_eq!(group["versions"][0]["resources"][0]["resource"], "flunders", "{group}");
    let list = cluster.get("/apis").await;
    let names: Vec<&str> =
        list["groups"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["apiregistration.k8s.io", "apps"]);
    assert_eq!(names.last().unwrap(), &"wardle.example.com");
    let own = cluster.get("/apis/wardle.example.com").await;
    assert_eq!(own["preferredVersion"]["groupVersion"], "wardle.example.com/v1");
    let resources = cluster.get("/apis/wardle.example.com/v1").await;
    assert_eq!(resources["resources"][0]["name"], "flunders");
    let index = cluster.get("/openapi/v3").await;
    let place = &index["paths"]["apis/wardle.example.com/v1"]["serverRelativeURL"];
    assert_eq!(*place, "/openapi/v3/apis/wardle.example.com/v1?hash=A");
    let document = cluster.get("/openapi/v3/apis/wardle.example.com/v1?hash=A").await;
    assert_eq!(document["paths"], json!({"theirs": {}}));
    assert!(index["paths"]["apis/apps/v1"].is_object());

    // A higher priority brings the group to the front.
    let spec = json!({"spec": {"groupPriorityMinimum": 19_000}});
    assert_eq!(cluster.admin.send("PATCH", SERVICE, "", spec).await.0, 200);
    let first = |list: &Value| list["groups"][1]["name"] == "wardle.example.com";
    cluster.wait("/apis", "the group in front", first).await;

    // A server that fails is noticed, and so is one that is back.
    cluster.backend.healthy.store(false, Ordering::Relaxed);
    let label = json!({"metadata": {"labels": {"look": "now"}}});
    assert_eq!(cluster.admin.send("PATCH", SERVICE, "", label).await.0, 200);
    let object = cluster.wait_for_reason("FailedDiscoveryCheck").await;
    let condition = &object["status"]["conditions"][0];
    assert_eq!(condition["status"], "False");
    assert!(
        condition["message"]
            .as_str()
            .unwrap()
            .contains("bad status from https://sample.default.svc:443/apis/wardle.example.com/v1: 500")
    );
    cluster.backend.healthy.store(true, Ordering::Relaxed);
    cluster.wait_for_reason("Passed").await;

    assert_eq!(cluster.admin.send("DELETE", SERVICE, "", Value::Null).await.0, 200);
    let gone =
        |list: &Value| !list["groups"].as_array().unwrap().iter().any(|g| g["name"] == "wardle.example.com");
    cluster.wait("/apis", "the group gone", gone).await;
    // What nobody serves is no path at all.
    for _ in 0..100 {
        if cluster.text(FLUNDERS, &[]).await.0 == 404 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("requests are still sent on");
}

#[tokio::test]
async fn this_server_registers_what_it_serves() {
    let mut cluster = Cluster::new().await;
    let count = |list: &Value| list["items"].as_array().unwrap().len();
    let groups = cluster.get("/apis").await;
    let versions: usize =
        groups["groups"].as_array().unwrap().iter().map(|g| g["versions"].as_array().unwrap().len()).sum();
    // Core has one that the list of groups does not show, and APIServices themselves have none.
    let list = cluster.wait(API_SERVICES, "one for each version", |list| count(list) == versions).await;
    for item in list["items"].as_array().unwrap() {
        assert_eq!(item["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
        let condition = &item["status"]["conditions"][0];
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("Local")));
    }
    let path = format!("{API_SERVICES}/v1.apps");
    let (_, table) = cluster.text(&path, &[("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")]).await;
    let table: Value = serde_json::from_str(&table).unwrap();
    assert_eq!(table["columnDefinitions"][1]["name"], "Service");
    assert_eq!(table["rows"][0]["cells"].as_array().unwrap()[..3], ["v1.apps", "Local", "True"]);

    // Conditions of local ones are put right.
    let status = json!({"status": {"conditions": [{"type": "Available", "status": "False", "reason": "Mine", "message": ""}]}});
    assert_eq!(cluster.admin.send("PATCH", &format!("{path}/status"), "", status).await.0, 200);
    let local = |object: &Value| object["status"]["conditions"][0]["reason"] == "Local";
    cluster.wait(&path, "Local again", local).await;

    // Those of custom resources come and go with them.
    let definition = json!({
        "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "things", "kind": "Thing"},
                 "versions": [{"name": "v1", "served": true, "storage": true,
                               "schema": {"openAPIV3Schema": {"type": "object"}}}]},
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    cluster.admin.make(definitions, definition).await;
    let of_things = format!("{API_SERVICES}/v1.example.com");
    let made =
        cluster.wait(&of_things, "one of the definition", |object| object["kind"] == "APIService").await;
    assert_eq!(made["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    assert_eq!(
        (&made["spec"]["groupPriorityMinimum"], &made["spec"]["versionPriority"]),
        (&json!(1000), &json!(100))
    );
    assert_eq!(cluster.admin.send("DELETE", &of_things, "", Value::Null).await.0, 200);
    let again = |object: &Value| {
        object["kind"] == "APIService" && object["metadata"]["uid"] != made["metadata"]["uid"]
    };
    cluster.wait(&of_things, "made again", again).await;
    cluster.admin.send("DELETE", &format!("{definitions}/things.example.com"), "", Value::Null).await;
    cluster.wait(&of_things, "gone", |object| object["code"] == 404).await;

    // A PUT needs a version, and a wrong object is told so.
    let mut object = cluster.get(&path).await;
    object["metadata"]["resourceVersion"] = Value::Null;
    assert_eq!(cluster.admin.send("PUT", &path, "", object).await.0, 422);
    let wrong = json!({"metadata": {"name": "wrong"}, "spec": {"group": "a.example.com", "version": "v1"}});
    let (code, status) = cluster.admin.send("POST", API_SERVICES, "", wrong).await;
    assert_eq!(code, 422);
    let message = status["message"].as_str().unwrap();
    assert!(message.contains("must be `spec.version+\".\"+spec.group`"), "{message}");
}
