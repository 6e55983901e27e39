//! Containers of the three sorts.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::errors::{Errors, Path, flag, items, list, number, set, text};
use super::volumes::Volumes;
use super::{env, probes, resources, rules, security, volumes};
use crate::resources::metadata::dns_label;

pub(super) const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
pub(super) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// What containers are checked against.
pub(super) struct Context<'v> {
    pub(super) spec: &'v Value,
    pub(super) volumes: Volumes<'v>,
    pub(super) claims: Vec<&'v str>,
}

impl Context<'_> {
    fn grace(&self) -> Option<i64> {
        self.spec["terminationGracePeriodSeconds"].as_i64()
    }
}

/// `containers`.
pub(super) fn containers(errors: &mut Errors, context: &Context<'_>, at: &Path) {
    let spec = context.spec;
    if list(spec, "containers").is_empty() {
        return errors.required(&at.child("containers"), "");
    }
    let mut names = HashSet::new();
    for (at, container) in items(spec, "containers", at) {
        common(errors, container, context, &at);
        if !names.insert(text(container, "name")) {
            errors.duplicate(&at.child("name"), &container["name"]);
        }
        probes::probes_and_hooks(errors, container, context.grace(), &spec["os"], &at);
        restart_policy(errors, container, &at);
    }
    host_ports(errors, list(spec, "containers"), &at.child("containers"));
}

/// `initContainers`.
pub(super) fn init_containers(errors: &mut Errors, context: &Context<'_>, at: &Path) {
    const SIDECARS_ONLY: &str = "may not be set for init containers without restartPolicy=Always";
    let spec = context.spec;
    let list_at = at.child("initContainers");
    let mut names: HashSet<&str> = list(spec, "containers").iter().map(|c| text(c, "name")).collect();
    for (at, container) in items(spec, "initContainers", at) {
        common(errors, container, context, &at);
        restart_policy(errors, container, &at);
        let name = text(container, "name");
        if names.contains(name) {
            errors.duplicate(&at.child("name"), &container["name"]);
        } else if !name.is_empty() {
            names.insert(name);
        }
        host_ports(errors, std::slice::from_ref(container), &list_at);
        if container["restartPolicy"] == "Always" {
            probes::probes_and_hooks(errors, container, context.grace(), &spec["os"], &at);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if set(container, field) {
                errors.forbidden(&at.child(field), SIDECARS_ONLY);
            }
        }
        for (at, policy) in items(container, "resizePolicy", &at) {
            if policy["restartPolicy"] == "RestartContainer" {
                let words = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                errors.invalid(&at.child("restartPolicy"), &policy["restartPolicy"], words);
            }
        }
    }
}

/// `ephemeralContainers`.
pub(super) fn ephemeral_containers(errors: &mut Errors, context: &Context<'_>, at: &Path) {
    const NOT_ALLOWED: &str = "cannot be set for an Ephemeral Container";
    let spec = context.spec;
    let others: HashSet<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|field| list(spec, field))
        .map(|container| text(container, "name"))
        .collect();
    let mut names = others.clone();
    for (at, container) in items(spec, "ephemeralContainers", at) {
        common(errors, container, context, &at);
        image_padding(errors, container, &at);
        if !names.insert(text(container, "name")) {
            errors.duplicate(&at.child("name"), &container["name"]);
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.not_found(&at.child("targetContainerName"), &target.into(), "");
        }
        for field in [
            "ports",
            "resources",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ] {
            // Defaulting leaves `resources: {}`, which is Go's zero value.
            let empty = match &container[field] {
                Value::Null => true,
                Value::Object(map) => field == "resources" && map.is_empty(),
                Value::Array(items) => items.is_empty(),
                _ => false,
            };
            if !empty {
                errors.forbidden(&at.child(field), NOT_ALLOWED);
            }
        }
        for (at, mount) in items(container, "volumeMounts", &at) {
            for field in ["subPath", "subPathExpr"] {
                if !text(mount, field).is_empty() {
                    errors.forbidden(&at.child(field), NOT_ALLOWED);
                }
            }
        }
    }
}

/// Pods, unlike templates, may not have blanks around an image's name.
pub(super) fn image_padding(errors: &mut Errors, container: &Value, at: &Path) {
    let image = text(container, "image");
    if image.trim() != image {
        errors.invalid(&at.child("image"), &image.into(), "must not have leading or trailing whitespace");
    }
}

fn common(errors: &mut Errors, container: &Value, context: &Context<'_>, at: &Path) {
    match text(container, "name") {
        "" => errors.required(&at.child("name"), ""),
        name => errors.rule(&at.child("name"), &container["name"], dns_label(name)),
    }
    errors.need(container, "image", at);
    errors.one_of(
        &at.child("terminationMessagePolicy"),
        &container["terminationMessagePolicy"],
        &["File", "FallbackToLogsOnError"],
    );
    ports(errors, container, at);
    env::env(errors, container, at);
    env::env_from(errors, container, at);
    volumes::mounts(errors, container, &context.volumes, at);
    volumes::devices(errors, container, &context.volumes, at);
    errors.one_of(&at.child("imagePullPolicy"), &container["imagePullPolicy"], PULL_POLICIES);
    resources::requirements(errors, &container["resources"], false, &context.claims, &at.child("resources"));
    resources::resize_policy(errors, container, text(context.spec, "restartPolicy"), at);
    security::container_context(errors, container, context.spec["hostUsers"] != false, at);
}

fn ports(errors: &mut Errors, container: &Value, at: &Path) {
    let mut names = HashSet::new();
    for (at, port) in items(container, "ports", at) {
        let name = text(port, "name");
        if !name.is_empty() {
            let broken = rules::port_name(name);
            if broken.is_empty() && !names.insert(name) {
                errors.duplicate(&at.child("name"), &port["name"]);
            }
            errors.rules(&at.child("name"), &port["name"], broken);
        }
        match number(port, "containerPort") {
            0 => errors.required(&at.child("containerPort"), ""),
            number => {
                errors.rule(&at.child("containerPort"), &port["containerPort"], rules::port_number(number))
            }
        }
        let host = number(port, "hostPort");
        if host != 0 {
            errors.rule(&at.child("hostPort"), &port["hostPort"], rules::port_number(host));
        }
        errors.one_of(&at.child("protocol"), &port["protocol"], PROTOCOLS);
    }
}

fn host_ports(errors: &mut Errors, containers: &[Value], at: &Path) {
    let mut seen = HashSet::new();
    for (i, container) in containers.iter().enumerate() {
        for (at, port) in items(container, "ports", &at.index(i)) {
            let number = number(port, "hostPort");
            let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
            if number != 0 && !seen.insert(key.clone()) {
                errors.duplicate(&at.child("hostPort"), &json!(key));
            }
        }
    }
}

/// Restart policy and rules of a single container (KEP-5307, KEP-5532).
fn restart_policy(errors: &mut Errors, container: &Value, at: &Path) {
    let rules = list(container, "restartPolicyRules");
    let place = at.child("restartPolicy");
    if !set(container, "restartPolicy") {
        if !rules.is_empty() {
            errors.required(&place, "must specify restartPolicy when restart rules are used");
        }
    } else {
        errors.optional_one_of(&place, &container["restartPolicy"], &["Always", "Never", "OnFailure"]);
    }
    if rules.len() > 20 {
        errors.too_many(&at.child("restartPolicyRules"), rules.len(), 20);
    }
    for (at, rule) in items(container, "restartPolicyRules", at) {
        if !matches!(text(rule, "action"), "Restart" | "RestartAllContainers") {
            let supported = &["Restart", "RestartAllContainers"];
            errors.unsupported(&at.child("action"), &rule["action"], supported);
        }
        let (codes, at) = (&rule["exitCodes"], at.child("exitCodes"));
        if codes.is_null() {
            errors.required(&at, "must be specified");
            continue;
        }
        if !matches!(text(codes, "operator"), "In" | "NotIn") {
            errors.unsupported(&at.child("operator"), &codes["operator"], &["In", "NotIn"]);
        }
        if list(codes, "values").len() > 255 {
            errors.too_many(&at.child("values"), list(codes, "values").len(), 255);
        }
    }
}

/// With the host's network, a port on the host is the container's own.
pub(super) fn host_network_ports(errors: &mut Errors, spec: &Value, is_pod: bool, at: &Path) {
    if !flag(spec, "hostNetwork") {
        return;
    }
    for (at, container) in items(spec, "containers", at) {
        for (at, port) in items(container, "ports", &at) {
            let (host, own) = (number(port, "hostPort"), number(port, "containerPort"));
            if (is_pod || host != 0) && host != own {
                let words = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid(&at.child("hostPort"), &json!(host), words);
            }
        }
    }
}
