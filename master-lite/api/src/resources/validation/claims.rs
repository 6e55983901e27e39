//! PersistentVolumes and PersistentVolumeClaims.

use serde_json::{Value, json};

use super::errors::{Errors, Path, entries, items, list, same, set, text};
use super::{resources, scheduling, selectors, volumes};
use crate::field::FieldError;
use crate::resources::metadata::{dns_label, dns_subdomain, qualified_name};

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// Everything that a PersistentVolume can be made of, in upstream's order.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

/// A new PersistentVolume.
pub(in crate::resources) fn persistent_volume(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    access_modes(&mut errors, spec, &at, "");
    let (capacity, place) = (&spec["capacity"], at.child("capacity"));
    let count = entries(spec, "capacity").count();
    if count == 0 {
        errors.required(&place, "");
    }
    if !set(capacity, "storage") || count > 1 {
        errors.unsupported(&place, capacity, &["storage"]);
    }
    for (name, amount) in entries(spec, "capacity") {
        positive(&mut errors, amount, &place.key(name));
    }
    let (policy, place) = (&spec["persistentVolumeReclaimPolicy"], at.child("persistentVolumeReclaimPolicy"));
    errors.optional_one_of(&place, policy, &["Delete", "Recycle", "Retain"]);
    if set(spec, "nodeAffinity") {
        let at = at.child("nodeAffinity");
        match &spec["nodeAffinity"]["required"] {
            Value::Null => errors.required(&at.child("required"), "must specify required node constraints"),
            selector => scheduling::node_selector(&mut errors, selector, &at.child("required")),
        }
    }
    sources(&mut errors, spec, &at);
    if spec["hostPath"]["path"].as_str().is_some_and(|path| path.split('/').all(|p| matches!(p, "" | ".")))
        && *policy == "Recycle"
    {
        errors.forbidden(&place, "may not be 'recycle' for a hostPath mount of '/'");
    }
    class_name(&mut errors, spec, "storageClassName", &at);
    errors.optional_one_of(&at.child("volumeMode"), &spec["volumeMode"], VOLUME_MODES);
    if set(spec, "volumeAttributesClassName") {
        if text(spec, "volumeAttributesClassName").is_empty() {
            errors.required(&at.child("volumeAttributesClassName"), "an empty string is disallowed");
        }
        class_name(&mut errors, spec, "volumeAttributesClassName", &at);
        if !set(spec, "csi") {
            errors.required(&at.child("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
    errors.0
}

fn sources(errors: &mut Errors, spec: &Value, at: &Path) {
    let mut count = 0;
    for kind in SOURCES.iter().filter(|kind| set(spec, kind)) {
        count += 1;
        let (source, at) = (&spec[*kind], at.child(kind));
        if count > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type");
            continue;
        }
        match *kind {
            "local" => {
                errors.need(source, "path", &at);
                super::rules::no_backsteps(errors, &at.child("path"), &source["path"]);
                if !set(spec, "nodeAffinity") {
                    errors.required(&at, "Local volume requires node affinity");
                }
            }
            "csi" => csi(errors, source, &at),
            _ => volumes::one_source(errors, kind, source, &at),
        }
    }
    if count == 0 {
        errors.required(at, "must specify a volume type");
    }
}

/// A CSI driver's name.
pub(super) fn driver_name(errors: &mut Errors, parent: &Value, field: &str, at: &Path) {
    let (name, at) = (text(parent, field), at.child(field));
    if name.is_empty() {
        return errors.required(&at, "");
    }
    if name.len() > 63 {
        errors.too_long(&at, 63);
    }
    errors.rule(&at, &parent[field], dns_subdomain(&name.to_lowercase()));
}

fn csi(errors: &mut Errors, source: &Value, at: &Path) {
    driver_name(errors, source, "driver", at);
    errors.need(source, "volumeHandle", at);
    for field in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ] {
        let (secret, at) = (&source[field], at.child(field));
        if secret.is_null() {
            continue;
        }
        for part in ["name", "namespace"] {
            let given = text(secret, part);
            errors.need(secret, part, &at);
            if !given.is_empty() {
                let outcome = if part == "name" { dns_subdomain(given) } else { dns_label(given) };
                errors.rule(&at.child(part), &secret[part], outcome);
            }
        }
    }
}

/// A VolumeAttachment's own copy of a volume.
pub(super) fn inline_volume(errors: &mut Errors, spec: &Value, at: &Path) {
    const INLINE: &str = "in the context of inline volumes";
    for field in ["claimRef", "capacity", "nodeAffinity", "storageClassName"] {
        let empty = match &spec[field] {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !empty {
            errors.forbidden(&at.child(field), format!("may not be specified {INLINE}"));
        }
    }
    if !set(spec, "csi") {
        errors.required(&at.child("csi"), &format!("has to be specified {INLINE}"));
    }
    access_modes(errors, spec, at, "");
    let policy = text(spec, "persistentVolumeReclaimPolicy");
    if !matches!(policy, "" | "Retain") {
        let words = format!("may only be Retain {INLINE}");
        errors.forbidden(&at.child("persistentVolumeReclaimPolicy"), words);
    }
    sources(errors, spec, at);
    if !matches!(text(spec, "volumeMode"), "" | "Filesystem") {
        let words = format!("may not specify volumeMode other than Filesystem {INLINE}");
        errors.forbidden(&at.child("volumeMode"), words);
    }
}

fn access_modes(errors: &mut Errors, spec: &Value, at: &Path, none: &str) {
    let (modes, at) = (list(spec, "accessModes"), at.child("accessModes"));
    if modes.is_empty() {
        errors.required(&at, none);
    }
    for mode in modes {
        errors.optional_one_of(&at, mode, ACCESS_MODES);
    }
    let once = |mode: &&Value| **mode == "ReadWriteOncePod";
    let known = |mode: &&Value| ACCESS_MODES.contains(&mode.as_str().unwrap_or_default());
    if modes.iter().any(|m| once(&m)) && modes.iter().any(|m| !once(&m) && known(&m)) {
        errors.forbidden(&at, "may not use ReadWriteOncePod with other access modes");
    }
}

fn positive(errors: &mut Errors, amount: &Value, at: &Path) {
    if let Some(amount) = resources::parse(amount)
        && amount.sign() <= 0
    {
        errors.invalid(at, &json!(amount.to_string()), "must be greater than zero");
    }
}

/// The name of a class, if it is given.
fn class_name(errors: &mut Errors, spec: &Value, field: &str, at: &Path) {
    let name = text(spec, field);
    if !name.is_empty() {
        errors.rule(&at.child(field), &spec[field], dns_subdomain(name));
    }
}

/// A change of a PersistentVolume.
pub(in crate::resources) fn persistent_volume_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors(persistent_volume(new));
    let at = Path::new("spec");
    let source = |object: &Value| -> Value {
        SOURCES.iter().map(|kind| ((*kind).to_owned(), object["spec"][*kind].clone())).collect()
    };
    let (mut new_source, old_source) = (source(new), source(old));
    // The one secret that may be added later.
    if set(&old["spec"], "csi") && old["spec"]["csi"]["controllerExpandSecretRef"].is_null() {
        new_source["csi"]["controllerExpandSecretRef"] = Value::Null;
    }
    if !same(&new_source, &old_source) {
        let place = at.child("persistentvolumesource");
        errors.forbidden(&place, "spec.persistentvolumesource is immutable after creation");
    }
    errors.immutable(&Path::new("volumeMode"), &new["spec"]["volumeMode"], &old["spec"]["volumeMode"]);
    if set(&old["spec"], "nodeAffinity") && !same(&new["spec"]["nodeAffinity"], &old["spec"]["nodeAffinity"])
    {
        let words = "field is immutable, except for updating from beta label to GA";
        errors.invalid(&Path::new("nodeAffinity"), &new["spec"]["nodeAffinity"], words);
    }
    let class = "volumeAttributesClassName";
    if set(&old["spec"], class) && !set(&new["spec"], class) {
        errors.forbidden(&at.child(class), "update from non-nil value to nil is forbidden");
    }
    errors.0
}

/// A new PersistentVolumeClaim.
pub(in crate::resources) fn claim(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    claim_spec(&mut errors, &object["spec"], &Path::new("spec"));
    errors.0
}

/// `spec` of a claim, wherever it stands.
pub(super) fn claim_spec(errors: &mut Errors, spec: &Value, at: &Path) {
    access_modes(errors, spec, at, "at least 1 access mode is required");
    selectors::label_selector(errors, &spec["selector"], &at.child("selector"));
    let (storage, place) = (&spec["resources"]["requests"]["storage"], at.child("resources").key("storage"));
    if storage.is_null() {
        errors.required(&place, "");
    } else {
        resources::quantity(errors, "storage", storage, &place);
        positive(errors, storage, &place);
    }
    class_name(errors, spec, "storageClassName", at);
    class_name(errors, spec, "volumeAttributesClassName", at);
    errors.optional_one_of(&at.child("volumeMode"), &spec["volumeMode"], VOLUME_MODES);
    for field in ["dataSource", "dataSourceRef"] {
        if set(spec, field) {
            data_source(errors, &spec[field], &at.child(field));
        }
    }
    let (source, reference) = (&spec["dataSource"], &spec["dataSourceRef"]);
    if set(spec, "dataSource") && set(spec, "dataSourceRef") {
        let place = json!("spec.dataSource");
        let part = |value: &Value| ["apiGroup", "kind", "name"].map(|field| text(value, field).to_owned());
        if !text(reference, "namespace").is_empty() {
            errors.invalid(at, &place, "may not be specified when dataSourceRef.namespace is specified");
        } else if part(source) != part(reference) {
            errors.invalid(at, &place, "must match dataSourceRef");
        }
    }
}

fn data_source(errors: &mut Errors, source: &Value, at: &Path) {
    errors.need(source, "name", at);
    errors.need(source, "kind", at);
    let (group, kind) = (text(source, "apiGroup"), text(source, "kind"));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let words = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.invalid(at, &json!(kind), words);
    }
    if !group.is_empty() {
        errors.rule(&at.child("apiGroup"), &source["apiGroup"], dns_subdomain(group));
    }
    let namespace = text(source, "namespace");
    if !namespace.is_empty() {
        errors.rule(&at.child("namespace"), &source["namespace"], dns_label(namespace));
    }
}

/// A change of a PersistentVolumeClaim.
pub(in crate::resources) fn claim_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors(claim(new));
    let at = Path::new("spec");
    let bound = new["status"]["phase"] == "Bound";
    let annotation = |object: &Value| object["metadata"]["annotations"][BETA_CLASS].clone();
    let (mut wanted, mut before) = (new["spec"].clone(), old["spec"].clone());
    if !wanted.is_object() || !before.is_object() {
        errors.immutable(&at, &wanted, &before);
        return errors.0;
    }
    // The binder writes the volume's name, once.
    if text(&before, "volumeName").is_empty() {
        before["volumeName"] = wanted["volumeName"].clone();
    }
    let class = wanted["storageClassName"].clone();
    let unset = before["storageClassName"].is_null() && !class.is_null();
    let from_annotation = unset
        && annotation(old) == class
        && (annotation(new).is_null() || annotation(new) == annotation(old));
    if !from_annotation && !same(&annotation(new), &annotation(old)) {
        let at = Path::new("metadata").child("annotations").key(BETA_CLASS);
        errors.invalid(&at, &annotation(new), "field is immutable");
    }
    if from_annotation || (unset && annotation(old).is_null()) {
        wanted["storageClassName"] = Value::Null;
    }
    if bound {
        if set(&wanted["resources"], "requests") {
            wanted["resources"]["requests"]["storage"] = before["resources"]["requests"]["storage"].clone();
        }
        wanted["volumeAttributesClassName"] = before["volumeAttributesClassName"].clone();
    }
    if !same(&wanted, &before) {
        errors.forbidden(&at, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
    }
    let size = |object: &Value| resources::parse(&object["spec"]["resources"]["requests"]["storage"]);
    if let (Some(new_size), Some(old_size)) = (size(new), size(old))
        && new_size < old_size
        && new_size <= resources::parse(&old["status"]["capacity"]["storage"]).unwrap_or_default()
    {
        let place = at.child("resources").child("requests").child("storage");
        errors.forbidden(&place, "field can not be less than status.capacity");
    }
    errors.immutable(&Path::new("volumeMode"), &new["spec"]["volumeMode"], &old["spec"]["volumeMode"]);
    if set(&old["status"], "currentVolumeAttributesClassName") {
        let place = at.child("volumeAttributesClassName");
        let when = "is forbidden when status.currentVolumeAttributesClassName is not nil";
        match &new["spec"]["volumeAttributesClassName"] {
            Value::Null => errors.forbidden(&place, format!("update to nil {when}")),
            Value::String(class) if class.is_empty() => {
                errors.forbidden(&place, format!("update to empty string {when}"));
            }
            _ => {}
        }
    }
    errors.0
}

/// A change of a claim's status.
pub(in crate::resources) fn claim_status(new: &Value, _old: &Value) -> Vec<FieldError> {
    const RESIZE: &[&str] = &[
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
        "NodeResizePending",
    ];
    let mut errors = Errors::default();
    let (status, at) = (&new["status"], Path::new("status"));
    for (field, named) in [("capacity", false), ("allocatedResources", true)] {
        for (name, amount) in entries(status, field) {
            if named && !claim_resource(&mut errors, name, &at.child(field)) {
                continue;
            }
            let place = at.child(field).key(name);
            if let Some(amount) = resources::parse(amount)
                && amount.sign() < 0
            {
                errors.invalid(&place, &json!(amount.value()), "must be a valid resource quantity");
            }
        }
    }
    let place = at.child("allocatedResourceStatuses");
    for (name, state) in entries(status, "allocatedResourceStatuses") {
        claim_resource(&mut errors, name, &place);
        if !RESIZE.contains(&state.as_str().unwrap_or_default()) {
            errors.unsupported(&place, &json!(name), RESIZE);
        }
    }
    errors.0
}

fn claim_resource(errors: &mut Errors, name: &str, at: &Path) -> bool {
    if let Err(why) = qualified_name(name) {
        errors.invalid(at, &name.into(), why);
        return false;
    }
    if resources::is_native(name) && name != "storage" {
        errors.unsupported(at, &name.into(), &["storage"]);
        return false;
    }
    true
}

/// A set of drivers' topology terms (`allowedTopologies` of a StorageClass).
pub(super) fn topologies(errors: &mut Errors, object: &Value, at: &Path) {
    let mut seen: Vec<&Value> = Vec::new();
    for (at, term) in items(object, "allowedTopologies", at) {
        let mut keys = Vec::new();
        for (at, expression) in items(term, "matchLabelExpressions", &at) {
            let key = text(expression, "key");
            let place = at.child("values");
            if list(expression, "values").is_empty() {
                errors.required(&place, "");
            }
            let mut values: Vec<&Value> = Vec::new();
            for (at, value) in items(expression, "values", &at) {
                if values.contains(&value) {
                    errors.duplicate(&at, value);
                }
                values.push(value);
            }
            errors.rule(&at.child("key"), &key.into(), qualified_name(key));
            if keys.contains(&key) {
                errors.duplicate(&at.child("key"), &key.into());
            }
            keys.push(key);
        }
        if seen.iter().any(|other| same(other, term)) {
            errors.duplicate(&at.child("matchLabelExpressions"), &json!(""));
        }
        seen.push(term);
    }
}
