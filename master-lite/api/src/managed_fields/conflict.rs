//! Conflicts for people and machines (`internal/conflict.go`).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::entries::{ManagerId, UPDATE};
use crate::smd::print_path;
use crate::smd::update::Conflicts;

/// A refused apply, as its Status says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyConflict {
    /// `message` of the Status.
    pub message: String,
    /// `details.causes` of the Status.
    pub causes: Vec<Value>,
}

impl ApplyConflict {
    pub(super) fn new(conflicts: &Conflicts) -> Self {
        let causes = conflicts.0.iter().map(|conflict| {
            json!({
                "reason": "FieldManagerConflict",
                "message": format!("conflict with {}", print_manager(&conflict.manager)),
                "field": print_path(&conflict.path),
            })
        });
        Self { message: message(conflicts), causes: causes.collect() }
    }
}

fn message(conflicts: &Conflicts) -> String {
    if let [one] = conflicts.0.as_slice() {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            print_manager(&one.manager),
            print_path(&one.path)
        );
    }
    let mut by_manager: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for conflict in &conflicts.0 {
        by_manager.entry(&conflict.manager).or_default().push(print_path(&conflict.path));
    }
    let mut lines = Vec::new();
    for (manager, paths) in by_manager {
        lines.push(format!("conflicts with {}:", print_manager(manager)));
        lines.extend(paths.iter().map(|path| format!("- {path}")));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.0.len(), lines.join("\n"))
}

fn print_manager(manager: &str) -> String {
    let Some(id) = ManagerId::decode(manager) else { return format!("{manager:?}") };
    let mut out = format!("{:?}", id.manager);
    if !id.subresource.is_empty() {
        out.push_str(&format!(" with subresource {:?}", id.subresource));
    }
    if id.operation == UPDATE {
        out.push_str(&format!(" using {}", id.api_version));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smd::field_path;
    use crate::smd::update::Conflict;

    #[test]
    fn words_are_upstreams() {
        let conflict = |operation: &str, subresource: &str, path: &[&str]| Conflict {
            manager: ManagerId::new("m", operation, "apps/v1", subresource).encode(),
            path: field_path(path),
        };
        let one = conflict("Update", "scale", &["spec", "replicas"]);
        let two = conflict("Apply", "", &["spec", "paused"]);
        let got = ApplyConflict::new(&Conflicts(vec![one.clone()]));
        assert_eq!(
            got.message,
            "Apply failed with 1 conflict: conflict with \"m\" with subresource \"scale\" using apps/v1: .spec.replicas"
        );
        assert_eq!(
            got.causes,
            [json!({
                "reason": "FieldManagerConflict", "field": ".spec.replicas",
                "message": "conflict with \"m\" with subresource \"scale\" using apps/v1",
            })]
        );
        let got = ApplyConflict::new(&Conflicts(vec![one.clone(), one, two]));
        assert_eq!(
            got.message,
            "Apply failed with 3 conflicts: conflicts with \"m\":\n- .spec.paused\nconflicts with \"m\" with subresource \"scale\" using apps/v1:\n- .spec.replicas\n- .spec.replicas"
        );
    }
}
