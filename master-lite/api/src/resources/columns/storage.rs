//! Volumes, claims, classes and drivers.

use serde_json::Value;

use super::service::default_name;
use super::tree::{annotated, at, count_at, get, get_or, join, list_at, quantity, str_at};
use super::{AGE, NAME, Spec, boolean, integer, text};

pub(super) const PERSISTENT_VOLUME: &[Spec] = &[
    NAME,
    text("Capacity", "Size.", |o, _| quantity(at(o, "spec.capacity.storage")).into()),
    text("Access Modes", "Ways it can be mounted.", |o, _| access_modes(at(o, "spec.accessModes")).into()),
    text("Reclaim Policy", "What becomes of it when its claim goes.", |o, _| {
        get(o, "spec.persistentVolumeReclaimPolicy")
    }),
    text("Status", "Phase.", |o, _| phase(o)),
    text("Claim", "Claim that it is bound to.", |o, _| {
        let claim = at(o, "spec.claimRef");
        if !claim.is_object() {
            return "".into();
        }
        format!("{}/{}", str_at(claim, "namespace"), str_at(claim, "name")).into()
    }),
    text("StorageClass", "Its storage class.", |o, _| class(o)),
    text("VolumeAttributesClass", "Its attributes class.", |o, _| {
        get_or(o, "spec.volumeAttributesClassName", "<unset>")
    }),
    text("Reason", "Why it is in its phase.", |o, _| get(o, "status.reason")),
    AGE,
    text("VolumeMode", "Filesystem or Block.", |o, _| get_or(o, "spec.volumeMode", "<unset>")).wide(),
];

pub(super) const PERSISTENT_VOLUME_CLAIM: &[Spec] = &[
    NAME,
    text("Status", "Phase.", |o, _| phase(o)),
    text("Volume", "Volume that it is bound to.", |o, _| get(o, "spec.volumeName")),
    text("Capacity", "Size of the volume.", |o, _| bound(o, || quantity(at(o, "status.capacity.storage")))),
    text("Access Modes", "Ways the volume can be mounted.", |o, _| {
        bound(o, || access_modes(at(o, "status.accessModes")))
    }),
    text("StorageClass", "Its storage class.", |o, _| class(o)),
    text("VolumeAttributesClass", "Its attributes class.", |o, _| {
        get_or(o, "spec.volumeAttributesClassName", "<unset>")
    }),
    AGE,
    text("VolumeMode", "Filesystem or Block.", |o, _| get_or(o, "spec.volumeMode", "<unset>")).wide(),
];

/// A cell that stays empty while the claim has no volume.
fn bound(claim: &Value, cell: impl Fn() -> String) -> Value {
    if str_at(claim, "spec.volumeName").is_empty() { "".into() } else { cell().into() }
}

fn phase(object: &Value) -> Value {
    if object["metadata"]["deletionTimestamp"].is_null() {
        get(object, "status.phase")
    } else {
        "Terminating".into()
    }
}

fn class(object: &Value) -> Value {
    match object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].as_str() {
        Some(class) => class.into(),
        None => get(object, "spec.storageClassName"),
    }
}

fn access_modes(modes: &Value) -> String {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| modes.as_array().is_some_and(|modes| modes.iter().any(|m| m == mode));
    short.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

pub(super) const STORAGE_CLASS: &[Spec] = &[
    text("Name", NAME.description, |o, _| {
        let default = annotated(o, "storageclass.kubernetes.io/is-default-class")
            || annotated(o, "storageclass.beta.kubernetes.io/is-default-class");
        default_name(o, default).into()
    })
    .name_format(),
    text("Provisioner", "Who makes the volumes.", |o, _| get(o, "provisioner")),
    text("ReclaimPolicy", "What becomes of its volumes.", |o, _| get_or(o, "reclaimPolicy", "Delete")),
    text("VolumeBindingMode", "When claims are bound.", |o, _| get_or(o, "volumeBindingMode", "Immediate")),
    text("AllowVolumeExpansion", "Whether its volumes may grow.", |o, _| {
        (o["allowVolumeExpansion"] == true).into()
    }),
    AGE,
];

pub(super) const VOLUME_ATTRIBUTES_CLASS: &[Spec] =
    &[NAME, text("DriverName", "Driver that knows the attributes.", |o, _| get(o, "driverName")), AGE];

pub(super) const VOLUME_ATTACHMENT: &[Spec] = &[
    NAME,
    text("Attacher", "Driver that attaches it.", |o, _| get(o, "spec.attacher")).name_format(),
    text("PV", "The volume.", |o, _| get(o, "spec.source.persistentVolumeName")),
    text("Node", "Node it is attached to.", |o, _| get(o, "spec.nodeName")),
    boolean("Attached", "Whether it is attached.", |o, _| (o["status"]["attached"] == true).into()),
    AGE,
];

pub(super) const CSI_NODE: &[Spec] = &[
    NAME,
    integer("Drivers", "Number of CSI drivers on the node.", |o, _| count_at(o, "spec.drivers").into()),
    AGE,
];

pub(super) const CSI_DRIVER: &[Spec] = &[
    NAME,
    boolean("AttachRequired", "Whether volumes are attached first.", |o, _| flag(o, "attachRequired", true)),
    boolean("PodInfoOnMount", "Whether mounts learn of their pod.", |o, _| flag(o, "podInfoOnMount", false)),
    boolean("StorageCapacity", "Whether capacity counts in scheduling.", |o, _| {
        flag(o, "storageCapacity", false)
    }),
    text("TokenRequests", "Audiences of the tokens it gets.", |o, _| {
        match o["spec"]["tokenRequests"].as_array() {
            None => "<unset>".to_owned(),
            Some(tokens) => tokens.iter().map(|t| str_at(t, "audience")).collect::<Vec<_>>().join(","),
        }
        .into()
    }),
    boolean("RequiresRepublish", "Whether volumes are published again and again.", |o, _| {
        flag(o, "requiresRepublish", false)
    }),
    text("Modes", "Persistent, Ephemeral.", |o, _| {
        let modes = list_at(o, "spec.volumeLifecycleModes");
        if modes.is_empty() { "<none>".to_owned() } else { join(modes) }.into()
    }),
    AGE,
];

fn flag(driver: &Value, field: &str, absent: bool) -> Value {
    driver["spec"][field].as_bool().unwrap_or(absent).into()
}
