//! Ingresses.

use serde_json::{Value, json};

use super::errors::{Errors, Path, items, list, number, set, text};
use super::rules;
use crate::field::FieldError;
use crate::resources::metadata::{dns_label, dns_subdomain};

/// An Ingress, new or changed.
pub(in crate::resources) fn ingress(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    if list(spec, "rules").is_empty() && !set(spec, "defaultBackend") {
        errors.invalid(&at, &spec["rules"], "either `defaultBackend` or `rules` must be specified");
    }
    if set(spec, "defaultBackend") {
        backend(&mut errors, &spec["defaultBackend"], &at.child("defaultBackend"));
    }
    for (at, rule) in items(spec, "rules", &at) {
        let host = text(rule, "host");
        if !host.is_empty() {
            if host.parse::<std::net::IpAddr>().is_ok() {
                errors.invalid(&at.child("host"), &host.into(), "must be a DNS name, not an IP address");
            }
            errors.rule(&at.child("host"), &host.into(), rules::host_name(host));
        }
        if set(rule, "http") {
            let at = at.child("http");
            if list(&rule["http"], "paths").is_empty() {
                errors.required(&at.child("paths"), "");
            }
            for (at, path) in items(&rule["http"], "paths", &at) {
                http_path(&mut errors, path, &at);
            }
        }
    }
    for (at, tls) in items(spec, "tls", &at) {
        for (at, host) in items(tls, "hosts", &at) {
            errors.rule(&at, host, rules::host_name(host.as_str().unwrap_or_default()));
        }
        let secret = text(tls, "secretName");
        if !secret.is_empty() {
            errors.rule(&at.child("secretName"), &secret.into(), dns_subdomain(secret));
        }
    }
    if let Some(class) = spec["ingressClassName"].as_str() {
        errors.rule(&at.child("ingressClassName"), &class.into(), dns_subdomain(class));
    }
    errors.0
}

fn http_path(errors: &mut Errors, entry: &Value, at: &Path) {
    let (path, place) = (text(entry, "path"), at.child("path"));
    match text(entry, "pathType") {
        "" => return errors.required(&at.child("pathType"), "pathType must be specified"),
        "Exact" | "Prefix" => {
            if !path.starts_with('/') {
                errors.invalid(&place, &path.into(), "must be an absolute path");
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                if path.contains(sequence) {
                    errors.invalid(&place, &path.into(), format!("must not contain '{sequence}'"));
                }
            }
            for suffix in ["/..", "/."] {
                if path.ends_with(suffix) {
                    errors.invalid(&place, &path.into(), format!("cannot end with '{suffix}'"));
                }
            }
        }
        "ImplementationSpecific" => {
            if !path.is_empty() && !path.starts_with('/') {
                errors.invalid(&place, &path.into(), "must be an absolute path");
            }
        }
        _ => errors.unsupported(
            &at.child("pathType"),
            &entry["pathType"],
            &["Exact", "ImplementationSpecific", "Prefix"],
        ),
    }
    backend(errors, &entry["backend"], &at.child("backend"));
}

fn backend(errors: &mut Errors, backend: &Value, at: &Path) {
    match (set(backend, "resource"), set(backend, "service")) {
        (true, true) => errors.invalid(at, &json!(""), "cannot set both resource and service backends"),
        (false, false) => errors.invalid(at, &json!(""), "resource or service backend is required"),
        (true, false) => {
            let at = at.child("resource");
            errors.need(&backend["resource"], "kind", &at);
            errors.need(&backend["resource"], "name", &at);
        }
        (false, true) => {
            let (service, place) = (&backend["service"], at.child("service"));
            match text(service, "name") {
                "" => errors.required(&place.child("name"), ""),
                name => errors.rule(&place.child("name"), &name.into(), dns_label(name)),
            }
            let (port, place) = (&service["port"], place.child("port"));
            match (text(port, "name"), number(port, "number")) {
                ("", 0) => errors.required(at, "port name or number is required"),
                ("", number) => {
                    errors.rule(&place.child("number"), &json!(number), rules::port_number(number))
                }
                (name, 0) => errors.rules(&place.child("name"), &name.into(), rules::port_name(name)),
                _ => errors.invalid(at, &json!(""), "cannot set both port name & port number"),
            }
        }
    }
}
