//! Classes, drivers and attachments of volumes (`pkg/apis/storage/validation`).

use serde_json::{Value, json};

use super::claims::{driver_name, inline_volume, topologies};
use super::errors::{Errors, Path, entries, items, list, number, same, set, text};
use super::{resources, selectors};
use crate::field::FieldError;
use crate::resources::metadata::{dns_subdomain, qualified_name};

const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETERS_SIZE: usize = 256 * 1024;
const MAX_ATTACHMENT_METADATA: usize = 256 * 1024;
const MAX_ERROR_MESSAGE: usize = 1024;
const MAX_NODE_ID: usize = 192;
const BINDING_MODES: &[&str] = &["Immediate", "WaitForFirstConsumer"];

/// A new StorageClass.
pub(in crate::resources) fn storage_class(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = Path::new("");
    provisioner(&mut errors, object, "provisioner");
    parameters(&mut errors, object);
    errors.optional_one_of(&root.child("reclaimPolicy"), &object["reclaimPolicy"], &["Delete", "Retain"]);
    errors.one_of(&root.child("volumeBindingMode"), &object["volumeBindingMode"], BINDING_MODES);
    topologies(&mut errors, object, &root);
    errors.0
}

/// A change of a StorageClass.
pub(in crate::resources) fn storage_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        errors.immutable(&Path::new(field), &new[field], &old[field]);
    }
    errors.0
}

fn provisioner(errors: &mut Errors, object: &Value, field: &str) {
    let (name, at) = (text(object, field), Path::new(field));
    if name.is_empty() {
        errors.required(&at, "");
    } else {
        errors.rule(&at, &object[field], qualified_name(&name.to_lowercase()));
    }
}

fn parameters(errors: &mut Errors, object: &Value) {
    let at = Path::new("parameters");
    let mut size = 0;
    let mut count = 0;
    for (key, value) in entries(object, "parameters") {
        count += 1;
        if key.is_empty() {
            errors.invalid(&at, &json!(""), "field can not be empty.");
        }
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if count > MAX_PARAMETERS {
        errors.too_long(&at, MAX_PARAMETERS);
    } else if size > MAX_PARAMETERS_SIZE {
        errors.too_long(&at, MAX_PARAMETERS_SIZE);
    }
}

/// A new VolumeAttributesClass.
pub(in crate::resources) fn attributes_class(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    provisioner(&mut errors, object, "driverName");
    parameters(&mut errors, object);
    if entries(object, "parameters").next().is_none() {
        errors.required(&Path::new("parameters"), "must contain at least one key/value pair");
    }
    errors.0
}

/// A change of a VolumeAttributesClass.
pub(in crate::resources) fn attributes_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for field in ["driverName", "parameters"] {
        if new[field] != old[field] {
            errors.forbidden(&Path::new(field), format!("updates to {field} are forbidden."));
        }
    }
    errors.0.extend(attributes_class(new));
    errors.0
}

/// A new VolumeAttachment.
pub(in crate::resources) fn attachment(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    driver_name(&mut errors, spec, "attacher", &at);
    let (source, place) = (&spec["source"], at.child("source"));
    let exactly = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (set(source, "inlineVolumeSpec"), set(source, "persistentVolumeName")) {
        (false, false) => errors.required(&place, exactly),
        (true, true) => errors.forbidden(&place, exactly),
        (false, true) => {
            let (name, at) = (text(source, "persistentVolumeName"), place.child("persistentVolumeName"));
            if name.is_empty() {
                errors.required(&at, "must specify non empty persistentVolumeName");
            }
            errors.rule(&at, &name.into(), dns_subdomain(name));
        }
        (true, false) => {
            inline_volume(&mut errors, &source["inlineVolumeSpec"], &place.child("inlineVolumeSpec"));
        }
    }
    errors.rule(&at.child("nodeName"), &json!(text(spec, "nodeName")), dns_subdomain(text(spec, "nodeName")));
    errors.0.extend(attachment_status(object, object));
    errors.0
}

/// A change of a VolumeAttachment.
pub(in crate::resources) fn attachment_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors(attachment(new));
    errors.immutable(&Path::new("spec"), &new["spec"], &old["spec"]);
    errors.0
}

/// A change of a VolumeAttachment's status.
pub(in crate::resources) fn attachment_status(new: &Value, _old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (status, at) = (&new["status"], Path::new("status"));
    let size: usize = entries(status, "attachmentMetadata")
        .map(|(key, value)| key.len() + value.as_str().unwrap_or_default().len())
        .sum();
    if size > MAX_ATTACHMENT_METADATA {
        errors.too_long(&at.child("attachmentMetadata"), MAX_ATTACHMENT_METADATA);
    }
    for field in ["attachError", "detachError"] {
        let (error, at) = (&status[field], at.child(field));
        if text(error, "message").len() > MAX_ERROR_MESSAGE {
            errors.too_long(&at.child("message"), MAX_ATTACHMENT_METADATA);
        }
        if number(error, "errorCode") < 0 {
            let words = format!("must be between 0 and {}, inclusive", i32::MAX);
            errors.invalid(&at.child("errorCode"), &error["errorCode"], words);
        }
    }
    errors.0
}

/// A new CSINode.
pub(in crate::resources) fn csi_node(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let mut names = Vec::new();
    for (at, driver) in items(&object["spec"], "drivers", &Path::new("spec")) {
        driver_name(&mut errors, driver, "name", &at);
        let (id, place) = (text(driver, "nodeID"), at.child("nodeID"));
        if id.is_empty() {
            errors.required(&place, "");
        }
        if id.len() > MAX_NODE_ID {
            errors.invalid(&place, &id.into(), format!("must be {MAX_NODE_ID} characters or less"));
        }
        errors.not_negative(&driver["allocatable"], &["count"], &at.child("allocatable"));
        let name = text(driver, "name");
        if names.contains(&name) {
            errors.duplicate(&at.child("name"), &name.into());
        }
        names.push(name);
        let mut keys = Vec::new();
        for key in list(driver, "topologyKeys") {
            let name = key.as_str().unwrap_or_default();
            if name.is_empty() {
                errors.required(&at, "");
            }
            if keys.contains(&name) {
                errors.duplicate(&at, key);
            }
            keys.push(name);
            errors.rule(&at, key, qualified_name(name));
        }
    }
    errors.0
}

/// A change of a CSINode: a driver's entry may go or come, but not change.
pub(in crate::resources) fn csi_node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors(csi_node(new));
    let fixed = |driver: &Value| {
        let mut driver = driver.clone();
        // How much a node takes may change (MutableCSINodeAllocatableCount).
        driver["allocatable"] = Value::Null;
        driver
    };
    for driver in list(&new["spec"], "drivers") {
        let before = list(&old["spec"], "drivers").iter().find(|old| old["name"] == driver["name"]);
        if let Some(before) = before {
            errors.immutable(&Path::new("spec").child("drivers"), &fixed(driver), &fixed(before));
        }
    }
    errors.0
}

/// A new CSIDriver.
pub(in crate::resources) fn csi_driver(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    errors.optional_one_of(&at.child("fsGroupPolicy"), &spec["fsGroupPolicy"], &policies);
    let mut audiences = Vec::new();
    for (at, request) in items(spec, "tokenRequests", &at) {
        let audience = text(request, "audience");
        if audiences.contains(&audience) {
            errors.duplicate(&at.child("audience"), &audience.into());
            continue;
        }
        audiences.push(audience);
        let (seconds, at) = (&request["expirationSeconds"], at.child("expirationSeconds"));
        if seconds.as_i64().is_some_and(|s| s < 600) {
            errors.invalid(&at, seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds.as_i64().is_some_and(|s| s > 1 << 32) {
            errors.invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
    for mode in list(spec, "volumeLifecycleModes") {
        errors.optional_one_of(&at.child("volumeLifecycleModes"), mode, &["Persistent", "Ephemeral"]);
    }
    let period = &spec["nodeAllocatableUpdatePeriodSeconds"];
    if period.as_i64().is_some_and(|seconds| seconds < 10) {
        let at = at.child("nodeAllocatableUpdatePeriodSeconds");
        errors.invalid(&at, period, "must be greater than or equal to 10 seconds");
    }
    if set(spec, "serviceAccountTokenInSecrets") && list(spec, "tokenRequests").is_empty() {
        let words = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        let at = at.child("serviceAccountTokenInSecrets");
        errors.invalid(&at, &spec["serviceAccountTokenInSecrets"], words);
    }
    errors.0
}

/// A change of a CSIDriver.
pub(in crate::resources) fn csi_driver_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors(csi_driver(new));
    let at = Path::new("spec");
    // Upstream calls the first field so.
    for (field, name) in
        [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")]
    {
        errors.immutable(&at.child(name), &new["spec"][field], &old["spec"][field]);
    }
    errors.0
}

/// A new CSIStorageCapacity.
pub(in crate::resources) fn capacity(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    selectors::label_selector(&mut errors, &object["nodeTopology"], &Path::new("nodeTopology"));
    let class = text(object, "storageClassName");
    errors.rule(&Path::new("storageClassName"), &class.into(), dns_subdomain(class));
    if set(object, "capacity") {
        resources::quantity(&mut errors, "storage", &object["capacity"], &Path::new("capacity"));
    }
    errors.0
}

/// A change of a CSIStorageCapacity.
pub(in crate::resources) fn capacity_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for field in ["nodeTopology", "storageClassName"] {
        if !same(&new[field], &old[field]) {
            errors.invalid(&Path::new(field), &new[field], "field is immutable");
        }
    }
    errors.0
}
