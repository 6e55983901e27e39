//! Services. Addresses and ports are allocated after these checks, so their absence is no fault.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::containers::PROTOCOLS;
use super::errors::{Errors, Path, items, list, number, set, text};
use super::{rules, selectors};
use crate::field::FieldError;
use crate::resources::metadata::{dns_label, dns_subdomain, qualified_name};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

/// `clusterIPs`, or `clusterIP` alone where a client sent only that.
fn cluster_ips(spec: &Value) -> Vec<Value> {
    match list(spec, "clusterIPs") {
        [] if !text(spec, "clusterIP").is_empty() => vec![spec["clusterIP"].clone()],
        ips => ips.to_vec(),
    }
}

fn is_headless(spec: &Value) -> bool {
    let ips = cluster_ips(spec);
    ips.len() == 1 && ips[0] == "None"
}

/// A Service, new or changed.
pub(in crate::resources) fn service(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    let (kind, headless) = (text(spec, "type"), is_headless(spec));
    if list(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        errors.required(&at.child("ports"), "");
    }
    if headless && matches!(kind, "LoadBalancer" | "NodePort") {
        let words = format!("may not be set to 'None' for {kind} services");
        errors.invalid(&at.child("clusterIPs").index(0), &json!("None"), words);
    }
    if kind == "ExternalName" {
        external_name(&mut errors, spec, &at);
    }
    ports(&mut errors, spec, &at);
    selectors::labels(&mut errors, spec, "selector", &at);
    errors.one_of(&at.child("sessionAffinity"), &spec["sessionAffinity"], &["ClientIP", "None"]);
    session_affinity(&mut errors, spec, &at.child("sessionAffinityConfig"));
    if kind != "ExternalName" {
        addresses(&mut errors, spec, &at);
    }
    for (at, ip) in items(spec, "externalIPs", &at) {
        rules::endpoint_ip(&mut errors, &at, ip);
    }
    errors.one_of(&at.child("type"), &spec["type"], TYPES);
    load_balancer(&mut errors, spec, kind, &at);
    traffic(&mut errors, spec, kind, &at);
    errors.0
}

fn external_name(errors: &mut Errors, spec: &Value, at: &Path) {
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let given = if field == "ipFamilyPolicy" { set(spec, field) } else { !list(spec, field).is_empty() };
        if given {
            errors.forbidden(&at.child(field), "may not be set for ExternalName services");
        }
    }
    let name = text(spec, "externalName");
    match name.strip_suffix('.').unwrap_or(name) {
        "" => errors.required(&at.child("externalName"), ""),
        name => errors.rule(&at.child("externalName"), &name.into(), dns_subdomain(name)),
    }
}

fn ports(errors: &mut Errors, spec: &Value, at: &Path) {
    let many = list(spec, "ports").len() > 1;
    let mut names = HashSet::new();
    for (at, port) in items(spec, "ports", at) {
        let name = text(port, "name");
        if name.is_empty() {
            if many {
                errors.required(&at.child("name"), "");
            }
        } else {
            errors.rule(&at.child("name"), &port["name"], dns_label(name));
            if !names.insert(name) {
                errors.duplicate(&at.child("name"), &port["name"]);
            }
        }
        errors.rule(
            &at.child("port"),
            &json!(number(port, "port")),
            rules::port_number(number(port, "port")),
        );
        errors.one_of(&at.child("protocol"), &port["protocol"], PROTOCOLS);
        rules::port(errors, &at.child("targetPort"), &port["targetPort"]);
        if let Some(protocol) = port["appProtocol"].as_str() {
            errors.rule(&at.child("appProtocol"), &port["appProtocol"], qualified_name(protocol));
        }
        if spec["type"] == "ClusterIP" && number(port, "nodePort") != 0 {
            errors.forbidden(&at.child("nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
    let (mut node_ports, mut seen) = (HashSet::new(), HashSet::new());
    for (at, port) in items(spec, "ports", at) {
        let (protocol, node) = (text(port, "protocol"), number(port, "nodePort"));
        if node != 0 && !node_ports.insert((protocol, node)) {
            errors.duplicate(&at.child("nodePort"), &json!(node));
        }
        if !seen.insert((protocol, number(port, "port"))) {
            errors.duplicate(&at, &json!({"port": port["port"], "protocol": protocol}));
        }
    }
}

fn session_affinity(errors: &mut Errors, spec: &Value, at: &Path) {
    let config = &spec["sessionAffinityConfig"];
    match text(spec, "sessionAffinity") {
        "ClientIP" => {
            let place = at.child("clientIP").child("timeoutSeconds");
            match config["clientIP"]["timeoutSeconds"].as_i64() {
                None => errors.required(at, "when session affinity type is ClientIP"),
                Some(seconds) if !(1..=86_400).contains(&seconds) => {
                    errors.invalid(&place, &json!(seconds), "must be greater than 0 and less than 86400");
                }
                Some(_) => {}
            }
        }
        "None" if !config.is_null() => errors.forbidden(at, "must not be set when session affinity is None"),
        _ => {}
    }
}

fn addresses(errors: &mut Errors, spec: &Value, at: &Path) {
    let (ips, place) = (cluster_ips(spec), at.child("clusterIPs"));
    let given = list(spec, "clusterIPs");
    match (text(spec, "clusterIP"), given.first()) {
        ("", Some(_)) => {
            let words = "must be empty when `clusterIP` is not specified";
            errors.invalid(&place, &spec["clusterIPs"], words);
        }
        (ip, Some(first)) if *first != ip => {
            errors.invalid(&place, &spec["clusterIPs"], "first value must match `clusterIP`");
        }
        _ => {}
    }
    let mut families = HashSet::new();
    for (at, family) in items(spec, "ipFamilies", at) {
        errors.one_of(&at, family, &["IPv4", "IPv6"]);
        if !families.insert(family.as_str()) {
            errors.duplicate(&at, family);
        }
    }
    errors.optional_one_of(
        &at.child("ipFamilyPolicy"),
        &spec["ipFamilyPolicy"],
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
    );
    let mut sound = Vec::new();
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && *ip == "None" {
            if ips.len() > 1 {
                errors.invalid(&place, &spec["clusterIPs"], "'None' must be the first and only value");
            }
            continue;
        }
        match rules::ip(ip.as_str().unwrap_or_default()) {
            Ok(address) => sound.push((i, address)),
            Err(why) => errors.invalid(&place.index(i), ip, why),
        }
    }
    if ips.len() > 2 {
        errors.invalid(&place, &spec["clusterIPs"], "may only hold up to 2 values");
    }
    if let [(_, first), (_, second)] = sound[..]
        && first.is_ipv4() == second.is_ipv4()
    {
        errors.invalid(&place, &spec["clusterIPs"], "may specify no more than one IP for each IP family");
    }
    for (i, address) in sound {
        let family = list(spec, "ipFamilies").get(i).and_then(Value::as_str);
        if let Some(family) = family.filter(|family| (*family == "IPv4") != address.is_ipv4()) {
            let words = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            errors.invalid(&place.index(i), &ips[i], words);
        }
    }
}

fn load_balancer(errors: &mut Errors, spec: &Value, kind: &str, at: &Path) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    if !list(spec, "loadBalancerSourceRanges").is_empty() {
        // The capital is upstream's.
        let place = at.child("LoadBalancerSourceRanges");
        if kind != "LoadBalancer" {
            errors.forbidden(&place, ONLY);
        }
        for (i, range) in list(spec, "loadBalancerSourceRanges").iter().enumerate() {
            let outcome = rules::cidr(range.as_str().unwrap_or_default().trim()).map(drop);
            errors.rule(&place.index(i), range, outcome);
        }
    }
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if kind != "LoadBalancer" && set(spec, field) {
            errors.forbidden(&at.child(field), ONLY);
        }
    }
    if let Some(class) = spec["loadBalancerClass"].as_str().filter(|_| kind == "LoadBalancer") {
        errors.rule(&at.child("loadBalancerClass"), &class.into(), qualified_name(class));
    }
}

fn traffic(errors: &mut Errors, spec: &Value, kind: &str, at: &Path) {
    let outside = matches!(kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !list(spec, "externalIPs").is_empty());
    let (policy, place) = (&spec["externalTrafficPolicy"], at.child("externalTrafficPolicy"));
    if outside {
        errors.one_of(&place, policy, &["Cluster", "Local"]);
    } else if !policy.as_str().unwrap_or_default().is_empty() {
        errors.invalid(&place, policy, "may only be set for externally-accessible services");
    }
    let (health, place) = (number(spec, "healthCheckNodePort"), at.child("healthCheckNodePort"));
    let checked = kind == "LoadBalancer" && *policy == "Local";
    if health != 0 && checked {
        errors.rule(&place, &json!(health), rules::port_number(health));
    } else if health != 0 {
        let words = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(&place, &json!(health), words);
    }
    let place = at.child("internalTrafficPolicy");
    if kind != "ExternalName" && spec["internalTrafficPolicy"].is_null() {
        errors.required(&place, "");
    }
    errors.optional_one_of(&place, &spec["internalTrafficPolicy"], &["Cluster", "Local"]);
    errors.optional_one_of(
        &at.child("trafficDistribution"),
        &spec["trafficDistribution"],
        &["PreferClose", "PreferSameZone", "PreferSameNode"],
    );
}

/// A change of a Service: its addresses stay.
pub(in crate::resources) fn service_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, before, at) = (&new["spec"], &old["spec"], Path::new("spec"));
    let external = spec["type"] == "ExternalName" || before["type"] == "ExternalName";
    let headless = is_headless(spec) && is_headless(before);
    if !external && !headless {
        let change = ("clusterIPs", "primary clusterIP can not be unset", "clusterIP");
        kept(&mut errors, &cluster_ips(spec), &cluster_ips(before), spec, change, &at);
    }
    if !external && !is_headless(spec) && !is_headless(before) {
        let change = ("ipFamilies", "primary ipFamily can not be unset", "ipFamily");
        kept(&mut errors, list(spec, "ipFamilies"), list(before, "ipFamilies"), spec, change, &at);
    }
    let balancers = spec["type"] == "LoadBalancer" && before["type"] == "LoadBalancer";
    if balancers && spec["loadBalancerClass"] != before["loadBalancerClass"] {
        errors.invalid(&at.child("loadBalancerClass"), &spec["loadBalancerClass"], "may not change once set");
    }
    let local = |spec: &Value| spec["externalTrafficPolicy"] == "Local";
    if balancers
        && local(spec)
        && local(before)
        && number(spec, "healthCheckNodePort") != number(before, "healthCheckNodePort")
    {
        errors.forbidden(&at.child("healthCheckNodePort"), "field is immutable");
    }
    errors.0.extend(service(new));
    errors.0
}

/// What was given first stays first; a second may come, and go with a change to one family.
fn kept(
    errors: &mut Errors,
    now: &[Value],
    before: &[Value],
    spec: &Value,
    (field, unset, what): (&str, &str, &str),
    at: &Path,
) {
    let place = at.child(field);
    if now.is_empty() && !before.is_empty() {
        return errors.invalid(&place.index(0), &json!(now), unset);
    }
    for (i, (now_one, old)) in now.iter().zip(before).enumerate() {
        if now_one != old && (i == 0 || now.len() == before.len()) {
            errors.invalid(&place.index(i), &json!(now), "may not change once set");
        }
    }
    if before.len() > now.len() && spec["ipFamilyPolicy"] != "SingleStack" {
        let words = format!("must be set to 'SingleStack' when releasing the secondary {what}");
        errors.invalid(&at.child("ipFamilyPolicy"), &spec["ipFamilyPolicy"], words);
    }
}
