//! Environment variables and downward API fields.

use serde_json::{Value, json};

use super::errors::{Errors, Path, items, list, set, text};
use super::rules;
use crate::resources::metadata::{dns_label, dns_subdomain, qualified_name};
use keelson_quantity::Quantity;

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
pub(super) const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// What upstream's `ConvertDownwardAPIFieldLabel` knows of pods, besides the fields above.
const POD_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "spec.restartPolicy",
    "spec.schedulerName",
    "status.phase",
    "spec.host",
];

/// `env` of a container.
pub(super) fn env(errors: &mut Errors, container: &Value, at: &Path) {
    for (at, variable) in items(container, "env", at) {
        match text(variable, "name") {
            "" => errors.required(&at.child("name"), ""),
            name => errors.rule(&at.child("name"), &variable["name"], rules::env_name(name)),
        }
        if set(variable, "valueFrom") {
            value_from(errors, variable, &at.child("valueFrom"));
        }
    }
}

fn value_from(errors: &mut Errors, variable: &Value, at: &Path) {
    let from = &variable["valueFrom"];
    let mut sources = 0;
    let mut source = |field: &str| {
        let is_set = set(from, field);
        sources += usize::from(is_set);
        is_set.then(|| (&from[field], at.child(field)))
    };
    if let Some((field, at)) = source("fieldRef") {
        field_ref(errors, field, ENV_FIELDS, &at);
    }
    if let Some((field, at)) = source("resourceFieldRef") {
        resource_field_ref(errors, field, false, &at);
    }
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        if let Some((key, at)) = source(kind) {
            errors.rule(&at.child("name"), &json!(text(key, "name")), dns_subdomain(text(key, "name")));
            match text(key, "key") {
                "" => errors.required(&at.child("key"), ""),
                name => errors.rules(&at.child("key"), &key["key"], rules::config_key(name)),
            }
        }
    }
    if let Some((key, at)) = source("fileKeyRef") {
        file_key_ref(errors, key, &at);
    }
    let nothing = json!("");
    if sources == 0 {
        errors.invalid(at, &nothing, "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`");
    } else if !text(variable, "value").is_empty() {
        errors.invalid(at, &nothing, "may not be specified when `value` is not empty");
    } else if sources > 1 {
        errors.invalid(at, &nothing, "may not have more than one field specified at a time");
    }
}

fn file_key_ref(errors: &mut Errors, key: &Value, at: &Path) {
    match text(key, "key") {
        "" => errors.required(&at.child("key"), ""),
        name => errors.rule(&at.child("key"), &key["key"], rules::env_name(name)),
    }
    match text(key, "volumeName") {
        "" => errors.required(&at.child("volumeName"), ""),
        name => errors.rule(&at.child("volumeName"), &key["volumeName"], dns_label(name)),
    }
    match text(key, "path") {
        "" => errors.required(&at.child("path"), ""),
        _ => rules::no_backsteps(errors, &at.child("path"), &key["path"]),
    }
}

/// `envFrom` of a container.
pub(super) fn env_from(errors: &mut Errors, container: &Value, at: &Path) {
    for (item, source) in items(container, "envFrom", at) {
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            errors.rule(&item.child("prefix"), &source["prefix"], rules::env_name(prefix));
        }
        let mut sources = 0;
        for kind in ["configMapRef", "secretRef"] {
            if set(source, kind) {
                sources += 1;
                let at = item.child(kind).child("name");
                match text(&source[kind], "name") {
                    "" => errors.required(&at, ""),
                    name => errors.rule(&at, &source[kind]["name"], dns_subdomain(name)),
                }
            }
        }
        // Upstream names the list here, not the item.
        let list = at.child("envFrom");
        match sources {
            0 => errors.invalid(&list, &json!(""), "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(&list, &json!(""), "may not have more than one field specified at a time"),
        }
    }
}

/// A field of the pod, for an environment variable or a file.
pub(super) fn field_ref(errors: &mut Errors, field: &Value, supported: &[&str], at: &Path) {
    for name in ["apiVersion", "fieldPath"] {
        if text(field, name).is_empty() {
            return errors.required(&at.child(name), "");
        }
    }
    let path = text(field, "fieldPath");
    let version = text(field, "apiVersion");
    let place = at.child("fieldPath");
    if version != "v1" {
        let words = format!("error converting fieldPath: unsupported pod version: {version}");
        return errors.invalid(&place, &field["fieldPath"], words);
    }
    if let Some((map, key)) = path.strip_suffix("']").and_then(|rest| rest.split_once("['")) {
        return match map {
            // Annotation keys compare in lower case.
            "metadata.annotations" => errors.rule(at, &key.into(), qualified_name(&key.to_lowercase())),
            "metadata.labels" => errors.rule(at, &key.into(), qualified_name(key)),
            _ => errors.invalid(
                &place,
                &field["fieldPath"],
                format!("error converting fieldPath: field label does not support subscript: {path}"),
            ),
        };
    }
    let known = ENV_FIELDS.contains(&path) || POD_FIELDS.contains(&path);
    if !known {
        let words = format!("error converting fieldPath: field label not supported: {path}");
        errors.invalid(&place, &field["fieldPath"], words);
    } else if !supported.contains(&path) {
        errors.unsupported(&place, &field["fieldPath"], supported);
    }
}

/// A resource of a container, for an environment variable or a file.
pub(super) fn resource_field_ref(errors: &mut Errors, field: &Value, volume: bool, at: &Path) {
    let resource = text(field, "resource");
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if volume && text(field, "containerName").is_empty() {
        errors.required(&at.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&at.child("resource"), "");
    } else if !huge && !RESOURCE_FIELDS.contains(&resource) {
        errors.unsupported(&at.child("resource"), &field["resource"], RESOURCE_FIELDS);
    }
    divisor(errors, field, resource, huge, at);
}

fn divisor(errors: &mut Errors, field: &Value, resource: &str, huge: bool, at: &Path) {
    const SIZES: &[&str] =
        &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let Some(quantity) = text(field, "divisor").parse::<Quantity>().ok().filter(|q| !q.is_zero()) else {
        return;
    };
    let words = match resource.split_once('.').map(|(_, name)| name) {
        Some("cpu") => {
            if !["1m", "1"].contains(&quantity.to_string().as_str()) {
                let words = "only divisor's values 1m and 1 are supported with the cpu resource";
                errors.invalid(&at.child("divisor"), &resource.into(), words);
            }
            return;
        }
        Some("memory") => "memory",
        Some("ephemeral-storage") => "local ephemeral storage",
        _ if huge => "hugepages",
        _ => return,
    };
    if !SIZES.contains(&quantity.to_string().as_str()) {
        let words =
            format!("only divisor's values {} are supported with the {words} resource", SIZES.join(", "));
        errors.invalid(&at.child("divisor"), &resource.into(), words);
    }
}

/// Files that hold variables must lie in an emptyDir of the pod.
pub(super) fn file_key_volumes(errors: &mut Errors, spec: &Value, at: &Path) {
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        for (at, container) in items(spec, field, at) {
            for (at, variable) in items(container, "env", &at) {
                let name = &variable["valueFrom"]["fileKeyRef"]["volumeName"];
                if name.is_null() {
                    continue;
                }
                let at = at.child("valueFrom").child("fileKeyRef").child("volumeName");
                match list(spec, "volumes").iter().find(|volume| volume["name"] == *name) {
                    None => errors.not_found(&at, name, ""),
                    Some(volume) if !set(volume, "emptyDir") => {
                        errors.invalid(&at, name, "referenced volume must be of type emptyDir");
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
