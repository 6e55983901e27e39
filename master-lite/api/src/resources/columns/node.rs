//! Nodes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::tree::{get, get_or, list_at, str_at};
use super::{AGE, NAME, Spec, text};

pub(super) const NODE: &[Spec] = &[
    NAME,
    text("Status", "Whether the node is ready, and whether pods may be scheduled to it.", |node, _| {
        status(node).into()
    }),
    text("Roles", "Roles of the node, from its labels.", |node, _| roles(node).into()),
    AGE,
    text("Version", "Version of the node's kubelet.", |node, _| get(node, "status.nodeInfo.kubeletVersion")),
    text("Internal-IP", "First internal address.", |node, _| address(node, "InternalIP")).wide(),
    text("External-IP", "First external address.", |node, _| address(node, "ExternalIP")).wide(),
    text("OS-Image", "Operating system.", |node, _| get_or(node, "status.nodeInfo.osImage", "<unknown>"))
        .wide(),
    text("Kernel-Version", "Kernel and architecture.", |node, _| kernel(node).into()).wide(),
    text("Container-Runtime", "Container runtime and its version.", |node, _| {
        get_or(node, "status.nodeInfo.containerRuntimeVersion", "<unknown>")
    })
    .wide(),
];

fn status(node: &Value) -> String {
    // The last one of a type wins, as in upstream's map.
    let ready = list_at(node, "status.conditions").iter().rev().find(|c| c["type"] == "Ready");
    let mut status = match ready {
        None => "Unknown",
        Some(condition) if condition["status"] == "True" => "Ready",
        Some(_) => "NotReady",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in node["metadata"]["labels"].as_object().into_iter().flatten() {
        let role = match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => role,
            None if key == "kubernetes.io/role" => value.as_str().unwrap_or_default(),
            None => continue,
        };
        if !role.is_empty() {
            roles.insert(role);
        }
    }
    if roles.is_empty() { "<none>".to_owned() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

fn address(node: &Value, kind: &str) -> Value {
    let found = list_at(node, "status.addresses").iter().find(|a| a["type"] == kind);
    found.map_or("<none>", |a| str_at(a, "address")).into()
}

fn kernel(node: &Value) -> String {
    let info = &node["status"]["nodeInfo"];
    let mut kernel = match str_at(info, "kernelVersion") {
        "" => "<unknown>".to_owned(),
        version => version.to_owned(),
    };
    let architecture = str_at(info, "architecture");
    if !architecture.is_empty() {
        kernel.push_str(&format!(" ({architecture})"));
    }
    kernel
}
