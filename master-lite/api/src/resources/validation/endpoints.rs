//! Endpoints and EndpointSlices.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::containers::PROTOCOLS;
use super::errors::{Errors, Path, items, list, number, text};
use super::{rules, selectors};
use crate::field::FieldError;
use crate::resources::metadata::{dns_label, dns_subdomain, label_value, qualified_name};

/// Endpoints; subsets that did not change are not looked at again.
pub(in crate::resources) fn endpoints(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if old.is_some_and(|old| old["subsets"] == new["subsets"]) {
        return errors.0;
    }
    for (at, subset) in items(new, "subsets", &Path::new("")) {
        if list(subset, "addresses").is_empty() && list(subset, "notReadyAddresses").is_empty() {
            errors.required(&at, "must specify `addresses` or `notReadyAddresses`");
        }
        for field in ["addresses", "notReadyAddresses"] {
            for (at, address) in items(subset, field, &at) {
                rules::endpoint_ip(&mut errors, &at.child("ip"), &json!(text(address, "ip")));
                host_and_node(&mut errors, address, &at);
            }
        }
        let many = list(subset, "ports").len() > 1;
        for (at, port) in items(subset, "ports", &at) {
            match text(port, "name") {
                "" if many => errors.required(&at.child("name"), ""),
                "" => {}
                name => errors.rule(&at.child("name"), &port["name"], dns_label(name)),
            }
            let port_number = number(port, "port");
            errors.rule(&at.child("port"), &json!(port_number), rules::port_number(port_number));
            protocols(&mut errors, port, &at);
        }
    }
    errors.0
}

fn host_and_node(errors: &mut Errors, address: &Value, at: &Path) {
    let host = text(address, "hostname");
    if !host.is_empty() {
        errors.rule(&at.child("hostname"), &address["hostname"], dns_label(host));
    }
    if let Some(node) = address["nodeName"].as_str() {
        errors.rule(&at.child("nodeName"), &address["nodeName"], dns_subdomain(node));
    }
}

fn protocols(errors: &mut Errors, port: &Value, at: &Path) {
    errors.one_of(&at.child("protocol"), &port["protocol"], PROTOCOLS);
    if let Some(protocol) = port["appProtocol"].as_str() {
        errors.rule(&at.child("appProtocol"), &port["appProtocol"], qualified_name(protocol));
    }
}

/// An EndpointSlice; endpoints that did not change are not looked at again.
pub(in crate::resources) fn endpoint_slice(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = Path::new("");
    errors.one_of(&root.child("addressType"), &new["addressType"], &["FQDN", "IPv4", "IPv6"]);
    slice_ports(&mut errors, new);
    let endpoints = list(new, "endpoints");
    if endpoints.len() > 1000 {
        errors.too_many(&root.child("endpoints"), endpoints.len(), 1000);
    } else if old.is_none_or(|old| old["endpoints"] != new["endpoints"]) {
        for (at, endpoint) in items(new, "endpoints", &root) {
            slice_endpoint(&mut errors, endpoint, text(new, "addressType"), &at);
        }
    }
    if let Some(old) = old {
        errors.immutable(&root.child("addressType"), &new["addressType"], &old["addressType"]);
    }
    errors.0
}

fn slice_ports(errors: &mut Errors, slice: &Value) {
    let ports = list(slice, "ports");
    if ports.len() > 20_000 {
        return errors.too_many(&Path::new("ports"), ports.len(), 20_000);
    }
    let mut names = HashSet::new();
    for (at, port) in items(slice, "ports", &Path::new("")) {
        let name = text(port, "name");
        if !name.is_empty() {
            errors.rule(&at.child("name"), &port["name"], dns_label(name));
        }
        if !names.insert(name) {
            errors.duplicate(&at.child("name"), &json!(name));
        }
        protocols(errors, port, &at);
    }
}

fn slice_endpoint(errors: &mut Errors, endpoint: &Value, kind: &str, at: &Path) {
    let (addresses, place) = (list(endpoint, "addresses"), at.child("addresses"));
    if addresses.is_empty() {
        errors.required(&place, "must contain at least 1 address");
    } else if addresses.len() > 100 {
        errors.too_many(&place, addresses.len(), 100);
    }
    for (at, address) in items(endpoint, "addresses", at) {
        let text = address.as_str().unwrap_or_default();
        match kind {
            "IPv4" | "IPv6" => match rules::ip(text) {
                Err(why) => errors.invalid(&at, address, why),
                Ok(ip) if ip.is_ipv4() != (kind == "IPv4") => {
                    errors.invalid(&place, address, format!("must be an {kind} address"));
                }
                Ok(ip) => {
                    if matches!(ip, IpAddr::V6(_)) && ip.to_string() != text {
                        let words = format!("must be in canonical form ({:?})", ip.to_string());
                        errors.invalid(&at, address, words);
                    }
                    rules::endpoint_ip(errors, &at, address);
                }
            },
            "FQDN" => {
                let name = text.strip_suffix('.').unwrap_or(text);
                errors.rule(&at, address, dns_subdomain(name));
                if !name.contains('.') {
                    let words = "should be a domain with at least two segments separated by dots";
                    errors.invalid(&at, address, words);
                }
            }
            _ => {}
        }
    }
    host_and_node(errors, endpoint, at);
    selectors::labels(errors, endpoint, "deprecatedTopology", at);
    let (hints, at) = (&endpoint["hints"], at.child("hints"));
    for (field, rule) in
        [("forZones", label_value as fn(&str) -> Result<(), String>), ("forNodes", dns_subdomain)]
    {
        if list(hints, field).len() > 8 {
            errors.too_many(&at.child(field), list(hints, field).len(), 8);
            continue;
        }
        let mut seen = HashSet::new();
        for (at, hint) in items(hints, field, &at) {
            let name = text(hint, "name");
            if !seen.insert(name) {
                errors.duplicate(&at.child("name"), &name.into());
            }
            errors.rule(&at.child("name"), &name.into(), rule(name));
        }
    }
}
