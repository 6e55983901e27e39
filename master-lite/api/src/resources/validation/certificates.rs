//! CertificateSigningRequests (`pkg/apis/certificates/validation`). That the request is signed by its own key is
//! checked where it is parsed, by the signers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::errors::{Errors, Path, items, list, text};
use super::rules;
use crate::field::FieldError;

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// A new request.
pub(in crate::resources) fn signing_request(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    if !is_pem(text(spec, "request"), "CERTIFICATE REQUEST") {
        let words = "PEM block type must be CERTIFICATE REQUEST";
        errors.invalid(&at.child("request"), &json!(text(spec, "request")), words);
    }
    if list(spec, "usages").is_empty() {
        errors.required(&at.child("usages"), "");
    }
    let mut seen = Vec::new();
    for (at, usage) in items(spec, "usages", &at) {
        errors.optional_one_of(&at, usage, USAGES);
        if seen.contains(&usage) {
            errors.duplicate(&at, usage);
        }
        seen.push(usage);
    }
    let (signer, place) = (&spec["signerName"], at.child("signerName"));
    if *signer == "kubernetes.io/legacy-unknown" {
        errors.invalid(&place, signer, "the legacy signerName is not allowed via this API version");
    } else {
        rules::signer_name(&mut errors, &place, signer);
    }
    if spec["expirationSeconds"].as_i64().is_some_and(|seconds| seconds < 600) {
        let words = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid(&at.child("expirationSeconds"), &spec["expirationSeconds"], words);
    }
    conditions(&mut errors, object);
    errors.0
}

fn is_pem(encoded: &str, kind: &str) -> bool {
    let text =
        STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    text.contains(&format!("-----BEGIN {kind}-----")) && text.contains(&format!("-----END {kind}-----"))
}

fn conditions(errors: &mut Errors, object: &Value) {
    let status = Path::new("status");
    let mut seen = Vec::new();
    for (at, condition) in items(&object["status"], "conditions", &status) {
        let kind = text(condition, "type");
        errors.need(condition, "type", &at);
        let allowed: &[&str] = if matches!(kind, "Approved" | "Denied" | "Failed") {
            &["True"]
        } else {
            &["False", "True", "Unknown"]
        };
        errors.one_of(&at.child("status"), &condition["status"], allowed);
        let other = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !other.is_empty() && seen.contains(&other) {
            let words = "Approved and Denied conditions are mutually exclusive";
            errors.invalid(&status.child("conditions"), &kind.into(), words);
        }
        if seen.contains(&kind) {
            errors.duplicate(&at.child("type"), &kind.into());
        }
        seen.push(kind);
    }
}

/// A change, through the main path, `status` or `approval`.
pub(in crate::resources) fn signing_request_update(
    new: &Value,
    old: &Value,
    subresource: &str,
) -> Vec<FieldError> {
    let mut errors = Errors::default();
    conditions(&mut errors, new);
    let at = Path::new("status");
    let place = at.child("conditions");
    let of = |object: &Value, kind: &str| -> Vec<Value> {
        list(&object["status"], "conditions").iter().filter(|c| c["type"] == kind).cloned().collect()
    };
    for kind in ["Approved", "Denied", "Failed"] {
        let (now, before) = (of(new, kind), of(old, kind));
        if now.len() < before.len() {
            errors.forbidden(&place, format!("updates may not remove a condition of type {kind:?}"));
        } else if kind != "Failed" && subresource != "approval" {
            if now.len() > before.len() {
                errors.forbidden(&place, format!("updates may not add a condition of type {kind:?}"));
            } else if now != before {
                errors.forbidden(&place, format!("updates may not modify a condition of type {kind:?}"));
            }
        }
    }
    let (now, before) = (text(&new["status"], "certificate"), text(&old["status"], "certificate"));
    if now != before {
        if subresource != "status" {
            errors.forbidden(&at.child("certificate"), "updates may not set certificate content");
        } else if !before.is_empty() {
            errors.forbidden(&at.child("certificate"), "updates may not modify existing certificate content");
        } else if !is_pem(now, "CERTIFICATE") {
            let words = "must contain at least one CERTIFICATE PEM block";
            errors.invalid(&at.child("certificate"), &json!("<certificate data>"), words);
        }
    }
    errors.0
}
