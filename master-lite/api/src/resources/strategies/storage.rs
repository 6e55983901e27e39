//! Volumes, their classes and drivers.

use serde_json::{Value, json};

use super::ruled::Ruled;
use super::{child, set_default};
use crate::field::FieldError;
use crate::resources::{Strategy, StrategyContext, validation as v};

/// StorageClasses.
pub const STORAGE_CLASS: Ruled = Ruled::new(v::storage_class, v::storage_class_update).defaults(|object| {
    set_default(object, "reclaimPolicy", "Delete");
    set_default(object, "volumeBindingMode", "Immediate");
});

/// VolumeAttributesClasses.
pub const ATTRIBUTES_CLASS: Ruled = Ruled::new(v::attributes_class, v::attributes_class_update);

/// VolumeAttachments.
pub const ATTACHMENT: Ruled =
    Ruled::new(v::attachment, v::attachment_update).status(v::attachment_status).status_alone().conditional();

/// CSINodes.
pub const CSI_NODE: Ruled = Ruled::new(v::csi_node, v::csi_node_update).conditional();

/// CSIStorageCapacities.
pub const CAPACITY: Ruled = Ruled::new(v::capacity, v::capacity_update).conditional();

/// CSIDrivers. They have no generation at first, but get one with their first change.
pub const CSI_DRIVER: Ruled =
    Ruled::new(v::csi_driver, v::csi_driver_update).defaults(csi_driver).conditional().late_generation();

fn csi_driver(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    set_default(spec, "attachRequired", true);
    for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        set_default(spec, field, false);
    }
    set_default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if spec["volumeLifecycleModes"].as_array().is_none_or(Vec::is_empty) {
        spec["volumeLifecycleModes"] = json!(["Persistent"]);
    }
}

/// PersistentVolumes.
pub struct PersistentVolume;

impl Strategy for PersistentVolume {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            set_default(spec, "persistentVolumeReclaimPolicy", "Retain");
            set_default(spec, "volumeMode", "Filesystem");
            if let Some(source) = child(spec, "hostPath") {
                source.as_object_mut().map(|map| map.entry("type").or_insert_with(|| "".into()));
            }
        }
    }

    fn prepare_for_create(&self, context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": context.now});
    }

    fn prepare_for_update(&self, context: &StrategyContext, new: &mut Value, old: &Value) {
        if context.subresource.is_empty() {
            return;
        }
        let (since, before) =
            (&new["status"]["lastPhaseTransitionTime"], &old["status"]["lastPhaseTransitionTime"]);
        let changed = new["status"]["phase"] != old["status"]["phase"];
        if changed && (since.is_null() || since == before) {
            new["status"]["lastPhaseTransitionTime"] = context.now.as_str().into();
        } else if !changed && since.is_null() && !before.is_null() {
            new["status"]["lastPhaseTransitionTime"] = before.clone();
        }
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        v::persistent_volume(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource.is_empty() { v::persistent_volume_update(new, old) } else { Vec::new() }
    }
}

/// PersistentVolumeClaims.
pub struct PersistentVolumeClaim;

/// `dataSource` and `dataSourceRef` say the same where only one of them is given.
fn data_sources(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    let (source, reference) = (spec["dataSource"].clone(), spec["dataSourceRef"].clone());
    // What the older field can't say was always ignored there.
    let known = source["kind"] == "PersistentVolumeClaim"
        && source["apiGroup"].as_str().unwrap_or_default().is_empty()
        || source["kind"] == "VolumeSnapshot" && source["apiGroup"] == "snapshot.storage.k8s.io";
    if let Some(map) = spec.as_object_mut() {
        if reference.is_null() && !source.is_null() && !known {
            map.remove("dataSource");
        } else if reference.is_null() && !source.is_null() {
            map.insert("dataSourceRef".to_owned(), source);
        } else if source.is_null()
            && !reference.is_null()
            && reference["namespace"].as_str().unwrap_or_default().is_empty()
        {
            let mut source = reference;
            if let Some(source) = source.as_object_mut() {
                source.remove("namespace");
            }
            map.insert("dataSource".to_owned(), source);
        }
    }
}

impl Strategy for PersistentVolumeClaim {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            set_default(spec, "volumeMode", "Filesystem");
        }
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
        data_sources(object);
    }

    fn prepare_for_update(&self, context: &StrategyContext, new: &mut Value, _old: &Value) {
        if context.subresource.is_empty() {
            data_sources(new);
        }
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        v::claim(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource.is_empty() { v::claim_update(new, old) } else { v::claim_status(new, old) }
    }
}
