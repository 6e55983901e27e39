//! Kubernetes protobuf, straight into the decoder.
#![no_main]

use keelson_api::codec::{FieldValidation, MediaType, decode};
use keelson_api::meta::GroupVersionKind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &[u8]| {
    // The envelope's magic, which random bytes would seldom hit.
    let body = [b"k8s\0", raw].concat();
    for (group, kind) in [("", "Pod"), ("apps", "Deployment"), ("", "Secret")] {
        let gvk = GroupVersionKind::new(group, "v1", kind);
        let _ = decode(MediaType::Protobuf, &body, &gvk, FieldValidation::Strict);
    }
});
