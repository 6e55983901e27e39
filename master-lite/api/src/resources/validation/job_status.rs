//! What a job's status may say, and how it may change (`pkg/apis/batch/validation`). Since other controllers than
//! upstream's may write it (`managedBy`), readers rely on these rules. Most hold only for what changes: a status that
//! breaks one already may still be mended elsewhere.

use serde_json::{Value, json};

use super::errors::{Errors, Path, flag, list, number, same, set, text};
use super::job::is_true;
use super::job_policies::indexes;
use crate::field::FieldError;

/// A job's new status.
pub(in crate::resources) fn job_status_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let at = Path::new("status");
    counts(&mut errors, &new["status"], &at);
    let change = Change { new, old };
    conditions(&mut errors, &change, &at);
    finished(&mut errors, &change, &at);
    times(&mut errors, &change, &at);
    of_indexes(&mut errors, &change, &at);
    transitions(&mut errors, &change, &at);
    errors.0
}

struct Change<'a> {
    new: &'a Value,
    old: &'a Value,
}

impl Change<'_> {
    fn status(&self) -> &Value {
        &self.new["status"]
    }

    fn is(&self, condition: &str) -> bool {
        is_true(self.new, condition)
    }

    fn was(&self, condition: &str) -> bool {
        is_true(self.old, condition)
    }

    fn is_finished(&self) -> bool {
        self.is("Complete") || self.is("Failed")
    }

    /// Whether one of these conditions has become true, or has ceased to be.
    fn turned(&self, conditions: &[&str]) -> bool {
        conditions.iter().any(|condition| self.is(condition) != self.was(condition))
    }

    fn finish_turned(&self) -> bool {
        self.is_finished() != (self.was("Complete") || self.was("Failed"))
    }

    /// Whether one of these fields has changed.
    fn changed(&self, fields: &[&str]) -> bool {
        fields.iter().any(|field| {
            let empty = |value: &Value| match value {
                // Go leaves out zeros and empty texts.
                Value::Number(n)
                    if n.as_i64() == Some(0) && matches!(*field, "active" | "succeeded" | "failed") =>
                {
                    Value::Null
                }
                Value::String(text) if text.is_empty() && *field == "completedIndexes" => Value::Null,
                other => other.clone(),
            };
            !same(&empty(&self.new["status"][*field]), &empty(&self.old["status"][*field]))
        })
    }
}

fn counts(errors: &mut Errors, status: &Value, at: &Path) {
    errors.not_negative(status, &["active", "succeeded", "failed", "ready", "terminating"], at);
    let place = at.child("uncountedTerminatedPods");
    let mut seen: Vec<&str> = Vec::new();
    for field in ["succeeded", "failed"] {
        for (i, uid) in list(&status["uncountedTerminatedPods"], field).iter().enumerate() {
            let place = place.child(field).index(i);
            match uid.as_str().unwrap_or_default() {
                "" => errors.invalid(&place, uid, "must not be empty"),
                text if seen.contains(&text) => errors.duplicate(&place, uid),
                text => seen.push(text),
            }
        }
    }
}

fn conditions(errors: &mut Errors, change: &Change, at: &Path) {
    let at = at.child("conditions");
    let mut refuse = |wrong: bool, words: &str| {
        if wrong {
            errors.refused(&at, words);
        }
    };
    let (complete, failed) = (change.is("Complete"), change.is("Failed"));
    let (met, target) = (change.is("SuccessCriteriaMet"), change.is("FailureTarget"));
    let turned = |conditions: &[&str]| change.turned(conditions);
    refuse(
        turned(&["Complete", "Failed"]) && complete && failed,
        "cannot set Complete=True and Failed=true conditions",
    );
    refuse(
        turned(&["Complete", "FailureTarget"]) && complete && target,
        "cannot set Complete=True and FailureTarget=true conditions",
    );
    refuse(
        (turned(&["Failed"]) || change.changed(&["failedIndexes"])) && failed && !target,
        "cannot set Failed=True condition without the FailureTarget=true condition",
    );
    refuse(
        turned(&["Complete", "SuccessCriteriaMet"]) && complete && !met,
        "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
    );
    refuse(met && failed, "cannot set SuccessCriteriaMet=True and Failed=true conditions");
    refuse(met && target, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    refuse(
        set(&change.new["spec"], "successPolicy") && !met && complete,
        "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
    );
}

fn finished(errors: &mut Errors, change: &Change, at: &Path) {
    let (status, spec) = (change.status(), &change.new["spec"]);
    let relevant =
        |fields: &[&str]| change.is_finished() && (change.finish_turned() || change.changed(fields));
    if relevant(&["active"]) && number(status, "active") > 0 {
        errors.invalid(&at.child("active"), &status["active"], "active>0 is invalid for finished job");
    }
    let never_begun = flag(spec, "suspend") && spec["completions"] == 0;
    if relevant(&["startTime"]) && !set(status, "startTime") && !never_begun {
        errors.required(&at.child("startTime"), "startTime is required for finished job");
    }
    let uncounted = &status["uncountedTerminatedPods"];
    let counted = list(uncounted, "succeeded").is_empty() && list(uncounted, "failed").is_empty();
    if relevant(&["uncountedTerminatedPods"]) && !counted {
        errors.invalid(&at.child("uncountedTerminatedPods"), uncounted, "must be empty for finished job");
    }
    if relevant(&["terminating"]) && number(status, "terminating") > 0 {
        let words = "terminating>0 is invalid for finished job";
        errors.invalid(&at.child("terminating"), &status["terminating"], words);
    }
    if change.changed(&["ready", "active"]) && number(status, "ready") > number(status, "active") {
        errors.invalid(&at.child("ready"), &status["ready"], "cannot set more ready pods than active");
    }
}

fn times(errors: &mut Errors, change: &Change, at: &Path) {
    let status = change.status();
    let (start, end, place) = (&status["startTime"], &status["completionTime"], at.child("completionTime"));
    if change.turned(&["Complete"]) || change.changed(&["completionTime"]) {
        match (end.is_null(), change.is("Complete")) {
            (false, false) => {
                errors.invalid(
                    &place,
                    end,
                    "cannot set completionTime when there is no Complete=True condition",
                );
            }
            (true, true) => errors.required(&place, "completionTime is required for Complete jobs"),
            _ => {}
        }
    }
    // Times are in one form (UTC, whole seconds), so that their texts compare as they do.
    if change.changed(&["startTime", "completionTime"])
        && let (Some(start), Some(finish)) = (start.as_str(), end.as_str())
        && finish < start
    {
        errors.invalid(&place, end, "must be equal to or after `startTime`");
    }
    let before = &change.old["status"];
    if set(before, "completionTime") && !end.is_null() && change.changed(&["completionTime"]) {
        errors.invalid(&place, end, "field is immutable");
    }
    let is_off = |c: &Value| c["type"] == "Suspended" && c["status"] == "False";
    let resuming = change.was("Suspended") && list(status, "conditions").iter().any(is_off);
    let suspended = flag(&change.new["spec"], "suspend");
    if set(before, "startTime") && change.changed(&["startTime"]) && !resuming && !suspended {
        errors.invalid(&at.child("startTime"), start, "field is immutable for unsuspended job once set");
    }
}

fn of_indexes(errors: &mut Errors, change: &Change, at: &Path) {
    let (status, spec) = (change.status(), &change.new["spec"]);
    let completions = spec["completions"].as_i64();
    let (completed, failed) = (text(status, "completedIndexes"), text(status, "failedIndexes"));
    let completed_changed = change.changed(&["completedIndexes"]);
    let failed_changed = change.changed(&["failedIndexes"]);
    let mut read = |field: &str, when: bool| {
        if let Some(completions) = completions.filter(|_| when)
            && let Err(why) = indexes(text(status, field), completions)
        {
            errors.invalid(&at.child(field), &status[field], format!("error parsing {field}: {why}"));
        }
    };
    read("completedIndexes", completed_changed);
    read("failedIndexes", failed_changed && set(spec, "backoffLimitPerIndex"));
    if completed_changed && !completed.is_empty() && spec["completionMode"] != "Indexed" {
        let words = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.invalid(&at.child("completedIndexes"), &status["completedIndexes"], words);
    }
    let place = at.child("failedIndexes");
    if failed_changed && set(status, "failedIndexes") && !set(spec, "backoffLimitPerIndex") {
        let words = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.invalid(&place, &status["failedIndexes"], words);
    }
    if (failed_changed || completed_changed)
        && let Some(completions) = completions
        && let Some(index) = overlap(completed, failed, completions)
    {
        let words = format!("failedIndexes and completedIndexes overlap at index: {index}");
        errors.invalid(&place, &status["failedIndexes"], words);
    }
}

/// The first index that is in both. What cannot be read is complained of elsewhere.
fn overlap(a: &str, b: &str, completions: i64) -> Option<i64> {
    let (a, b) = (indexes(a, completions).ok()?, indexes(b, completions).ok()?);
    let (mut i, mut j) = (0, 0);
    while let (Some(left), Some(right)) = (a.get(i), b.get(j)) {
        if left.0 <= right.1 && right.0 <= left.1 {
            return Some(left.0.max(right.0));
        }
        if left.0 <= right.0 { i += 1 } else { j += 1 }
    }
    None
}

fn transitions(errors: &mut Errors, change: &Change, at: &Path) {
    let conditions = at.child("conditions");
    for terminal in ["Failed", "Complete", "FailureTarget"] {
        if change.was(terminal) && !change.is(terminal) {
            errors.refused(&conditions, format!("cannot disable the terminal {terminal}=True condition"));
        }
    }
    let spec = &change.new["spec"];
    let elastic = spec["completionMode"] == "Indexed" && spec["completions"] == spec["parallelism"];
    for (field, fixed) in [("failed", true), ("succeeded", !elastic)] {
        if fixed && number(change.status(), field) < number(&change.old["status"], field) {
            let value = json!(number(change.status(), field));
            errors.invalid(&at.child(field), &value, format!("cannot decrease the {field} counter"));
        }
    }
    let (met, was_met) = (change.is("SuccessCriteriaMet"), change.was("SuccessCriteriaMet"));
    if was_met && !met {
        errors.refused(&conditions, "cannot disable the SuccessCriteriaMet=True condition");
    }
    if change.was("Complete") && !was_met && met {
        let words = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        errors.refused(&conditions, words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spec: Value, old: Value, new: Value, expected: &[&str]) {
        let job = |status: Value| json!({"spec": spec.clone(), "status": status});
        let errors = job_status_update(&job(new), &job(old));
        let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(shown, expected);
    }

    fn on(conditions: &[&str]) -> Value {
        conditions.iter().map(|kind| json!({"type": kind, "status": "True"})).collect()
    }

    const START: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn a_job_ends_step_by_step() {
        let done = json!({"startTime": START, "completionTime": START, "succeeded": 1,
                          "conditions": on(&["SuccessCriteriaMet", "Complete"])});
        let before = json!({"startTime": START, "conditions": on(&["SuccessCriteriaMet"])});
        check(json!({}), before, done.clone(), &[]);
        let hasty = json!({"active": 1, "ready": 2, "terminating": 1, "conditions": on(&["Complete"]),
                           "uncountedTerminatedPods": {"failed": ["u", "u"]}});
        check(
            json!({}),
            json!({}),
            hasty,
            &[
                "status.uncountedTerminatedPods.failed[1]: Duplicate value: \"u\"",
                "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
                "status.active: Invalid value: 1: active>0 is invalid for finished job",
                "status.startTime: Required value: startTime is required for finished job",
                "status.uncountedTerminatedPods: Invalid value: {\"failed\":[\"u\",\"u\"]}: must be empty for finished job",
                "status.terminating: Invalid value: 1: terminating>0 is invalid for finished job",
                "status.ready: Invalid value: 2: cannot set more ready pods than active",
                "status.completionTime: Required value: completionTime is required for Complete jobs",
            ],
        );
        check(
            json!({}),
            done,
            json!({"startTime": START, "succeeded": 0}),
            &[
                "status.conditions: Invalid value: cannot disable the terminal Complete=True condition",
                "status.succeeded: Invalid value: 0: cannot decrease the succeeded counter",
                "status.conditions: Invalid value: cannot disable the SuccessCriteriaMet=True condition",
            ],
        );
        check(
            json!({}),
            json!({"startTime": START}),
            json!({"startTime": START, "conditions": on(&["Failed"])}),
            &[
                "status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition",
            ],
        );
    }

    #[test]
    fn the_start_of_a_job_stays() {
        let later = "2026-01-02T00:00:00Z";
        check(
            json!({}),
            json!({"startTime": START}),
            json!({"startTime": later}),
            &[
                "status.startTime: Invalid value: \"2026-01-02T00:00:00Z\": field is immutable for unsuspended job once set",
            ],
        );
        check(json!({"suspend": true}), json!({"startTime": START}), json!({}), &[]);
        let resumed = json!([{"type": "Suspended", "status": "False"}]);
        let old = json!({"startTime": START, "conditions": on(&["Suspended"])});
        check(json!({}), old, json!({"startTime": later, "conditions": resumed}), &[]);
    }

    #[test]
    fn indexes_are_sound() {
        let indexed = json!({"completionMode": "Indexed", "completions": 3, "backoffLimitPerIndex": 1});
        check(indexed.clone(), json!({}), json!({"completedIndexes": "0,2", "failedIndexes": "1"}), &[]);
        check(
            indexed,
            json!({}),
            json!({"completedIndexes": "0-1", "failedIndexes": "1,3"}),
            &[
                "status.failedIndexes: Invalid value: \"1,3\": error parsing failedIndexes: too large index: \"3\"",
            ],
        );
        check(
            json!({"completions": 3}),
            json!({}),
            json!({"completedIndexes": "0", "failedIndexes": ""}),
            &[
                "status.completedIndexes: Invalid value: \"0\": cannot set non-empty completedIndexes when non-indexed completion mode",
                "status.failedIndexes: Invalid value: \"\": cannot set non-null failedIndexes when backoffLimitPerIndex is null",
            ],
        );
    }
}
