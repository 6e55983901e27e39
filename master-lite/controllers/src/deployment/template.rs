//! Hashing and comparing pod templates.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

/// The label that tells the pods of different templates apart.
pub const HASH_LABEL: &str = "pod-template-hash";

/// Letters that can't make words, and no vowels or look-alikes (`rand.SafeEncodeString`).
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short name for a template: FNV-1a of its text and the collision count, in safe letters. (Upstream hashes a
/// dump of its Go structs; the value itself means nothing, so only its shape is kept.)
pub fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    // The types' fields and maps come in a fixed order, so that equal templates give equal text.
    let text = serde_json::to_vec(template).unwrap_or_default();
    let mut hash = fnv1a(FNV_OFFSET, &text);
    if let Some(collisions) = collisions {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&collisions.to_le_bytes());
        hash = fnv1a(hash, &bytes);
    }
    hash.to_string().bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

const FNV_OFFSET: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

fn fnv1a(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(FNV_PRIME))
}

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

    #[test]
    fn hashes_are_safe_and_differ() {
        let a = template(json!({"spec": {"containers": [{"name": "c", "image": "a"}]}}));
        let b = template(json!({"spec": {"containers": [{"name": "c", "image": "b"}]}}));
        assert_eq!(hash(&a, None), hash(&a.clone(), None));
        assert_ne!(hash(&a, None), hash(&b, None));
        assert_ne!(hash(&a, None), hash(&a, Some(0)));
        assert!(hash(&a, None).bytes().all(|b| ALPHABET.contains(&b)));
        assert_eq!(fnv1a(FNV_OFFSET, b"foobar"), 0xbf9c_f968);
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
