//! Cases for strategic merge patches, on built-in types.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn apply(kind: &str, current: Value, patch: Value) -> Result<Value, PatchError> {
    let gvk = match kind {
        "Deployment" => GroupVersionKind::new("apps", "v1", kind),
        _ => GroupVersionKind::new("", "v1", kind),
    };
    strategic(&gvk, &current, &patch)
}

#[test]
fn lists_merge_by_key_and_keep_the_servers_order() {
    let containers = |list: Value| json!({"spec": {"containers": list}});
    let check = |current: Value, patch: Value, want: Value| {
        assert_eq!(apply("Pod", containers(current), containers(patch)), Ok(containers(want)));
    };
    check(
        json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]),
        json!([{"name": "b", "image": "2"}]),
        json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]),
    );
    // A new item stands before items that only the server has.
    check(
        json!([{"name": "a"}]),
        json!([{"name": "c", "image": "3"}]),
        json!([{"name": "c", "image": "3"}, {"name": "a"}]),
    );
    check(
        json!([{"name": "a"}, {"name": "b"}]),
        json!([{"name": "a", "$patch": "delete"}]),
        json!([{"name": "b"}]),
    );
    check(
        json!([{"name": "a"}, {"name": "b"}]),
        json!([{"name": "z", "image": "1"}, {"$patch": "replace"}]),
        json!([{"name": "z", "image": "1"}]),
    );
    check(
        json!([{"name": "a", "image": "1", "tty": true}]),
        json!([{"name": "a", "tty": null, "args": ["x"]}]),
        json!([{"name": "a", "image": "1", "args": ["x"]}]),
    );
    // args are atomic.
    check(
        json!([{"name": "a", "args": ["x", "y"]}]),
        json!([{"name": "a", "args": ["z"]}]),
        json!([{"name": "a", "args": ["z"]}]),
    );
}

#[test]
fn maps_merge_and_null_removes() {
    let got = apply(
        "ConfigMap",
        json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "data": {"x": "1"}}),
        json!({"metadata": {"labels": {"a": null, "c": "3"}, "annotations": {"n": null, "m": "1"}}, "data": null}),
    );
    assert_eq!(got, Ok(json!({"metadata": {"labels": {"b": "2", "c": "3"}, "annotations": {"m": "1"}}})));
    let got =
        apply("ConfigMap", json!({"data": {"x": "1"}}), json!({"data": {"$patch": "replace", "y": "2"}}));
    assert_eq!(got, Ok(json!({"data": {"y": "2"}})));
    let got = apply("ConfigMap", json!({"data": {"x": "1"}}), json!({"data": {"$patch": "delete"}}));
    assert_eq!(got, Ok(json!({"data": {}})));
}

#[test]
fn primitive_lists_merge_and_delete() {
    let finalizers = |list: Value| json!({"metadata": {"finalizers": list}});
    let check = |patch: Value, want: Value| {
        assert_eq!(
            apply("Pod", finalizers(json!(["a", "b"])), json!({"metadata": patch})),
            Ok(finalizers(want))
        );
    };
    check(json!({"finalizers": ["c", "a"]}), json!(["c", "a", "b"]));
    check(json!({"$deleteFromPrimitiveList/finalizers": ["a"]}), json!(["b"]));
    check(
        json!({"$setElementOrder/finalizers": ["b", "c", "a"], "finalizers": ["c"]}),
        json!(["b", "c", "a"]),
    );
    let error =
        apply("Pod", finalizers(json!(["a"])), json!({"metadata": {"$deleteFromPrimitiveList": ["a"]}}));
    assert_eq!(error, Err(PatchError::Malformed("invalid patch format of primitive list".to_owned())));
}

#[test]
fn set_element_order_puts_items_in_order() {
    let current = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "s"}]}});
    let patch = json!({"spec": {
        "$setElementOrder/containers": [{"name": "b"}, {"name": "n"}, {"name": "a"}],
        "containers": [{"name": "n", "image": "1"}],
    }});
    let got = apply("Pod", current.clone(), patch).unwrap();
    let names: Vec<_> =
        got["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["b", "n", "a", "s"]);
    let wrong = json!({"spec": {
        "$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "n", "image": "1"}],
    }});
    assert!(apply("Pod", current, wrong).unwrap_err().to_string().starts_with("The order in patch list:"));
}

#[test]
fn retain_keys_clears_the_rest() {
    let current = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        apply("Deployment", current.clone(), patch),
        Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
    );
    let volumes = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
    let patch = json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}});
    assert_eq!(
        apply("Pod", volumes, patch),
        Ok(json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}))
    );
    let bad = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}});
    assert_eq!(
        apply("Deployment", current, bad),
        Err(PatchError::Malformed("invalid patch format of retainKeys".to_owned()))
    );
}

#[test]
fn complaints_are_upstreams() {
    let check = |current: Value, patch: Value, status: u16, text: &str| {
        let error = apply("Pod", current, patch).unwrap_err();
        assert_eq!((error.status(), error.to_string().as_str()), (status, text));
    };
    check(
        json!({"spec": {"containers": [{"name": "a"}]}}),
        json!({"spec": {"containers": [{"image": "x"}]}}),
        500,
        "map: map[image:x] does not contain declared merge key: name",
    );
    check(
        json!({"spec": {}}),
        json!({"spec": {"$patch": "explode"}}),
        500,
        "unknown patch type: explode in map: map[$patch:explode]",
    );
    check(json!({}), json!([]), 400, "invalid JSON document");
}

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        "[ab]|delete|replace|merge".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = "metadata|spec|containers|name|labels|finalizers|volumes|\\$patch|\\$retainKeys|\\$setElementOrder/containers|\\$deleteFromPrimitiveList/finalizers";
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn hostile_patches_do_not_panic(current in tree(), patch in tree()) {
        let _ = apply("Pod", current, patch);
    }

    #[test]
    fn a_merge_is_idempotent(image in "[a-z]{1,5}", names in prop::collection::btree_set("[a-d]", 0..4)) {
        let list: Vec<_> = names.iter().map(|name| json!({"name": name, "image": image})).collect();
        let current = json!({"spec": {"containers": [{"name": "a", "image": "0"}, {"name": "z", "image": "0"}]}});
        let patch = json!({"spec": {"containers": list}});
        let once = apply("Pod", current, patch.clone()).unwrap();
        prop_assert_eq!(apply("Pod", once.clone(), patch).unwrap(), once);
    }
}
