//! LimitRanges and ResourceQuotas.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::errors::{Errors, Path, entries, items, list, set, text};
use super::resources;
use crate::field::FieldError;
use crate::resources::metadata::qualified_name;
use keelson_quantity::Quantity;

/// Scopes that a quota may have.
const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "VolumeAttributesClass",
    "CrossNamespacePodAffinity",
];
/// Scopes that exclude each other.
const OPPOSITES: [(&str, &str); 2] = [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")];
/// What compute-bound scopes apply to, besides the number of pods.
const COMPUTE: &[&str] = &["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];

/// A LimitRange, new or changed.
pub(in crate::resources) fn limit_range(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let mut seen = BTreeSet::new();
    for (at, limit) in items(&object["spec"], "limits", &Path::new("spec")) {
        let kind = text(limit, "type");
        if let Err(why) = qualified_name(kind) {
            errors.invalid(&at.child("type"), &kind.into(), why);
        } else if !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
            let words = "must be a standard limit type or fully qualified";
            errors.invalid(&at.child("type"), &kind.into(), words);
        }
        if !seen.insert(kind) {
            errors.duplicate(&at.child("type"), &kind.into());
        }
        limit_item(&mut errors, limit, kind, &at);
    }
    errors.0
}

fn limit_item(errors: &mut Errors, limit: &Value, kind: &str, at: &Path) {
    let read = |errors: &mut Errors, field: &str| named_amounts(errors, limit, field, kind, at);
    let (max, min) = (read(errors, "max"), read(errors, "min"));
    let (default, request) = if kind == "Pod" {
        for field in ["default", "defaultRequest"] {
            if entries(limit, field).next().is_some() {
                errors.forbidden(&at.child(field), "may not be specified when `type` is 'Pod'");
            }
        }
        (BTreeMap::new(), BTreeMap::new())
    } else {
        (read(errors, "default"), read(errors, "defaultRequest"))
    };
    if kind == "PersistentVolumeClaim" && !min.contains_key("storage") && !max.contains_key("storage") {
        let words = "either minimum or maximum storage value is required, but neither was provided";
        errors.required(&at.child("limits"), words);
    }
    let ratio = read(errors, "maxLimitRequestRatio");
    let names: BTreeSet<&String> =
        [&max, &min, &default, &request, &ratio].into_iter().flat_map(BTreeMap::keys).collect();
    for name in names {
        let of = Bounds {
            name,
            max: max.get(name),
            min: min.get(name),
            default: default.get(name),
            request: request.get(name),
            ratio: ratio.get(name),
        };
        bounds(errors, &of, at);
    }
}

fn named_amounts(
    errors: &mut Errors,
    limit: &Value,
    field: &str,
    kind: &str,
    at: &Path,
) -> BTreeMap<String, Quantity> {
    let mut amounts = BTreeMap::new();
    for (name, amount) in entries(limit, field) {
        let place = at.child(field).key(name);
        if matches!(kind, "Pod" | "Container") {
            resources::container_resource_name(errors, name, &place);
        } else {
            resources::resource_name(errors, name, &place);
        }
        amounts.extend(resources::parse(amount).map(|amount| (name.clone(), amount)));
    }
    amounts
}

/// What a LimitRange says about one resource.
struct Bounds<'a> {
    name: &'a str,
    max: Option<&'a Quantity>,
    min: Option<&'a Quantity>,
    default: Option<&'a Quantity>,
    request: Option<&'a Quantity>,
    ratio: Option<&'a Quantity>,
}

fn bounds(errors: &mut Errors, of: &Bounds<'_>, at: &Path) {
    // (smaller, its name, larger, its name, field that is complained of, value that is shown).
    let pairs = [
        (of.min, "min value", of.max, "max value", "min", of.min),
        (of.min, "min value", of.request, "default request value", "defaultRequest", of.request),
        (of.request, "default request value", of.max, "max value", "defaultRequest", of.request),
        (
            of.request,
            "default request value",
            of.default,
            "default limit value",
            "defaultRequest",
            of.request,
        ),
        (of.min, "min value", of.default, "default value", "default", of.min),
        (of.default, "default value", of.max, "max value", "default", of.max),
    ];
    for (small, small_name, large, large_name, field, shown) in pairs {
        if let (Some(small), Some(large), Some(shown)) = (small, large, shown)
            && small > large
        {
            let words = format!("{small_name} {small} is greater than {large_name} {large}");
            errors.invalid(&at.child(field).key(of.name), &json!(shown.to_string()), words);
        }
    }
    if let Some(ratio) = of.ratio {
        ratio_bounds(errors, of, ratio, &at.child("maxLimitRequestRatio").key(of.name));
    }
    if let (Some(default), Some(request)) = (of.default, of.request)
        && !resources::may_overcommit(of.name)
        && default != request
    {
        let words =
            format!("default value {default} must equal to defaultRequest value {request} in {}", of.name);
        errors.invalid(&at.child("defaultRequest").key(of.name), &json!(request.to_string()), words);
    }
}

fn ratio_bounds(errors: &mut Errors, of: &Bounds<'_>, ratio: &Quantity, at: &Path) {
    let shown = json!(ratio.to_string());
    if ratio.milli_value() < 1000 {
        errors.invalid(at, &shown, format!("ratio {ratio} is less than 1"));
    }
    if let (Some(min), Some(max)) = (of.min, of.max) {
        // Amounts of resources are far below 2^53 thousandths.
        #[expect(clippy::cast_precision_loss, reason = "a ratio is shown to six digits")]
        let (ratio_value, limit) =
            (ratio.milli_value() as f64 / 1000.0, max.milli_value() as f64 / min.milli_value() as f64);
        if ratio_value > limit {
            errors.invalid(at, &shown, format!("ratio {ratio} is greater than max/min = {limit:.6}"));
        }
    }
}

/// A new ResourceQuota.
pub(in crate::resources) fn resource_quota(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    amounts(&mut errors, spec, "hard", &at);
    scopes(&mut errors, spec, &at);
    scope_selector(&mut errors, spec, &at);
    errors.0
}

/// A change of a ResourceQuota.
pub(in crate::resources) fn resource_quota_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors(resource_quota(new));
    let scopes = |object: &Value| -> BTreeSet<String> {
        list(&object["spec"], "scopes").iter().filter_map(|s| s.as_str().map(str::to_owned)).collect()
    };
    if scopes(new) != scopes(old) {
        let at = Path::new("spec").child("scopes");
        errors.invalid(&at, &new["spec"]["scopes"], "field is immutable");
    }
    errors.0
}

/// A change of a ResourceQuota's status.
pub(in crate::resources) fn resource_quota_status(new: &Value, _old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for field in ["hard", "used"] {
        amounts(&mut errors, &new["status"], field, &Path::new("status"));
    }
    errors.0
}

fn amounts(errors: &mut Errors, parent: &Value, field: &str, at: &Path) {
    for (name, amount) in entries(parent, field) {
        let place = at.child(field).key(name);
        resources::resource_name(errors, name, &place);
        if !name.contains('/') && !resources::is_quota_name(name) {
            errors.invalid(&place, &name.as_str().into(), "must be a standard resource for quota");
        }
        resources::quantity(errors, name, amount, &place);
    }
}

/// Whether a scope means anything for a resource.
fn applies(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ if SCOPES.contains(&scope) => resource == "pods" || COMPUTE.contains(&resource),
        _ => true,
    }
}

fn opposites(scopes: &[&str]) -> usize {
    OPPOSITES.iter().filter(|(one, other)| scopes.contains(one) && scopes.contains(other)).count()
}

fn scopes(errors: &mut Errors, spec: &Value, at: &Path) {
    let (all, at) = (&spec["scopes"], at.child("scopes"));
    let scopes: Vec<&str> = list(spec, "scopes").iter().map(|s| s.as_str().unwrap_or_default()).collect();
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            errors.invalid(&at, all, "unsupported scope");
        }
        for (name, _) in entries(spec, "hard") {
            if resources::is_quota_name(name) && !applies(scope, name) {
                errors.invalid(&at, all, "unsupported scope applied to resource");
            }
        }
    }
    for _ in 0..opposites(&scopes) {
        errors.invalid(&at, all, "conflicting scopes");
    }
}

fn scope_selector(errors: &mut Errors, spec: &Value, at: &Path) {
    if !set(spec, "scopeSelector") {
        return;
    }
    let selector = &spec["scopeSelector"];
    let at = at.child("scopeSelector").child("matchExpressions");
    let mut scopes = Vec::new();
    for expression in list(selector, "matchExpressions") {
        let (scope, operator) = (text(expression, "scopeName"), text(expression, "operator"));
        if !SCOPES.contains(&scope) {
            errors.invalid(&at.child("scopeName"), &scope.into(), "unsupported scope");
        }
        for (name, _) in entries(spec, "hard") {
            if resources::is_quota_name(name) && !applies(scope, name) {
                errors.invalid(&at, selector, "unsupported scope applied to resource");
            }
        }
        let place = at.child("operator");
        let named = matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if SCOPES.contains(&scope) && !named && operator != "Exists" {
            errors.invalid(&place, &operator.into(), "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity");
        }
        let values = list(expression, "values");
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.required(
                &at.child("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.invalid(
                &at.child("values"),
                &expression["values"],
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.invalid(&place, &operator.into(), "not a valid selector operator"),
        }
        scopes.push(scope);
    }
    for _ in 0..opposites(&scopes) {
        errors.invalid(&at, &spec["scopes"], "conflicting scopes");
    }
}

/// Warnings about a new ResourceQuota: more requested than may be used.
pub(in crate::resources) fn resource_quota_warnings(object: &Value) -> Vec<String> {
    let hard = &object["spec"]["hard"];
    let amount = |name: &str| resources::parse(&hard[name]);
    let mut warnings = Vec::new();
    for name in ["cpu", "memory", "storage", "ephemeral-storage"] {
        let mut request_name = format!("requests.{name}");
        let mut request = amount(&request_name);
        if request.is_none() && matches!(name, "cpu" | "memory") {
            request = amount(name);
            request_name = name.to_owned();
        }
        let limit_name = format!("limits.{name}");
        if let (Some(request), Some(limit)) = (request, amount(&limit_name))
            && request > limit
        {
            warnings.push(format!(
                "ResourceQuota {request_name} ({request}) should be less than {limit_name} ({limit})"
            ));
        }
    }
    warnings
}
