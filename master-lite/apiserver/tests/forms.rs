//! Answers in the forms that clients ask for: YAML, protobuf, gzip, OpenAPI v2.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use keelson_api::codec::{self, FieldValidation, MediaType};
use keelson_api::meta::GroupVersionKind;
use keelson_apiserver::Server;
use keelson_apiserver::extension::full_body;
use keelson_store::{EmbeddedStore, Options};
use serde_json::{Value, json};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

struct Fixture {
    server: Server,
    _dir: tempfile::TempDir,
}

struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn tree(&self, kind: &str) -> Value {
        match self.header("content-type") {
            PROTOBUF => protobuf(&self.body, kind),
            "application/yaml" => codec::parse(MediaType::Yaml, &self.body).unwrap().0,
            "application/json" => serde_json::from_slice(&self.body).unwrap(),
            other => panic!("content type {other:?}"),
        }
    }
}

fn protobuf(body: &[u8], kind: &str) -> Value {
    let group = if kind.starts_with("Partial") { "meta.k8s.io" } else { "" };
    let gvk = GroupVersionKind::new(group, "v1", kind);
    codec::decode(MediaType::Protobuf, body, &gvk, FieldValidation::Strict).unwrap().object
}

/// Protobuf has no empty lists, says what items are once, in the list's kind, and the version of APIVersions, too.
fn like_json(tree: &mut Value, json: &Value) {
    if json.get("apiVersion").is_none() {
        tree.as_object_mut().unwrap().remove("apiVersion");
    }
    let Some(full) = json["items"].as_array() else { return };
    if full.is_empty() {
        tree["items"] = json!([]);
    }
    for (item, full) in tree["items"].as_array_mut().unwrap().iter_mut().zip(full) {
        for key in ["apiVersion", "kind"].into_iter().filter(|key| full.get(key).is_some()) {
            item[key] = full[key].clone();
        }
    }
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(Options::new(dir.path().join("store.redb"))).await.unwrap();
        let server = Server::for_tests(Arc::new(store), "10.96.0.0/16".parse().unwrap()).await.unwrap();
        Self { server, _dir: dir }
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (key, value) in headers {
            request = request.header(*key, *value);
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = self.server.handle(request.body(full_body(body)).unwrap()).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn get(&self, path: &str, accept: &str) -> Answer {
        self.send("GET", path, &[("accept", accept)], Value::Null).await
    }

    async fn config_map(&self, name: &str, text: &str, accept: &str) -> Answer {
        let object = json!({"metadata": {"name": name}, "data": {"k": text}});
        self.send("POST", MAPS, &[("accept", accept)], object).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_and_lists_are_the_same_in_every_form() {
    let f = Fixture::new().await;
    for (name, accept) in [("a", "application/json"), ("b", "application/yaml"), ("c", PROTOBUF)] {
        let made = f.config_map(name, "yes\nno", accept).await;
        assert_eq!((made.code, made.header("content-type")), (201, accept));
        assert_eq!(made.tree("ConfigMap")["data"]["k"], "yes\nno");
    }
    let check = async |path: &str, kind: &str, suffix: &str| {
        let json = f.get(path, &format!("application/json{suffix}")).await.tree(kind);
        for accept in ["application/yaml", PROTOBUF] {
            let other = f.get(path, &format!("{accept}{suffix}")).await;
            assert_eq!((other.code, other.header("content-type")), (200, accept), "{path}");
            let mut tree = other.tree(kind);
            if accept == PROTOBUF {
                like_json(&mut tree, &json);
            }
            assert_eq!(tree, json, "{path} {accept}");
        }
    };
    check(&format!("{MAPS}/a"), "ConfigMap", "").await;
    check(MAPS, "ConfigMapList", "").await;
    check("/api/v1/services", "ServiceList", "").await;
    check("/api", "APIVersions", "").await;
    check("/api/v1", "APIResourceList", "").await;
    check("/apis", "APIGroupList", "").await;
    let metadata = ";as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    check(&format!("{MAPS}/a"), "PartialObjectMetadata", metadata).await;
    check(MAPS, "PartialObjectMetadataList", metadata).await;

    let table = f.get(MAPS, "application/yaml;as=Table;g=meta.k8s.io;v=v1").await.tree("Table");
    assert_eq!(table["rows"].as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_refused_before_anything_is_done() {
    let f = Fixture::new().await;
    let refused = f.config_map("x", "v", "text/plain").await;
    assert_eq!((refused.code, refused.header("content-type")), (406, "application/json"));
    assert_eq!(
        refused.tree("Status")["message"],
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
    let missing = f.get(&format!("{MAPS}/x"), PROTOBUF).await;
    assert_eq!((missing.code, missing.header("content-type")), (404, PROTOBUF));
    let status = missing.tree("Status");
    assert_eq!((&status["reason"], &status["code"]), (&json!("NotFound"), &json!(404)));
    assert_eq!(f.get(&format!("{MAPS}?watch=1"), "application/yaml").await.code, 406);
    assert_eq!(f.get("/api/v1", "text/plain").await.code, 406);
    // `*/*` at the end takes whatever there is.
    assert_eq!(f.get(MAPS, "text/plain, */*;q=0.1").await.header("content-type"), "application/json");
}

/// Frames of a protobuf watch: type and object.
async fn frames(f: &Fixture, path: &str, accept: &str, kind: &str, count: usize) -> Vec<(String, Value)> {
    let request = Request::builder().uri(path).header("accept", accept).body(full_body("")).unwrap();
    let response = f.server.handle(request).await;
    assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    let mut found = Vec::new();
    let read = async {
        while found.len() < count {
            bytes.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
            while let Some(length) = bytes.first_chunk::<4>().map(|b| u32::from_be_bytes(*b) as usize) {
                if bytes.len() < 4 + length {
                    break;
                }
                let event = bytes.drain(..4 + length).skip(4).collect::<Vec<_>>();
                // Field 1: the type, shorter than 128 bytes. Then somewhere the object with its own magic number.
                let name = String::from_utf8(event[2..2 + usize::from(event[1])].to_vec()).unwrap();
                let start = event.windows(4).position(|window| window == b"k8s\0").unwrap();
                let kind = if name == "ERROR" { "Status" } else { kind };
                found.push((name, protobuf(&event[start..], kind)));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("frames in time");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_speak_protobuf() {
    let f = Fixture::new().await;
    f.config_map("a", "1", "*/*").await;
    let path = format!(
        "{MAPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let accept = "application/vnd.kubernetes.protobuf;stream=watch,application/json;q=0.5";
    let events = frames(&f, &path, accept, "ConfigMap", 2).await;
    assert_eq!((events[0].0.as_str(), &events[0].1["data"]["k"]), ("ADDED", &json!("1")));
    assert_eq!(events[1].0, "BOOKMARK");
    assert_eq!(events[1].1["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");

    let accept = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let events = frames(&f, &path, accept, "PartialObjectMetadata", 1).await;
    assert_eq!(events[0].1["metadata"]["name"], "a");
    assert!(events[0].1.get("data").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_compressed() {
    let f = Fixture::new().await;
    f.config_map("small", "v", "*/*").await;
    f.config_map("large", &"text ".repeat(40_000), "*/*").await;
    let gzip = [("accept-encoding", "gzip"), ("accept", PROTOBUF)];
    let small = f.send("GET", &format!("{MAPS}/small"), &gzip, Value::Null).await;
    assert_eq!(small.header("content-encoding"), "");
    let large = f.send("GET", MAPS, &gzip, Value::Null).await;
    assert_eq!((large.header("content-encoding"), large.header("vary")), ("gzip", "Accept-Encoding"));
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&*large.body).read_to_end(&mut plain).unwrap();
    assert!(large.body.len() < plain.len() / 10, "{} of {}", large.body.len(), plain.len());
    assert_eq!(protobuf(&plain, "ConfigMapList")["items"].as_array().unwrap().len(), 2);
    let identity = f.get(MAPS, PROTOBUF).await;
    assert_eq!(identity.body, plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn openapi_v2_comes_as_json_and_as_protobuf() {
    let f = Fixture::new().await;
    let json = f.get("/openapi/v2", "application/json").await;
    assert_eq!(
        (json.code, json.header("content-type"), json.header("vary")),
        (200, "application/json", "Accept")
    );
    let document: Value = serde_json::from_slice(&json.body).unwrap();
    assert_eq!(document["swagger"], "2.0");
    assert!(document["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    let form = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    for accept in ["application/com.github.proto-openapi.spec.v2@v1.0+protobuf", form] {
        let answer = f.get("/openapi/v2", accept).await;
        assert_eq!((answer.code, answer.header("content-type")), (200, form));
        // Field 1 of the document: its version.
        assert!(answer.body.starts_with(b"\x0a\x032.0\x12"));
        assert_eq!(answer.header("etag"), json.header("etag"));
    }
    assert_eq!(f.get("/openapi/v2", "text/plain").await.code, 406);
    let known = [("if-none-match", json.header("etag"))];
    let answer = f.send("GET", "/openapi/v2", &known, Value::Null).await;
    assert_eq!((answer.code, answer.body.len()), (304, 0));
    let packed = f.send("GET", "/openapi/v2", &[("accept-encoding", "gzip")], Value::Null).await;
    assert_eq!(packed.header("content-encoding"), "gzip");
}
