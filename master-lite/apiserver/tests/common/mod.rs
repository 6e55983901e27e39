//! An API server over a store of its own, without a socket.

#![allow(dead_code, reason = "no test file uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use keelson_apiserver::Server;
use keelson_apiserver::extension::full_body;
use keelson_store::{EmbeddedStore, Options};
use serde_json::{Value, json};

/// The server, with namespace `a`.
pub struct Fixture {
    pub server: Server,
    pub store: EmbeddedStore,
    _dir: tempfile::TempDir,
}

impl Fixture {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(Options::new(dir.path().join("store.redb"))).await.unwrap();
        let fixture = Self { server: serve(&store).await, store, _dir: dir };
        fixture.send("POST", "/api/v1/namespaces", "", json!({"metadata": {"name": "a"}})).await;
        fixture
    }

    /// The next server over the same store.
    pub async fn restarted(self) -> Self {
        Self { server: serve(&self.store).await, ..self }
    }

    /// `headers` is `key: value` lines. Returns code and body.
    pub async fn send(&self, method: &str, path: &str, headers: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (code, _, value) = self.send_text(method, path, headers, body).await;
        (code, value)
    }

    /// The same with any body; also returns the answer's headers.
    pub async fn send_text(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: String,
    ) -> (u16, HeaderMap, Value) {
        let mut request = Request::builder().method(method).uri(path);
        for line in headers.lines() {
            let (key, value) = line.split_once(": ").unwrap();
            request = request.header(key, value);
        }
        let response = self.server.handle(request.body(full_body(body)).unwrap()).await;
        let code = response.status().as_u16();
        let headers = response.headers().clone();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes).into_owned()));
        (code, headers, value)
    }

    pub async fn get(&self, path: &str) -> Value {
        let (code, value) = self.send("GET", path, "", Value::Null).await;
        assert_eq!(code, 200, "{path}: {value}");
        value
    }

    pub async fn create(&self, path: &str, object: Value) -> Value {
        let (code, value) = self.send("POST", path, "", object).await;
        assert_eq!(code, 201, "{path}: {value}");
        value
    }

    pub async fn config_map(&self, name: &str, labels: Value) -> Value {
        let object = json!({"metadata": {"name": name, "labels": labels}, "data": {"k": "v"}});
        self.create(CONFIG_MAPS, object).await
    }

    /// Frames of a watch until there are `count` of them.
    pub async fn watch(&self, path: &str, count: usize) -> Vec<(String, Value)> {
        let request = Request::builder().uri(path).body(full_body("")).unwrap();
        let mut body = self.server.handle(request).await.into_body();
        let mut text = Vec::new();
        let read = async {
            while text.iter().filter(|b| **b == b'\n').count() < count {
                let Some(frame) = body.frame().await else { break };
                text.extend_from_slice(&frame.unwrap().into_data().unwrap());
            }
        };
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("frames in time");
        String::from_utf8(text)
            .unwrap()
            .lines()
            .map(|line| {
                let mut frame: Value = serde_json::from_str(line).unwrap();
                (frame["type"].as_str().unwrap().to_owned(), frame["object"].take())
            })
            .collect()
    }
}

async fn serve(store: &EmbeddedStore) -> Server {
    Server::for_tests(Arc::new(store.clone()), "10.96.0.0/16".parse().unwrap()).await.unwrap()
}

pub const CONFIG_MAPS: &str = "/api/v1/namespaces/a/configmaps";
pub const PODS: &str = "/api/v1/namespaces/a/pods";

pub fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}})
}
