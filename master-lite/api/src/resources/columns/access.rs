//! Role bindings and certificates.

use serde_json::Value;

use super::duration::human_duration;
use super::tree::{at, get, get_or, list_at, str_at};
use super::{AGE, NAME, Spec, text};

pub(super) const ROLE_BINDING: &[Spec] = &[
    NAME,
    text("Role", "Role that is granted.", |o, _| {
        format!("{}/{}", str_at(o, "roleRef.kind"), str_at(o, "roleRef.name")).into()
    }),
    AGE,
    text("Users", "Users that it is granted to.", |o, _| subjects(o, "User").into()).wide(),
    text("Groups", "Groups that it is granted to.", |o, _| subjects(o, "Group").into()).wide(),
    text("ServiceAccounts", "Service accounts that it is granted to.", |o, _| {
        subjects(o, "ServiceAccount").into()
    })
    .wide(),
];

fn subjects(binding: &Value, kind: &str) -> String {
    let names: Vec<String> = list_at(binding, "subjects")
        .iter()
        .filter(|subject| subject["kind"] == kind)
        .map(|subject| match (kind, str_at(subject, "name")) {
            ("ServiceAccount", name) => format!("{}/{name}", str_at(subject, "namespace")),
            (_, name) => name.to_owned(),
        })
        .collect();
    names.join(", ")
}

pub(super) const CERTIFICATE_SIGNING_REQUEST: &[Spec] = &[
    NAME,
    AGE,
    text("SignerName", "Who should sign it.", |o, _| get_or(o, "spec.signerName", "<none>")),
    text("Requestor", "User who asked for it.", |o, _| get(o, "spec.username")),
    text("RequestedDuration", "How long it should be valid.", |o, _| {
        match at(o, "spec.expirationSeconds").as_i64() {
            Some(seconds) => human_duration(seconds).into(),
            None => "<none>".into(),
        }
    }),
    text("Condition", "Pending, Approved or Denied; Failed; Issued.", |o, _| csr_condition(o).into()),
];

fn csr_condition(csr: &Value) -> String {
    let conditions = list_at(csr, "status.conditions");
    let has = |kind: &str| conditions.iter().any(|c| c["type"] == kind);
    let mut condition = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        condition.push_str(",Failed");
    }
    if !str_at(csr, "status.certificate").is_empty() {
        condition.push_str(",Issued");
    }
    condition
}
