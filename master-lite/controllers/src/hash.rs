//! Short names for content, in upstream's shape.

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// Letters that can't make words, and no vowels or look-alikes (`rand.SafeEncodeString`).
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

const FNV_OFFSET: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

/// A short name for a template: FNV-1a of its text and the collision count, in safe letters. (Upstream hashes a
/// dump of its Go structs; the value itself means nothing, so only its shape is kept.)
pub fn of_template(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    // The types' fields and maps come in a fixed order, so that equal templates give equal text.
    let text = serde_json::to_vec(template).unwrap_or_default();
    let mut hash = fnv1a(FNV_OFFSET, &text);
    if let Some(collisions) = collisions {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&collisions.to_le_bytes());
        hash = fnv1a(hash, &bytes);
    }
    safe(hash)
}

/// The name of a revision's data (`HashControllerRevision`): FNV-1 of its text and of the collision count in
/// decimal.
pub fn of_data(data: &[u8], collisions: i32) -> String {
    safe(fnv1(fnv1(FNV_OFFSET, data), collisions.to_string().as_bytes()))
}

fn safe(hash: u32) -> String {
    hash.to_string().bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

fn fnv1a(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(FNV_PRIME))
}

fn fnv1(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |hash, byte| hash.wrapping_mul(FNV_PRIME) ^ u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn template(value: Value) -> PodTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn hashes_are_safe_and_differ() {
        let a = template(json!({"spec": {"containers": [{"name": "c", "image": "a"}]}}));
        let b = template(json!({"spec": {"containers": [{"name": "c", "image": "b"}]}}));
        assert_eq!(of_template(&a, None), of_template(&a.clone(), None));
        assert_ne!(of_template(&a, None), of_template(&b, None));
        assert_ne!(of_template(&a, None), of_template(&a, Some(0)));
        assert!(of_template(&a, None).bytes().all(|b| ALPHABET.contains(&b)));
        assert_ne!(of_data(b"x", 0), of_data(b"x", 1));
    }

    #[test]
    fn published_values() {
        assert_eq!(fnv1a(FNV_OFFSET, b"foobar"), 0xbf9c_f968);
        assert_eq!(fnv1(FNV_OFFSET, b"foobar"), 0x31f0_b262);
    }
}
