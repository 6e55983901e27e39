//! Pods and their specs.

use serde_json::{Value, json};

use super::containers::{self, Context};
use super::errors::{Errors, Path, entries, flag, items, list, set, text};
use super::{env, resources, rules, scheduling, security, selectors, volumes};
use crate::field::FieldError;
use crate::resources::metadata::{dns_label, dns_subdomain, qualified_name};

/// A new pod.
pub(in crate::resources) fn pod(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    pod_and_spec(&mut errors, object);
    let (spec, at) = (&object["spec"], Path::new("spec"));
    if !list(spec, "ephemeralContainers").is_empty() {
        errors.forbidden(&at.child("ephemeralContainers"), "cannot be set on create");
    }
    if !text(spec, "nodeName").is_empty() && !list(spec, "schedulingGates").is_empty() {
        errors.forbidden(&at.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    errors.0
}

/// What holds for new and changed pods.
pub(super) fn pod_and_spec(errors: &mut Errors, object: &Value) {
    let (spec, at) = (&object["spec"], Path::new("spec"));
    pod_spec(errors, spec, Some(text(&object["metadata"], "name")), &at);
    if text(spec, "serviceAccountName").is_empty() {
        for (at, volume) in items(spec, "volumes", &at) {
            for (at, source) in items(&volume["projected"], "sources", &at.child("projected")) {
                if set(source, "serviceAccountToken") {
                    let words = "must not be specified when serviceAccountName is not set";
                    errors.forbidden(&at.child("serviceAccountToken"), words);
                }
            }
        }
    }
    for field in ["containers", "initContainers"] {
        for (at, container) in items(spec, field, &at) {
            containers::image_padding(errors, container, &at);
        }
    }
}

/// A spec; `pod` is the pod's name, `None` in a template.
pub(super) fn pod_spec(errors: &mut Errors, spec: &Value, pod: Option<&str>, at: &Path) {
    if spec["terminationGracePeriodSeconds"].is_null() {
        errors.required(&at.child("terminationGracePeriodSeconds"), "");
    }
    let volumes = volumes::volumes(errors, spec, pod.unwrap_or_default(), at);
    let claims = volumes::resource_claims(errors, spec, at);
    let context = Context { spec, volumes, claims };
    containers::containers(errors, &context, at);
    containers::init_containers(errors, &context, at);
    containers::ephemeral_containers(errors, &context, at);
    if set(spec, "resources") {
        pod_resources(errors, spec, &context.claims, at);
    }
    containers::host_network_ports(errors, spec, pod.is_some(), at);
    errors.one_of(&at.child("restartPolicy"), &spec["restartPolicy"], &["Always", "OnFailure", "Never"]);
    errors.one_of(
        &at.child("dnsPolicy"),
        &spec["dnsPolicy"],
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    selectors::labels(errors, spec, "nodeSelector", at);
    security::pod_context(errors, spec, at);
    scheduling::affinity(errors, spec, at);
    dns_config(errors, spec, at);
    volumes::readiness_gates(errors, spec, at);
    scheduling::gates(errors, spec, at);
    scheduling::spread(errors, spec, at);
    host_users(errors, spec, at);
    host_names(errors, spec, at);
    names(errors, spec, at);
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64() {
        let range = rules::in_range(seconds, 1, i64::from(i32::MAX));
        errors.rule(&at.child("activeDeadlineSeconds"), &spec["activeDeadlineSeconds"], range);
    }
    scheduling::tolerations(errors, spec, at);
    for (at, alias) in items(spec, "hostAliases", at) {
        errors.rule(&at.child("ip"), &json!(text(alias, "ip")), rules::ip(text(alias, "ip")).map(drop));
        for (at, name) in items(alias, "hostnames", &at) {
            errors.rule(&at, name, dns_subdomain(name.as_str().unwrap_or_default()));
        }
    }
    errors.optional_one_of(
        &at.child("preemptionPolicy"),
        &spec["preemptionPolicy"],
        &["PreemptLowerPriority", "Never"],
    );
    if set(spec, "overhead") {
        let at = at.child("overhead");
        resources::requirements(errors, &json!({"limits": spec["overhead"]}), false, &[], &at);
    }
    os(errors, spec, at);
    env::file_key_volumes(errors, spec, at);
}

fn pod_resources(errors: &mut Errors, spec: &Value, claims: &[&str], at: &Path) {
    let (own, at) = (&spec["resources"], at.child("resources"));
    if set(own, "claims") {
        errors.forbidden(&at.child("claims"), "claims may not be set for Resources at pod-level");
    }
    resources::requirements(errors, own, true, claims, &at);
}

/// Names of other objects.
fn names(errors: &mut Errors, spec: &Value, at: &Path) {
    for field in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        let name = text(spec, field);
        if !name.is_empty() || (field == "runtimeClassName" && set(spec, field)) {
            errors.rule(&at.child(field), &spec[field], dns_subdomain(name));
        }
    }
    for field in ["hostname", "subdomain"] {
        let name = text(spec, field);
        if !name.is_empty() {
            errors.rule(&at.child(field), &spec[field], dns_label(name));
        }
    }
}

fn dns_config(errors: &mut Errors, spec: &Value, at: &Path) {
    let (config, at) = (&spec["dnsConfig"], at.child("dnsConfig"));
    let servers = list(config, "nameservers");
    if spec["dnsPolicy"] == "None" {
        if config.is_null() {
            return errors.required(&at, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_empty() {
            let words = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return errors.required(&at.child("nameservers"), words);
        }
    }
    if servers.len() > 3 {
        errors.invalid(
            &at.child("nameservers"),
            &config["nameservers"],
            "must not have more than 3 nameservers",
        );
    }
    for (at, server) in items(config, "nameservers", &at) {
        errors.rule(&at, server, rules::ip(server.as_str().unwrap_or_default()).map(drop));
    }
    let searches = list(config, "searches");
    if searches.len() > 32 {
        errors.invalid(&at.child("searches"), &config["searches"], "must not have more than 32 search paths");
    }
    let length: usize = searches.iter().map(|s| s.as_str().unwrap_or_default().len() + 1).sum();
    if length > 2048 + 1 {
        let words = "must not have more than 2048 characters (including spaces) in the search list";
        errors.invalid(&at.child("searches"), &config["searches"], words);
    }
    for (at, search) in items(config, "searches", &at) {
        let name = search.as_str().unwrap_or_default();
        // Underscores are fine in a search path, and `.` alone means the root.
        let plain = name.strip_suffix('.').unwrap_or(name).replace('_', "a");
        if name != "." {
            errors.rule(&at, search, dns_subdomain(&plain));
        }
    }
    for (at, option) in items(config, "options", &at) {
        if text(option, "name").is_empty() {
            errors.required(&at, "must not be empty");
        }
    }
}

fn host_users(errors: &mut Errors, spec: &Value, at: &Path) {
    if spec["hostUsers"] != false {
        return;
    }
    // The capitals are upstream's.
    for (field, name) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if flag(spec, field) {
            errors.forbidden(&at.child(name), "when `hostUsers` is false");
        }
    }
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        for (at, container) in items(spec, field, at) {
            if !list(container, "volumeDevices").is_empty() {
                errors.forbidden(&at.child("volumeDevices"), "when `hostUsers` is false");
            }
        }
    }
}

fn host_names(errors: &mut Errors, spec: &Value, at: &Path) {
    let Some(name) = spec["hostnameOverride"].as_str() else { return };
    let at = at.child("hostnameOverride");
    if flag(spec, "setHostnameAsFQDN") {
        errors.forbidden(&at, "may not be specified when setHostnameAsFQDN is true");
    }
    if flag(spec, "hostNetwork") {
        errors.forbidden(&at, "may not be specified when hostNetwork is true");
    }
    if name.len() > 64 {
        errors.too_long(&at, 64);
    }
    errors.rule(&at, &name.into(), dns_subdomain(name));
}

fn os(errors: &mut Errors, spec: &Value, at: &Path) {
    if !set(spec, "os") {
        return;
    }
    match text(&spec["os"], "name") {
        "" => errors.required(&at.child("os").child("name"), ""),
        "linux" => {
            let place = at.child("securityContext").child("windowsOptions");
            if set(&spec["securityContext"], "windowsOptions") {
                errors.forbidden(&place, "windows options cannot be set for a linux pod");
            }
            for field in ["containers", "initContainers", "ephemeralContainers"] {
                for (at, container) in items(spec, field, at) {
                    if set(&container["securityContext"], "windowsOptions") {
                        let place = at.child("securityContext").child("windowsOptions");
                        errors.forbidden(&place, "windows options cannot be set for a linux pod");
                    }
                }
            }
        }
        "windows" => {}
        _ => errors.unsupported(&at.child("os"), &spec["os"]["name"], &["linux", "windows"]),
    }
}

/// A pod template at a path.
pub(super) fn template(errors: &mut Errors, template: &Value, at: &Path) {
    // Upstream leaves `metadata` out of these two paths.
    selectors::labels(errors, &template["metadata"], "labels", at);
    for (key, _) in entries(&template["metadata"], "annotations") {
        let outcome = qualified_name(&key.to_lowercase());
        errors.rule(&at.child("annotations"), &key.as_str().into(), outcome);
    }
    let at = at.child("spec");
    pod_spec(errors, &template["spec"], None, &at);
    if !list(&template["spec"], "ephemeralContainers").is_empty() {
        errors
            .forbidden(&at.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}
