//! Admission policies and their bindings (`pkg/apis/admissionregistration/validation`). Expressions are compiled: what
//! the server can't run is refused here.

use serde_json::{Value, json};

use super::admission::{FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION, match_conditions, operations_rule};
use super::conditions;
use super::errors::{Errors, Path, items, list, set, text};
use super::selectors::label_selector;
use crate::expressions::RESERVED;
use crate::field::FieldError;
use crate::policy::{Wanted, complaints};
use crate::resources::metadata::{dns_1035_label, dns_subdomain, path_segment, qualified_name};

const MUTATING_OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];
const MAX_AUDIT_ANNOTATIONS: usize = 20;
const MAX_AUDIT_EXPRESSION: usize = 5 * 1024;

/// What the expressions of a policy may speak of.
struct Known {
    params: bool,
    variables: Vec<String>,
}

impl Known {
    /// Complains of an expression that is there.
    fn check(&self, errors: &mut Errors, parent: &Value, field: &str, wanted: Wanted, at: &Path) {
        let expression = text(parent, field).trim();
        if expression.is_empty() {
            return;
        }
        for complaint in complaints(expression, wanted, self.params, &self.variables) {
            errors.invalid(&at.child(field), &parent[field], complaint);
        }
    }
}

/// What both kinds of policy have.
fn policy(errors: &mut Errors, spec: &Value, at: &Path) -> Known {
    let mut known = Known { params: set(spec, "paramKind"), variables: Vec::new() };
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
    match_conditions(errors, spec, at, |expression| {
        complaints(expression, Wanted::Condition, known.params, &[])
    });
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
        // It may speak of those before it.
        known.check(errors, variable, "expression", Wanted::Variable, &at);
        known.variables.push(format!("variables.{name}"));
    }
    known
}

fn is_identifier(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    name.bytes().next().is_some_and(letter)
        && name.bytes().all(|b| letter(b) || b.is_ascii_digit())
        && !RESERVED.contains(&name)
}

/// A ValidatingAdmissionPolicy, new or changed.
pub(in crate::resources) fn validating_policy(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    let known = policy(&mut errors, spec, &at);
    if list(spec, "validations").is_empty() && list(spec, "auditAnnotations").is_empty() {
        let words = "validations or auditAnnotations must contain at least one item";
        errors.required(&at.child("validations"), words);
        errors.required(&at.child("auditAnnotations"), words);
    }
    for (at, validation) in items(spec, "validations", &at) {
        self::validation(&mut errors, validation, &known, &at);
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
        } else {
            known.check(&mut errors, annotation, "valueExpression", Wanted::Annotation, &at);
        }
        if annotations[..i].iter().any(|other| text(other, "key") == key) {
            errors.duplicate(&at.child("key"), &key.into());
        }
    }
    errors.0
}

fn validation(errors: &mut Errors, validation: &Value, known: &Known, at: &Path) {
    known.check(errors, validation, "expression", Wanted::Bool, at);
    known.check(errors, validation, "messageExpression", Wanted::Message, at);
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
    let known = policy(&mut errors, spec, &at);
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
        for (field, kind, wanted) in [
            ("applyConfiguration", "ApplyConfiguration", Wanted::Object),
            ("jsonPatch", "JSONPatch", Wanted::Patch),
        ] {
            let place = at.child(field);
            match (kind == patch, set(mutation, field)) {
                (true, false) => {
                    errors.required(&place, &format!("must be specified when patchType is {kind}"));
                }
                (true, true) if text(&mutation[field], "expression").trim().is_empty() => {
                    errors.required(&place.child("expression"), "");
                }
                (true, true) => known.check(&mut errors, &mutation[field], "expression", wanted, &place),
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
