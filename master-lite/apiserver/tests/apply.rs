//! Server-side apply and owners of fields as clients see them, after upstream's `test/integration/apiserver/apply`.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{CONFIG_MAPS, Fixture, PODS, pod};
use serde_json::{Value, json};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/a/deployments";
const APPLY: &str = "content-type: application/apply-patch+yaml";
const MERGE: &str = "content-type: application/merge-patch+json";

impl Fixture {
    async fn try_apply(&self, path: &str, query: &str, config: Value) -> (u16, Value) {
        self.send("PATCH", &format!("{path}?{query}"), APPLY, config).await
    }

    async fn apply(&self, path: &str, query: &str, config: Value) -> Value {
        let (code, value) = self.try_apply(path, query, config).await;
        assert!(code == 200 || code == 201, "{path}?{query}: {value}");
        value
    }

    async fn merge(&self, path: &str, query: &str, patch: Value) -> Value {
        let (code, value) = self.send("PATCH", &format!("{path}?{query}"), MERGE, patch).await;
        assert_eq!(code, 200, "{path}?{query}: {value}");
        value
    }
}

/// `manager/operation[/subresource]` of each owner.
fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .map(|entry| {
            let text = |field: &str| entry[field].as_str().unwrap_or_default();
            let subresource = match text("subresource") {
                "" => String::new(),
                name => format!("/{name}"),
            };
            format!("{}/{}{subresource}", text("manager"), text("operation"))
        })
        .collect()
}

/// What one owner owns.
fn owned<'o>(object: &'o Value, owner: &str) -> &'o Value {
    let at =
        owners(object).iter().position(|name| name == owner).unwrap_or_else(|| panic!("{owner}: {object}"));
    &object["metadata"]["managedFields"][at]["fieldsV1"]
}

fn version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap()
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": data})
}

fn deployment(spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"app": "d"}},
        "spec": {
            "selector": {"matchLabels": {"app": "d"}},
            "template": {
                "metadata": {"labels": {"app": "d"}},
                "spec": {"containers": [{"name": "c", "image": "i:1"}]},
            },
        },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_creates_changes_and_takes_away() {
    let f = Fixture::new().await;
    let path = format!("{CONFIG_MAPS}/x");
    let (code, made) = f.try_apply(&path, "fieldManager=m", config_map(json!({"a": "1", "b": "1"}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(owners(&made), ["m/Apply"]);
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["apiVersion"], &entry["fieldsType"], &entry["fieldsV1"]),
        (&json!("v1"), &json!("FieldsV1"), &json!({"f:data": {"f:a": {}, "f:b": {}}}))
    );
    assert!(entry["time"].as_str().unwrap() <= made["metadata"]["creationTimestamp"].as_str().unwrap());

    // The same again is no change, whatever the time.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let (code, same) = f.try_apply(&path, "fieldManager=m", config_map(json!({"a": "1", "b": "1"}))).await;
    assert_eq!((code, &same), (200, &made));

    // What is no longer applied goes, but for what somebody else owns, too.
    f.apply(&path, "fieldManager=n", config_map(json!({"b": "1"}))).await;
    let left = f.apply(&path, "fieldManager=m", config_map(json!({"c": "1"}))).await;
    assert_eq!(left["data"], json!({"b": "1", "c": "1"}));
    assert_eq!(owned(&left, "m/Apply"), &json!({"f:data": {"f:c": {}}}));
    assert_eq!(owned(&left, "n/Apply"), &json!({"f:data": {"f:b": {}}}));

    // Dry runs find conflicts and keep nothing.
    let (code, dry) = f.try_apply(&path, "fieldManager=n&dryRun=All", config_map(json!({"d": "1"}))).await;
    assert_eq!((code, &dry["data"]), (200, &json!({"c": "1", "d": "1"})));
    let (code, _) = f.try_apply(&path, "fieldManager=n&dryRun=All", config_map(json!({"c": "2"}))).await;
    assert_eq!(code, 409);
    assert_eq!(f.get(&path).await, left);
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_name_owners_and_fields() {
    let f = Fixture::new().await;
    let path = format!("{DEPLOYMENTS}/d");
    f.apply(&path, "fieldManager=applier", deployment(json!({"replicas": 1}))).await;
    f.merge(&path, "fieldManager=updater", json!({"spec": {"replicas": 5}})).await;
    let config = deployment(json!({"replicas": 3}));
    let (code, status) = f.try_apply(&path, "fieldManager=applier", config.clone()).await;
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")));
    let message = "Apply failed with 1 conflict: conflict with \"updater\" using apps/v1: .spec.replicas";
    assert_eq!(status["message"], message);
    assert_eq!(
        status["details"],
        json!({"causes": [{
            "reason": "FieldManagerConflict", "message": "conflict with \"updater\" using apps/v1",
            "field": ".spec.replicas",
        }]})
    );
    let forced = f.apply(&path, "fieldManager=applier&force=true", config).await;
    assert_eq!(
        (&forced["spec"]["replicas"], forced["metadata"]["generation"].as_u64()),
        (&json!(3), Some(3))
    );
    assert_eq!(owners(&forced), ["applier/Apply"]);

    let mut container = deployment(json!({}));
    container["spec"]["template"]["spec"]["containers"][0]["image"] = "i:2".into();
    let (_, status) = f.try_apply(&path, "fieldManager=other", container).await;
    assert_eq!(
        status["message"],
        "Apply failed with 1 conflict: conflict with \"applier\": .spec.template.spec.containers[name=\"c\"].image"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_checked() {
    let f = Fixture::new().await;
    let path = format!("{CONFIG_MAPS}/x");
    let check = async |query: &str, config: Value, code: u16, message: &str| {
        let (got, status) = f.try_apply(&path, query, config).await;
        assert_eq!((got, status["message"].as_str().unwrap_or_default()), (code, message));
    };
    let good = config_map(json!({"a": "1"}));
    check(
        "",
        good.clone(),
        422,
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
    )
    .await;
    let mut other = good.clone();
    other["metadata"]["name"] = "y".into();
    check("fieldManager=m", other, 400, "the name of the object (y) does not match the name on the URL (x)")
        .await;
    let mut other = good.clone();
    other["metadata"]["managedFields"] = json!([{}]);
    check("fieldManager=m", other, 400, "metadata.managedFields must be nil").await;
    let mut other = good.clone();
    other["apiVersion"] = "apps/v1".into();
    check("fieldManager=m", other, 400, "invalid object type: apps/v1, Kind=ConfigMap").await;
    let mut other = good.clone();
    other["metadata"]["uid"] = "u".into();
    check(
        "fieldManager=m",
        other,
        409,
        "Operation cannot be fulfilled on configmaps \"x\": uid mismatch: the provided object specified uid u, and no existing object was found",
    )
    .await;
    let mut other = good.clone();
    other["nope"] = 1.into();
    other["data"] = json!(["x"]);
    check(
        "fieldManager=m",
        other,
        500,
        "failed to create typed patch object (/x; /v1, Kind=ConfigMap): errors:\n  .data: expected map, got &{[x]}\n  .nope: field not declared in schema",
    )
    .await;
    check("fieldManager=m&force=1", json!([]), 400, "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go value of type map[string]interface {}").await;
    let (code, status) = f.send("PATCH", &format!("{path}?force=true"), MERGE, json!({})).await;
    assert_eq!(code, 422, "{status}");
    for media in ["text/plain", "application/apply-patch+cbor", "application/yaml"] {
        let (code, status) = f.send("PATCH", &path, &format!("content-type: {media}"), json!({})).await;
        assert_eq!((code, &status["reason"]), (415, &json!("UnsupportedMediaType")), "{media}");
        assert!(status["message"].as_str().unwrap().ends_with(", application/apply-patch+yaml"));
    }

    let made = f.apply(&path, "fieldManager=m", good.clone()).await;
    let mut stale = good.clone();
    stale["metadata"]["resourceVersion"] = "1".into();
    let (code, status) = f.try_apply(&path, "fieldManager=m", stale).await;
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")), "{status}");
    let mut exact = good;
    exact["metadata"]["resourceVersion"] = version(&made).into();
    exact["data"]["b"] = "1".into();
    assert_eq!(f.apply(&path, "fieldManager=m", exact).await["data"], json!({"a": "1", "b": "1"}));
    assert_eq!(
        f.send("PATCH", &format!("{PODS}/none/status?fieldManager=m"), APPLY, pod("none")).await.0,
        404
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_keys_warn_or_fail() {
    let f = Fixture::new().await;
    let yaml =
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: x\ndata:\n  a: '1'\n  a: '2'\n".to_owned();
    let complaint =
        "error converting YAML to JSON: yaml: unmarshal errors:\n  line 7: key \"a\" already set in map";
    let path = format!("{CONFIG_MAPS}/x?fieldManager=m");
    let (code, _, status) =
        f.send_text("PATCH", &format!("{path}&fieldValidation=Strict"), APPLY, yaml.clone()).await;
    assert_eq!(
        (code, status["message"].as_str()),
        (400, Some(&*format!("error strict decoding YAML: {complaint}")))
    );
    let (code, headers, made) = f.send_text("PATCH", &path, APPLY, yaml).await;
    assert_eq!((code, &made["data"]["a"]), (201, &json!("2")));
    let warning = headers["warning"].to_str().unwrap();
    assert!(warning.contains("already set in map"), "{warning}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_has_an_owner() {
    let f = Fixture::new().await;
    let agent = "user-agent: prog/1.0 (x)";
    let (_, made) =
        f.send("POST", CONFIG_MAPS, agent, json!({"metadata": {"name": "x", "labels": {"a": "1"}}})).await;
    assert_eq!(owners(&made), ["prog/Update"]);
    assert_eq!(owned(&made, "prog/Update"), &json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}}));
    let path = format!("{CONFIG_MAPS}/x");
    let changed = f.merge(&path, "fieldManager=m", json!({"data": {"k": "v"}})).await;
    // By time, and within a second by name.
    let mut both = owners(&changed);
    both.sort();
    assert_eq!(both, ["m/Update", "prog/Update"]);
    assert_eq!(owned(&changed, "m/Update"), &json!({"f:data": {".": {}, "f:k": {}}}));

    // A client that drops managed fields keeps them, one that changes nothing leaves them as they are.
    let mut put = changed.clone();
    put["metadata"].as_object_mut().unwrap().remove("managedFields");
    let (_, same) = f.send("PUT", &path, agent, put.clone()).await;
    assert_eq!(same, changed);
    put["data"]["k"] = "w".into();
    let (_, taken) = f.send("PUT", &path, agent, put).await;
    assert_eq!(owned(&taken, "prog/Update")["f:data"], json!({"f:k": {}}));
    assert_eq!(owned(&taken, "m/Update"), &json!({"f:data": {}}));

    // Resets, in both spellings and by every verb.
    for reset in [json!([]), json!([{}])] {
        f.merge(&path, "fieldManager=m", json!({"data": {"n": reset.to_string()}})).await;
        let none = f.merge(&path, "", json!({"metadata": {"managedFields": reset}})).await;
        assert_eq!(none["metadata"].get("managedFields"), None);
        // Without owners an object stays without, until somebody applies.
        let none = f.merge(&path, "fieldManager=m", json!({"data": {"k": reset.to_string()}})).await;
        assert_eq!(none["metadata"].get("managedFields"), None);
        let applied = f.apply(&path, "fieldManager=a", config_map(json!({"z": "1"}))).await;
        assert_eq!(owners(&applied), ["a/Apply", "before-first-apply/Update"]);
        let mut put = applied.clone();
        put["metadata"]["managedFields"] = reset;
        let (code, none) = f.send("PUT", &path, "", put).await;
        assert_eq!((code, none["metadata"].get("managedFields")), (200, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_can_be_renamed() {
    let f = Fixture::new().await;
    let path = format!("{CONFIG_MAPS}/x");
    let mut made = f.apply(&path, "fieldManager=old", config_map(json!({"a": "1"}))).await;
    made["metadata"]["managedFields"][0]["manager"] = "new".into();
    let (code, renamed) = f.send("PUT", &path, "", made).await;
    assert_eq!((code, owners(&renamed)), (200, vec!["new/Apply".to_owned()]));
    // A list that can't be read is no list.
    let mut bad = renamed.clone();
    bad["metadata"]["managedFields"][0]["operation"] = "Patch".into();
    let (_, kept) = f.send("PUT", &path, "", bad).await;
    assert_eq!(owners(&kept), ["new/Apply"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_spec_have_owners_of_their_own() {
    let f = Fixture::new().await;
    let path = format!("{DEPLOYMENTS}/d");
    let mut config = deployment(json!({"replicas": 1}));
    config["status"] = json!({"replicas": 9});
    let made = f.apply(&path, "fieldManager=m", config).await;
    assert_eq!(made["status"], json!({}));
    assert_eq!(owned(&made, "m/Apply").get("f:status"), None, "status is not its to set");
    let status = json!({"status": {"replicas": 2, "conditions": [{"type": "Available", "status": "True"}]}, "spec": {"replicas": 9}});
    let changed = f.merge(&format!("{path}/status"), "fieldManager=kcm", status).await;
    assert_eq!((&changed["spec"]["replicas"], &changed["status"]["replicas"]), (&json!(1), &json!(2)));
    assert_eq!(owners(&changed), ["m/Apply", "kcm/Update/status"]);
    assert_eq!(owned(&changed, "m/Apply"), owned(&made, "m/Apply"));
    let fields = owned(&changed, "kcm/Update/status");
    assert_eq!(fields.as_object().unwrap().keys().collect::<Vec<_>>(), ["f:status"]);
    assert!(fields["f:status"]["f:conditions"]["k:{\"type\":\"Available\"}"]["f:status"].is_object());

    // Subresources can't change the list itself.
    let mut put = changed.clone();
    put["metadata"]["managedFields"] = json!([{}]);
    let (_, kept) = f.send("PUT", &format!("{path}/status"), "", put).await;
    assert_eq!(owners(&kept), owners(&changed));

    // Apply to a status.
    let config = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "status": {"readyReplicas": 1},
    });
    let applied = f.apply(&format!("{path}/status"), "fieldManager=m", config).await;
    assert_eq!(applied["status"]["readyReplicas"], 1);
    assert_eq!(owned(&applied, "m/Apply/status"), &json!({"f:status": {"f:readyReplicas": {}}}));
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_moves_the_replicas() {
    let f = Fixture::new().await;
    let path = format!("{DEPLOYMENTS}/d");
    let scale = format!("{path}/scale");
    let config = deployment(json!({"replicas": 1}));
    f.apply(&path, "fieldManager=apply_test", config.clone()).await;
    f.merge(&scale, "fieldManager=scale_test", json!({"spec": {"replicas": 5}})).await;
    let scaled = f.get(&path).await;
    assert_eq!(scaled["spec"]["replicas"], 5);
    assert_eq!(owned(&scaled, "scale_test/Update/scale"), &json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(owned(&scaled, "apply_test/Apply")["f:spec"].get("f:replicas"), None);
    let (code, status) = f.try_apply(&path, "fieldManager=apply_test", config.clone()).await;
    assert_eq!(code, 409);
    assert_eq!(
        status["message"],
        "Apply failed with 1 conflict: conflict with \"scale_test\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
    f.apply(&path, "fieldManager=apply_test&force=true", config).await;
    // A scale that changes nothing leaves its owner.
    let (code, _) = f
        .send(
            "PATCH",
            &format!("{scale}?fieldManager=scale_test"),
            MERGE,
            json!({"status": {"replicas": 42}}),
        )
        .await;
    assert_eq!(code, 200);
    let kept = f.get(&path).await;
    assert_eq!(owners(&kept), ["apply_test/Apply"]);
    // Applied scales conflict like anything else.
    let config = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d", "namespace": "a"},
        "spec": {"replicas": 7},
    });
    let (code, status) = f.try_apply(&scale, "fieldManager=scaler", config.clone()).await;
    assert_eq!(
        (code, &status["message"]),
        (409, &json!("Apply failed with 1 conflict: conflict with \"apply_test\": .spec.replicas"))
    );
    let applied = f.apply(&scale, "fieldManager=scaler&force=true", config).await;
    assert_eq!((&applied["kind"], &applied["spec"]["replicas"]), (&json!("Scale"), &json!(7)));
    assert!(owners(&f.get(&path).await).contains(&"scaler/Apply/scale".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_takes_over_from_client_side_apply() {
    let f = Fixture::new().await;
    let path = format!("{DEPLOYMENTS}/d");
    let last = deployment(json!({"replicas": 3}));
    let mut object = last.clone();
    object["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": format!("{last}\n")});
    let (code, made) =
        f.send("POST", &format!("{DEPLOYMENTS}?fieldManager=kubectl-client-side-apply"), "", object).await;
    assert_eq!((code, owners(&made)), (201, vec!["kubectl-client-side-apply/Update".to_owned()]));
    let mut config = deployment(json!({"replicas": 3}));
    config["spec"]["template"]["spec"]["containers"][0]["image"] = "i:2".into();
    let (code, _) = f.try_apply(&path, "fieldManager=somebody", config.clone()).await;
    assert_eq!(code, 409);
    let applied = f.apply(&path, "fieldManager=kubectl", config.clone()).await;
    assert_eq!(applied["spec"]["template"]["spec"]["containers"][0]["image"], "i:2");
    let annotation = &applied["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    assert_eq!(*annotation, format!("{config}\n"), "the annotation follows");
    // What somebody else changed since is still a conflict.
    f.merge(&path, "fieldManager=hpa", json!({"spec": {"replicas": 9}})).await;
    let (code, status) = f.try_apply(&path, "fieldManager=kubectl", config).await;
    assert_eq!(code, 409, "{status}");
    assert_eq!(
        status["message"],
        "Apply failed with 1 conflict: conflict with \"hpa\" using apps/v1: .spec.replicas"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn list_items_are_owned_one_by_one() {
    let f = Fixture::new().await;
    let path = "/api/v1/namespaces/a/services/s";
    let service = |ports: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"selector": {"a": "b"}, "ports": ports},
        })
    };
    let one = json!({"name": "one", "port": 80});
    let two = json!({"name": "two", "port": 81, "protocol": "TCP", "targetPort": "http"});
    f.apply(path, "fieldManager=one", service(json!([one]))).await;
    let both = f.apply(path, "fieldManager=two", service(json!([two]))).await;
    assert_eq!(both["spec"]["ports"].as_array().unwrap().len(), 2);
    // The key says the default of a field that was not given.
    assert_eq!(
        owned(&both, "one/Apply")["f:spec"]["f:ports"],
        json!({"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}}})
    );
    let left = f.apply(path, "fieldManager=two", service(json!([]))).await;
    assert_eq!(left["spec"]["ports"].as_array().unwrap().len(), 1);
    let (code, status) = f.try_apply(path, "fieldManager=two", service(json!([two, two]))).await;
    assert_eq!(code, 500);
    assert_eq!(
        status["message"],
        "failed to create typed patch object (/s; /v1, Kind=Service): .spec.ports: duplicate entries for key [port=81,protocol=\"TCP\"]"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_updaters_become_ancient() {
    let f = Fixture::new().await;
    let path = format!("{CONFIG_MAPS}/x");
    f.apply(&path, "fieldManager=applier", config_map(json!({"a": "1"}))).await;
    let mut last = Value::Null;
    for n in 0..20 {
        let mut labels = json!({});
        labels[format!("l{n}")] = "x".into();
        last =
            f.merge(&path, &format!("fieldManager=u{n:02}"), json!({"metadata": {"labels": labels}})).await;
    }
    let names = owners(&last);
    assert_eq!(names.len(), 11, "{names:?}");
    assert_eq!(names[0], "applier/Apply");
    assert!(names.contains(&"ancient-changes/Update".to_owned()));
    let ancient = owned(&last, "ancient-changes/Update")["f:metadata"]["f:labels"].as_object().unwrap();
    assert_eq!(ancient.len(), 12, "eleven labels and the map itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_adds_has_no_owner() {
    let f = Fixture::new().await;
    let made = f
        .apply(&format!("{PODS}/p"), "fieldManager=m", {
            let mut config = pod("p");
            config["apiVersion"] = "v1".into();
            config["kind"] = "Pod".into();
            config
        })
        .await;
    assert_eq!(
        owned(&made, "m/Apply"),
        &json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}}})
    );
    // Created the old way, defaults are owned, because the client could have set them.
    let (_, posted) = f.send("POST", PODS, "user-agent: kubectl/v1", pod("q")).await;
    let fields = &owned(&posted, "kubectl/Update")["f:spec"];
    assert!(fields["f:containers"]["k:{\"name\":\"c\"}"]["f:imagePullPolicy"].is_object());
    assert_eq!(fields.get("."), None);
    assert_eq!(fields["f:containers"].get("."), None);
    // A binding is the server's own work.
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "q"}, "target": {"kind": "Node", "name": "n1"}});
    f.create(&format!("{PODS}/q/binding"), binding).await;
    assert_eq!(owners(&f.get(&format!("{PODS}/q")).await), ["kubectl/Update"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn views_of_one_object_share_owners() {
    let f = Fixture::new().await;
    let event = json!({
        "metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "a"},
        "reason": "R", "message": "text", "type": "Normal", "firstTimestamp": null, "lastTimestamp": null,
        "eventTime": "2020-01-01T00:00:00.000000Z", "reportingComponent": "c", "reportingInstance": "i", "action": "A",
    });
    let (_, made) = f.send("POST", "/api/v1/namespaces/a/events", "user-agent: core", event).await;
    assert!(owned(&made, "core/Update")["f:message"].is_object());
    let path = "/apis/events.k8s.io/v1/namespaces/a/events/e";
    let changed = f.merge(path, "fieldManager=new", json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!(owners(&changed).len(), 2);
    assert_eq!(changed["metadata"]["managedFields"][1]["apiVersion"], "events.k8s.io/v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_are_owned_by_their_schema() {
    let f = Fixture::new().await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.e.com"},
        "spec": {
            "group": "e.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "size": {"type": "integer"},
                        "ports": {
                            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                            "items": {"type": "object", "required": ["port"], "properties": {
                                "port": {"type": "integer"}, "name": {"type": "string"},
                            }},
                        },
                    }},
                    "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
                }}},
            }],
        },
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let (code, made) = f.send("POST", definitions, "", definition).await;
    assert_eq!(code, 201, "{made}");
    let path = "/apis/e.com/v1/namespaces/a/things/t";
    let thing = |spec: Value| json!({"apiVersion": "e.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": spec});
    // Served soon after its definition was accepted.
    let mut last = (0, Value::Null);
    for _ in 0..100 {
        last =
            f.try_apply(path, "fieldManager=one", thing(json!({"size": 1, "ports": [{"port": 80}]}))).await;
        if last.0 != 404 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(last.0, 201, "{}", last.1);
    assert_eq!(
        owned(&last.1, "one/Apply"),
        &json!({"f:spec": {"f:ports": {"k:{\"port\":80}": {".": {}, "f:port": {}}}, "f:size": {}}})
    );
    let both = f.apply(path, "fieldManager=two", thing(json!({"ports": [{"port": 81}]}))).await;
    assert_eq!(both["spec"]["ports"].as_array().unwrap().len(), 2, "items of a keyed list are merged");
    let (code, status) = f.try_apply(path, "fieldManager=two", thing(json!({"size": 2}))).await;
    assert_eq!(
        (code, &status["message"]),
        (409, &json!("Apply failed with 1 conflict: conflict with \"one\": .spec.size"))
    );
    let changed = f
        .merge(
            &format!("{path}/status"),
            "fieldManager=c",
            json!({"status": {"ready": true}, "spec": {"size": 9}}),
        )
        .await;
    assert_eq!((&changed["spec"]["size"], &changed["status"]["ready"]), (&json!(1), &json!(true)));
    assert_eq!(owned(&changed, "c/Update/status"), &json!({"f:status": {".": {}, "f:ready": {}}}));
    let none = f.merge(path, "", json!({"metadata": {"managedFields": []}})).await;
    assert_eq!(none["metadata"].get("managedFields"), None);
}
