//! Bodies, names and versions as no honest client would send them: each is refused with upstream's code, the Status
//! names what is wrong, and nothing is stored.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{CONFIG_MAPS, Fixture, PODS, pod};
use http::Request;
use http_body_util::BodyExt as _;
use keelson_apiserver::extension::full_body;
use serde_json::{Value, json};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const MERGE: &str = "application/merge-patch+json";

async fn send(f: &Fixture, method: &str, path: &str, kind: &str, body: impl Into<Vec<u8>>) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let response = f.server.handle(request.body(full_body(body.into())).unwrap()).await;
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// What a refusal must look like.
struct Refusal<'a> {
    code: u16,
    reason: &'a str,
    /// Parts of the message.
    says: &'a [&'a str],
}

const fn refusal<'a>(code: u16, reason: &'a str, says: &'a [&'a str]) -> Refusal<'a> {
    Refusal { code, reason, says }
}

fn check(what: &str, (code, status): &(u16, Value), want: &Refusal<'_>) {
    assert_eq!((*code, &status["code"]), (want.code, &json!(want.code)), "{what}: {status}");
    assert_eq!(
        (&status["kind"], &status["reason"]),
        (&json!("Status"), &json!(want.reason)),
        "{what}: {status}"
    );
    let message = status["message"].as_str().unwrap();
    for part in want.says {
        assert!(message.contains(part), "{what}: {part:?} is not in {message:?}");
    }
}

/// Refused with 422 because of this field.
fn check_field(what: &str, answer: &(u16, Value), field: &str) {
    check(what, answer, &refusal(422, "Invalid", &[field]));
    let causes = answer.1["details"]["causes"].as_array().unwrap();
    assert!(causes.iter().any(|cause| cause["field"] == field), "{what}: {causes:?}");
}

async fn names(f: &Fixture, path: &str) -> Vec<String> {
    let list = f.get(path).await;
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_cannot_be_read() {
    let f = Fixture::new().await;
    let deep = |open: &str, close: &str| {
        format!(
            "{{\"metadata\":{{\"name\":\"x\"}},\"data\":{}1{}}}",
            open.repeat(100_000),
            close.repeat(100_000)
        )
    };
    let bomb = format!(
        "metadata: {{name: x}}\na0: &a0 [x, x, x, x, x, x, x, x]\n{}",
        (1..12)
            .map(|i| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 8].join(", ")))
            .collect::<String>()
    );
    let mut proto = b"k8s\0".to_vec();
    proto.extend([0xff; 64]);
    // An envelope whose length says more than there is.
    let cut = b"k8s\0\x0a\x7f\x0a\x02v1".to_vec();
    let bodies: Vec<(&str, &str, Vec<u8>, &[&str])> = vec![
        ("cut off", JSON, b"{\"metadata\":{\"name\":\"x\"}".to_vec(), &[]),
        ("no JSON", JSON, b"\xff\xfe\x00".to_vec(), &[]),
        ("a list", JSON, b"[]".to_vec(), &[]),
        ("a word", JSON, b"\"x\"".to_vec(), &[]),
        ("two objects", JSON, b"{\"metadata\":{\"name\":\"x\"}}{}".to_vec(), &[]),
        (
            "a number for a text",
            JSON,
            b"{\"metadata\":{\"name\":\"x\"},\"data\":{\"k\":1}}".to_vec(),
            &["data"],
        ),
        ("a text for an object", JSON, b"{\"metadata\":\"x\"}".to_vec(), &["metadata"]),
        (
            "another kind",
            JSON,
            b"{\"apiVersion\":\"v1\",\"kind\":\"Secret\",\"metadata\":{\"name\":\"x\"}}".to_vec(),
            &["Secret"],
        ),
        (
            "another version",
            JSON,
            b"{\"apiVersion\":\"v9\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"x\"}}".to_vec(),
            &["v9"],
        ),
        ("lists in lists", JSON, deep("[", "]").into_bytes(), &[]),
        ("objects in objects", JSON, deep("{\"a\":", "}").into_bytes(), &[]),
        ("bad YAML", YAML, b"metadata: {name: x".to_vec(), &[]),
        ("YAML in YAML", YAML, deep("[", "]").into_bytes(), &[]),
        ("aliases of aliases", YAML, bomb.into_bytes(), &[]),
        ("no protobuf", PROTOBUF, b"{}".to_vec(), &[]),
        ("noise", PROTOBUF, proto, &[]),
        ("a length beyond the end", PROTOBUF, cut, &[]),
    ];
    for (what, kind, body, says) in bodies {
        let answer = send(&f, "POST", CONFIG_MAPS, kind, body).await;
        check(what, &answer, &refusal(400, "BadRequest", says));
    }
    let answer = send(&f, "POST", CONFIG_MAPS, "text/html", "<p>").await;
    check("HTML", &answer, &refusal(415, "UnsupportedMediaType", &[JSON]));

    f.config_map("x", json!({})).await;
    let path = format!("{CONFIG_MAPS}/x");
    for (what, kind, body) in [
        ("a patch cut off", MERGE, "{\"data\":".to_owned()),
        ("a deep patch", MERGE, deep("{\"a\":", "}")),
        ("a JSON patch that is none", "application/json-patch+json", "{\"op\":1}".to_owned()),
        ("a deep apply", "application/apply-patch+yaml", deep("[", "]")),
    ] {
        let path = if kind.contains("apply") { format!("{path}?fieldManager=t") } else { path.clone() };
        let answer = send(&f, "PATCH", &path, kind, body).await;
        check(what, &answer, &refusal(400, "BadRequest", &[]));
    }
    assert_eq!(f.get(&path).await["data"], json!({"k": "v"}));
    assert_eq!(names(&f, CONFIG_MAPS).await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_nobody_knows_and_fields_twice() {
    let f = Fixture::new().await;
    let strict = |path: &str| format!("{path}?fieldValidation=Strict");
    let json = "{\"metadata\":{\"name\":\"x\"},\"nope\":1,\"data\":{\"a\":\"1\",\"a\":\"2\"}}";
    let yaml = "metadata: {name: x}\nnope: 1\ndata: {a: \"1\"}\nimmutable: true\nimmutable: false\n";
    for (what, kind, body, twice) in [("JSON", JSON, json, "data.a"), ("YAML", YAML, yaml, "immutable")] {
        let answer = send(&f, "POST", &strict(CONFIG_MAPS), kind, body).await;
        let twice = format!("duplicate field \"{twice}\"");
        let says = ["strict decoding error", "unknown field \"nope\"", &twice];
        check(what, &answer, &refusal(400, "BadRequest", &says));
    }
    let mut nested = pod("p");
    nested["spec"]["containers"][0]["imagee"] = "x".into();
    let answer = send(&f, "POST", &strict(PODS), JSON, nested.to_string()).await;
    check("deep in", &answer, &refusal(400, "BadRequest", &["unknown field \"spec.containers[0].imagee\""]));
    assert!(names(&f, CONFIG_MAPS).await.is_empty() && names(&f, PODS).await.is_empty());

    f.config_map("x", json!({})).await;
    let path = strict(&format!("{CONFIG_MAPS}/x"));
    let answer = send(&f, "PATCH", &path, MERGE, "{\"nope\":1,\"data\":{\"k\":\"w\"}}").await;
    check("patched in", &answer, &refusal(400, "BadRequest", &["unknown field \"nope\""]));
    let answer = send(&f, "PUT", &path, JSON, json).await;
    check("put in", &answer, &refusal(400, "BadRequest", &["unknown field \"nope\""]));
    assert_eq!(f.get(&format!("{CONFIG_MAPS}/x")).await["data"], json!({"k": "v"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_the_limit() {
    let f = Fixture::new().await;
    f.config_map("x", json!({})).await;
    let path = format!("{CONFIG_MAPS}/x");
    let large = json!({"metadata": {"name": "x"}, "data": {"k": "x".repeat(3 << 20)}}).to_string();
    for (method, path, kind) in [
        ("POST", CONFIG_MAPS, JSON),
        ("PUT", path.as_str(), JSON),
        ("PATCH", path.as_str(), MERGE),
        ("DELETE", path.as_str(), JSON),
        ("DELETE", CONFIG_MAPS, JSON),
    ] {
        let answer = send(&f, method, path, kind, large.clone()).await;
        let says = ["Request entity too large: limit is 3145728"];
        check(method, &answer, &refusal(413, "RequestEntityTooLarge", &says));
    }
    // Within the limit, and yet more than a ConfigMap holds.
    let large = json!({"metadata": {"name": "y"}, "data": {"k": "x".repeat((1 << 20) + 1)}}).to_string();
    let (code, status) = send(&f, "POST", CONFIG_MAPS, JSON, large).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")), "{status}");
    let many = Value::Array(vec![json!({"op": "add", "path": "/data/k", "value": "w"}); 10_001]).to_string();
    let answer = send(&f, "PATCH", &path, "application/json-patch+json", many).await;
    check("many operations", &answer, &refusal(413, "RequestEntityTooLarge", &["10000", "10001"]));
    assert_eq!(f.get(&path).await["data"], json!({"k": "v"}));
    assert_eq!(names(&f, CONFIG_MAPS).await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_none() {
    let f = Fixture::new().await;
    for name in ["Bad", "a/b", "..", "a_b", "-a", "a\u{0}b", "ä", &"a".repeat(254)] {
        let answer = f.send("POST", CONFIG_MAPS, "", json!({"metadata": {"name": name}})).await;
        check_field(name, &answer, "metadata.name");
    }
    let answer = f.send("POST", CONFIG_MAPS, "", json!({"metadata": {}})).await;
    check_field("no name", &answer, "metadata.name");
    for (field, meta) in [
        ("metadata.labels", json!({"name": "x", "labels": {"a b": "c"}})),
        ("metadata.labels", json!({"name": "x", "labels": {"a": "b c"}})),
        ("metadata.annotations", json!({"name": "x", "annotations": {"/": ""}})),
        ("metadata.annotations", json!({"name": "x", "annotations": {"a": "x".repeat(1 << 18)}})),
        ("metadata.finalizers", json!({"name": "x", "finalizers": ["no domain"]})),
    ] {
        let answer = f.send("POST", CONFIG_MAPS, "", json!({"metadata": meta})).await;
        let field = if field == "metadata.finalizers" { "metadata.finalizers[0]" } else { field };
        check_field(field, &answer, field);
    }
    let answer = f.send("POST", CONFIG_MAPS, "", json!({"metadata": {"name": "x", "namespace": "b"}})).await;
    check("another namespace", &answer, &refusal(400, "BadRequest", &["namespace"]));
    f.config_map("x", json!({})).await;
    let path = format!("{CONFIG_MAPS}/x");
    let answer = f.send("PUT", &path, "", json!({"metadata": {"name": "y"}})).await;
    check("another name", &answer, &refusal(400, "BadRequest", &["name"]));
    assert_eq!(names(&f, "/api/v1/configmaps").await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_change_and_what_has_changed() {
    let f = Fixture::new().await;
    let put = async |path: &str, change: &dyn Fn(&mut Value)| {
        let mut object = f.get(path).await;
        let before = object.clone();
        change(&mut object);
        let answer = f.send("PUT", path, "", object).await;
        assert_eq!(f.get(path).await, before, "{path}: refused and stored");
        answer
    };
    f.create(CONFIG_MAPS, json!({"metadata": {"name": "fixed"}, "immutable": true, "data": {"k": "v"}}))
        .await;
    let path = format!("{CONFIG_MAPS}/fixed");
    check_field("data", &put(&path, &|map| map["data"]["k"] = "w".into()).await, "data");
    check_field("immutable", &put(&path, &|map| map["immutable"] = false.into()).await, "immutable");
    let answer = put(&path, &|map| map["metadata"]["uid"] = "other".into()).await;
    check("another uid", &answer, &refusal(409, "Conflict", &["UID"]));
    let answer = put(&path, &|map| map["metadata"]["resourceVersion"] = "1".into()).await;
    check("stale", &answer, &refusal(409, "Conflict", &["the object has been modified"]));
    assert_eq!(answer.1["details"], json!({"name": "fixed", "kind": "configmaps"}));
    let stale = json!({"preconditions": {"resourceVersion": "1"}});
    let answer = f.send("DELETE", &path, "", stale).await;
    check("stale delete", &answer, &refusal(409, "Conflict", &["ResourceVersion"]));
    let stale = json!({"metadata": {"resourceVersion": "1"}, "data": null});
    let answer = f.send("PATCH", &path, &format!("content-type: {MERGE}"), stale).await;
    check("stale patch", &answer, &refusal(409, "Conflict", &["the object has been modified"]));

    f.create("/api/v1/namespaces/a/secrets", json!({"metadata": {"name": "s"}, "type": "Opaque"})).await;
    let answer = put("/api/v1/namespaces/a/secrets/s", &|secret| secret["type"] = "b/c".into()).await;
    check_field("a Secret's type", &answer, "type");
    f.create(PODS, pod("p")).await;
    let answer = put(&format!("{PODS}/p"), &|pod| pod["spec"]["nodeName"] = "n".into()).await;
    check_field("a pod's node", &answer, "spec");
    let services = "/api/v1/namespaces/a/services";
    f.create(services, json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}})).await;
    let answer = put(&format!("{services}/s"), &|service| {
        service["spec"]["clusterIP"] = "10.96.9.9".into();
        service["spec"]["clusterIPs"] = json!(["10.96.9.9"]);
    })
    .await;
    check_field("a cluster IP", &answer, "spec.clusterIPs[0]");
    let deployments = "/apis/apps/v1/namespaces/a/deployments";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": pod("p")["spec"]});
    let spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": template});
    f.create(deployments, json!({"metadata": {"name": "d"}, "spec": spec})).await;
    let answer = put(&format!("{deployments}/d"), &|d| {
        d["spec"]["selector"]["matchLabels"]["a"] = "c".into();
        d["spec"]["template"]["metadata"]["labels"]["a"] = "c".into();
    })
    .await;
    check_field("a selector", &answer, "spec.selector");
}
