//! A request body in each media type, as each of several kinds (the first byte says which): decoded, defaulted, encoded.
#![no_main]

use keelson_api::codec::{FieldValidation, MediaType, decode, encode_protobuf};
use keelson_api::meta::GroupVersionKind;
use libfuzzer_sys::fuzz_target;

const KINDS: [(&str, &str, &str); 8] = [
    ("", "v1", "Pod"),
    ("", "v1", "Service"),
    ("", "v1", "ConfigMap"),
    ("", "v1", "Node"),
    ("apps", "v1", "Deployment"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
    ("discovery.k8s.io", "v1", "EndpointSlice"),
    ("meta.k8s.io", "v1", "DeleteOptions"),
];

fuzz_target!(|input: &[u8]| {
    let Some((&choice, body)) = input.split_first() else { return };
    let media = [MediaType::Json, MediaType::Yaml, MediaType::Protobuf][usize::from(choice >> 4) % 3];
    let (group, version, kind) = KINDS[usize::from(choice & 0x0f) % KINDS.len()];
    let gvk = GroupVersionKind::new(group, version, kind);
    let Ok(mut decoded) = decode(media, body, &gvk, FieldValidation::Warn) else { return };
    keelson_api::defaults::apply(&decoded.gvk, &mut decoded.object);
    // What was accepted can be sent, and read again.
    if let Ok(bytes) = encode_protobuf(&decoded.gvk, &decoded.object) {
        decode(MediaType::Protobuf, &bytes, &decoded.gvk, FieldValidation::Ignore).expect("our own bytes");
    }
});
