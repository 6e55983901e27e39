//! FlowSchemas and PriorityLevelConfigurations (`pkg/apis/flowcontrol/validation`).

use serde_json::{Value, json};

use super::errors::{Errors, Path, flag, items, list, number, same, set, text};
use super::rules;
use crate::field::FieldError;
use crate::resources::flow_control::{self, BuiltIn};
use crate::resources::metadata::{dns_label, dns_subdomain};

const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
const MAX_QUEUES: i64 = 10_000_000;
/// Bits of the hash that deals requests to queues.
const MAX_HASH_BITS: f64 = 60.0;

fn mandatory(built_ins: Vec<BuiltIn>, name: &str) -> Option<Value> {
    built_ins.into_iter().find(|b| b.mandatory && b.object["metadata"]["name"] == name).map(|b| b.object)
}

/// A FlowSchema, new or changed.
pub(in crate::resources) fn flow_schema(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    let name = text(&object["metadata"], "name");
    let (precedence, place) = (number(spec, "matchingPrecedence"), at.child("matchingPrecedence"));
    if precedence <= 0 {
        errors.invalid(&place, &precedence.into(), "must be a positive value");
    }
    if precedence > 10_000 {
        errors.invalid(&place, &precedence.into(), "must not be greater than 10000");
    }
    if precedence == 1 && name != "exempt" {
        let words = "only the schema named 'exempt' may have matchingPrecedence 1";
        errors.invalid(&place, &precedence.into(), words);
    }
    if set(spec, "distinguisherMethod") {
        let place = at.child("distinguisherMethod").child("type");
        let kind = &spec["distinguisherMethod"]["type"];
        if !matches!(kind.as_str(), Some("ByNamespace" | "ByUser")) {
            errors.unsupported(&place, &spec["distinguisherMethod"], &["ByNamespace", "ByUser"]);
        }
    }
    let level = text(&spec["priorityLevelConfiguration"], "name");
    let place = at.child("priorityLevelConfiguration").child("name");
    if level.is_empty() {
        errors.required(&place, "must reference a priority level");
    } else {
        errors.rule(&place, &level.into(), dns_subdomain(level));
    }
    for (at, rule) in items(spec, "rules", &at) {
        policy_rule(&mut errors, rule, &at);
    }
    if let Some(fixed) = mandatory(flow_control::flow_schemas(), name)
        && !same(spec, &fixed["spec"])
    {
        errors.invalid(&at, spec, format!("spec of '{name}' must equal the fixed value"));
    }
    errors.0.extend(conditions(object));
    errors.0
}

/// A change of the status of either kind.
pub(in crate::resources) fn flow_status(new: &Value, _old: &Value) -> Vec<FieldError> {
    conditions(new)
}

fn conditions(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let mut seen = Vec::new();
    for (at, condition) in items(&object["status"], "conditions", &Path::new("status")) {
        let kind = text(condition, "type");
        if seen.contains(&kind) {
            errors.duplicate(&at.child("type"), &kind.into());
        }
        seen.push(kind);
        errors.need(condition, "type", &at);
    }
    errors.0
}

fn policy_rule(errors: &mut Errors, rule: &Value, at: &Path) {
    if list(rule, "subjects").is_empty() {
        errors.required(&at.child("subjects"), "subjects must contain at least one value");
    }
    for (at, subject) in items(rule, "subjects", at) {
        self::subject(errors, subject, &at);
    }
    if list(rule, "resourceRules").is_empty() && list(rule, "nonResourceRules").is_empty() {
        let words = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.required(at, words);
    }
    for (at, rule) in items(rule, "resourceRules", at) {
        resource_rule(errors, rule, &at);
    }
    for (at, rule) in items(rule, "nonResourceRules", at) {
        verbs(errors, rule, &at);
        let urls = list(rule, "nonResourceURLs");
        if urls.is_empty() {
            let words = "nonResourceURLs must contain at least one value";
            errors.required(&at.child("nonResourceURLs"), words);
        } else if urls.iter().any(|url| url == "*") {
            alone(errors, rule, "nonResourceURLs", "non-resource URLs", &at);
        } else {
            for (at, url) in items(rule, "nonResourceURLs", &at) {
                errors.rule(&at, url, url_path(url.as_str().unwrap_or_default()));
            }
        }
    }
}

/// Subject kinds, the field that each needs, and how upstream names it.
const SUBJECTS: [(&str, &str); 3] =
    [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];

fn subject(errors: &mut Errors, subject: &Value, at: &Path) {
    let kind = text(subject, "kind");
    if !SUBJECTS.iter().any(|(known, _)| *known == kind) {
        return errors.unsupported(&at.child("kind"), &kind.into(), &["Group", "ServiceAccount", "User"]);
    }
    for (other, field) in SUBJECTS {
        let place = at.child(field);
        match (other == kind, set(subject, field)) {
            (true, false) => {
                errors.required(&place, &format!("{field} is required when subject kind is '{kind}'"));
            }
            (false, true) => {
                errors.forbidden(&place, format!("{field} is forbidden when subject kind is not '{other}'"));
            }
            (true, true) => {
                errors.need(&subject[field], "name", &place);
                if kind == "ServiceAccount" {
                    account(errors, &subject[field], &place);
                }
            }
            (false, false) => {}
        }
    }
}

fn account(errors: &mut Errors, account: &Value, at: &Path) {
    let (name, namespace) = (text(account, "name"), text(account, "namespace"));
    if !matches!(name, "" | "*") {
        errors.rule(&at.child("name"), &name.into(), dns_subdomain(name));
    }
    if namespace.is_empty() {
        errors.required(&at.child("namespace"), "must specify namespace for service account");
    } else {
        errors.rule(&at.child("namespace"), &namespace.into(), dns_label(namespace));
    }
}

/// `*` must be the only entry.
fn alone(errors: &mut Errors, rule: &Value, field: &str, what: &str, at: &Path) {
    let entries = list(rule, field);
    if entries.len() > 1 && entries.iter().any(|entry| entry == "*") {
        let words = format!("if '*' is present, must not specify other {what}");
        errors.invalid(&at.child(field), &rule[field], words);
    }
}

fn verbs(errors: &mut Errors, rule: &Value, at: &Path) {
    let given = list(rule, "verbs");
    if given.is_empty() {
        errors.required(&at.child("verbs"), "verbs must contain at least one value");
    } else if given.iter().any(|verb| verb == "*") {
        alone(errors, rule, "verbs", "verbs", at);
    } else if !given.iter().all(|verb| VERBS.contains(&verb.as_str().unwrap_or_default())) {
        errors.unsupported(&at.child("verbs"), &rule["verbs"], VERBS);
    }
}

fn resource_rule(errors: &mut Errors, rule: &Value, at: &Path) {
    verbs(errors, rule, at);
    for (field, one, many) in
        [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")]
    {
        if list(rule, field).is_empty() {
            errors.required(&at.child(field), &format!("resource rules must supply at least one {one}"));
        }
        alone(errors, rule, field, many, at);
    }
    let namespaces = list(rule, "namespaces");
    if namespaces.is_empty() && !flag(rule, "clusterScope") {
        let words = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.required(&at.child("namespaces"), words);
    } else if namespaces.iter().any(|namespace| namespace == "*") {
        alone(errors, rule, "namespaces", "namespaces", at);
    } else {
        for (at, namespace) in items(rule, "namespaces", at) {
            let outcome = dns_label(namespace.as_str().unwrap_or_default());
            let words = |why| format!("each member of this list must be '*' or a DNS-1123 label; {why}");
            errors.rule(&at, namespace, outcome.map_err(words));
        }
    }
}

fn url_path(path: &str) -> Result<(), String> {
    let stars = path.matches('*').count();
    let broken = if path.is_empty() {
        "must not be empty"
    } else if path == "/" {
        return Ok(());
    } else if !path.starts_with('/') {
        "must start with slash"
    } else if path.contains(' ') {
        "must not contain white-space"
    } else if path.contains("//") {
        "must not contain double slash"
    } else if stars > 1 || (stars == 1 && !path.ends_with("/*")) {
        "wildcard can only do suffix matching"
    } else {
        return Ok(());
    };
    Err(broken.to_owned())
}

/// A PriorityLevelConfiguration, new or changed.
pub(in crate::resources) fn priority_level(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    let name = text(&object["metadata"], "name");
    let kind = text(spec, "type");
    if (name == "exempt") != (kind == "Exempt") {
        let words = "must be 'Exempt' if and only if `name` is 'exempt'";
        errors.invalid(&at.child("type"), &kind.into(), words);
    }
    errors.one_of(&at.child("type"), &kind.into(), &["Exempt", "Limited"]);
    let (limited, exempt) = (&spec["limited"], &spec["exempt"]);
    match kind {
        "Exempt" => {
            if set(spec, "limited") {
                errors.forbidden(&at.child("limited"), "must be nil if the type is not Limited");
            }
            shares(&mut errors, exempt, &at.child("exempt"));
        }
        "Limited" => {
            if set(spec, "exempt") {
                errors.forbidden(&at.child("exempt"), "must be nil if the type is Limited");
            }
            if set(spec, "limited") {
                limited_level(&mut errors, limited, &at.child("limited"));
            } else {
                errors.required(&at.child("limited"), "must not be empty when type is Limited");
            }
        }
        _ => {}
    }
    if let Some(mut fixed) = mandatory(flow_control::priority_levels(), name) {
        let mut words = format!("spec of '{name}' must equal the fixed value");
        if name == "exempt" {
            fixed["spec"]["exempt"] = exempt.clone();
            words = format!("spec of '{name}' except the 'spec.exempt' field must equal the fixed value");
        }
        if !same(spec, &fixed["spec"]) {
            errors.invalid(&at, spec, words);
        }
    }
    errors.0.extend(conditions(object));
    errors.0
}

fn shares(errors: &mut Errors, level: &Value, at: &Path) {
    if number(level, "nominalConcurrencyShares") < 0 {
        let place = at.child("nominalConcurrencyShares");
        errors.invalid(&place, &level["nominalConcurrencyShares"], "must be a non-negative integer");
    }
    let percent = &level["lendablePercent"];
    if let Some(number) = percent.as_i64() {
        errors.rule(&at.child("lendablePercent"), percent, rules::in_range(number, 0, 100));
    }
}

fn limited_level(errors: &mut Errors, level: &Value, at: &Path) {
    shares(errors, level, at);
    if number(level, "borrowingLimitPercent") < 0 {
        let words = "if specified, must be a non-negative integer";
        errors.invalid(&at.child("borrowingLimitPercent"), &level["borrowingLimitPercent"], words);
    }
    let (response, at) = (&level["limitResponse"], at.child("limitResponse"));
    let place = at.child("queuing");
    errors.one_of(&at.child("type"), &response["type"], &["Queue", "Reject"]);
    match (text(response, "type"), set(response, "queuing")) {
        ("Reject", true) => {
            errors.forbidden(&place, "must be nil if limited.limitResponse.type is not Limited");
        }
        ("Queue", false) => {
            errors.required(&place, "must not be empty if limited.limitResponse.type is Limited");
        }
        ("Queue", true) => queuing(errors, &response["queuing"], &place),
        _ => {}
    }
}

fn queuing(errors: &mut Errors, queuing: &Value, at: &Path) {
    let field = |name: &str| (number(queuing, name), at.child(name));
    let ((length, length_at), (queues, queues_at), (hand, hand_at)) =
        (field("queueLengthLimit"), field("queues"), field("handSize"));
    for (value, at) in [(length, &length_at), (queues, &queues_at), (hand, &hand_at)] {
        if value <= 0 {
            errors.invalid(at, &value.into(), "must be positive");
        }
    }
    if queues > MAX_QUEUES {
        errors.invalid(&queues_at, &queues.into(), format!("must not be greater than {MAX_QUEUES}"));
    }
    if hand > 0 && hand > queues {
        errors.invalid(&hand_at, &hand.into(), format!("should not be greater than queues ({queues})"));
    } else if hand > 0 && entropy_bits(queues, hand) > MAX_HASH_BITS {
        let words = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MAX_HASH_BITS}"
        );
        errors.invalid(&hand_at, &json!(hand), words);
    }
}

/// Bits that it takes to deal a hand out of a deck (`shufflesharding.RequiredEntropyBits`).
fn entropy_bits(deck: i64, hand: i64) -> f64 {
    let mut bits = 0.0;
    for dealt in 0..hand {
        // At most 10^7, and the loop ends once it is too much.
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let left = (deck - dealt) as f64;
        bits += left.log2();
        if bits > MAX_HASH_BITS {
            break;
        }
    }
    bits.ceil()
}
