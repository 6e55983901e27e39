//! Admission webhooks: a server with all of its admission, and webhooks behind TLS on the loopback.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/whole.rs"]
mod whole;

use std::convert::Infallible;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keelson_apiserver::extension::{Body, full_body};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use whole::Whole;

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A webhook server. What it answers is said by the path.
struct Hooks {
    port: u16,
    ca: String,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

fn patch(operations: &Value) -> Value {
    let patch = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    json!({"allowed": true, "patch": patch, "patchType": "JSONPatch"})
}

async fn respond(path: &str, request: &Value) -> Value {
    let object = &request["object"];
    let add = |key: &str, value: Value| json!({"op": "add", "path": format!("/data/{key}"), "value": value});
    match path {
        "/deny" => {
            json!({"allowed": false, "status": {"message": "not today", "code": 403, "reason": "Mine"}})
        }
        "/warn" => json!({"allowed": true, "warnings": ["mind the gap"]}),
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(5)).await;
            json!({"allowed": true})
        }
        "/one" => patch(&json!([add("one", "yes".into())])),
        // Adds what there is not yet, so that a second call is told from the first.
        "/count" => {
            let seen = object["data"]["two"].is_string();
            patch(&json!([add(if seen { "second" } else { "first" }, "yes".into())]))
        }
        "/two" => patch(&json!([add("two", "yes".into())])),
        "/unknown" => patch(&json!([add("known", "yes".into()), add("unknown", "yes".into())])),
        "/replicas" => patch(&json!([{"op": "replace", "path": "/spec/replicas", "value": 7}])),
        "/container" => patch(
            &json!([{"op": "add", "path": "/spec/initContainers", "value": [{"name": "i", "image": "x"}]}]),
        ),
        _ => json!({"allowed": true}),
    }
}

impl Hooks {
    async fn start() -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&ca, ca_key).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let noted = asked.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, noted) = (acceptor.clone(), noted.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let noted = noted.clone();
                        async move {
                            let path = request.uri().path().to_owned();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let review: Value = serde_json::from_slice(&body).unwrap();
                            noted.lock().unwrap().push((path.clone(), review["request"].clone()));
                            let mut response = respond(&path, &review["request"]).await;
                            response["uid"] = review["request"]["uid"].clone();
                            let answer = json!({"kind": review["kind"], "apiVersion": review["apiVersion"], "response": response});
                            Ok::<_, Infallible>(Response::<Body>::new(full_body(answer.to_string())))
                        }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    // A caller that gave up has hung up.
                    let _ = served.await;
                });
            }
        });
        Self { port, ca: base64::engine::general_purpose::STANDARD.encode(ca), asked }
    }

    /// A webhook at a path, with a rule and more fields.
    fn hook(&self, path: &str, operations: &[&str], resource: &str, more: &Value) -> Value {
        let (group, resource) = resource.split_once(':').unwrap_or(("", resource));
        let mut hook = json!({
            "name": format!("{}.example.com", path.trim_start_matches('/')),
            "clientConfig": {"url": format!("https://127.0.0.1:{}{path}", self.port), "caBundle": self.ca},
            "rules": [{"operations": operations, "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource]}],
            "sideEffects": "None", "admissionReviewVersions": ["v1"],
        });
        for (key, value) in more.as_object().unwrap() {
            hook[key] = value.clone();
        }
        hook
    }

    fn asked(&self, path: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(at, _)| at == path).map(|(_, request)| request.clone()).collect()
    }
}

struct Fixture {
    whole: Whole,
    hooks: Hooks,
}

impl Deref for Fixture {
    type Target = Whole;

    fn deref(&self) -> &Whole {
        &self.whole
    }
}

impl Fixture {
    async fn new() -> Self {
        Self { whole: Whole::new().await, hooks: Hooks::start().await }
    }

    /// Makes a configuration; it counts from the next request on.
    async fn configure(&self, of: &str, name: &str, hooks: &[Value]) {
        let (code, headers, made) =
            self.send("POST", of, json!({"metadata": {"name": name}, "webhooks": hooks})).await;
        assert_eq!((code, headers.get("warning")), (201, None), "{made}");
        // A read of the newest version waits for the cache.
        assert_eq!(self.send("GET", &format!("{of}/{name}"), Value::Null).await.0, 200);
    }

    async fn config_map(&self, name: &str) -> (u16, HeaderMap, Value) {
        self.send("POST", CONFIG_MAPS, config_map(name)).await
    }

    async fn refused(&self, name: &str, code: u16, why: &str) {
        let (got, _, status) = self.config_map(name).await;
        assert_eq!((got, status["message"].as_str().unwrap()), (code, why));
    }
}

fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"k": "v"}})
}

#[tokio::test]
async fn writes_are_refused_and_warned_of() {
    let fixture = Fixture::new().await;
    let hooks = &fixture.hooks;
    fixture.create(CONFIG_MAPS, config_map("old")).await;
    let skip = json!({"matchConditions": [{"name": "skip", "expression": "object == null || object.metadata.name != 'skip-me'"}]});
    fixture.configure(VALIDATING, "w", &[hooks.hook("/warn", &["CREATE"], "configmaps", &json!({}))]).await;
    let (code, headers, _) = fixture.config_map("warned").await;
    assert_eq!((code, &headers["warning"]), (201, &"299 - \"mind the gap\"".parse().unwrap()));
    fixture
        .configure(VALIDATING, "d", &[hooks.hook("/deny", &["CREATE", "DELETE"], "configmaps", &skip)])
        .await;
    let why = "admission webhook \"deny.example.com\" denied the request: not today";
    fixture.refused("x", 403, why).await;
    assert_eq!(fixture.config_map("skip-me").await.0, 201);
    let (code, _, status) = fixture.send("DELETE", &format!("{CONFIG_MAPS}/old"), Value::Null).await;
    assert_eq!((code, &status["message"], &status["reason"]), (403, &json!(why), &json!("Mine")));
    let asked = hooks.asked("/deny");
    let (create, delete) = (&asked[0], &asked[1]);
    assert_eq!((&create["operation"], &create["namespace"]), (&json!("CREATE"), &json!("default")));
    assert_eq!(create["object"]["data"], json!({"k": "v"}));
    assert_eq!((&create["options"]["kind"], &create["dryRun"]), (&json!("CreateOptions"), &json!(false)));
    assert_eq!(create["userInfo"]["username"], "system:apiserver");
    assert_eq!((&delete["object"], &delete["oldObject"]["metadata"]["name"]), (&Value::Null, &json!("old")));
    assert_eq!(delete["options"]["kind"], "DeleteOptions");
    // An update is none of its business.
    let (code, _, _) =
        fixture.send("PATCH", &format!("{CONFIG_MAPS}/old"), json!({"data": {"k": "w"}})).await;
    assert_eq!(code, 200);
    // Nor are configurations of webhooks.
    assert_eq!(fixture.send("DELETE", &format!("{VALIDATING}/d"), Value::Null).await.0, 200);
}

#[tokio::test]
async fn objects_are_changed_in_order_and_again_where_wanted() {
    let fixture = Fixture::new().await;
    let hook = |path: &str, more: Value| fixture.hooks.hook(path, &["CREATE"], "configmaps", &more);
    fixture.configure(MUTATING, "b", &[hook("/two", json!({}))]).await;
    fixture
        .configure(
            MUTATING,
            "a",
            &[hook("/count", json!({"reinvocationPolicy": "IfNeeded"})), hook("/one", json!({}))],
        )
        .await;
    let (code, _, made) = fixture.config_map("m").await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["data"], json!({"k": "v", "one": "yes", "two": "yes", "first": "yes", "second": "yes"}));
    assert_eq!(["/count", "/one", "/two"].map(|path| fixture.hooks.asked(path).len()), [2, 1, 1]);
    // What a webhook adds has no owner.
    let owned = &made["metadata"]["managedFields"][0]["fieldsV1"]["f:data"];
    assert_eq!(owned.as_object().unwrap().keys().filter(|k| *k != ".").collect::<Vec<_>>(), ["f:k"]);
    let stored = fixture.send("GET", &format!("{CONFIG_MAPS}/m"), Value::Null).await.2;
    assert_eq!(stored["data"], made["data"]);
}

#[tokio::test]
async fn failures_close_or_open() {
    let fixture = Fixture::new().await;
    let hooks = &fixture.hooks;
    let hook = |path: &str, more: Value| hooks.hook(path, &["CREATE"], "configmaps", &more);
    let slow = json!({"timeoutSeconds": 1, "failurePolicy": "Ignore"});
    fixture.configure(VALIDATING, "s", &[hook("/slow", slow)]).await;
    assert_eq!(fixture.config_map("open").await.0, 201);
    fixture
        .configure(VALIDATING, "t", &[hook("/slow", json!({"timeoutSeconds": 1, "name": "t.example.com"}))])
        .await;
    let why = format!(
        "Internal error occurred: failed calling webhook \"t.example.com\": failed to call webhook: Post \"https://127.0.0.1:{}/slow?timeout=1s\": context deadline exceeded",
        hooks.port
    );
    fixture.refused("closed", 500, &why).await;
    fixture.send("DELETE", &format!("{VALIDATING}/t"), Value::Null).await;
    // A certificate of nobody that the configuration trusts.
    let other = Hooks::start().await;
    let mut untrusted = other.hook("/allow", &["CREATE"], "configmaps", &json!({}));
    untrusted["clientConfig"]["caBundle"] = hooks.ca.as_str().into();
    fixture.configure(MUTATING, "u", &[untrusted]).await;
    let (code, _, status) = fixture.config_map("untrusted").await;
    assert_eq!(code, 500);
    assert!(status["message"].as_str().unwrap().contains("tls: invalid peer certificate"), "{status}");
    assert!(other.asked("/allow").is_empty());
    // Elsewhere it is not asked for.
    let away = json!({"namespaceSelector": {"matchLabels": {"none": "such"}}});
    let mut away = other.hook("/deny", &["*"], "*/*", &away);
    away["failurePolicy"] = "Fail".into();
    fixture.send("DELETE", &format!("{MUTATING}/u"), Value::Null).await;
    fixture.configure(MUTATING, "v", &[away]).await;
    assert_eq!(fixture.config_map("elsewhere").await.0, 201);
}

#[tokio::test]
async fn conditions_that_do_not_compile_are_refused() {
    let fixture = Fixture::new().await;
    let bad = json!({"matchConditions": [{"name": "bad", "expression": "... [] bad expression"}]});
    for of in [MUTATING, VALIDATING] {
        let hook = fixture.hooks.hook("/allow", &["*"], "configmaps", &bad);
        let (code, _, status) =
            fixture.send("POST", of, json!({"metadata": {"name": "c"}, "webhooks": [hook]})).await;
        assert_eq!(code, 422);
        let message = status["message"].as_str().unwrap();
        assert!(message.contains("webhooks[0].matchConditions[0].expression: Invalid value: \"... [] bad expression\": compilation failed: "), "{message}");
    }
}

#[tokio::test]
async fn scales_streams_and_tokens_are_asked_about() {
    let fixture = Fixture::new().await;
    let hooks = &fixture.hooks;
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    fixture.create(deployments, deployment).await;
    fixture
        .configure(
            MUTATING,
            "m",
            &[
                hooks.hook("/replicas", &["UPDATE"], "apps:deployments/scale", &json!({})),
                hooks.hook("/container", &["CREATE"], "apps:deployments", &json!({})),
            ],
        )
        .await;
    let (code, _, scale) =
        fixture.send("PATCH", &format!("{deployments}/d/scale"), json!({"spec": {"replicas": 3}})).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(7)), "{scale}");
    let asked = &hooks.asked("/replicas")[0];
    assert_eq!(asked["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!(
        (&asked["subResource"], &asked["oldObject"]["spec"]["replicas"]),
        (&json!("scale"), &json!(1))
    );
    fixture
        .configure(
            VALIDATING,
            "v",
            &[
                hooks.hook("/deny", &["CONNECT"], "pods/attach", &json!({})),
                hooks.hook("/allow", &["CREATE"], "serviceaccounts/token", &json!({})),
            ],
        )
        .await;
    let attach = "/api/v1/namespaces/default/pods/p/attach?container=c&stdin=true";
    let (code, _, status) = fixture.send("POST", attach, Value::Null).await;
    assert_eq!(code, 403, "{status}");
    let asked = &hooks.asked("/deny")[0];
    assert_eq!((&asked["operation"], &asked["name"]), (&json!("CONNECT"), &json!("p")));
    assert_eq!(
        asked["object"],
        json!({"kind": "PodAttachOptions", "apiVersion": "v1", "stdin": true, "container": "c"})
    );
    fixture.create("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "s"}})).await;
    let tokens = "/api/v1/namespaces/default/serviceaccounts/s/token";
    let request =
        json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"audiences": []}});
    fixture.create(tokens, request).await;
    assert_eq!(hooks.asked("/allow")[0]["kind"]["kind"], "TokenRequest");
}

#[tokio::test]
async fn custom_resources_are_pruned_and_shown_in_the_wanted_version() {
    let fixture = Fixture::new().await;
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "data": {"type": "object", "properties": {"known": {"type": "string"}, "filled": {"type": "string", "default": "in"}}}}}});
    let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": schema});
    let definition = json!({"metadata": {"name": "foos.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"},
        "versions": [version("v1", false), version("v2", true)]}});
    fixture.create(DEFINITIONS, definition).await;
    let foos = "/apis/example.com/v2/namespaces/default/foos";
    for _ in 0..200 {
        if fixture.send("GET", foos, Value::Null).await.0 == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let hook = fixture.hooks.hook("/unknown", &["CREATE"], "example.com:foos", &json!({}));
    fixture.configure(MUTATING, "m", &[hook]).await;
    let foo = json!({"apiVersion": "example.com/v2", "kind": "Foo", "metadata": {"name": "f"}, "data": {}});
    let made = fixture.create(foos, foo).await;
    assert_eq!(made["data"], json!({"known": "yes", "filled": "in"}));
    assert_eq!(made["apiVersion"], "example.com/v2");
    let asked = &fixture.hooks.asked("/unknown")[0];
    assert_eq!((&asked["kind"]["version"], &asked["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
    assert_eq!(asked["object"]["apiVersion"], "example.com/v1");
}
