//! Jobs' policies about pods that fail and indexes that succeed (`pkg/apis/batch/validation`).

use serde_json::{Value, json};

use super::errors::{Errors, Path, items, list, number, set, text};
use crate::resources::metadata::qualified_name;

const MOST_RULES: usize = 20;
const MOST_CONDITIONS: usize = 20;
const MOST_EXIT_CODES: usize = 255;
const INDEXES_LENGTH: usize = 64 * 1024;

/// `podFailurePolicy`.
pub(super) fn failure(errors: &mut Errors, spec: &Value, at: &Path) {
    let rules = list(&spec["podFailurePolicy"], "rules");
    if rules.len() > MOST_RULES {
        errors.too_many(&at.child("rules"), rules.len(), MOST_RULES);
    }
    let pod = &spec["template"]["spec"];
    let containers = list(pod, "containers").iter().chain(list(pod, "initContainers"));
    let containers: Vec<&str> = containers.map(|container| text(container, "name")).collect();
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
        if set(rule, "onExitCodes") {
            exit_codes(errors, &rule["onExitCodes"], &at.child("onExitCodes"), &containers);
        }
        conditions(errors, rule, &at);
        match (set(rule, "onExitCodes"), !list(rule, "onPodConditions").is_empty()) {
            (true, true) => {
                errors.refused(&at, "specifying both OnExitCodes and OnPodConditions is not supported");
            }
            (false, false) => {
                errors.refused(&at, "specifying one of OnExitCodes and OnPodConditions is required");
            }
            _ => {}
        }
    }
}

fn conditions(errors: &mut Errors, rule: &Value, at: &Path) {
    let count = list(rule, "onPodConditions").len();
    if count > MOST_CONDITIONS {
        errors.too_many(&at.child("onPodConditions"), count, MOST_CONDITIONS);
    }
    for (at, condition) in items(rule, "onPodConditions", at) {
        errors.rule(&at.child("type"), &condition["type"], qualified_name(text(condition, "type")));
        let place = at.child("status");
        match text(condition, "status") {
            "" => errors.required(&place, "valid values: [\"False\" \"True\" \"Unknown\"]"),
            _ => errors.one_of(&place, &condition["status"], &["False", "True", "Unknown"]),
        }
    }
}

fn exit_codes(errors: &mut Errors, rule: &Value, at: &Path, containers: &[&str]) {
    let place = at.child("operator");
    match text(rule, "operator") {
        "" => errors.required(&place, "valid values: [\"In\" \"NotIn\"]"),
        _ => errors.one_of(&place, &rule["operator"], &["In", "NotIn"]),
    }
    if let Some(name) = rule["containerName"].as_str()
        && !containers.contains(&name)
    {
        let words = "must be one of the container or initContainer names in the pod template";
        errors.invalid(&at.child("containerName"), &rule["containerName"], words);
    }
    let codes: Vec<i64> = list(rule, "values").iter().filter_map(Value::as_i64).collect();
    let place = at.child("values");
    if codes.is_empty() {
        errors.invalid(&place, &rule["values"], "at least one value is required");
    } else if codes.len() > MOST_EXIT_CODES {
        errors.too_many(&place, codes.len(), MOST_EXIT_CODES);
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

/// `successPolicy`.
pub(super) fn success(errors: &mut Errors, spec: &Value, at: &Path) {
    let rules = list(&spec["successPolicy"], "rules");
    if rules.is_empty() {
        let words = "at least one rules must be specified when the successPolicy is specified";
        errors.required(&at.child("rules"), words);
    }
    if rules.len() > MOST_RULES {
        errors.too_many(&at.child("rules"), rules.len(), MOST_RULES);
    }
    let completions = number(spec, "completions");
    for (at, rule) in items(&spec["successPolicy"], "rules", at) {
        if !set(rule, "succeededCount") && !set(rule, "succeededIndexes") {
            errors.required(&at, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = 0;
        if let Some(text) = rule["succeededIndexes"].as_str() {
            let place = at.child("succeededIndexes");
            if text.len() > INDEXES_LENGTH {
                errors.too_long(&place, INDEXES_LENGTH);
            }
            match indexes(text, completions) {
                Ok(intervals) => total = intervals.iter().map(|(first, last)| last - first + 1).sum(),
                Err(why) => {
                    let words = format!("error parsing succeededIndexes: {why}");
                    errors.invalid(&place, &rule["succeededIndexes"], words);
                }
            }
        }
        if let Some(count) = rule["succeededCount"].as_i64() {
            errors.not_negative(rule, &["succeededCount"], &at);
            let place = at.child("succeededCount");
            if count > completions {
                let words = format!(
                    "must be less than or equal to {completions} (the number of specified completions)"
                );
                errors.invalid(&place, &rule["succeededCount"], words);
            }
            if set(rule, "succeededIndexes") && count > total {
                let words = format!(
                    "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
                );
                errors.invalid(&place, &rule["succeededCount"], words);
            }
        }
    }
}

/// Reads `1,3-5,7`: intervals in rising order, all below `completions`.
pub(super) fn indexes(text: &str, completions: i64) -> Result<Vec<(i64, i64)>, String> {
    let mut intervals: Vec<(i64, i64)> = Vec::new();
    if text.is_empty() {
        return Ok(intervals);
    }
    for part in text.split(',') {
        let (first, last) = interval(part, completions)?;
        if let Some((_, before)) = intervals.last().filter(|(_, before)| *before >= first) {
            return Err(format!("non-increasing order, previous: {before}, current: {first}"));
        }
        intervals.push((first, last));
    }
    Ok(intervals)
}

fn interval(text: &str, completions: i64) -> Result<(i64, i64), String> {
    let number = |text: &str| match text.parse::<i64>() {
        Err(_) => Err(format!("cannot convert string to integer for index: {text:?}")),
        Ok(index) if index >= completions => Err(format!("too large index: {text:?}")),
        Ok(index) => Ok(index),
    };
    match text.split('-').collect::<Vec<_>>()[..] {
        [only] => number(only).map(|index| (index, index)),
        [first, last] => match (number(first)?, number(last)?) {
            (first, last) if first >= last => {
                Err(format!("non-increasing order, previous: {first}, current: {last}"))
            }
            bounds => Ok(bounds),
        },
        _ => Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_indexes() {
        assert_eq!(indexes("", 5), Ok(vec![]));
        assert_eq!(indexes("0,2-4", 5), Ok(vec![(0, 0), (2, 4)]));
        for (bad, words) in [
            ("5", "too large index: \"5\""),
            ("a", "cannot convert string to integer for index: \"a\""),
            ("2-1", "non-increasing order, previous: 2, current: 1"),
            ("1,1", "non-increasing order, previous: 1, current: 1"),
        ] {
            assert_eq!(indexes(bad, 5).unwrap_err(), words);
        }
        assert!(indexes("1-2-3", 5).unwrap_err().starts_with("the fragment \"1-2-3\" violates"));
    }
}
