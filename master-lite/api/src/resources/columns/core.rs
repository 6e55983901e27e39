//! Kinds with two or three columns of their own.

use serde_json::Value;

use super::tree::{count_at, get, list_at, quantity, str_at};
use super::{AGE, NAME, Spec, boolean, integer, text};

pub(super) const CONFIG_MAP: &[Spec] = &[
    NAME,
    text("Data", "Number of keys.", |o, _| (count_at(o, "data") + count_at(o, "binaryData")).into()),
    AGE,
];

pub(super) const SECRET: &[Spec] = &[
    NAME,
    text("Type", "What the secret is for.", |o, _| get(o, "type")),
    text("Data", "Number of keys.", |o, _| count_at(o, "data").into()),
    AGE,
];

pub(super) const SERVICE_ACCOUNT: &[Spec] = &[NAME, AGE];

pub(super) const NAMESPACE: &[Spec] =
    &[NAME, text("Status", "Active or Terminating.", |o, _| get(o, "status.phase")), AGE];

pub(super) const LEASE: &[Spec] =
    &[NAME, text("Holder", "Identity of the holder.", |o, _| get(o, "spec.holderIdentity")), AGE];

pub(super) const RUNTIME_CLASS: &[Spec] =
    &[NAME, text("Handler", "Configuration of the runtime that is used.", |o, _| get(o, "handler")), AGE];

pub(super) const PRIORITY_CLASS: &[Spec] = &[
    NAME,
    integer("Value", "Priority of the pods.", |o, _| o["value"].as_i64().unwrap_or_default().into()),
    boolean("Global-Default", "Whether pods without a class get this one.", |o, _| {
        (o["globalDefault"] == true).into()
    }),
    AGE,
    text("PreemptionPolicy", "Whether its pods may evict others.", |o, _| get(o, "preemptionPolicy")),
];

pub(super) const WEBHOOKS: &[Spec] =
    &[NAME, integer("Webhooks", "Number of webhooks.", |o, _| count_at(o, "webhooks").into()), AGE];

pub(super) const COMPONENT_STATUS: &[Spec] = &[
    NAME,
    text("Status", "Healthy, Unhealthy or Unknown.", |o, _| {
        match healthy(o).map(|c| c["status"] == "True") {
            None => "Unknown",
            Some(true) => "Healthy",
            Some(false) => "Unhealthy",
        }
        .into()
    }),
    text("Message", "What the component says of itself.", |o, _| {
        healthy(o).map_or("", |c| str_at(c, "message")).into()
    }),
    text("Error", "What went wrong.", |o, _| healthy(o).map_or("", |c| str_at(c, "error")).into()),
];

fn healthy(object: &Value) -> Option<&Value> {
    list_at(object, "conditions").iter().find(|c| c["type"] == "Healthy")
}

pub(super) const RESOURCE_QUOTA: &[Spec] = &[
    NAME,
    text("Request", "Used and allowed amounts.", |o, _| quota(o, false).into()),
    text("Limit", "Used and allowed amounts of limits.", |o, _| quota(o, true).into()),
    AGE,
];

fn quota(object: &Value, limits: bool) -> String {
    let status = &object["status"];
    let mut entries: Vec<(&String, String)> = status["hard"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("limits.") == limits)
        .map(|(name, hard)| (name, format!("{name}: {}/{}", quantity(&status["used"][name]), quantity(hard))))
        .collect();
    entries.sort();
    entries.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>().join(", ")
}
