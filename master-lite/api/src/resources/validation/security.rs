//! Security contexts of pods and containers.

use serde_json::{Value, json};

use super::errors::{Errors, Path, flag, items, list, set, text};
use super::rules;

/// `securityContext` of a pod. `spec` holds the host namespaces it asks for.
pub(super) fn pod_context(errors: &mut Errors, spec: &Value, at: &Path) {
    let context = &spec["securityContext"];
    let at = at.child("securityContext");
    ids(errors, context, &["fsGroup", "runAsUser", "runAsGroup"], &at);
    for (at, group) in items(context, "supplementalGroups", &at) {
        errors.rule(&at, group, rules::id(group.as_i64().unwrap_or_default()));
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let words = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&at.child("shareProcessNamespace"), &json!(true), words);
    }
    sysctls(errors, spec, &at);
    errors.optional_one_of(
        &at.child("fsGroupChangePolicy"),
        &context["fsGroupChangePolicy"],
        &["Always", "OnRootMismatch"],
    );
    errors.optional_one_of(
        &at.child("supplementalGroupsPolicy"),
        &context["supplementalGroupsPolicy"],
        &["Merge", "Strict"],
    );
    errors.optional_one_of(
        &at.child("seLinuxChangePolicy"),
        &context["seLinuxChangePolicy"],
        &["MountOption", "Recursive"],
    );
    profiles(errors, context, &at);
}

fn sysctls(errors: &mut Errors, spec: &Value, at: &Path) {
    const PATTERN: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
    let mut seen = Vec::new();
    for (at, sysctl) in items(&spec["securityContext"], "sysctls", at) {
        let (name, at) = (text(sysctl, "name"), at.child("name"));
        if name.is_empty() {
            errors.required(&at, "");
        } else if !is_sysctl(name) {
            errors.invalid(
                &at,
                &name.into(),
                format!("must have at most 253 characters and match regex {PATTERN}"),
            );
        } else if seen.contains(&name) {
            errors.duplicate(&at, &name.into());
        }
        seen.push(name);
        let dotted = name.replace('/', ".");
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p))
            || dotted == "kernel.sem";
        if flag(spec, "hostNetwork") && dotted.starts_with("net.") {
            errors.invalid(&at, &name.into(), "may not be specified when 'hostNetwork' is true");
        } else if flag(spec, "hostIPC") && ipc {
            errors.invalid(&at, &name.into(), "may not be specified when 'hostIPC' is true");
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let segment = |part: &str| {
        edge(part.as_bytes().first())
            && edge(part.as_bytes().last())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

/// `securityContext` of a container.
pub(super) fn container_context(errors: &mut Errors, container: &Value, host_users: bool, at: &Path) {
    let context = &container["securityContext"];
    let at = at.child("securityContext");
    ids(errors, context, &["runAsUser", "runAsGroup"], &at);
    let place = at.child("procMount");
    errors.optional_one_of(&place, &context["procMount"], &["Default", "Unmasked"]);
    if host_users && context["procMount"] == "Unmasked" {
        errors.invalid(&place, &context["procMount"], "`hostUsers` must be false to use `Unmasked`");
    }
    profiles(errors, context, &at);
    if context["allowPrivilegeEscalation"] == false {
        if flag(context, "privileged") {
            let words = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(&at, context, words);
        }
        if list(&context["capabilities"], "add").iter().any(|cap| cap == "CAP_SYS_ADMIN") {
            let words = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(&at, context, words);
        }
    }
}

fn ids(errors: &mut Errors, context: &Value, fields: &[&str], at: &Path) {
    for field in fields {
        if let Some(id) = context[*field].as_i64() {
            errors.rule(&at.child(field), &context[*field], rules::id(id));
        }
    }
}

fn profiles(errors: &mut Errors, context: &Value, at: &Path) {
    if set(context, "seccompProfile") {
        seccomp(errors, &context["seccompProfile"], &at.child("seccompProfile"));
    }
    if set(context, "appArmorProfile") {
        app_armor(errors, &context["appArmorProfile"], &at.child("appArmorProfile"));
    }
}

const PROFILE_TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];

fn seccomp(errors: &mut Errors, profile: &Value, at: &Path) {
    let kind = text(profile, "type");
    if kind.is_empty() {
        errors.required(&at.child("type"), "type is required when seccompProfile is set");
    } else if !PROFILE_TYPES.contains(&kind) {
        errors.unsupported(&at.child("type"), &profile["type"], PROFILE_TYPES);
    }
    let place = at.child("localhostProfile");
    match (kind == "Localhost", set(profile, "localhostProfile")) {
        (true, true) => rules::descending_path(errors, &place, &profile["localhostProfile"]),
        (true, false) => errors.required(&place, "must be set when seccomp type is Localhost"),
        (false, true) => errors.invalid(&place, profile, "can only be set when seccomp type is Localhost"),
        (false, false) => {}
    }
}

fn app_armor(errors: &mut Errors, profile: &Value, at: &Path) {
    let place = at.child("localhostProfile");
    let given = profile["localhostProfile"].as_str();
    match text(profile, "type") {
        "Localhost" => match given {
            Some(name) if name.trim() != name => {
                errors.invalid(&place, &name.into(), "must not be padded with whitespace");
            }
            Some(name) if name.len() > 4095 => errors.too_long(&place, 4095),
            None | Some("") => errors.required(&place, "must be set when AppArmor type is Localhost"),
            Some(_) => {}
        },
        "RuntimeDefault" | "Unconfined" => {
            if given.is_some() {
                let words = "can only be set when AppArmor type is Localhost";
                errors.invalid(&place, &profile["localhostProfile"], words);
            }
        }
        "" => errors.required(&at.child("type"), "type is required when appArmorProfile is set"),
        _ => errors.unsupported(&at.child("type"), &profile["type"], PROFILE_TYPES),
    }
}
