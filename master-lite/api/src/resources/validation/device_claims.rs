//! ResourceClaims, their templates, and DeviceClasses (`pkg/apis/resource/validation`).
//!
//! CEL selectors are checked for being there; whether they compile is known to who evaluates them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::claims::driver_name;
use super::errors::{Errors, Path, items, list, number, same, set, text};
use super::{conditions, resources, scheduling};
use crate::field::FieldError;
use crate::resources::metadata::{dns_label, dns_subdomain, label_value, qualified_name};

const MAX_REQUESTS: usize = 32;
const MAX_CONSTRAINTS: usize = 32;
const MAX_CONFIGS: usize = 32;
const MAX_SELECTORS: usize = 32;
const MAX_ALTERNATIVES: usize = 8;
const MAX_RESULTS: usize = 32;
const MAX_RESERVATIONS: usize = 256;
const MAX_EXPRESSION: usize = 10 * 1024;
const MAX_OPAQUE: usize = 10 * 1024;
const MAX_POOL_NAME: usize = 253;
const MAX_IDENTIFIER: usize = 32;
const MAX_CONDITIONS: usize = 8;
const MAX_IPS: usize = 16;
pub(super) const TAINT_EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

/// Names of requests, each with those of its alternatives.
type Names<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// A new ResourceClaim.
pub(in crate::resources) fn resource_claim(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    claim_spec(&mut errors, &object["spec"], &Path::new("spec"));
    errors.0
}

/// A change of a ResourceClaim or of a template.
pub(in crate::resources) fn immutable_spec(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable(&Path::new("spec"), &new["spec"], &old["spec"]);
    errors.0
}

/// A new ResourceClaimTemplate.
pub(in crate::resources) fn claim_template(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    super::selectors::labels(&mut errors, &spec["metadata"], "labels", &at.child("metadata"));
    claim_spec(&mut errors, &spec["spec"], &at.child("spec"));
    errors.0
}

fn request_names(devices: &Value) -> Names<'_> {
    let name = |request| text(request, "name");
    list(devices, "requests")
        .iter()
        .map(|request| (name(request), list(request, "firstAvailable").iter().map(name).collect()))
        .collect()
}

/// A list of at most so many items, each with a key of its own; false if it is too long to look into.
pub(super) fn set_of(
    errors: &mut Errors,
    parent: &Value,
    field: &str,
    max: usize,
    key: impl Fn(&Value) -> Value,
    at: &Path,
) -> bool {
    let entries = list(parent, field);
    if entries.len() > max {
        errors.too_many(&at.child(field), entries.len(), max);
        return false;
    }
    let keys: Vec<Value> = entries.iter().map(key).collect();
    for (i, key) in keys.iter().enumerate().filter(|(i, key)| keys[..*i].contains(key)) {
        errors.duplicate(&at.child(field).index(i), key);
    }
    true
}

/// The same without keys.
pub(super) fn at_most(errors: &mut Errors, parent: &Value, field: &str, max: usize, at: &Path) -> bool {
    let count = list(parent, field).len();
    if count > max {
        errors.too_many(&at.child(field), count, max);
    }
    count <= max
}

fn claim_spec(errors: &mut Errors, spec: &Value, at: &Path) {
    let (devices, at) = (&spec["devices"], at.child("devices"));
    let names = request_names(devices);
    if set_of(errors, devices, "requests", MAX_REQUESTS, |r| json!(text(r, "name")), &at) {
        for (at, request) in items(devices, "requests", &at) {
            self::request(errors, request, &at);
        }
    }
    if at_most(errors, devices, "constraints", MAX_CONSTRAINTS, &at) {
        for (at, constraint) in items(devices, "constraints", &at) {
            self::constraint(errors, constraint, &names, &at);
        }
    }
    if at_most(errors, devices, "config", MAX_CONFIGS, &at) {
        for (at, config) in items(devices, "config", &at) {
            references(errors, config, &names, &at);
            configuration(errors, config, &at);
        }
    }
}

fn request(errors: &mut Errors, request: &Value, at: &Path) {
    label(errors, request, "name", at);
    let (alternatives, exact) = (!list(request, "firstAvailable").is_empty(), set(request, "exactly"));
    let words = "exactly one of `exactly` or `firstAvailable` is required";
    match (alternatives, exact) {
        (false, false) => errors.required(at, words),
        (true, true) => {
            errors.invalid(at, &Value::Null, format!("{words}, but multiple fields are set"));
        }
        (false, true) => exactly(errors, &request["exactly"], &at.child("exactly")),
        (true, false) => {
            let key = |r: &Value| json!(text(r, "name"));
            if set_of(errors, request, "firstAvailable", MAX_ALTERNATIVES, key, at) {
                for (at, request) in items(request, "firstAvailable", at) {
                    label(errors, request, "name", &at);
                    exactly(errors, request, &at);
                }
            }
        }
    }
}

/// A field that is a DNS label.
pub(super) fn label(errors: &mut Errors, parent: &Value, field: &str, at: &Path) {
    errors.rule(&at.child(field), &json!(text(parent, field)), dns_label(text(parent, field)));
}

fn exactly(errors: &mut Errors, request: &Value, at: &Path) {
    let class = text(request, "deviceClassName");
    if class.is_empty() {
        errors.required(&at.child("deviceClassName"), "");
    } else {
        errors.rule(&at.child("deviceClassName"), &class.into(), dns_subdomain(class));
    }
    selectors(errors, request, at);
    let (mode, count, place) = (text(request, "allocationMode"), number(request, "count"), at.child("count"));
    match mode {
        "All" if count != 0 => {
            errors.invalid(&place, &count.into(), "must not be specified when allocationMode is 'All'");
        }
        "ExactCount" if count <= 0 => errors.invalid(&place, &count.into(), "must be greater than zero"),
        "All" | "ExactCount" => {}
        _ => errors.unsupported(&at.child("allocationMode"), &mode.into(), &["All", "ExactCount"]),
    }
    for (at, toleration) in items(request, "tolerations", at) {
        self::toleration(errors, toleration, &at);
    }
}

fn selectors(errors: &mut Errors, parent: &Value, at: &Path) {
    if !at_most(errors, parent, "selectors", MAX_SELECTORS, at) {
        return;
    }
    for (at, selector) in items(parent, "selectors", at) {
        let at = at.child("cel");
        let expression = text(&selector["cel"], "expression");
        if !set(selector, "cel") {
            errors.required(&at, "");
        } else if expression.trim().is_empty() {
            errors.required(&at.child("expression"), "");
        } else if expression.len() > MAX_EXPRESSION {
            errors.too_long(&at.child("expression"), MAX_EXPRESSION);
        }
    }
}

fn toleration(errors: &mut Errors, toleration: &Value, at: &Path) {
    let (key, value) = (text(toleration, "key"), text(toleration, "value"));
    if !key.is_empty() {
        errors.rule(&at.child("key"), &key.into(), qualified_name(key));
    }
    errors.one_of(&at.child("operator"), &toleration["operator"], &["Equal", "Exists"]);
    match text(toleration, "operator") {
        "Exists" if !value.is_empty() => {
            errors.invalid(&at.child("value"), &value.into(), "must be empty for operator `Exists`");
        }
        "Equal" => errors.rule(&at.child("value"), &value.into(), label_value(value)),
        _ => {}
    }
    let effect = text(toleration, "effect");
    if !effect.is_empty() && !TAINT_EFFECTS.contains(&effect) {
        errors.unsupported(&at.child("effect"), &effect.into(), TAINT_EFFECTS);
    }
}

/// `requests` of a constraint or configuration: names of the claim's requests, or `request/subrequest`.
fn references(errors: &mut Errors, parent: &Value, names: &Names<'_>, at: &Path) {
    if set_of(errors, parent, "requests", MAX_REQUESTS, Value::clone, at) {
        for (at, name) in items(parent, "requests", at) {
            reference(errors, name, names, &at);
        }
    }
}

fn reference(errors: &mut Errors, name: &Value, names: &Names<'_>, at: &Path) {
    const WORDS: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let parts: Vec<&str> = name.as_str().unwrap_or_default().split('/').collect();
    let known = match parts[..] {
        [request] => names.contains_key(request),
        [request, sub] => names.get(request).is_some_and(|subs| subs.contains(&sub)),
        _ => return errors.invalid(at, name, WORDS),
    };
    for part in parts {
        errors.rule(at, &part.into(), dns_label(part));
    }
    if !known {
        errors.invalid(at, name, WORDS);
    }
}

fn constraint(errors: &mut Errors, constraint: &Value, names: &Names<'_>, at: &Path) {
    references(errors, constraint, names, at);
    let attributes = ["matchAttribute", "distinctAttribute"];
    match attributes.iter().find(|field| set(constraint, field)) {
        Some(field) => {
            let (name, at) = (text(constraint, field), at.child(field));
            attribute_name(errors, name, &at);
            if !name.contains('/') {
                let words = "a fully qualified name must be a domain and a name separated by a slash";
                errors.invalid(&at, &name.into(), words);
            }
        }
        None => errors.required(at, "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set"),
    }
}

/// `[domain/]identifier`.
pub(super) fn attribute_name(errors: &mut Errors, name: &str, at: &Path) {
    let (domain, id) = match name.split_once('/') {
        Some((domain, id)) => (Some(domain), id),
        None => (None, name),
    };
    match domain {
        Some("") => errors.invalid(at, &json!(""), "the domain must not be empty"),
        Some(domain) => {
            if domain.len() > 63 {
                errors.too_long(at, 63);
            }
            errors.rule(at, &domain.into(), dns_subdomain(&domain.to_lowercase()));
        }
        None => {}
    }
    if domain.is_some() && id.is_empty() {
        return errors.invalid(at, &json!(""), "the name must not be empty");
    }
    if id.len() > MAX_IDENTIFIER {
        errors.too_long(at, MAX_IDENTIFIER);
    }
    let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    if !id.bytes().next().is_some_and(letter) || !id.bytes().all(|b| letter(b) || b.is_ascii_digit()) {
        errors.invalid(at, &id.into(), "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')");
    }
}

fn configuration(errors: &mut Errors, config: &Value, at: &Path) {
    let (opaque, at) = (&config["opaque"], at.child("opaque"));
    if opaque.is_null() {
        return errors.required(&at, "");
    }
    driver_name(errors, opaque, "driver", &at);
    raw_object(errors, &opaque["parameters"], MAX_OPAQUE, &at.child("parameters"));
}

fn raw_object(errors: &mut Errors, value: &Value, max: usize, at: &Path) {
    if value.is_null() {
        errors.required(at, "");
    } else if value.to_string().len() > max {
        errors.too_long(at, max);
    } else if !value.is_object() {
        errors.invalid(at, &json!("<value omitted>"), "must be a valid JSON object");
    }
}

/// A change of a ResourceClaim's status.
pub(in crate::resources) fn claim_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (status, before, at) = (&new["status"], &old["status"], Path::new("status"));
    let names = request_names(&new["spec"]["devices"]);
    if set_of(&mut errors, status, "reservedFor", MAX_RESERVATIONS, |r| json!(text(r, "uid")), &at) {
        for (at, consumer) in items(status, "reservedFor", &at) {
            for field in ["resource", "name", "uid"] {
                errors.need(consumer, field, &at);
            }
        }
    }
    allocated_devices(&mut errors, status, &at);
    let place = at.child("reservedFor");
    let reserved = list(status, "reservedFor");
    if !reserved.is_empty() && !set(status, "allocation") {
        errors.forbidden(&place, "may not be specified when `allocated` is not set");
    } else if set(&new["metadata"], "deletionTimestamp")
        && reserved.iter().any(|consumer| !list(before, "reservedFor").contains(consumer))
    {
        errors.forbidden(
            &place,
            "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
        );
    }
    let place = at.child("allocation");
    match (set(before, "allocation"), set(status, "allocation")) {
        (true, true) => errors.immutable(&place, &status["allocation"], &before["allocation"]),
        (false, true) => allocation(&mut errors, &status["allocation"], &names, &place),
        _ => {}
    }
    errors.0
}

fn device_id(device: &Value) -> Value {
    let id = format!("{}/{}/{}", text(device, "driver"), text(device, "pool"), text(device, "device"));
    match text(device, "shareID") {
        "" => id.into(),
        share => format!("{id}/{share}").into(),
    }
}

fn allocated_devices(errors: &mut Errors, status: &Value, at: &Path) {
    let results = list(&status["allocation"]["devices"], "results");
    set_of(errors, status, "devices", usize::MAX, device_id, at);
    for (at, device) in items(status, "devices", at) {
        device_address(errors, device, &at);
        if !results.iter().any(|result| same(&device_id(result), &device_id(device))) {
            errors.invalid(&at, &device_id(device), "must be an allocated device in the claim");
        }
        at_most(errors, device, "conditions", MAX_CONDITIONS, &at);
        conditions::conditions(errors, device, &at);
        if set(device, "data") {
            raw_object(errors, &device["data"], MAX_OPAQUE, &at.child("data"));
        }
        let (network, at) = (&device["networkData"], at.child("networkData"));
        for (field, max) in [("interfaceName", 256), ("hardwareAddress", 128)] {
            if text(network, field).len() > max {
                errors.too_long(&at.child(field), max);
            }
        }
        if set_of(errors, network, "ips", MAX_IPS, Value::clone, &at) {
            for (at, ip) in items(network, "ips", &at) {
                interface_address(errors, ip, &at);
            }
        }
    }
}

/// An address with the length of its network's prefix: `192.0.2.5/24`.
fn interface_address(errors: &mut Errors, value: &Value, at: &Path) {
    let parsed = value.as_str().unwrap_or_default().split_once('/').and_then(|(address, length)| {
        let (ip, length) = (super::rules::ip(address).ok()?, length.parse::<u8>().ok()?);
        (length <= if ip.is_ipv4() { 32 } else { 128 }).then(|| format!("{ip}/{length}"))
    });
    match parsed {
        None => {
            let words = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
            errors.invalid(at, value, words);
        }
        Some(canonical) if value != &canonical => {
            errors.invalid(at, value, format!("must be in canonical form (\"{canonical}\")"));
        }
        Some(_) => {}
    }
}

fn device_address(errors: &mut Errors, device: &Value, at: &Path) {
    driver_name(errors, device, "driver", at);
    pool_name(errors, device, "pool", at);
    label(errors, device, "device", at);
    if set(device, "shareID") {
        let id = text(device, "shareID");
        let hyphens = [8, 13, 18, 23];
        let well_formed = id.len() == 36
            && id.bytes().enumerate().all(|(i, b)| match hyphens.contains(&i) {
                true => b == b'-',
                false => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
            });
        if !well_formed {
            errors.invalid(&at.child("shareID"), &id.into(), "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters");
        }
    }
}

/// A pool's name: DNS subdomains between slashes.
pub(super) fn pool_name(errors: &mut Errors, parent: &Value, field: &str, at: &Path) {
    let (name, at) = (text(parent, field), at.child(field));
    if name.is_empty() {
        return errors.required(&at, "");
    }
    if name.len() > MAX_POOL_NAME {
        errors.too_long(&at, MAX_POOL_NAME);
    }
    for part in name.split('/') {
        errors.rule(&at, &part.into(), dns_subdomain(part));
    }
}

fn allocation(errors: &mut Errors, allocation: &Value, names: &Names<'_>, at: &Path) {
    let (devices, place) = (&allocation["devices"], at.child("devices"));
    if at_most(errors, devices, "results", MAX_RESULTS, &place) {
        for (at, result) in items(devices, "results", &place) {
            reference(errors, &result["request"], names, &at.child("request"));
            device_address(errors, result, &at);
            binding_conditions(errors, result, &at);
        }
    }
    if at_most(errors, devices, "config", 2 * MAX_CONFIGS, &place) {
        for (at, config) in items(devices, "config", &place) {
            errors.one_of(&at.child("source"), &config["source"], &["FromClaim", "FromClass"]);
            references(errors, config, names, &at);
            configuration(errors, config, &at);
        }
    }
    if set(allocation, "nodeSelector") {
        scheduling::node_selector(errors, &allocation["nodeSelector"], &at.child("nodeSelector"));
    }
}

/// Conditions that must hold, or must not, before a pod with the device is bound.
pub(super) fn binding_conditions(errors: &mut Errors, device: &Value, at: &Path) {
    const MAX: usize = 4;
    let (good, bad) = ("bindingConditions", "bindingFailureConditions");
    for field in [good, bad] {
        if set_of(errors, device, field, MAX, Value::clone, at) {
            for (at, name) in items(device, field, at) {
                errors.rule(&at, name, qualified_name(name.as_str().unwrap_or_default()));
            }
        }
    }
    for (at, name) in items(device, bad, at) {
        if list(device, good).contains(name) {
            let words = "bindingFailureConditions must not overlap with bindingConditions";
            errors.invalid(&at, name, words);
        }
    }
    for (missing, other) in [(good, bad), (bad, good)] {
        if list(device, missing).is_empty() && !list(device, other).is_empty() {
            let words = format!("{missing} are required to use {other}");
            errors.invalid(&at.child(missing), &device[missing], words);
        }
    }
}

/// A DeviceClass, new or changed.
pub(in crate::resources) fn device_class(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    selectors(&mut errors, spec, &at);
    if at_most(&mut errors, spec, "config", MAX_CONFIGS, &at) {
        for (at, config) in items(spec, "config", &at) {
            configuration(&mut errors, config, &at);
        }
    }
    if set(spec, "extendedResourceName") && !resources::is_extended(text(spec, "extendedResourceName")) {
        let place = at.child("extendedResourceName");
        errors.invalid(&place, &spec["extendedResourceName"], "must be a valid extended resource name");
    }
    errors.0
}
