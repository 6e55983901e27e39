//! `metav1.Condition` (`k8s.io/apimachinery/pkg/apis/meta/v1/validation`).

use serde_json::Value;

use super::errors::{Errors, Path, items, number, set, text};
use crate::resources::metadata::qualified_name;

const MAX_REASON: usize = 1024;
const MAX_MESSAGE: usize = 32 * 1024;

/// `conditions` of a status.
pub(super) fn conditions(errors: &mut Errors, status: &Value, at: &Path) {
    let mut seen = Vec::new();
    for (at, condition) in items(status, "conditions", at) {
        let kind = text(condition, "type");
        if seen.contains(&kind) {
            errors.duplicate(&at.child("type"), &kind.into());
        }
        seen.push(kind);
        self::condition(errors, condition, &at);
    }
}

fn condition(errors: &mut Errors, condition: &Value, at: &Path) {
    let (kind, state) = (text(condition, "type"), text(condition, "status"));
    errors.rule(&at.child("type"), &kind.into(), qualified_name(kind));
    if !matches!(state, "False" | "True" | "Unknown") {
        errors.unsupported(&at.child("status"), &state.into(), &["False", "True", "Unknown"]);
    }
    if number(condition, "observedGeneration") < 0 {
        let words = "must be greater than or equal to zero";
        errors.invalid(&at.child("observedGeneration"), &condition["observedGeneration"], words);
    }
    if !set(condition, "lastTransitionTime") {
        errors.required(&at.child("lastTransitionTime"), "must be set");
    }
    let (reason, place) = (text(condition, "reason"), at.child("reason"));
    if reason.is_empty() {
        errors.required(&place, "must be set");
    } else {
        if !is_reason(reason) {
            errors.invalid(&place, &reason.into(), "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')");
        }
        if reason.len() > MAX_REASON {
            errors.too_long(&place, MAX_REASON);
        }
    }
    if text(condition, "message").len() > MAX_MESSAGE {
        errors.too_long(&at.child("message"), MAX_MESSAGE);
    }
}

fn is_reason(reason: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    reason.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && reason.bytes().all(|b| word(b) || b == b',' || b == b':')
        && reason.bytes().last().is_some_and(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons() {
        for (reason, sound) in [("My:Reason_", true), ("A", true), ("1", false), ("A,", false), ("", false)] {
            assert_eq!(is_reason(reason), sound, "{reason}");
        }
    }
}
