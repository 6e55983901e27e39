//! Nodes and pods for tests.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

fn merge(base: &mut Value, with: Value) {
    match (base, with) {
        (Value::Object(base), Value::Object(with)) => {
            for (key, value) in with {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, with) => *base = with,
    }
}

/// A node with room for some pods, changed by `with`.
pub fn node(name: &str, with: Value) -> Node {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}},
    });
    merge(&mut node, with);
    serde_json::from_value(node).unwrap()
}

/// A pod that waits, changed by `with`.
pub fn pod(name: &str, with: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name, "uid": name, "namespace": "ns"},
        "spec": {"containers": [{"name": "c"}]},
    });
    merge(&mut pod, with);
    serde_json::from_value(pod).unwrap()
}

/// What a pod that asks for CPU has.
pub fn cpu(amount: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]}})
}

/// What a pod on a node has.
pub fn on(node: &str, mut with: Value) -> Value {
    merge(&mut with, json!({"spec": {"nodeName": node}}));
    with
}

/// What a pod of this priority has.
pub fn priority_of(priority: i32, mut with: Value) -> Value {
    merge(&mut with, json!({"spec": {"priority": priority}}));
    with
}
