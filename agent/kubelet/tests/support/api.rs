//! An API server of one page: objects by resource and name, list, watch, merge patches. It signs every
//! CertificateSigningRequest at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Objects = BTreeMap<(String, String), Value>;

/// The server.
#[derive(Clone)]
pub struct FakeApi {
    inner: Arc<Inner>,
    address: std::net::SocketAddr,
}

struct Inner {
    objects: Mutex<(u64, Objects)>,
    changes: broadcast::Sender<(String, Value)>,
    issuer: Issuer<'static, KeyPair>,
    authority: String,
    lifetime: Duration,
}

impl FakeApi {
    /// Starts a server whose certificates live for `lifetime`.
    pub async fn start(lifetime: Duration) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap().pem();
        let inner = Arc::new(Inner {
            objects: Mutex::default(),
            changes: broadcast::channel(256).0,
            issuer: Issuer::new(params, key),
            authority,
            lifetime,
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { inner, address }
    }

    /// A bootstrap kubeconfig.
    pub fn kubeconfig(&self) -> String {
        let authority = base64::engine::general_purpose::STANDARD.encode(&self.inner.authority);
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
            "users": [{ "name": "u", "user": { "token": "abcdef.0123456789abcdef" } }],
            "clusters": [{ "name": "c", "cluster": {
                "server": format!("http://{}", self.address),
                "certificate-authority-data": authority,
            } }],
        })
        .to_string()
    }

    /// All objects of a resource.
    pub fn list(&self, resource: &str) -> Vec<Value> {
        let objects = self.inner.objects.lock();
        objects
            .1
            .iter()
            .filter(|((known, _), _)| known == resource)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Changes an object.
    pub fn merge(&self, resource: &str, name: &str, patch: Value) {
        let mut object = self.inner.objects.lock().1[&(resource.to_owned(), name.to_owned())].clone();
        merge(&mut object, patch);
        self.inner.put(resource, name, object);
    }
}

impl Inner {
    fn put(&self, resource: &str, name: &str, mut object: Value) -> Value {
        let mut objects = self.objects.lock();
        objects.0 += 1;
        object["metadata"]["resourceVersion"] = objects.0.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", objects.0).into();
        }
        objects.1.insert((resource.to_owned(), name.to_owned()), object.clone());
        let _ = self.changes.send((resource.to_owned(), object.clone()));
        object
    }

    fn sign(&self, object: &mut Value) {
        let request = object["spec"]["request"].as_str().unwrap();
        let request = base64::engine::general_purpose::STANDARD.decode(request).unwrap();
        let mut request =
            CertificateSigningRequestParams::from_pem(&String::from_utf8(request).unwrap()).unwrap();
        request.params.not_before = std::time::SystemTime::now().into();
        request.params.not_after = (std::time::SystemTime::now() + self.lifetime).into();
        let certificate = request.signed_by(&self.issuer).unwrap().pem();
        let certificate = base64::engine::general_purpose::STANDARD.encode(certificate);
        object["status"] = json!({
            "certificate": certificate,
            "conditions": [{ "type": "Approved", "status": "True", "reason": "Test" }],
        });
    }
}

/// JSON merge patch, which is near enough to a strategic one here; "$patch" directives are dropped.
fn merge(target: &mut Value, patch: Value) {
    match patch {
        Value::Object(fields) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (name, value) in fields {
                merge(&mut target[name], value);
            }
        }
        Value::Array(mut items) => {
            items.retain(|item| item.get("$patch").is_none());
            *target = Value::Array(items);
        }
        other => *target = other,
    }
}

fn reply(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

fn failure(code: u16, reason: &str) -> Response {
    let body =
        json!({ "kind": "Status", "status": "Failure", "message": reason, "reason": reason, "code": code });
    reply(StatusCode::from_u16(code).unwrap(), &body)
}

async fn answer(State(api): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let path = parts.uri.path().to_owned();
    let mut segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    // api/v1 or apis/<group>/<version>, then maybe namespaces/<namespace>.
    segments.drain(..if segments[0] == "api" { 2 } else { 3 });
    if segments[0] == "namespaces" && segments.len() > 2 {
        segments.drain(..2);
    }
    let resource = segments[0];
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let selected = query.split('&').find_map(|pair| pair.strip_prefix("fieldSelector=metadata.name%3D"));
    let parse = || serde_json::from_slice::<Value>(&body).unwrap();
    match (parts.method, segments.get(1)) {
        (Method::POST, None) => {
            let mut object = parse();
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            if api.objects.lock().1.contains_key(&(resource.to_owned(), name.clone())) {
                return failure(409, "AlreadyExists");
            }
            if resource == "certificatesigningrequests" {
                api.sign(&mut object);
            }
            reply(StatusCode::CREATED, &api.put(resource, &name, object))
        }
        (Method::GET, None) if query.contains("watch=true") => watch(&api, resource, selected),
        (Method::GET, None) => {
            let objects = api.objects.lock();
            let items: Vec<&Value> = objects
                .1
                .iter()
                .filter(|((known, name), _)| {
                    known == resource && selected.is_none_or(|selected| selected == name)
                })
                .map(|(_, object)| object)
                .collect();
            let metadata = json!({ "resourceVersion": objects.0.to_string() });
            reply(StatusCode::OK, &json!({ "metadata": metadata, "items": items }))
        }
        (Method::GET, Some(name)) => {
            let object = api.objects.lock().1.get(&(resource.to_owned(), (*name).to_owned())).cloned();
            object.map_or_else(|| failure(404, "NotFound"), |object| reply(StatusCode::OK, &object))
        }
        (Method::PUT, Some(name)) => reply(StatusCode::OK, &api.put(resource, name, parse())),
        (Method::PATCH, Some(name)) => {
            let object = api.objects.lock().1.get(&(resource.to_owned(), (*name).to_owned())).cloned();
            let Some(mut object) = object else { return failure(404, "NotFound") };
            merge(&mut object, parse());
            reply(StatusCode::OK, &api.put(resource, name, object))
        }
        _ => failure(405, "MethodNotAllowed"),
    }
}

/// Changes from now on.
fn watch(api: &Inner, resource: &str, selected: Option<&str>) -> Response {
    let (resource, selected) = (resource.to_owned(), selected.map(str::to_owned));
    let changes = futures::stream::unfold(api.changes.subscribe(), move |mut changes| {
        let (resource, selected) = (resource.clone(), selected.clone());
        async move {
            loop {
                let (known, object) = changes.recv().await.ok()?;
                let name = object["metadata"]["name"].as_str();
                if known == resource && selected.as_deref().is_none_or(|selected| name == Some(selected)) {
                    let event = format!("{}\n", json!({ "type": "MODIFIED", "object": object }));
                    return Some((Ok::<_, std::io::Error>(Bytes::from(event)), changes));
                }
            }
        }
    });
    let mut response = Response::new(Body::from_stream(changes));
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}
