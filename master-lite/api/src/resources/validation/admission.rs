//! Webhook configurations (`pkg/apis/admissionregistration/validation`), and what admission policies have in common with
//! them.

use serde_json::{Value, json};

use super::errors::{Errors, Path, items, list, number, set, text};
use super::rules;
use super::selectors::label_selector;
use crate::expressions::condition;
use crate::field::FieldError;
use crate::resources::metadata::{dns_1035_label, dns_subdomain, qualified_name};

pub(super) const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore"];
pub(super) const MATCH_POLICIES: &[&str] = &["Equivalent", "Exact"];
const NO_SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun"];
const SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun", "Some", "Unknown"];
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
pub(super) const REINVOCATION: &[&str] = &["IfNeeded", "Never"];
/// Versions of AdmissionReview that the server can send.
const REVIEWS: &[&str] = &["v1", "v1beta1"];
const MAX_CONDITIONS: usize = 64;

/// A new webhook configuration of either kind.
pub(in crate::resources) fn webhooks(object: &Value) -> Vec<FieldError> {
    all_webhooks(object, &Leniency::default())
}

/// A changed webhook configuration: what the stored one was allowed, it is allowed still.
pub(in crate::resources) fn webhooks_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let old = list(old, "webhooks");
    let known = |hook: &Value| {
        let versions = list(hook, "admissionReviewVersions");
        versions.is_empty() || versions.iter().any(|v| REVIEWS.contains(&v.as_str().unwrap_or_default()))
    };
    let leniency = Leniency {
        side_effects: old.iter().any(|hook| !NO_SIDE_EFFECTS.contains(&text(hook, "sideEffects"))),
        versions: !old.iter().all(known),
        names: (1..old.len()).any(|i| old[..i].iter().any(|hook| hook["name"] == old[i]["name"])),
    };
    all_webhooks(new, &leniency)
}

/// What rules of later versions don't hold for an object of an earlier one.
#[derive(Default)]
struct Leniency {
    side_effects: bool,
    versions: bool,
    names: bool,
}

fn all_webhooks(object: &Value, leniency: &Leniency) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let mut names = Vec::new();
    for (at, hook) in items(object, "webhooks", &Path::new("")) {
        webhook(&mut errors, hook, leniency, &at);
        review_versions(&mut errors, hook, leniency, &at);
        let name = text(hook, "name");
        if !leniency.names && !name.is_empty() && names.contains(&name) {
            errors.duplicate(&at.child("name"), &name.into());
        }
        names.push(name);
    }
    errors.0
}

fn webhook(errors: &mut Errors, hook: &Value, leniency: &Leniency, at: &Path) {
    let (name, place) = (text(hook, "name"), at.child("name"));
    if name.is_empty() {
        errors.required(&place, "");
    } else if let Err(why) = dns_subdomain(name) {
        errors.invalid(&place, &name.into(), why);
    } else if name.split('.').count() < 3 {
        let words = "should be a domain with at least three segments separated by dots";
        errors.invalid(&place, &name.into(), words);
    }
    for (at, rule) in items(hook, "rules", at) {
        operations_rule(errors, rule, &at);
    }
    errors.optional_one_of(&at.child("failurePolicy"), &hook["failurePolicy"], FAILURE_POLICIES);
    errors.optional_one_of(&at.child("matchPolicy"), &hook["matchPolicy"], MATCH_POLICIES);
    let allowed = if leniency.side_effects { SIDE_EFFECTS } else { NO_SIDE_EFFECTS };
    let place = at.child("sideEffects");
    if set(hook, "sideEffects") {
        errors.optional_one_of(&place, &hook["sideEffects"], allowed);
    } else {
        errors.required(&place, &format!("must specify one of {}", allowed.join(", ")));
    }
    if set(hook, "timeoutSeconds") && !(1..=30).contains(&number(hook, "timeoutSeconds")) {
        let words = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(&at.child("timeoutSeconds"), &hook["timeoutSeconds"], words);
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        label_selector(errors, &hook[selector], &at.child(selector));
    }
    errors.optional_one_of(&at.child("reinvocationPolicy"), &hook["reinvocationPolicy"], REINVOCATION);
    client_config(errors, &hook["clientConfig"], &at.child("clientConfig"));
    match_conditions(errors, hook, at, condition::complaints);
}

fn review_versions(errors: &mut Errors, hook: &Value, leniency: &Leniency, at: &Path) {
    let (versions, place) = (list(hook, "admissionReviewVersions"), at.child("admissionReviewVersions"));
    if versions.is_empty() {
        return errors.required(&place, &format!("must specify one of {}", REVIEWS.join(", ")));
    }
    for (i, version) in versions.iter().enumerate() {
        if versions[..i].contains(version) {
            errors.invalid(&place.index(i), version, "duplicate version");
        } else {
            let outcome = dns_1035_label(version.as_str().unwrap_or_default());
            errors.rule(&place.index(i), version, outcome);
        }
    }
    let known = |version: &Value| REVIEWS.contains(&version.as_str().unwrap_or_default());
    if !leniency.versions && !versions.iter().any(known) {
        let words = format!("must include at least one of {}", REVIEWS.join(", "));
        errors.invalid(&place, &hook["admissionReviewVersions"], words);
    }
}

/// Where a webhook is: a URL or a Service.
pub(super) fn client_config(errors: &mut Errors, config: &Value, at: &Path) {
    match (config["url"].as_str(), set(config, "service")) {
        (Some(url), false) => webhook_url(errors, url, &at.child("url")),
        (None, true) => webhook_service(errors, &config["service"], &at.child("service")),
        _ => errors.required(at, "exactly one of url or service is required"),
    }
}

fn webhook_url(errors: &mut Errors, url: &str, at: &Path) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        let words = format!("'https' is the only allowed URL scheme{FORM}");
        errors.invalid(at, &json!(scheme), words);
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or_default();
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if scheme.is_empty() || host.is_empty() {
        errors.invalid(at, &json!(""), format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        errors.invalid(at, &json!(user), "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        errors.invalid(at, &json!(fragment), "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        errors.invalid(at, &json!(query), "query parameters are not permitted in the URL");
    }
}

fn webhook_service(errors: &mut Errors, service: &Value, at: &Path) {
    errors.need(service, "name", at);
    errors.need(service, "namespace", at);
    if let Err(why) = rules::port_number(number(service, "port")) {
        errors.invalid(&at.child("port"), &service["port"], format!("port is not valid: {why}"));
    }
    let (path, at) = (text(service, "path"), at.child("path"));
    if matches!(path, "" | "/") {
        return;
    }
    if path == "//" {
        return errors.invalid(&at, &path.into(), "segment[0] may not be empty");
    }
    if !path.starts_with('/') {
        errors.invalid(&at, &path.into(), "must start with a '/'");
    }
    let mut chars = path.chars();
    chars.next();
    let rest = chars.as_str();
    for (i, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            errors.invalid(&at, &path.into(), format!("segment[{i}] may not be empty"));
        } else if let Err(why) = dns_subdomain(step) {
            errors.invalid(&at, &path.into(), format!("segment[{i}]: {why}"));
        }
    }
}

fn alone(errors: &mut Errors, rule: &Value, field: &str, words: &str, at: &Path) {
    let entries = list(rule, field);
    if entries.len() > 1 && entries.iter().any(|entry| entry == "*") {
        errors.invalid(&at.child(field), &rule[field], words);
    }
}

pub(super) fn operations_rule(errors: &mut Errors, rule: &Value, at: &Path) {
    let need = |errors: &mut Errors, field: &str| {
        if list(rule, field).is_empty() {
            errors.required(&at.child(field), "");
        }
    };
    need(errors, "operations");
    alone(errors, rule, "operations", "if '*' is present, must not specify other operations", at);
    for (at, operation) in items(rule, "operations", at) {
        if !OPERATIONS.contains(&operation.as_str().unwrap_or_default()) {
            errors.unsupported(&at, operation, OPERATIONS);
        }
    }
    need(errors, "apiGroups");
    alone(errors, rule, "apiGroups", "if '*' is present, must not specify other API groups", at);
    need(errors, "apiVersions");
    alone(errors, rule, "apiVersions", "if '*' is present, must not specify other API versions", at);
    for (at, version) in items(rule, "apiVersions", at) {
        if version == "" {
            errors.required(&at, "");
        }
    }
    need(errors, "resources");
    rule_resources(errors, rule, at);
    errors.optional_one_of(&at.child("scope"), &rule["scope"], &["*", "Cluster", "Namespaced"]);
}

fn rule_resources(errors: &mut Errors, rule: &Value, at: &Path) {
    let (mut all_of, mut in_all) = (Vec::new(), Vec::new());
    let (mut double, mut single, mut plain) = (false, false, false);
    let count = list(rule, "resources").len();
    for (at, value) in items(rule, "resources", at) {
        let name = value.as_str().unwrap_or_default();
        if name.is_empty() {
            errors.required(&at, "");
            continue;
        }
        double |= name == "*/*";
        single |= name == "*";
        let Some((resource, sub)) = name.split_once('/') else {
            plain = name != "*";
            continue;
        };
        for (seen, part, pattern) in
            [(&all_of, resource, format!("{resource}/*")), (&in_all, sub, format!("*/{sub}"))]
        {
            if seen.contains(&part) {
                let words = format!("if '{pattern}' is present, must not specify {name}");
                errors.invalid(&at, value, words);
            }
        }
        if sub == "*" {
            all_of.push(resource);
        }
        if resource == "*" {
            in_all.push(sub);
        }
    }
    let (value, at) = (&rule["resources"], at.child("resources"));
    if count > 1 && double {
        errors.invalid(&at, value, "if '*/*' is present, must not specify other resources");
    }
    if single && plain {
        let words = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(&at, value, words);
    }
}

/// `complaints` says what is wrong with an expression.
pub(super) fn match_conditions(
    errors: &mut Errors,
    parent: &Value,
    at: &Path,
    complaints: impl Fn(&str) -> Vec<String>,
) {
    let count = list(parent, "matchConditions").len();
    if count > MAX_CONDITIONS {
        errors.too_many(&at.child("matchConditions"), count, MAX_CONDITIONS);
    }
    let mut names = Vec::new();
    for (at, condition) in items(parent, "matchConditions", at) {
        let (expression, place) = (text(condition, "expression").trim(), at.child("expression"));
        if expression.is_empty() {
            errors.required(&place, "");
        } else {
            for complaint in complaints(expression) {
                errors.invalid(&place, &expression.into(), complaint);
            }
        }
        let (name, place) = (text(condition, "name"), at.child("name"));
        if name.is_empty() {
            errors.required(&place, "");
        } else {
            errors.rule(&place, &name.into(), qualified_name(name));
            if names.contains(&name) {
                errors.duplicate(&place, &name.into());
            }
        }
        names.push(name);
    }
}
