//! Devices: classes, claims and slices.

use super::tree::{at, count_at, get};
use super::{AGE, NAME, Spec, text};

pub(super) const NAMED: &[Spec] = &[NAME, AGE];

pub(super) const RESOURCE_CLAIM: &[Spec] = &[
    NAME,
    text("State", "Whether it is allocated, reserved, deleted.", |o, _| {
        let deleted = !at(o, "metadata.deletionTimestamp").is_null();
        let allocated = !at(o, "status.allocation").is_null();
        let states = [
            (deleted, "deleted"),
            (!allocated && !deleted, "pending"),
            (allocated, "allocated"),
            (allocated && count_at(o, "status.reservedFor") > 0, "reserved"),
        ];
        let shown: Vec<&str> = states.iter().filter(|(is, _)| *is).map(|(_, state)| *state).collect();
        shown.join(",").into()
    }),
    AGE,
];

pub(super) const RESOURCE_SLICE: &[Spec] = &[
    NAME,
    text("Node", "Node that has the devices.", |o, _| get(o, "spec.nodeName")),
    text("Driver", "Driver of the devices.", |o, _| get(o, "spec.driver")),
    text("Pool", "Pool the slice belongs to.", |o, _| get(o, "spec.pool.name")),
    AGE,
];
