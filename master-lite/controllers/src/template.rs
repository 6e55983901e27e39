//! Comparing pod templates.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

/// The label that tells the pods of different templates apart.
pub const HASH_LABEL: &str = "pod-template-hash";

/// Whether the templates are the same apart from the hash label. Absent and empty lists and maps are the same, as
/// in `Semantic.DeepEqual`.
pub fn equal(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let (a, b) = (without_hash(a), without_hash(b));
    a == b || normalized(&a) == normalized(&b)
}

/// The template without the hash label.
pub fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    template
}

/// The labels with the hash label.
pub fn with_hash(labels: Option<&BTreeMap<String, String>>, hash: &str) -> BTreeMap<String, String> {
    let mut labels = labels.cloned().unwrap_or_default();
    labels.insert(HASH_LABEL.into(), hash.into());
    labels
}

/// Fields whose empty object means the same as their absence: Go's maps and value structs, not its pointers.
const EMPTY_IS_ABSENT: &[&str] = &[
    "metadata",
    "labels",
    "annotations",
    "nodeSelector",
    "limits",
    "requests",
    "resources",
    "securityContext",
];

fn normalized(template: &PodTemplateSpec) -> Value {
    let mut value = serde_json::to_value(template).unwrap_or_default();
    prune(&mut value);
    value
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(prune);
            fields.retain(|key, value| match value {
                Value::Null => false,
                Value::Array(items) => !items.is_empty(),
                Value::Object(inner) => !inner.is_empty() || !EMPTY_IS_ABSENT.contains(&key.as_str()),
                _ => true,
            });
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(value: Value) -> PodTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    fn check_equal(a: Value, b: Value, expected: bool) {
        assert_eq!(equal(&template(a), &template(b)), expected);
    }

    #[test]
    fn comparing() {
        let plain = || json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}});
        check_equal(
            plain(),
            json!({"metadata": {"labels": {"a": "b", HASH_LABEL: "x"}},
                   "spec": {"containers": [{"name": "c", "resources": {}}], "volumes": []}}),
            true,
        );
        check_equal(plain(), json!({"spec": {"containers": [{"name": "c"}]}}), false);
        check_equal(
            json!({"spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"spec": {"containers": [], "volumes": [{"name": "v"}]}}),
            false,
        );
    }
}
