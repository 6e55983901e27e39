//! ResourceSlices: what devices a driver offers.

use serde_json::{Value, json};

use super::claims::driver_name;
use super::device_claims::{
    TAINT_EFFECTS, at_most, attribute_name, binding_conditions, label, pool_name, set_of,
};
use super::errors::{Errors, Path, entries, items, list, number, same, set, text};
use super::{resources, scheduling};
use crate::field::FieldError;
use crate::resources::metadata::{dns_label, dns_subdomain, label_value, qualified_name};
use keelson_quantity::Quantity;

const MAX_DEVICES: usize = 128;
/// When devices have taints, counters or lists of values.
const MAX_ADVANCED_DEVICES: usize = 64;
const MAX_COUNTER_SETS: usize = 8;
const MAX_COUNTERS: usize = 32;
const MAX_CONSUMPTIONS: usize = 2;
const MAX_ATTRIBUTES: usize = 32;
const MAX_ATTRIBUTE_VALUES: usize = 48;
const MAX_VALUE: usize = 64;
const MAX_TAINTS: usize = 16;
const MAX_VALID_VALUES: usize = 10;
const LISTS: &[&str] = &["bools", "ints", "strings", "versions"];
const SCALARS: &[&str] = &["bool", "int", "string", "version"];

/// A new ResourceSlice.
pub(in crate::resources) fn resource_slice(object: &Value) -> Vec<FieldError> {
    slice(object, None)
}

/// A change of a ResourceSlice.
pub(in crate::resources) fn resource_slice_update(new: &Value, old: &Value) -> Vec<FieldError> {
    slice(new, Some(old))
}

fn slice(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    driver_name(&mut errors, spec, "driver", &at);
    pool(&mut errors, &spec["pool"], &at.child("pool"));
    if let Some(old) = old.map(|old| &old["spec"]) {
        errors.immutable(&at.child("pool").child("name"), &spec["pool"]["name"], &old["pool"]["name"]);
        for field in ["driver", "nodeName"] {
            errors.immutable(&at.child(field), &spec[field], &old[field]);
        }
    }
    let given = placement(&mut errors, spec, "must be either unset or set to a non-empty string", &at);
    let per_device = spec["perDeviceNodeSelection"] == true;
    let mut given = given;
    match &spec["perDeviceNodeSelection"] {
        Value::Null => {}
        Value::Bool(true) => given.push("`perDeviceNodeSelection`"),
        other => {
            let place = at.child("perDeviceNodeSelection");
            errors.invalid(&place, other, "must be either unset or set to true");
        }
    }
    let names = "`nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection`";
    exactly_one(&mut errors, &given, names, &at);
    if set(spec, "sharedCounters") && set(spec, "devices") {
        errors.invalid(&at, &json!(""), "only one of `sharedCounters` or `devices` is allowed");
    }
    let advanced = list(spec, "devices").iter().any(|device| {
        !list(device, "taints").is_empty()
            || !list(device, "consumesCounters").is_empty()
            || entries(device, "attributes").any(|(_, value)| LISTS.iter().any(|field| set(value, field)))
    });
    let max = if advanced { MAX_ADVANCED_DEVICES } else { MAX_DEVICES };
    if set_of(&mut errors, spec, "devices", max, |d| json!(text(d, "name")), &at) {
        for (at, device) in items(spec, "devices", &at) {
            let before = old.and_then(|old| {
                list(&old["spec"], "devices").iter().find(|old| old["name"] == device["name"])
            });
            self::device(&mut errors, device, before, per_device, &at);
        }
    }
    if set_of(&mut errors, spec, "sharedCounters", MAX_COUNTER_SETS, |c| json!(text(c, "name")), &at) {
        for (at, counters) in items(spec, "sharedCounters", &at) {
            counter_set(&mut errors, counters, "name", &at);
        }
    }
    errors.0
}

fn pool(errors: &mut Errors, pool: &Value, at: &Path) {
    pool_name(errors, pool, "name", at);
    if number(pool, "resourceSliceCount") <= 0 {
        let place = at.child("resourceSliceCount");
        errors.invalid(&place, &number(pool, "resourceSliceCount").into(), "must be greater than zero");
    }
    errors.not_negative(pool, &["generation"], at);
}

/// `nodeName`, `nodeSelector` and `allNodes`: which of them are given.
fn placement(errors: &mut Errors, parent: &Value, empty: &str, at: &Path) -> Vec<&'static str> {
    let mut given = Vec::new();
    match parent["nodeName"].as_str() {
        None => {}
        Some("") => errors.invalid(&at.child("nodeName"), &json!(""), empty),
        Some(name) => {
            given.push("`nodeName`");
            errors.rule(&at.child("nodeName"), &name.into(), dns_subdomain(name));
        }
    }
    if set(parent, "nodeSelector") {
        given.push("`nodeSelector`");
        let at = at.child("nodeSelector");
        scheduling::node_selector(errors, &parent["nodeSelector"], &at);
        let terms = &parent["nodeSelector"]["nodeSelectorTerms"];
        if terms.as_array().is_none_or(|terms| terms.len() != 1) {
            let words = "must have exactly one node selector term";
            errors.invalid(&at.child("nodeSelectorTerms"), terms, words);
        }
    }
    match &parent["allNodes"] {
        Value::Null => {}
        Value::Bool(true) => given.push("`allNodes`"),
        other => errors.invalid(&at.child("allNodes"), other, "must be either unset or set to true"),
    }
    given
}

fn exactly_one(errors: &mut Errors, given: &[&str], names: &str, at: &Path) {
    let words = format!("exactly one of {names} is required");
    match given {
        [] => errors.required(at, &words),
        [_] => {}
        _ => errors.invalid(
            at,
            &json!(format!("{{{}}}", given.join(", "))),
            format!("{words}, but multiple fields are set"),
        ),
    }
}

fn device(errors: &mut Errors, device: &Value, old: Option<&Value>, per_device: bool, at: &Path) {
    label(errors, device, "name", at);
    let attributes: Vec<&Value> = entries(device, "attributes").map(|(_, value)| value).collect();
    let total = attributes.len() + entries(device, "capacity").count();
    if total > MAX_ATTRIBUTES {
        let words = format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        errors.invalid(at, &json!(total), words);
    }
    let values: usize = attributes
        .iter()
        .map(|value| LISTS.iter().map(|field| list(value, field).len()).sum::<usize>().max(1))
        .sum();
    if values > MAX_ATTRIBUTE_VALUES {
        let words = format!("the total number of attribute values must not exceed {MAX_ATTRIBUTE_VALUES}");
        errors.invalid(at, &json!(values), words);
    }
    for (name, value) in entries(device, "attributes") {
        let place = at.child("attributes").key(name);
        attribute_name(errors, name, &place);
        attribute(errors, value, &place);
    }
    let shared = device["allowMultipleAllocations"] == true;
    for (name, amount) in entries(device, "capacity") {
        let place = at.child("capacity").key(name);
        attribute_name(errors, name, &place);
        capacity(errors, amount, shared, &place);
    }
    if old.is_none_or(|old| !same(&old["taints"], &device["taints"]))
        && at_most(errors, device, "taints", MAX_TAINTS, at)
    {
        for (at, taint) in items(device, "taints", at) {
            let (key, value) = (text(taint, "key"), text(taint, "value"));
            errors.rule(&at.child("key"), &key.into(), qualified_name(key));
            errors.rule(&at.child("value"), &value.into(), label_value(value));
            errors.one_of(&at.child("effect"), &taint["effect"], TAINT_EFFECTS);
        }
    }
    let key = |c: &Value| json!(text(c, "counterSet"));
    if set_of(errors, device, "consumesCounters", MAX_CONSUMPTIONS, key, at) {
        for (at, consumption) in items(device, "consumesCounters", at) {
            counter_set(errors, consumption, "counterSet", &at);
        }
    }
    if per_device {
        let given = placement(errors, device, "must not be empty", at);
        exactly_one(errors, &given, "`nodeName`, `nodeSelector`, `allNodes`", at);
    } else {
        for field in ["nodeName", "nodeSelector", "allNodes"] {
            if set(device, field) {
                let words =
                    "can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
                errors.invalid(&at.child(field), &device[field], words);
            }
        }
    }
    binding_conditions(errors, device, at);
}

fn attribute(errors: &mut Errors, attribute: &Value, at: &Path) {
    let given: Vec<&str> =
        SCALARS.iter().chain(LISTS).copied().filter(|field| set(attribute, field)).collect();
    if given.len() != 1 {
        let shown = if given.is_empty() { json!("") } else { attribute.clone() };
        errors.invalid(at, &shown, "exactly one value must be specified");
    }
    for field in given {
        let at = at.child(field);
        match (&attribute[field], field) {
            (Value::Array(values), kind) => {
                if values.is_empty() {
                    errors.invalid(&at, &attribute[field], "must not be empty if specified");
                }
                for (i, value) in values.iter().enumerate() {
                    attribute_text(errors, value, kind == "versions", &at.index(i));
                }
            }
            (value, kind) => attribute_text(errors, value, kind == "version", &at),
        }
    }
}

fn attribute_text(errors: &mut Errors, value: &Value, version: bool, at: &Path) {
    let Some(text) = value.as_str() else { return };
    if version && !is_semver(text) {
        errors.invalid(at, value, "must be a string compatible with semver.org spec 2.0.0");
    }
    if text.len() > MAX_VALUE {
        errors.too_long(at, MAX_VALUE);
    }
}

fn is_semver(text: &str) -> bool {
    let (rest, build) = match text.split_once('+') {
        Some((rest, build)) => (rest, Some(build)),
        None => (text, None),
    };
    let (core, pre) = match rest.split_once('-') {
        Some((core, pre)) => (core, Some(pre)),
        None => (rest, None),
    };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let number = |part: &str| digits(part) && (part == "0" || !part.starts_with('0'));
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|pre| pre.split('.').all(|part| word(part) && (!digits(part) || number(part))))
        && build.is_none_or(|build| build.split('.').all(word))
}

fn capacity(errors: &mut Errors, capacity: &Value, shared: bool, at: &Path) {
    let (policy, at) = (&capacity["requestPolicy"], at.child("requestPolicy"));
    if policy.is_null() {
        return;
    }
    if !shared {
        return errors.forbidden(&at, "allowMultipleAllocations must be true");
    }
    let values = list(policy, "validValues");
    let range = set(policy, "validRange");
    if !values.is_empty() && range {
        return errors.forbidden(&at, "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time");
    }
    let max = resources::parse(&capacity["value"]).unwrap_or_default();
    let default = resources::parse(&policy["default"]);
    match (default, values.is_empty(), range) {
        (None, false, _) => errors.required(&at.child("default"), "required when validValues is defined"),
        (None, _, true) => errors.required(&at.child("default"), "required when validRange is defined"),
        (Some(default), false, _) => valid_values(errors, policy, &default, &max, &at),
        (Some(default), _, true) => {
            valid_range(errors, &policy["validRange"], &default, &max, &at.child("validRange"));
        }
        _ => {}
    }
}

fn shown(amount: &Quantity) -> Value {
    json!(amount.to_string())
}

fn valid_values(errors: &mut Errors, policy: &Value, default: &Quantity, max: &Quantity, at: &Path) {
    let place = at.child("validValues");
    let values: Vec<Quantity> = list(policy, "validValues").iter().filter_map(resources::parse).collect();
    for (i, pair) in values.windows(2).enumerate() {
        if pair[0] > pair[1] {
            errors.invalid(&place.index(i + 1), &shown(&pair[1]), "values must be sorted in ascending order");
        }
    }
    let key = |value: &Value| resources::parse(value).map_or(Value::Null, |amount| shown(&amount));
    if set_of(errors, policy, "validValues", MAX_VALID_VALUES, key, at) {
        for (i, value) in values.iter().enumerate().filter(|(_, value)| *value > max) {
            let words = format!("option is larger than capacity value: {max}");
            errors.invalid(&place.index(i), &shown(value), words);
        }
    }
    if !values.contains(default) {
        let words = "default value is not valid according to the requestPolicy";
        errors.invalid(&place, &shown(default), words);
    }
}

fn valid_range(errors: &mut Errors, range: &Value, default: &Quantity, capacity: &Quantity, at: &Path) {
    let Some(min) = resources::parse(&range["min"]) else {
        return errors.required(&at.child("min"), "required when validRange is defined");
    };
    let max = resources::parse(&range["max"]);
    let mut check = |bad: bool, field: &str, value: &Quantity, words: String| {
        if bad {
            errors.invalid(&at.child(field), &shown(value), words);
        }
    };
    check(min > *capacity, "min", &min, format!("min is larger than capacity value: {capacity}"));
    check(*default < min, "min", default, format!("default is less than min: {min}"));
    if let Some(max) = &max {
        check(min > *max, "max", &min, format!("min is larger than max: {max}"));
        check(max > capacity, "max", max, format!("max is larger than capacity value: {capacity}"));
        check(default > max, "max", default, format!("default is more than max: {max}"));
    }
    let Some(step) = resources::parse(&range["step"]).filter(|step| step.value() != 0) else { return };
    let first = min + step;
    let words = format!("one step {first} is larger than capacity value: {capacity}");
    check(first > *capacity, "step", &step, words);
    for value in std::iter::once(default).chain(&max) {
        let words = format!("value is not a multiple of a given step ({step}) from ({min})");
        check((value.value() - min.value()) % step.value() != 0, "step", value, words);
    }
}

fn counter_set(errors: &mut Errors, set: &Value, name: &str, at: &Path) {
    errors.need(set, name, at);
    let given = text(set, name);
    if !given.is_empty() {
        errors.rule(&at.child(name), &given.into(), dns_label(given));
    }
    let (count, place) = (entries(set, "counters").count(), at.child("counters"));
    if count == 0 {
        errors.required(&place, "");
    }
    if count > MAX_COUNTERS {
        errors.too_many(&place, count, MAX_COUNTERS);
    }
    for (name, _) in entries(set, "counters") {
        errors.rule(&place, &name.as_str().into(), dns_label(name));
    }
}
