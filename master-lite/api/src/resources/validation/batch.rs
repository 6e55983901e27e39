//! Jobs and CronJobs (`pkg/apis/batch/validation`).

use serde_json::{Value, json};

use super::errors::{Errors, Path, flag, items, list, number, same, set, text};
use super::pod::template;
use super::{cron, selectors};
use crate::field::FieldError;
use crate::resources::metadata::{dns_label, qualified_name};

const MAX_PARALLEL_INDEXED: i64 = 100_000;

/// A new Job.
pub(in crate::resources) fn job(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
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
    job_spec(&mut errors, spec, &at);
    selector(&mut errors, spec, &at);
    let place = at.child("completions");
    if spec["completionMode"] != "Indexed" {
        errors.immutable(&place, &spec["completions"], &before["completions"]);
    } else if spec["completions"] != before["completions"] && spec["completions"] != spec["parallelism"] {
        errors.invalid(&place, &spec["completions"], "can only be modified in tandem with spec.parallelism");
    }
    errors.immutable(&at.child("selector"), &spec["selector"], &before["selector"]);
    let (mut now, mut then) = (spec["template"].clone(), before["template"].clone());
    if flag(before, "suspend") {
        // A suspended job may still be sent elsewhere, or asked to use less.
        drop_schedulable(&mut now);
        drop_schedulable(&mut then);
    }
    if !same(&now, &then) {
        errors.invalid(&at.child("template"), &spec["template"], "field is immutable");
    }
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        errors.immutable(&at.child(field), &spec[field], &before[field]);
    }
    errors.0
}

fn drop_schedulable(template: &mut Value) {
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("labels");
        metadata.remove("annotations");
    }
    let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for field in ["nodeSelector", "tolerations", "schedulingGates", "resources"] {
        spec.remove(field);
    }
    if let Some(affinity) = spec.get_mut("affinity").and_then(Value::as_object_mut) {
        affinity.remove("nodeAffinity");
    }
    if spec.get("affinity").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty) {
        spec.remove("affinity");
    }
    for field in ["containers", "initContainers"] {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.remove("resources");
            }
        }
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

fn job_spec(errors: &mut Errors, spec: &Value, at: &Path) {
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
        failure_policy(errors, spec, &at.child("podFailurePolicy"));
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
    let parallelism = number(spec, "parallelism");
    if parallelism > MAX_PARALLEL_INDEXED {
        let words = "must be less than or equal to 100000 when completion mode is Indexed";
        errors.invalid(&at.child("parallelism"), &json!(parallelism), words);
    }
    let failed = number(spec, "maxFailedIndexes");
    if set(spec, "completions") && failed > number(spec, "completions") {
        let words = "must be less than or equal to completions";
        errors.invalid(&at.child("maxFailedIndexes"), &json!(failed), words);
    }
    if failed > MAX_PARALLEL_INDEXED {
        errors.invalid(&at.child("maxFailedIndexes"), &json!(failed), "must be less than or equal to 100000");
    }
    if set(spec, "successPolicy") {
        let at = at.child("successPolicy");
        if list(&spec["successPolicy"], "rules").is_empty() {
            let words = "at least one rules must be specified when the successPolicy is specified";
            errors.required(&at.child("rules"), words);
        }
        for (at, rule) in items(&spec["successPolicy"], "rules", &at) {
            if !set(rule, "succeededCount") && !set(rule, "succeededIndexes") {
                errors.required(&at, "at least one of succeededCount or succeededIndexes must be specified");
            }
            errors.not_negative(rule, &["succeededCount"], &at);
        }
    }
}

fn failure_policy(errors: &mut Errors, spec: &Value, at: &Path) {
    let rules = list(&spec["podFailurePolicy"], "rules");
    if rules.len() > 20 {
        errors.too_many(&at.child("rules"), rules.len(), 20);
    }
    for (at, rule) in items(&spec["podFailurePolicy"], "rules", at) {
        let place = at.child("action");
        match text(rule, "action") {
            "" => errors.required(&place, "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"),
            "FailIndex" if !set(spec, "backoffLimitPerIndex") => {
                errors.invalid(&place, &rule["action"], "requires the backoffLimitPerIndex to be set");
            }
            "Count" | "FailIndex" | "FailJob" | "Ignore" => {}
            _ => errors.unsupported(&place, &rule["action"], &["Count", "FailIndex", "FailJob", "Ignore"]),
        }
        let conditions = list(rule, "onPodConditions");
        match (set(rule, "onExitCodes"), !conditions.is_empty()) {
            (true, true) => {
                errors.forbidden(&at, "specifying both OnExitCodes and OnPodConditions is not supported");
            }
            (false, false) => {
                errors.forbidden(&at, "specifying one of OnExitCodes and OnPodConditions is required");
            }
            _ => {}
        }
        if set(rule, "onExitCodes") {
            exit_codes(errors, &rule["onExitCodes"], &at.child("onExitCodes"));
        }
        for (at, condition) in items(rule, "onPodConditions", &at) {
            errors.rule(&at.child("type"), &condition["type"], qualified_name(text(condition, "type")));
            errors.one_of(&at.child("status"), &condition["status"], &["False", "True", "Unknown"]);
        }
    }
}

fn exit_codes(errors: &mut Errors, rule: &Value, at: &Path) {
    errors.one_of(&at.child("operator"), &rule["operator"], &["In", "NotIn"]);
    let codes: Vec<i64> = list(rule, "values").iter().filter_map(Value::as_i64).collect();
    let place = at.child("values");
    if codes.is_empty() {
        errors.invalid(&place, &rule["values"], "at least one value is required");
    } else if codes.len() > 255 {
        errors.too_many(&place, codes.len(), 255);
    }
    for (i, code) in codes.iter().enumerate() {
        if *code == 0 && rule["operator"] == "In" {
            errors.invalid(&place.index(i), &json!(0), "must not be 0 for the In operator");
        }
        if codes[..i].contains(code) {
            errors.duplicate(&place.index(i), &json!(code));
        }
    }
    if !codes.is_sorted() {
        errors.invalid(&place, &rule["values"], "must be ordered");
    }
}

/// A CronJob, new or changed.
pub(in crate::resources) fn cron_job(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&new["spec"], Path::new("spec"));
    let schedule = text(spec, "schedule");
    let place = at.child("schedule");
    if schedule.is_empty() {
        errors.required(&place, "");
    } else {
        errors.rule(&place, &schedule.into(), cron::parse(schedule));
        let kept = old.is_some_and(|old| text(&old["spec"], "schedule").contains("TZ"));
        if schedule.contains("TZ") && !kept {
            let words = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errors.invalid(&place, &schedule.into(), words);
        } else if schedule.contains("TZ") && set(spec, "timeZone") {
            let words = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
            errors.invalid(&place, &schedule.into(), words);
        }
    }
    errors.not_negative(
        spec,
        &["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"],
        &at,
    );
    if let Some(zone) = spec["timeZone"].as_str() {
        errors.rule(&at.child("timeZone"), &zone.into(), cron::time_zone(zone));
    }
    errors.one_of(
        &at.child("concurrencyPolicy"),
        &spec["concurrencyPolicy"],
        &["Allow", "Forbid", "Replace"],
    );
    let (job, at) = (&spec["jobTemplate"]["spec"], at.child("jobTemplate").child("spec"));
    job_spec(&mut errors, job, &at);
    if set(job, "selector") {
        errors.invalid(&at.child("selector"), &job["selector"], "`selector` will be auto-generated");
    }
    if flag(job, "manualSelector") {
        errors.unsupported(&at.child("manualSelector"), &json!(true), &["nil", "false"]);
    }
    let name = text(&new["metadata"], "name");
    if old.is_none() && name.len() > 52 {
        let words = "must be no more than 52 characters";
        errors.invalid(&Path::new("metadata").child("name"), &name.into(), words);
    }
    errors.0
}
