//! Devices: classes, claims, slices.

use serde_json::Value;

use super::ruled::Ruled;
use super::{child, items, set_default, set_default_number};
use crate::resources::validation as v;

/// DeviceClasses.
pub const DEVICE_CLASS: Ruled = Ruled::new(v::device_class, |new, _| v::device_class(new));

/// ResourceClaims.
pub const RESOURCE_CLAIM: Ruled = Ruled::new(v::resource_claim, v::immutable_spec)
    .defaults(|object| {
        if let Some(spec) = child(object, "spec") {
            requests(spec);
        }
    })
    .status(v::claim_status_of_device)
    .status_alone();

/// ResourceClaimTemplates.
pub const CLAIM_TEMPLATE: Ruled = Ruled::new(v::claim_template, v::immutable_spec).defaults(|object| {
    if let Some(spec) = child(object, "spec").and_then(|template| child(template, "spec")) {
        requests(spec);
    }
});

/// ResourceSlices.
pub const RESOURCE_SLICE: Ruled =
    Ruled::new(v::resource_slice, v::resource_slice_update).defaults(|object| {
        let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let Some(spec) = child(object, "spec") else { return };
        for device in items(spec, "devices") {
            for taint in items(device, "taints") {
                set_default(taint, "timeAdded", now.as_str());
            }
            for mapping in device["nodeAllocatableResourceMappings"]
                .as_object_mut()
                .into_iter()
                .flat_map(|mappings| mappings.values_mut())
            {
                set_default(mapping, "allocationMultiplier", "1");
            }
        }
    });

fn requests(spec: &mut Value) {
    let Some(devices) = child(spec, "devices") else { return };
    for request in items(devices, "requests") {
        if let Some(exactly) = child(request, "exactly") {
            count(exactly);
        }
        items(request, "firstAvailable").for_each(count);
    }
}

fn count(request: &mut Value) {
    set_default(request, "allocationMode", "ExactCount");
    if request["allocationMode"] == "ExactCount" {
        set_default_number(request, "count", 1);
    }
}
