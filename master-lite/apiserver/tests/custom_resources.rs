//! CustomResourceDefinitions and their objects as clients see them, without a socket.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;
use keelson_apiserver::Server;
use keelson_apiserver::extension::full_body;
use keelson_store::{EmbeddedStore, Options};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const FOOS: &str = "/apis/example.com/v1/namespaces/a/foos";

struct Fixture {
    server: Server,
    _dir: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(Options::new(dir.path().join("store.redb"))).await.unwrap();
        let server = Server::for_tests(Arc::new(store), "10.96.0.0/16".parse().unwrap()).await.unwrap();
        let fixture = Self { server, _dir: dir };
        fixture
            .send("POST", "/api/v1/namespaces", "application/json", json!({"metadata": {"name": "a"}}))
            .await;
        fixture
    }

    async fn send(&self, method: &str, path: &str, content_type: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .body(full_body(body))
            .unwrap();
        let response = self.server.handle(request).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = || Value::from(String::from_utf8_lossy(&bytes).into_owned());
        (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| text()))
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.send("POST", path, "application/json", body).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, "application/json", Value::Null).await
    }

    /// Asks until the answer is as wanted.
    async fn until(&self, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
        for _ in 0..200 {
            let (code, value) = self.get(path).await;
            if wanted(code, &value) {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{path}: {:?}", self.get(path).await);
    }

    async fn define(&self) {
        let (code, made) = self.post(DEFINITIONS, definition()).await;
        assert_eq!(code, 201, "{made}");
        self.until(&format!("{DEFINITIONS}/foos.example.com"), |_, d| established(d)).await;
    }
}

fn established(definition: &Value) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Established" && c["status"] == "True")
}

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo", "shortNames": ["fo"], "categories": ["all"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                 "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                 "selectableFields": [{"jsonPath": ".spec.color"}],
                 "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "size": {"type": "integer", "minimum": 1, "default": 3},
                        "color": {"type": "string"}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}},
                {"name": "v2", "served": true, "storage": false, "schema": {"openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
            ],
        },
    })
}

fn foo(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_definition_to_objects_and_back() {
    let f = Fixture::new().await;
    assert_eq!(f.get(FOOS).await.0, 404);
    f.define().await;

    let (code, made) = f.post(FOOS, foo("x", json!({"color": "red", "unknown": 1}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"], json!({"color": "red", "size": 3}));
    assert_eq!(made["metadata"]["generation"], 1);

    let strict = format!("{FOOS}?fieldValidation=Strict");
    let (code, status) = f.post(&strict, foo("y", json!({"unknown": 1}))).await;
    assert_eq!(code, 400);
    assert!(
        status["message"].as_str().unwrap().contains("strict decoding error: unknown field \"spec.unknown\""),
        "{status}"
    );
    let (code, status) = f.post(FOOS, foo("y", json!({"size": 0}))).await;
    assert_eq!(code, 422);
    assert_eq!(
        status["message"],
        "Foo.example.com \"y\" is invalid: spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"
    );

    let (_, list) = f.get(&format!("{FOOS}?fieldSelector=spec.color%3Dred")).await;
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("FooList"), 1));
    let (_, list) = f.get(&format!("{FOOS}?fieldSelector=spec.color%3Dblue")).await;
    assert_eq!(list["items"], json!([]));
    let (_, other) = f.get("/apis/example.com/v2/namespaces/a/foos/x").await;
    assert_eq!(other["apiVersion"], "example.com/v2");

    let patch = json!({"status": {"ready": true}, "spec": {"size": 9}});
    let (code, patched) =
        f.send("PATCH", &format!("{FOOS}/x/status"), "application/merge-patch+json", patch).await;
    assert_eq!(code, 200, "{patched}");
    assert_eq!((&patched["status"]["ready"], &patched["spec"]["size"]), (&json!(true), &json!(3)));
    let strategic = "application/strategic-merge-patch+json";
    assert_eq!(f.send("PATCH", &format!("{FOOS}/x"), strategic, json!({})).await.0, 415);

    let (_, resources) = f.get("/apis/example.com/v1").await;
    let names: Vec<_> = resources["resources"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
    assert_eq!(names, ["foos", "foos/status"]);

    let path = format!("{DEFINITIONS}/foos.example.com");
    f.send("DELETE", &path, "application/json", Value::Null).await;
    f.until(&path, |code, _| code == 404).await;
    f.until(FOOS, |code, _| code == 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_follow_definitions() {
    let f = Fixture::new().await;
    let paths = |index: &Value| index["paths"]["apis/example.com/v1"].clone();
    assert!(paths(&f.get("/openapi/v3").await.1).is_null());
    f.define().await;
    let (_, index) = f.get("/openapi/v3").await;
    let url = paths(&index)["serverRelativeURL"].as_str().unwrap().to_owned();
    let (code, document) = f.get(&url).await;
    assert_eq!(code, 200);
    let foo = &document["components"]["schemas"]["com.example.v1.Foo"];
    assert_eq!(foo["properties"]["spec"]["properties"]["size"]["default"], 3);
    assert_eq!(foo["x-kubernetes-selectable-fields"], json!([{"fieldPath": "spec.color"}]));
    let (code, old) = f.get("/openapi/v2").await;
    assert_eq!(code, 200);
    assert_eq!(old["definitions"]["com.example.v1.Foo"]["properties"]["spec"]["type"], "object");
    // A version that keeps whatever it is given says nothing of it.
    let second = &old["definitions"]["com.example.v2.Foo"];
    assert_eq!((&second["type"], &second["properties"]), (&json!("object"), &Value::Null));

    let patch = json!([{"op": "replace", "path": "/spec/versions/1/served", "value": false}]);
    let path = format!("{DEFINITIONS}/foos.example.com");
    let (code, _) = f.send("PATCH", &path, "application/json-patch+json", patch).await;
    assert_eq!(code, 200);
    f.until("/apis/example.com/v2", |code, _| code == 404).await;
    assert!(f.get("/openapi/v2").await.1["definitions"]["com.example.v2.Foo"].is_null());
    assert_ne!(paths(&f.get("/openapi/v3").await.1)["serverRelativeURL"], url.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_is_where_the_definition_says() {
    let f = Fixture::new().await;
    let mut scaled = definition();
    let version = &mut scaled["spec"]["versions"][0];
    version["subresources"]["scale"] = json!({"specReplicasPath": ".spec.size",
        "statusReplicasPath": ".status.size", "labelSelectorPath": ".status.selector"});
    version["additionalPrinterColumns"] =
        json!([{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}]);
    assert_eq!(f.post(DEFINITIONS, scaled).await.0, 201);
    f.until(&format!("{DEFINITIONS}/foos.example.com"), |_, d| established(d)).await;
    assert_eq!(f.post(FOOS, foo("x", json!({}))).await.0, 201);
    let status = json!({"status": {"size": 2, "selector": "app=x"}});
    let merge = "application/merge-patch+json";
    assert_eq!(f.send("PATCH", &format!("{FOOS}/x/status"), merge, status).await.0, 200);
    let (_, scale) = f.get(&format!("{FOOS}/x/scale")).await;
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(3)));
    assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=x"}));
    let (code, _) =
        f.send("PATCH", &format!("{FOOS}/x/scale"), merge, json!({"spec": {"replicas": 7}})).await;
    assert_eq!(code, 200);
    let (_, object) = f.get(&format!("{FOOS}/x")).await;
    assert_eq!((&object["spec"]["size"], &object["metadata"]["generation"]), (&json!(7), &json!(2)));
    let (code, _) = f.send("PATCH", &format!("{FOOS}/x"), merge, json!({"status": {"size": -1}})).await;
    assert_eq!(code, 200, "the status is not written through the object");
    let (code, status) =
        f.send("PATCH", &format!("{FOOS}/x/status"), merge, json!({"status": {"size": -1}})).await;
    assert_eq!(code, 422, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_changes_nothing_migrates() {
    let f = Fixture::new().await;
    f.define().await;
    let (_, made) = f.post(FOOS, foo("x", json!({"color": "red"}))).await;
    let put = async |object: &Value| {
        let (code, put) = f.send("PUT", &format!("{FOOS}/x"), "application/json", object.clone()).await;
        assert_eq!(code, 200, "{put}");
        put
    };
    let unchanged = put(&made).await;
    assert_eq!(unchanged["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let path = format!("{DEFINITIONS}/foos.example.com");
    let patch = json!([
        {"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true},
    ]);
    let (code, changed) = f.send("PATCH", &path, "application/json-patch+json", patch).await;
    assert_eq!((code, &changed["status"]["storedVersions"]), (200, &json!(["v1", "v2"])));
    // Until the new table is in force the object is still stored as before.
    for _ in 0..200 {
        let (_, now) = f.get(&format!("{FOOS}/x")).await;
        let after = put(&now).await;
        if after["metadata"]["resourceVersion"] != now["metadata"]["resourceVersion"] {
            assert_eq!((&after["spec"], &after["apiVersion"]), (&made["spec"], &json!("example.com/v1")));
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the object was not stored anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_object_outlives_its_definition() {
    let f = Fixture::new().await;
    f.define().await;
    let mut held = foo("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    assert_eq!(f.post(FOOS, held).await.0, 201);
    assert_eq!(f.post(FOOS, foo("free", json!({}))).await.0, 201);
    let path = format!("{DEFINITIONS}/foos.example.com");
    // A client that writes what it once read drops finalizers that it doesn't know.
    let (_, mut current) = f.get(&path).await;
    assert!(current["metadata"]["finalizers"].is_null());
    current["metadata"]["finalizers"] = json!([]);
    assert_eq!(f.send("PUT", &path, "application/json", current).await.0, 200);
    f.send("DELETE", &path, "application/json", Value::Null).await;
    f.until(&format!("{FOOS}/free"), |code, _| code == 404).await;
    let going = f.get(&path).await.1;
    let terminating = going["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "Terminating")
        .unwrap();
    assert_eq!(terminating["status"], "True");
    let (code, refused) = f.post(FOOS, foo("late", json!({}))).await;
    assert_eq!(code, 405);
    assert_eq!(refused["message"], "create not allowed while custom resource definition is terminating");
    let release = json!([{"op": "remove", "path": "/metadata/finalizers"}]);
    assert_eq!(f.send("PATCH", &format!("{FOOS}/held"), "application/json-patch+json", release).await.0, 200);
    f.until(&path, |code, _| code == 404).await;
    f.until(FOOS, |code, _| code == 404).await;
    // The same definition again finds nothing of before.
    f.define().await;
    assert_eq!(f.get(FOOS).await.1["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_given_once() {
    let f = Fixture::new().await;
    f.define().await;
    let mut other = definition();
    other["metadata"]["name"] = "bars.example.com".into();
    other["spec"]["names"] = json!({"plural": "bars", "kind": "Foo"});
    assert_eq!(f.post(DEFINITIONS, other).await.0, 201);
    let path = format!("{DEFINITIONS}/bars.example.com");
    let refused =
        f.until(&path, |_, d| d["status"]["conditions"].as_array().is_some_and(|c| !c.is_empty())).await;
    assert!(!established(&refused));
    let reasons: Vec<&Value> =
        refused["status"]["conditions"].as_array().unwrap().iter().map(|c| &c["reason"]).collect();
    assert!(reasons.contains(&&json!("ListKindConflict")) || reasons.contains(&&json!("KindConflict")));
    assert_eq!(f.get("/apis/example.com/v1/namespaces/a/bars").await.0, 404);
    f.send("DELETE", &format!("{DEFINITIONS}/foos.example.com"), "application/json", Value::Null).await;
    f.until(&path, |_, d| established(d)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_held() {
    let f = Fixture::new().await;
    let mut ruled = definition();
    let spec = &mut ruled["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    spec["x-kubernetes-validations"] = json!([
        {"rule": "self.size < 100 || has(self.color)", "message": "large ones need a color"},
    ]);
    spec["properties"]["color"]["x-kubernetes-validations"] =
        json!([{"rule": "self == oldSelf", "message": "a color stays"}]);
    assert_eq!(f.post(DEFINITIONS, ruled).await.0, 201);
    f.until(&format!("{DEFINITIONS}/foos.example.com"), |_, d| established(d)).await;
    let (code, status) = f.post(FOOS, foo("x", json!({"size": 100}))).await;
    assert_eq!(code, 422);
    assert_eq!(
        status["message"],
        "Foo.example.com \"x\" is invalid: spec: Invalid value: large ones need a color"
    );
    assert_eq!(f.post(FOOS, foo("x", json!({"size": 100, "color": "red"}))).await.0, 201);
    let patch = json!({"spec": {"color": "blue"}});
    let (code, status) = f.send("PATCH", &format!("{FOOS}/x"), "application/merge-patch+json", patch).await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().ends_with("\"blue\": a color stays"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_supported_is_refused() {
    let f = Fixture::new().await;
    let mut with_rules = definition();
    with_rules["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] =
        json!([{"rule": "[3, 1].sortBy(x, x) == [1, 3]"}]);
    let (code, status) = f.post(DEFINITIONS, with_rules).await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().contains("not supported by this server"), "{status}");
    let mut with_webhook = definition();
    with_webhook["spec"]["conversion"] = json!({"strategy": "Webhook"});
    assert_eq!(f.post(DEFINITIONS, with_webhook).await.0, 422);
}
