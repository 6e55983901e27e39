//! Resource requests and limits.

use serde_json::{Value, json};

use super::errors::{Errors, Path, entries, items, set, text};
use crate::resources::metadata::{dns_label, qualified_name};
use keelson_quantity::Quantity;

/// Resources that quotas count in whole numbers.
const COUNTED: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
/// Names without a prefix that mean something somewhere, but not to a container.
const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "storage",
    "requests.storage",
];

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

pub(super) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(super) fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && qualified_name(&format!("requests.{name}")).is_ok()
}

pub(super) fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// A name without a prefix that a quota may limit.
pub(super) fn is_quota_name(name: &str) -> bool {
    (STANDARD.contains(&name) && name != "storage")
        || COUNTED.contains(&name)
        || is_huge_page(name)
        || name.starts_with("requests.hugepages-")
}

/// `resources` of a container, or of a pod where only some names are known.
pub(super) fn requirements(
    errors: &mut Errors,
    resources: &Value,
    whole_pod: bool,
    claims: &[&str],
    at: &Path,
) {
    let mut computed = false;
    let mut huge = false;
    for kind in ["limits", "requests"] {
        let map = at.child(kind);
        for (name, amount) in entries(resources, kind) {
            let place = map.key(name);
            if whole_pod {
                pod_resource_name(errors, name, &place)
            } else {
                container_resource_name(errors, name, &place)
            }
            let amount = quantity(errors, name, amount, &place);
            computed |= matches!(name.as_str(), "cpu" | "memory");
            huge |= is_huge_page(name);
            if let (Some(size), Some(amount)) = (huge_page_size(name), &amount)
                && amount.nanos() % size.nanos().max(1) != 0
            {
                let words = format!("{amount} is not positive integer multiple of {name}");
                errors.invalid(&place, &json!(amount.to_string()), words);
            }
            if kind == "requests"
                && let Some(request) = amount
            {
                request_fits(errors, name, &request, &resources["limits"][name], at);
            }
        }
    }
    if huge && !computed {
        errors.forbidden(at, "HugePages require cpu or memory");
    }
    claim_names(errors, resources, claims, at);
}

fn request_fits(errors: &mut Errors, name: &str, request: &Quantity, limit: &Value, at: &Path) {
    match parse(limit) {
        Some(limit) if *request != limit && !may_overcommit(name) => errors.invalid(
            &at.child("requests"),
            &json!(request.to_string()),
            format!("must be equal to {name} limit of {limit}"),
        ),
        Some(limit) if *request > limit => errors.invalid(
            &at.child("requests"),
            &json!(request.to_string()),
            format!("must be less than or equal to {name} limit of {limit}"),
        ),
        None if limit.is_null() && !may_overcommit(name) => {
            errors.required(&at.child("limits"), "Limit must be set for non overcommitable resources");
        }
        _ => {}
    }
}

pub(super) fn parse(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

fn huge_page_size(name: &str) -> Option<Quantity> {
    name.strip_prefix("hugepages-").and_then(|size| size.parse().ok())
}

/// An amount of a resource: not negative, whole if the resource is counted. Gives it back if it is one.
pub(super) fn quantity(errors: &mut Errors, name: &str, value: &Value, at: &Path) -> Option<Quantity> {
    let Some(amount) = parse(value) else {
        errors.invalid(at, value, keelson_quantity::ParseError::Format.to_string());
        return None;
    };
    if amount.sign() < 0 {
        errors.invalid(at, &json!(amount.to_string()), "must be greater than or equal to 0");
    }
    if (COUNTED.contains(&name) || is_extended(name)) && amount.milli_value() % 1000 != 0 {
        errors.invalid(at, &json!(amount.to_string()), "must be an integer");
    }
    Some(amount)
}

pub(super) fn resource_name(errors: &mut Errors, name: &str, at: &Path) -> bool {
    if let Err(why) = qualified_name(name) {
        errors.invalid(at, &name.into(), why);
        return false;
    }
    let quota_huge_page = is_huge_page(name)
        || name.starts_with("requests.hugepages-")
        || name.starts_with("limits.hugepages-");
    if !name.contains('/') && !STANDARD.contains(&name) && !COUNTED.contains(&name) && !quota_huge_page {
        errors.invalid(at, &name.into(), "must be a standard resource type or fully qualified");
        return false;
    }
    true
}

pub(super) fn container_resource_name(errors: &mut Errors, name: &str, at: &Path) {
    resource_name(errors, name, at);
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !is_huge_page(name) {
            errors.invalid(at, &name.into(), "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(at, &name.into(), "doesn't follow extended resource name standard");
    }
}

fn pod_resource_name(errors: &mut Errors, name: &str, at: &Path) {
    if resource_name(errors, name, at) && !matches!(name, "cpu" | "memory") && !is_huge_page(name) {
        errors.unsupported(at, &name.into(), &["cpu", "hugepages-", "memory"]);
    }
}

fn claim_names(errors: &mut Errors, resources: &Value, claims: &[&str], at: &Path) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (at, claim) in items(resources, "claims", at) {
        let (name, request) = (text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            errors.required(&at, "");
            continue;
        }
        if !request.is_empty() {
            errors.rule(&at.child("request"), &claim["request"], dns_label(request));
        }
        // A claim without a request means all of its requests.
        if seen.iter().any(|(n, r)| *n == name && (request.is_empty() || r.is_empty() || *r == request)) {
            errors.duplicate(&at, &claim["name"]);
        }
        seen.push((name, request));
        if !claims.contains(&name) {
            let mut words = "must be one of the names in pod.spec.resourceClaims".to_owned();
            if claims.is_empty() {
                words.push_str(" which is empty");
            } else {
                words.push_str(": ");
                words.push_str(&claims.join(", "));
            }
            errors.not_found(&at, &claim["name"], &words);
        }
    }
}

/// `resizePolicy` of a container.
pub(super) fn resize_policy(errors: &mut Errors, container: &Value, pod_restart: &str, at: &Path) {
    let list = at.child("resizePolicy");
    let mut seen = Vec::new();
    for (at, policy) in items(container, "resizePolicy", at) {
        let name = text(policy, "resourceName");
        if seen.contains(&name) {
            errors.duplicate(&at, &policy["resourceName"]);
        }
        seen.push(name);
        errors.one_of(&list, &policy["resourceName"], &["cpu", "memory"]);
        errors.one_of(&list, &policy["restartPolicy"], &["NotRequired", "RestartContainer"]);
        if pod_restart == "Never" && set(policy, "restartPolicy") && policy["restartPolicy"] != "NotRequired"
        {
            let words = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.invalid(&list, &policy["restartPolicy"], words);
        }
    }
}
