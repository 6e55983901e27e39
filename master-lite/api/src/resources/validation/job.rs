//! Jobs (`pkg/apis/batch/validation`).

use serde_json::{Value, json};

use super::errors::{Errors, Path, flag, number, same, set, text};
use super::pod::template;
use super::{job_policies, selectors};
use crate::field::FieldError;
use crate::resources::metadata::{dns_label, dns_subdomain};

/// Most indexes at work at once, and most that may fail.
const MOST_INDEXED: i64 = 100_000;
/// Beyond so many completions the limits of a job that counts failures by index are closer, for the status has to
/// hold them all.
const MANY_COMPLETIONS: i64 = 100_000;
const MOST_OF_MANY: i64 = 10_000;
const MANAGED_BY_LENGTH: usize = 63;

/// A new Job.
pub(in crate::resources) fn job(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    generated_selector(&mut errors, object, true);
    job_spec(&mut errors, spec, &at);
    selector(&mut errors, spec, &at);
    let completions = number(spec, "completions");
    if spec["completionMode"] == "Indexed" && completions > 0 {
        let name = text(&object["metadata"], "name");
        let host = format!("{name}-{}", completions - 1);
        if dns_label(&host).is_err() {
            let words = format!("will not able to create pod with invalid DNS label: {host}");
            errors.invalid(&Path::new("metadata").child("name"), &name.into(), words);
        }
    }
    errors.0
}

/// What of a Job may change.
pub(in crate::resources) fn job_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, before, at) = (&new["spec"], &old["spec"], Path::new("spec"));
    let labels = &before["template"]["metadata"]["labels"];
    generated_selector(&mut errors, new, set(labels, JOB_NAME) && set(labels, CONTROLLER_UID));
    job_spec(&mut errors, spec, &at);
    selector(&mut errors, spec, &at);
    let place = at.child("completions");
    if spec["completionMode"] != "Indexed" {
        errors.immutable(&place, &spec["completions"], &before["completions"]);
    } else if spec["completions"] != before["completions"] && spec["completions"] != spec["parallelism"] {
        errors.invalid(&place, &spec["completions"], "can only be modified in tandem with spec.parallelism");
    }
    errors.immutable(&at.child("selector"), &spec["selector"], &before["selector"]);
    template_update(&mut errors, new, old, &at);
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        errors.immutable(&at.child(field), &spec[field], &before[field]);
    }
    errors.0
}

/// A job that rests may still be sent elsewhere, or asked to use less.
fn template_update(errors: &mut Errors, new: &Value, old: &Value, at: &Path) {
    let (spec, before) = (&new["spec"], &old["spec"]);
    let suspended = flag(before, "suspend");
    let rested = old["status"]["startTime"].is_null() || is_true(old, "Suspended");
    let (mut now, mut then) = (spec["template"].clone(), before["template"].clone());
    if suspended && rested && number(&old["status"], "active") == 0 {
        drop_schedulable(&mut now);
        drop_schedulable(&mut then);
        drop_resources(&mut now, &mut then);
    }
    if !same(&now, &then) {
        errors.invalid(&at.child("template"), &spec["template"], "field is immutable");
    }
}

/// Whether a condition of the job is true.
pub(super) fn is_true(job: &Value, kind: &str) -> bool {
    let conditions = job["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

fn drop_schedulable(template: &mut Value) {
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("labels");
        metadata.remove("annotations");
    }
    let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for field in ["nodeSelector", "tolerations", "schedulingGates"] {
        spec.remove(field);
    }
    if let Some(affinity) = spec.get_mut("affinity").and_then(Value::as_object_mut) {
        affinity.remove("nodeAffinity");
    }
    if spec.get("affinity").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty) {
        spec.remove("affinity");
    }
}

/// Resources of containers that both templates have in the same place.
fn drop_resources(now: &mut Value, then: &mut Value) {
    for field in ["containers", "initContainers"] {
        let list = |template: &Value| template["spec"][field].as_array().map_or(0, Vec::len);
        if list(now) != list(then) {
            continue;
        }
        for i in 0..list(now) {
            let at = |template: &Value| template["spec"][field][i]["name"].clone();
            if at(now) == at(then) {
                for template in [&mut *now, &mut *then] {
                    if let Some(container) = template["spec"][field][i].as_object_mut() {
                        container.remove("resources");
                    }
                }
            }
        }
    }
}

const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";

/// The labels that tell the job's pods from all others must be on its template as the server writes them.
fn generated_selector(errors: &mut Errors, object: &Value, prefixed: bool) {
    let (spec, metadata) = (&object["spec"], &object["metadata"]);
    if flag(spec, "manualSelector") || spec["selector"].is_null() {
        return;
    }
    let at = Path::new("spec").child("template").child("metadata").child("labels");
    let mut expected = json!({});
    for (key, value, wanted) in [
        ("controller-uid", &metadata["uid"], true),
        ("job-name", &metadata["name"], true),
        (CONTROLLER_UID, &metadata["uid"], prefixed),
        (JOB_NAME, &metadata["name"], prefixed),
    ] {
        if !wanted {
            continue;
        }
        expected[key] = value.clone();
        let labels = &spec["template"]["metadata"]["labels"];
        match labels[key].as_str() {
            None => {
                errors.required(&at.key(key), &format!("must be '{}'", value.as_str().unwrap_or_default()))
            }
            Some(text) if value != text => {
                let words = format!("must be '{}'", value.as_str().unwrap_or_default());
                errors.invalid(&at.key(key), labels, words);
            }
            Some(_) => {}
        }
    }
    if !selectors::matches(&spec["selector"], &expected) {
        let at = Path::new("spec").child("selector");
        errors.invalid(&at, &spec["selector"], "`selector` not auto-generated");
    }
}

fn selector(errors: &mut Errors, spec: &Value, at: &Path) {
    let selector = &spec["selector"];
    if selector.is_null() {
        return errors.required(&at.child("selector"), "");
    }
    selectors::label_selector(errors, selector, &at.child("selector"));
    let labels = &spec["template"]["metadata"]["labels"];
    if !selectors::matches(selector, labels) {
        let place = at.child("template").child("metadata").child("labels");
        errors.invalid(&place, labels, "`selector` does not match template `labels`");
    }
}

/// What every job says, whoever makes it.
pub(super) fn job_spec(errors: &mut Errors, spec: &Value, at: &Path) {
    errors.not_negative(
        spec,
        &[
            "parallelism",
            "completions",
            "activeDeadlineSeconds",
            "backoffLimit",
            "ttlSecondsAfterFinished",
            "backoffLimitPerIndex",
            "maxFailedIndexes",
        ],
        at,
    );
    if set(spec, "maxFailedIndexes") && !set(spec, "backoffLimitPerIndex") {
        errors.required(&at.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(manager) = spec["managedBy"].as_str() {
        domain_prefixed_path(errors, &at.child("managedBy"), manager);
        if manager.len() > MANAGED_BY_LENGTH {
            errors.too_long(&at.child("managedBy"), MANAGED_BY_LENGTH);
        }
    }
    errors.optional_one_of(&at.child("completionMode"), &spec["completionMode"], &["NonIndexed", "Indexed"]);
    if spec["completionMode"] == "Indexed" {
        indexed(errors, spec, at);
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
            if set(spec, field) {
                errors.invalid(&at.child(field), &spec[field], "requires indexed completion mode");
            }
        }
    }
    if set(spec, "podFailurePolicy") {
        job_policies::failure(errors, spec, &at.child("podFailurePolicy"));
    }
    let place = at.child("podReplacementPolicy");
    let policies: &[&str] =
        if set(spec, "podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    errors.optional_one_of(&place, &spec["podReplacementPolicy"], policies);
    let at = at.child("template");
    template(errors, &spec["template"], &at);
    let (restart, at) = (&spec["template"]["spec"]["restartPolicy"], at.child("spec").child("restartPolicy"));
    match restart.as_str() {
        None | Some("" | "Always") => errors.required(&at, "valid values: \"OnFailure\", \"Never\""),
        Some("OnFailure") if set(spec, "podFailurePolicy") => {
            errors.invalid(&at, restart, "only \"Never\" is supported when podFailurePolicy is specified");
        }
        Some("OnFailure" | "Never") => {}
        Some(_) => errors.unsupported(&at, restart, &["OnFailure", "Never"]),
    }
}

fn indexed(errors: &mut Errors, spec: &Value, at: &Path) {
    if !set(spec, "completions") {
        errors.required(&at.child("completions"), "when completion mode is Indexed");
    }
    let (parallelism, completions) = (number(spec, "parallelism"), number(spec, "completions"));
    let too_many = |errors: &mut Errors, field: &str, most: i64, when: &str| {
        if number(spec, field) > most {
            let words = format!("must be less than or equal to {most}{when}");
            errors.invalid(&at.child(field), &spec[field], words);
        }
    };
    too_many(errors, "parallelism", MOST_INDEXED, " when completion mode is Indexed");
    if set(spec, "completions") && number(spec, "maxFailedIndexes") > completions {
        let words = "must be less than or equal to completions";
        errors.invalid(&at.child("maxFailedIndexes"), &spec["maxFailedIndexes"], words);
    }
    too_many(errors, "maxFailedIndexes", MOST_INDEXED, "");
    if completions > MANY_COMPLETIONS && set(spec, "backoffLimitPerIndex") {
        if !set(spec, "maxFailedIndexes") {
            let words = format!("must be specified when completions is above {MANY_COMPLETIONS}");
            errors.required(&at.child("maxFailedIndexes"), &words);
        }
        let when =
            format!(" when completions are above {MANY_COMPLETIONS} and used with backoff limit per index");
        if parallelism > MOST_OF_MANY {
            too_many(errors, "parallelism", MOST_OF_MANY, &when);
        }
        too_many(errors, "maxFailedIndexes", MOST_OF_MANY, &when);
    }
    if set(spec, "successPolicy") {
        job_policies::success(errors, spec, &at.child("successPolicy"));
    }
}

/// `acme.io/foo`.
fn domain_prefixed_path(errors: &mut Errors, at: &Path, text: &str) {
    if text.is_empty() {
        return errors.required(at, "");
    }
    let Some((host, path)) = text.split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty())
    else {
        let words = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        return errors.invalid(at, &text.into(), words);
    };
    errors.rule(at, &host.into(), dns_subdomain(host));
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !path.bytes().all(fits) {
        let words = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errors.invalid(at, &path.into(), words);
    }
}
