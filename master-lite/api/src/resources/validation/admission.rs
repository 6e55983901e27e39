//! Webhook configurations and admission policies (`pkg/apis/admissionregistration/validation`).
//!
//! The match conditions of webhooks are compiled; expressions of policies, which nobody evaluates, only have to be there.

use serde_json::{Value, json};

use super::errors::{Errors, Path, items, list, number, set, text};
use super::selectors::label_selector;
use super::{conditions, rules};
use crate::custom::{CEL_RESERVED, condition};
use crate::field::FieldError;
use crate::resources::metadata::{dns_1035_label, dns_subdomain, path_segment, qualified_name};

const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore"];
const MATCH_POLICIES: &[&str] = &["Equivalent", "Exact"];
const NO_SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun"];
const SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun", "Some", "Unknown"];
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const MUTATING_OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];
const REINVOCATION: &[&str] = &["IfNeeded", "Never"];
/// Versions of AdmissionReview that the server can send.
const REVIEWS: &[&str] = &["v1", "v1beta1"];
const MAX_CONDITIONS: usize = 64;
const MAX_AUDIT_ANNOTATIONS: usize = 20;
const MAX_AUDIT_EXPRESSION: usize = 5 * 1024;

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
    match_conditions(errors, hook, at);
    for (at, condition) in items(hook, "matchConditions", at) {
        let (expression, place) = (text(condition, "expression").trim(), at.child("expression"));
        for complaint in condition::complaints(expression).into_iter().filter(|_| !expression.is_empty()) {
            errors.invalid(&place, &expression.into(), complaint);
        }
    }
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

fn operations_rule(errors: &mut Errors, rule: &Value, at: &Path) {
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

fn match_conditions(errors: &mut Errors, parent: &Value, at: &Path) {
    let count = list(parent, "matchConditions").len();
    if count > MAX_CONDITIONS {
        errors.too_many(&at.child("matchConditions"), count, MAX_CONDITIONS);
    }
    let mut names = Vec::new();
    for (at, condition) in items(parent, "matchConditions", at) {
        if text(condition, "expression").trim().is_empty() {
            errors.required(&at.child("expression"), "");
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

/// What both kinds of policy have.
fn policy(errors: &mut Errors, spec: &Value, at: &Path) {
    errors.one_of(&at.child("failurePolicy"), &spec["failurePolicy"], FAILURE_POLICIES);
    if set(spec, "paramKind") {
        param_kind(errors, &spec["paramKind"], &at.child("paramKind"));
    }
    let (constraints, place) = (&spec["matchConstraints"], at.child("matchConstraints"));
    if constraints.is_null() {
        errors.required(&place, "");
    } else {
        match_resources(errors, constraints, &place);
        if list(constraints, "resourceRules").is_empty() {
            errors.required(&place.child("resourceRules"), "");
        }
    }
    match_conditions(errors, spec, at);
    for (at, variable) in items(spec, "variables", at) {
        let name = text(variable, "name");
        if name.trim().is_empty() {
            errors.required(&at.child("name"), "name is not specified");
        } else if !is_identifier(name) {
            errors.invalid(&at.child("name"), &name.into(), "must be a valid CEL identifier");
        }
        if text(variable, "expression").trim().is_empty() {
            errors.required(&at.child("expression"), "expression is not specified");
        }
    }
}

fn is_identifier(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    name.bytes().next().is_some_and(letter)
        && name.bytes().all(|b| letter(b) || b.is_ascii_digit())
        && !CEL_RESERVED.contains(&name)
}

/// A ValidatingAdmissionPolicy, new or changed.
pub(in crate::resources) fn validating_policy(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    policy(&mut errors, spec, &at);
    if list(spec, "validations").is_empty() && list(spec, "auditAnnotations").is_empty() {
        let words = "validations or auditAnnotations must contain at least one item";
        errors.required(&at.child("validations"), words);
        errors.required(&at.child("auditAnnotations"), words);
    }
    for (at, validation) in items(spec, "validations", &at) {
        self::validation(&mut errors, validation, &at);
    }
    let annotations = list(spec, "auditAnnotations");
    if annotations.len() > MAX_AUDIT_ANNOTATIONS {
        let words = format!("must not have more than {MAX_AUDIT_ANNOTATIONS} auditAnnotations");
        errors.invalid(&at.child("auditAnnotations"), &spec["auditAnnotations"], words);
    }
    let name = text(&object["metadata"], "name");
    for (i, (at, annotation)) in items(spec, "auditAnnotations", &at).enumerate() {
        let key = text(annotation, "key");
        let full = format!("{name}/{key}");
        errors.rule(&at.child("key"), &json!(full), qualified_name(&full));
        let (expression, place) = (text(annotation, "valueExpression").trim(), at.child("valueExpression"));
        if expression.is_empty() {
            errors.required(&place, "valueExpression is not specified");
        } else if expression.len() > MAX_AUDIT_EXPRESSION {
            errors.required(&place, &format!("must not exceed {MAX_AUDIT_EXPRESSION} bytes in length"));
        }
        if annotations[..i].iter().any(|other| text(other, "key") == key) {
            errors.duplicate(&at.child("key"), &key.into());
        }
    }
    errors.0
}

fn validation(errors: &mut Errors, validation: &Value, at: &Path) {
    if text(validation, "expression").trim().is_empty() {
        errors.required(&at.child("expression"), "expression is not specified");
    }
    for field in ["messageExpression", "message"] {
        let words = text(validation, field);
        if !words.is_empty() && words.trim().is_empty() {
            errors.invalid(&at.child(field), &words.into(), "must be non-empty if specified");
        }
    }
    let message = text(validation, "message").trim();
    if message.contains(['\n', '\r']) {
        errors.invalid(&at.child("message"), &validation["message"], "must not contain line breaks");
    }
    let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
    errors.optional_one_of(&at.child("reason"), &validation["reason"], &reasons);
}

/// A change of a ValidatingAdmissionPolicy's status.
pub(in crate::resources) fn validating_policy_status(new: &Value, _old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (status, at) = (&new["status"], Path::new("status"));
    let checking = at.child("typeChecking");
    for (at, warning) in items(&status["typeChecking"], "expressionWarnings", &checking) {
        errors.need(warning, "warning", &at);
        errors.need(warning, "fieldRef", &at);
    }
    conditions::conditions(&mut errors, status, &at);
    errors.0
}

/// A MutatingAdmissionPolicy, new or changed.
pub(in crate::resources) fn mutating_policy(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    policy(&mut errors, spec, &at);
    only_mutating(&mut errors, &spec["matchConstraints"], &at.child("matchConstraints"));
    if list(spec, "mutations").is_empty() {
        errors.required(&at.child("mutations"), "mutations must contain at least one item");
    }
    for (at, mutation) in items(spec, "mutations", &at) {
        let (kinds, patch) = (["ApplyConfiguration", "JSONPatch"], text(mutation, "patchType"));
        errors.one_of(&at.child("patchType"), &mutation["patchType"], &kinds);
        if !kinds.contains(&patch) {
            continue;
        }
        for (field, kind) in [("applyConfiguration", "ApplyConfiguration"), ("jsonPatch", "JSONPatch")] {
            let place = at.child(field);
            match (kind == patch, set(mutation, field)) {
                (true, false) => {
                    errors.required(&place, &format!("must be specified when patchType is {kind}"));
                }
                (true, true) if text(&mutation[field], "expression").trim().is_empty() => {
                    errors.required(&place.child("expression"), "");
                }
                (false, true) => errors.invalid(
                    &place,
                    &json!(format!("{{{field}}}")),
                    format!("must not be specified when patchType is {patch}"),
                ),
                _ => {}
            }
        }
    }
    errors.one_of(&at.child("reinvocationPolicy"), &spec["reinvocationPolicy"], REINVOCATION);
    errors.0
}

/// Deletes are not for mutating.
fn only_mutating(errors: &mut Errors, resources: &Value, at: &Path) {
    for operation in list(resources, "resourceRules").iter().flat_map(|rule| list(rule, "operations")) {
        if !MUTATING_OPERATIONS.contains(&operation.as_str().unwrap_or_default()) {
            let place = at.child("resourceRules").child("operations");
            errors.unsupported(&place, operation, MUTATING_OPERATIONS);
        }
    }
}

fn param_kind(errors: &mut Errors, kind: &Value, at: &Path) {
    let (version, place) = (text(kind, "apiVersion"), at.child("apiVersion"));
    let (group, number) = version.split_once('/').unwrap_or(("", version));
    if version.is_empty() {
        errors.required(&place, "");
    } else if number.contains('/') {
        let words = format!("unexpected GroupVersion string: {version}");
        errors.invalid(&place, &version.into(), words);
    } else {
        if !group.is_empty() {
            errors.rule(&place, &group.into(), dns_subdomain(group));
        }
        if number.is_empty() {
            errors.invalid(&place, &version.into(), "version must be specified");
        } else {
            errors.rule(&place, &number.into(), dns_1035_label(number));
        }
    }
    let (name, place) = (text(kind, "kind"), at.child("kind"));
    if name.is_empty() {
        errors.required(&place, "");
    } else if let Err(why) = dns_1035_label(&name.to_lowercase()) {
        let words = format!("may have mixed case, but should otherwise match: {why}");
        errors.invalid(&place, &name.into(), words);
    }
}

fn match_resources(errors: &mut Errors, resources: &Value, at: &Path) {
    errors.one_of(&at.child("matchPolicy"), &resources["matchPolicy"], MATCH_POLICIES);
    for selector in ["namespaceSelector", "objectSelector"] {
        if set(resources, selector) {
            label_selector(errors, &resources[selector], &at.child(selector));
        } else {
            errors.required(&at.child(selector), "");
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (at, rule) in items(resources, field, at) {
            let mut names = Vec::new();
            for (at, name) in items(rule, "resourceNames", &at) {
                errors.rule(&at, name, path_segment(name.as_str().unwrap_or_default()));
                if names.contains(&name) {
                    errors.duplicate(&at, name);
                }
                names.push(name);
            }
            operations_rule(errors, rule, &at);
        }
    }
}

/// What both kinds of binding have.
fn binding(errors: &mut Errors, spec: &Value, at: &Path) {
    let name = text(spec, "policyName");
    errors.need(spec, "policyName", at);
    if !name.is_empty() {
        errors.rule(&at.child("policyName"), &name.into(), dns_subdomain(name));
    }
    if set(spec, "paramRef") {
        param_ref(errors, &spec["paramRef"], &at.child("paramRef"));
    }
    if set(spec, "matchResources") {
        match_resources(errors, &spec["matchResources"], &at.child("matchResources"));
    }
}

fn param_ref(errors: &mut Errors, reference: &Value, at: &Path) {
    const EXCLUSIVE: &str = "name and selector are mutually exclusive";
    let (name, selected) = (text(reference, "name"), set(reference, "selector"));
    if !name.is_empty() {
        errors.rule(&at.child("name"), &name.into(), path_segment(name));
        if selected {
            errors.forbidden(&at.child("name"), EXCLUSIVE);
        }
    }
    if selected {
        label_selector(errors, &reference["selector"], &at.child("selector"));
        if !name.is_empty() {
            errors.forbidden(&at.child("selector"), EXCLUSIVE);
        }
    }
    if name.is_empty() && !selected {
        errors.required(at, "one of name or selector must be specified");
    }
    let place = at.child("parameterNotFoundAction");
    errors.one_of(&place, &reference["parameterNotFoundAction"], &["Deny", "Allow"]);
}

/// A ValidatingAdmissionPolicyBinding, new or changed.
pub(in crate::resources) fn validating_binding(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    binding(&mut errors, spec, &at);
    let (actions, place) = (list(spec, "validationActions"), at.child("validationActions"));
    for (i, (at, action)) in items(spec, "validationActions", &at).enumerate() {
        errors.optional_one_of(&at, action, &["Audit", "Deny", "Warn"]);
        if actions[..i].contains(action) {
            errors.duplicate(&at, action);
        }
    }
    if actions.iter().any(|a| a == "Deny") && actions.iter().any(|a| a == "Warn") {
        errors.invalid(&place, &spec["validationActions"], "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
    }
    if actions.is_empty() {
        errors.required(&place, "at least one validation action is required");
    }
    errors.0
}

/// A MutatingAdmissionPolicyBinding, new or changed.
pub(in crate::resources) fn mutating_binding(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    binding(&mut errors, spec, &at);
    only_mutating(&mut errors, &spec["matchResources"], &at.child("matchResources"));
    errors.0
}
