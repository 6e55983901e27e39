//! Patches of each type, on an object that a client may have sent, too: a byte for the kind, the object, a line end, the
//! patch.
#![no_main]

use keelson_api::meta::GroupVersionKind;
use keelson_api::patch::{json_patch, merge_patch, strategic};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    let mut parts = rest.splitn(2, |&byte| byte == b'\n');
    let (Some(current), Some(patch)) = (parts.next(), parts.next()) else { return };
    let (Ok(current), Ok(patch)) =
        (serde_json::from_slice::<Value>(current), serde_json::from_slice::<Value>(patch))
    else {
        return;
    };
    let gvk = match kind % 3 {
        0 => GroupVersionKind::new("", "v1", "Pod"),
        1 => GroupVersionKind::new("", "v1", "Service"),
        _ => GroupVersionKind::new("apps", "v1", "Deployment"),
    };
    let _ = json_patch(&current, &patch);
    let _ = merge_patch(&current, &patch);
    let _ = strategic(&gvk, &current, &patch);
});
