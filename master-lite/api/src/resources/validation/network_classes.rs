//! IngressClasses, ServiceCIDRs and IPAddresses.

use serde_json::{Value, json};

use super::errors::{Errors, Path, items, list, set, text};
use super::rules;
use crate::field::FieldError;
use crate::resources::metadata::{dns_label, dns_subdomain, path_segment};

const MAX_CONTROLLER: usize = 250;

/// A new IngressClass.
pub(in crate::resources) fn ingress_class(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    let (controller, place) = (text(spec, "controller"), at.child("controller"));
    if controller.len() > MAX_CONTROLLER {
        errors.too_long(&place, MAX_CONTROLLER);
    }
    domain_path(&mut errors, controller, &place);
    if set(spec, "parameters") {
        parameters(&mut errors, &spec["parameters"], &at.child("parameters"));
    }
    errors.0
}

/// `example.com/path` (`validation.IsDomainPrefixedPath`).
fn domain_path(errors: &mut Errors, text: &str, at: &Path) {
    let value = json!(text);
    if text.is_empty() {
        return errors.required(at, "");
    }
    let words = "must be a domain-prefixed path (such as \"acme.io/foo\")";
    let Some((domain, path)) = text.split_once('/').filter(|(d, p)| !d.is_empty() && !p.is_empty()) else {
        return errors.invalid(at, &value, words);
    };
    errors.rule(at, &json!(domain), dns_subdomain(domain));
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !path.bytes().all(allowed) {
        let words = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errors.invalid(at, &json!(path), words);
    }
}

fn parameters(errors: &mut Errors, parameters: &Value, at: &Path) {
    if set(parameters, "apiGroup") {
        let group = text(parameters, "apiGroup");
        errors.rule(&at.child("apiGroup"), &group.into(), dns_subdomain(group));
    }
    segments(errors, parameters, &["kind", "name"], at);
    let (scope, place) = (text(parameters, "scope"), at.child("namespace"));
    errors.one_of(&at.child("scope"), &parameters["scope"], &["Cluster", "Namespace"]);
    match (scope, parameters["namespace"].as_str()) {
        ("Namespace", None) => errors.required(&place, "`parameters.scope` is set to 'Namespace'"),
        ("Namespace", Some(namespace)) => {
            errors.rule(&place, &parameters["namespace"], dns_label(namespace));
        }
        ("Cluster", Some(_)) => errors.forbidden(&place, "`parameters.scope` is set to 'Cluster'"),
        _ => {}
    }
}

/// Texts that must be there and fit into a path.
fn segments(errors: &mut Errors, parent: &Value, fields: &[&str], at: &Path) {
    for field in fields {
        errors.need(parent, field, at);
        errors.rule(&at.child(field), &parent[*field], path_segment(text(parent, field)));
    }
}

/// A change of an IngressClass.
pub(in crate::resources) fn ingress_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let at = Path::new("spec").child("controller");
    errors.immutable(&at, &new["spec"]["controller"], &old["spec"]["controller"]);
    errors.0.extend(ingress_class(new));
    errors.0
}

/// A new IPAddress.
pub(in crate::resources) fn ip_address(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let at = Path::new("spec").child("parentRef");
    let parent = &object["spec"]["parentRef"];
    if parent.is_null() {
        errors.required(&at, "");
        return errors.0;
    }
    let group = text(parent, "group");
    if !group.is_empty() {
        errors.rule(&at.child("group"), &parent["group"], dns_subdomain(group));
    }
    segments(&mut errors, parent, &["resource", "name"], &at);
    errors.rule(&at.child("namespace"), &parent["namespace"], path_segment(text(parent, "namespace")));
    errors.0
}

/// A change of an IPAddress.
pub(in crate::resources) fn ip_address_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let at = Path::new("spec").child("parentRef");
    errors.immutable(&at, &new["spec"]["parentRef"], &old["spec"]["parentRef"]);
    errors.0
}

/// An IPAddress is named by the address, in its canonical form.
pub(in crate::resources) fn ip_address_name(name: &str) -> Result<(), String> {
    let ip = rules::ip(name)?;
    if ip.to_string() == name {
        return Ok(());
    }
    Err(format!("must be in canonical form (\"{ip}\")"))
}

/// A new ServiceCIDR.
pub(in crate::resources) fn service_cidr(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    let (ranges, place) = (list(spec, "cidrs"), at.child("cidrs"));
    if ranges.is_empty() {
        errors.required(&place, "at least one CIDR required");
    }
    if ranges.len() > 2 {
        errors.invalid(&place, spec, "may only hold up to 2 values");
        return errors.0;
    }
    let mut families = Vec::new();
    for (at, range) in items(spec, "cidrs", &at) {
        let text = range.as_str().unwrap_or_default();
        match rules::cidr(text) {
            Ok((ip, length)) => {
                families.push(ip.is_ipv4());
                let canonical = format!("{ip}/{length}");
                if canonical != text {
                    errors.invalid(&at, range, format!("must be in canonical form (\"{canonical}\")"));
                }
            }
            Err(words) => errors.invalid(&at, range, words),
        }
    }
    if families.len() == 2 && families[0] == families[1] {
        let words =
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.invalid(&place, &spec["cidrs"], words);
    }
    errors.0
}

/// A change of a ServiceCIDR: a second range may be added, nothing else.
pub(in crate::resources) fn service_cidr_update(new: &Value, old: &Value) -> Vec<FieldError> {
    const IMMUTABLE: &str = "field is immutable";
    let mut errors = Errors::default();
    let at = Path::new("spec");
    let (before, after) = (list(&old["spec"], "cidrs"), list(&new["spec"], "cidrs"));
    let grows = before.len() == 1 && after.len() == 2;
    if before.len() != after.len() && !grows {
        errors.invalid(&at.child("cidrs"), &new["spec"]["cidrs"], IMMUTABLE);
        return errors.0;
    }
    for ((at, range), before) in items(&new["spec"], "cidrs", &at).zip(before) {
        if range != before {
            errors.invalid(&at, range, IMMUTABLE);
        }
    }
    if grows {
        errors.0.extend(service_cidr(new));
    }
    errors.0
}
