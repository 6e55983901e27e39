//! NetworkPolicies.

use serde_json::{Value, json};

use super::errors::{Errors, Path, items, list, set, text};
use super::{rules, selectors};
use crate::field::FieldError;

/// A NetworkPolicy, new or changed.
pub(in crate::resources) fn network_policy(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    selectors::label_selector(&mut errors, &spec["podSelector"], &at.child("podSelector"));
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (at, rule) in items(spec, direction, &at) {
            for (at, port_rule) in items(rule, "ports", &at) {
                port(&mut errors, port_rule, &at);
            }
            for (at, peer_rule) in items(rule, peers, &at) {
                peer(&mut errors, peer_rule, &at);
            }
        }
    }
    if list(spec, "policyTypes").len() > 2 {
        let words = "may not specify more than two policyTypes";
        errors.invalid(&at.child("policyTypes"), &spec["policyTypes"], words);
        return errors.0;
    }
    for (at, kind) in items(spec, "policyTypes", &at) {
        errors.optional_one_of(&at, kind, &["Ingress", "Egress"]);
    }
    errors.0
}

fn port(errors: &mut Errors, rule: &Value, at: &Path) {
    errors.optional_one_of(&at.child("protocol"), &rule["protocol"], &["TCP", "UDP", "SCTP"]);
    let (end, place) = (&rule["endPort"], at.child("endPort"));
    if set(rule, "port") {
        rules::port(errors, &at.child("port"), &rule["port"]);
    }
    let Some(last) = end.as_i64() else { return };
    match &rule["port"] {
        Value::Null => errors.invalid(&place, end, "may not be specified when `port` is not specified"),
        Value::String(_) => errors.invalid(&place, end, "may not be specified when `port` is non-numeric"),
        first => {
            if first.as_i64().is_some_and(|first| last < first) {
                errors.invalid(&place, first, "must be greater than or equal to `port`");
            }
            errors.rule(&place, end, rules::port_number(last));
        }
    }
}

fn peer(errors: &mut Errors, peer: &Value, at: &Path) {
    let mut selector = false;
    for field in ["podSelector", "namespaceSelector"] {
        selector |= set(peer, field);
        selectors::label_selector(errors, &peer[field], &at.child(field));
    }
    match (set(peer, "ipBlock"), selector) {
        (true, both) => {
            ip_block(errors, &peer["ipBlock"], &at.child("ipBlock"));
            if both {
                errors.forbidden(at, "may not specify both ipBlock and another peer");
            }
        }
        (false, true) => {}
        (false, false) => errors.required(at, "must specify a peer"),
    }
}

fn ip_block(errors: &mut Errors, block: &Value, at: &Path) {
    let text = text(block, "cidr");
    if text.is_empty() {
        return errors.required(&at.child("cidr"), "");
    }
    let whole = match rules::cidr(text) {
        Ok(whole) => whole,
        Err(why) => return errors.invalid(&at.child("cidr"), &json!(text), why),
    };
    for (at, part) in items(block, "except", at) {
        match rules::cidr(part.as_str().unwrap_or_default()) {
            Err(why) => errors.invalid(&at, part, why),
            Ok(part_of) if !rules::is_strict_subset(whole, part_of) => {
                errors.invalid(&at, part, "must be a strict subset of `cidr`");
            }
            Ok(_) => {}
        }
    }
}
