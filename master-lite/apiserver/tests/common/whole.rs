//! An API server with all of its admission, over a store of its own and without a socket.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use keelson_apiserver::auth::AuthConfig;
use keelson_apiserver::extension::{InProcessUser, UserInfo, full_body};
use keelson_apiserver::pki::{Pki, PkiConfig};
use keelson_apiserver::{Config, Server, StoreConfig};
use serde_json::Value;

/// The server.
pub struct Whole {
    pub server: Server,
    _dir: tempfile::TempDir,
}

impl Whole {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(&PkiConfig {
            directory: dir.path().join("pki"),
            advertise_address: [192, 0, 2, 1].into(),
            service_address: [10, 96, 0, 1].into(),
            cluster_domain: "cluster.local".into(),
            extra_sans: vec![],
        })
        .unwrap();
        let config = Config {
            store: StoreConfig::Embedded(dir.path().join("store.redb")),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            advertise_address: [192, 0, 2, 1].into(),
            advertise_port: 6443,
            listen: vec![],
            listeners: vec![],
            auth: AuthConfig {
                pki: Arc::new(pki),
                issuer: "https://kubernetes.default.svc.cluster.local".into(),
                api_audiences: vec![],
                external_url: "https://192.0.2.1:6443".into(),
            },
        };
        let (server, _) = Server::build(config).await.unwrap();
        Self { server, _dir: dir }
    }

    pub async fn send(&self, method: &str, path: &str, body: Value) -> (u16, HeaderMap, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let content_type =
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .body(full_body(body))
            .unwrap();
        request.extensions_mut().insert(InProcessUser(UserInfo::apiserver()));
        let response = self.server.handle(request).await;
        let (code, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, headers, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub async fn create(&self, path: &str, object: Value) -> Value {
        let (code, _, made) = self.send("POST", path, object).await;
        assert_eq!(code, 201, "{made}");
        made
    }
}
