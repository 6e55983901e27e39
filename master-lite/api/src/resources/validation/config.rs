//! ConfigMaps and Secrets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::errors::{Errors, Path, entries, set, text};
use super::rules;
use crate::field::FieldError;

/// Most bytes of all values together.
const MAX_SIZE: usize = 1024 * 1024;

/// Length of what a base64 text stands for.
fn decoded_len(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

fn keys(errors: &mut Errors, object: &Value, field: &str) {
    for (key, _) in entries(object, field) {
        errors.rules(&Path::new(field).key(key), &key.as_str().into(), rules::config_key(key));
    }
}

/// A ConfigMap, new or changed.
pub(in crate::resources) fn config_map(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    keys(&mut errors, object, "data");
    for (key, _) in entries(object, "data") {
        if set(&object["binaryData"], key) {
            let words = "duplicate of key present in binaryData";
            errors.invalid(&Path::new("data").key(key), &key.as_str().into(), words);
        }
    }
    keys(&mut errors, object, "binaryData");
    let texts: usize = entries(object, "data").map(|(_, v)| v.as_str().unwrap_or_default().len()).sum();
    let bytes: usize = entries(object, "binaryData").map(|(_, v)| decoded_len(v)).sum();
    if texts + bytes > MAX_SIZE {
        errors.too_long(&Path::new(""), MAX_SIZE);
    }
    errors.0
}

/// A change of a ConfigMap.
pub(in crate::resources) fn config_map_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    immutable(&mut errors, new, old, &["data", "binaryData"]);
    errors.0.extend(config_map(new));
    errors.0
}

fn immutable(errors: &mut Errors, new: &Value, old: &Value, fields: &[&str]) {
    const WORDS: &str = "field is immutable when `immutable` is set";
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        errors.forbidden(&Path::new("immutable"), WORDS);
    }
    for field in fields {
        if new[*field] != old[*field] {
            errors.forbidden(&Path::new(field), WORDS);
        }
    }
}

/// A Secret, new or changed.
pub(in crate::resources) fn secret(object: &Value) -> Vec<FieldError> {
    const ACCOUNT: &str = "kubernetes.io/service-account.name";
    let mut errors = Errors::default();
    keys(&mut errors, object, "data");
    let size: usize = entries(object, "data").map(|(_, value)| decoded_len(value)).sum();
    if size > MAX_SIZE {
        errors.too_long(&Path::new("data"), MAX_SIZE);
    }
    let data = &object["data"];
    let need = |errors: &mut Errors, key: &str| {
        if !set(data, key) {
            errors.required(&Path::new("data").key(key), "");
        }
    };
    match text(object, "type") {
        "kubernetes.io/service-account-token"
            if text(&object["metadata"]["annotations"], ACCOUNT).is_empty() =>
        {
            errors.required(&Path::new("metadata").child("annotations").key(ACCOUNT), "");
        }
        "kubernetes.io/dockercfg" => json_in(&mut errors, data, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json_in(&mut errors, data, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !set(data, "username") && !set(data, "password") => {
            need(&mut errors, "username");
            need(&mut errors, "password");
        }
        "kubernetes.io/ssh-auth" if text(data, "ssh-privatekey").is_empty() => {
            errors.required(&Path::new("data").key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            need(&mut errors, "tls.crt");
            need(&mut errors, "tls.key");
        }
        _ => {}
    }
    errors.0
}

fn json_in(errors: &mut Errors, data: &Value, key: &str) {
    let at = Path::new("data").key(key);
    let Some(encoded) = data[key].as_str() else { return errors.required(&at, "") };
    // The contents are secret: a complaint must not repeat them.
    let object = STANDARD
        .decode(encoded)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes).ok());
    if object.is_none() {
        errors.invalid(&at, &json!("<secret contents redacted>"), "must be a JSON object");
    }
}

/// A change of a Secret.
pub(in crate::resources) fn secret_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable(&Path::new("type"), &new["type"], &old["type"]);
    immutable(&mut errors, new, old, &["data"]);
    errors.0.extend(secret(new));
    errors.0
}
