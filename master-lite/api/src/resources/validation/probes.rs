//! Probes and lifecycle handlers.

use serde_json::{Value, json};

use super::errors::{Errors, Path, items, list, number, set, text};
use super::rules;

/// All probes and hooks of a container. `grace` is the pod's termination grace period.
pub(super) fn probes_and_hooks(
    errors: &mut Errors,
    container: &Value,
    grace: Option<i64>,
    os: &Value,
    at: &Path,
) {
    if set(container, "lifecycle") {
        lifecycle(errors, &container["lifecycle"], grace, os, &at.child("lifecycle"));
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let (probe_value, at) = (&container[kind], at.child(kind));
        if probe_value.is_null() {
            continue;
        }
        probe(errors, probe_value, grace, &at);
        if kind == "readinessProbe" {
            if set(probe_value, "terminationGracePeriodSeconds") {
                errors.invalid(
                    &at.child("terminationGracePeriodSeconds"),
                    &probe_value["terminationGracePeriodSeconds"],
                    "must not be set for readinessProbes",
                );
            }
        } else if number(probe_value, "successThreshold") != 1 {
            errors.invalid(
                &at.child("successThreshold"),
                &json!(number(probe_value, "successThreshold")),
                "must be 1",
            );
        }
    }
}

fn probe(errors: &mut Errors, probe: &Value, grace: Option<i64>, at: &Path) {
    handler(errors, probe, &["exec", "httpGet", "tcpSocket", "grpc"], grace, at);
    let counts =
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
    errors.not_negative(probe, &counts, at);
    let own_grace = &probe["terminationGracePeriodSeconds"];
    if own_grace.as_i64().is_some_and(|seconds| seconds <= 0) {
        errors.invalid(&at.child("terminationGracePeriodSeconds"), own_grace, "must be greater than 0");
    }
}

fn lifecycle(errors: &mut Errors, lifecycle: &Value, grace: Option<i64>, os: &Value, at: &Path) {
    for hook in ["postStart", "preStop"] {
        if set(lifecycle, hook) {
            handler(
                errors,
                &lifecycle[hook],
                &["exec", "httpGet", "tcpSocket", "sleep"],
                grace,
                &at.child(hook),
            );
        }
    }
    if set(lifecycle, "stopSignal") && os.is_null() {
        errors.forbidden(&at.child("stopSignal"), "may not be set for containers with empty `spec.os.name`");
    }
}

fn handler(errors: &mut Errors, handler: &Value, kinds: &[&str], grace: Option<i64>, at: &Path) {
    let mut handlers = 0;
    for kind in kinds.iter().filter(|kind| set(handler, kind)) {
        let (action, at) = (&handler[*kind], at.child(kind));
        handlers += 1;
        if handlers > 1 {
            errors.forbidden(&at, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" if list(action, "command").is_empty() => errors.required(&at.child("command"), ""),
            "httpGet" => http_get(errors, action, &at),
            "tcpSocket" | "grpc" => rules::port(errors, &at.child("port"), &action["port"]),
            "sleep" => {
                let seconds = number(action, "seconds");
                if let Some(grace) = grace.filter(|grace| seconds < 0 || seconds > *grace) {
                    let words =
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    errors.invalid(&at, &json!(seconds), words);
                }
            }
            _ => {}
        }
    }
    if handlers == 0 {
        errors.required(at, "must specify a handler type");
    }
}

fn http_get(errors: &mut Errors, http: &Value, at: &Path) {
    errors.need(http, "path", at);
    rules::port(errors, &at.child("port"), &http["port"]);
    if !matches!(text(http, "scheme"), "HTTP" | "HTTPS") {
        errors.unsupported(&at.child("scheme"), &http["scheme"], &["HTTP", "HTTPS"]);
    }
    for (_, header) in items(http, "httpHeaders", at) {
        errors.rule(&at.child("httpHeaders"), &header["name"], rules::header_name(text(header, "name")));
    }
}
