//! What is said of a namespace that is being emptied.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A condition's type, its reason and message if it is bad, and those if it is good.
type Row = (&'static str, Option<(&'static str, String)>, &'static str, &'static str);

/// What is left after one pass.
#[derive(Debug, Default)]
pub struct Remaining {
    /// Why not all resources are known.
    pub discovery: Option<String>,
    /// What could not be deleted, or listed.
    pub failures: Vec<String>,
    /// When to look again for what goes by itself.
    pub look_again: Option<Duration>,
    resources: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
}

impl Remaining {
    /// So many objects of a resource are left, with these finalizers.
    pub fn add(&mut self, plural: &str, group: &str, count: usize, finalizers: impl Iterator<Item = String>) {
        self.resources.insert(format!("{plural}.{group}"), count);
        for finalizer in finalizers {
            *self.finalizers.entry(finalizer).or_default() += 1;
        }
    }

    /// Look again after `time`, or earlier if another resource says so.
    pub fn wait(&mut self, time: Duration) {
        self.look_again = Some(self.look_again.map_or(time, |present| present.min(time)));
    }

    /// Whether anything is left.
    pub fn is_any(&self) -> bool {
        !self.resources.is_empty()
    }

    fn conditions(&self) -> [Row; 5] {
        let failed = (!self.failures.is_empty()).then(|| {
            let mut failures = self.failures.clone();
            failures.sort();
            let message = format!(
                "Failed to delete all resource types, {} remaining: {}",
                failures.len(),
                failures.join(", ")
            );
            ("ContentDeletionFailed", message)
        });
        let listed = |counts: &BTreeMap<String, usize>, word: &str| {
            let list: Vec<String> =
                counts.iter().map(|(what, n)| format!("{what} {word} {n} resource instances")).collect();
            list.join(", ")
        };
        let resources = (!self.resources.is_empty()).then(|| {
            (
                "SomeResourcesRemain",
                format!("Some resources are remaining: {}", listed(&self.resources, "has")),
            )
        });
        let finalizers = (!self.finalizers.is_empty()).then(|| {
            let list = listed(&self.finalizers, "in");
            (
                "SomeFinalizersRemain",
                format!("Some content in the namespace has finalizers remaining: {list}"),
            )
        });
        let discovery = self.discovery.clone().map(|message| ("DiscoveryFailed", message));
        [
            (
                "NamespaceDeletionDiscoveryFailure",
                discovery,
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                None,
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
            (
                "NamespaceDeletionContentFailure",
                failed,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
            ("NamespaceContentRemaining", resources, "ContentRemoved", "All content successfully removed"),
            (
                "NamespaceFinalizersRemaining",
                finalizers,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ]
    }
}

/// Brings the conditions up to date; whether that changed any.
pub fn update(status: &mut NamespaceStatus, remaining: &Remaining, now: &Time) -> bool {
    let mut changed = false;
    let conditions = status.conditions.get_or_insert_default();
    for (kind, bad, ok_reason, ok_message) in remaining.conditions() {
        let (state, reason, message) = match bad {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", ok_reason, ok_message.to_owned()),
        };
        let present = conditions.iter_mut().find(|c| c.type_ == kind);
        match present {
            Some(c)
                if c.status == state
                    && c.reason.as_deref() == Some(reason)
                    && c.message.as_deref() == Some(&message) => {}
            Some(c) => {
                if c.status != state {
                    c.last_transition_time = Some(now.clone());
                }
                c.status = state.into();
                c.reason = Some(reason.into());
                c.message = Some(message);
                changed = true;
            }
            None => {
                conditions.push(NamespaceCondition {
                    type_: kind.into(),
                    status: state.into(),
                    reason: Some(reason.into()),
                    message: Some(message),
                    last_transition_time: Some(now.clone()),
                });
                changed = true;
            }
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use keelson_client::meta;

    use super::*;

    #[test]
    fn conditions_say_what_is_left() {
        let mut remaining = Remaining::default();
        remaining.add("pods", "", 2, ["a/b".to_string()].into_iter());
        let mut status = NamespaceStatus::default();
        assert!(update(&mut status, &remaining, &meta::now()));
        assert!(!update(&mut status, &remaining, &meta::now()));
        let message = |status: &NamespaceStatus, kind: &str| {
            let conditions = status.conditions.as_ref().unwrap();
            conditions.iter().find(|c| c.type_ == kind).unwrap().message.clone().unwrap()
        };
        assert_eq!(
            message(&status, "NamespaceContentRemaining"),
            "Some resources are remaining: pods. has 2 resource instances"
        );
        assert_eq!(
            message(&status, "NamespaceFinalizersRemaining"),
            "Some content in the namespace has finalizers remaining: a/b in 1 resource instances"
        );
        assert!(update(&mut status, &Remaining::default(), &meta::now()));
        assert_eq!(message(&status, "NamespaceContentRemaining"), "All content successfully removed");
    }
}
