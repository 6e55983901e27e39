//! What a job's policies say about a failed pod, and about the indexes that have succeeded.

use k8s_openapi::api::batch::v1::{
    PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
    SuccessPolicy,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use keelson_client::Key;

use super::indexes::Indexes;

/// What a failed pod means to its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It counts against the limits.
    Counts,
    /// It does not.
    Ignored,
    /// It counts, and its index has failed.
    Index,
    /// It counts, and the job has failed, for this reason.
    Job(String),
}

impl Failure {
    /// Whether it counts against the limits.
    pub fn counts(&self) -> bool {
        *self != Failure::Ignored
    }
}

/// What `pod` means by the first rule that matches it (`matchPodFailurePolicy`).
pub fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Failure {
    for (n, rule) in policy.into_iter().flat_map(|policy| &policy.rules).enumerate() {
        let action = rule.action.as_str();
        let found = if let Some(codes) = &rule.on_exit_codes {
            failed_container(pod, codes).map(|(container, code)| {
                format!(
                    "Container {} for pod {} failed with exit code {code} matching {action} rule at index {n}",
                    container.name,
                    Key::of(pod)
                )
            })
        } else {
            let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
            condition(pod, patterns).map(|condition| {
                format!(
                    "Pod {} has condition {} matching {action} rule at index {n}",
                    Key::of(pod),
                    condition.type_
                )
            })
        };
        if let Some(message) = found {
            return match action {
                "Ignore" => Failure::Ignored,
                "FailIndex" => Failure::Index,
                "FailJob" => Failure::Job(message),
                _ => Failure::Counts,
            };
        }
    }
    Failure::Counts
}

fn failed_container<'a>(
    pod: &'a Pod,
    rule: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<(&'a ContainerStatus, i32)> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    containers
        .filter(|container| rule.container_name.as_ref().is_none_or(|name| *name == container.name))
        .filter_map(|container| Some((container, container.state.as_ref()?.terminated.as_ref()?.exit_code)))
        .find(|(_, code)| {
            let listed = rule.values.contains(code);
            *code != 0 && if rule.operator == "In" { listed } else { rule.operator == "NotIn" && !listed }
        })
}

fn condition<'a>(
    pod: &'a Pod,
    patterns: &[PodFailurePolicyOnPodConditionsPattern],
) -> Option<&'a PodCondition> {
    let matches = |condition: &&PodCondition| {
        patterns.iter().any(|pattern| {
            // The API server fills in an absent status.
            let status = pattern.status.as_deref().unwrap_or("True");
            pattern.type_ == condition.type_ && status == condition.status
        })
    };
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(matches)
}

/// The number of the first rule that the succeeded indexes fulfil (`matchSuccessPolicy`).
pub fn success(policy: Option<&SuccessPolicy>, completions: i32, succeeded: &Indexes) -> Option<usize> {
    if succeeded.is_empty() {
        return None;
    }
    policy?.rules.iter().position(|rule| {
        let enough = |count: i32| rule.succeeded_count.is_some_and(|wanted| count >= wanted);
        match &rule.succeeded_indexes {
            Some(text) => {
                let wanted = Indexes::parse(text, completions);
                let there = wanted.overlap(succeeded);
                !wanted.is_empty() && (there == wanted.len() || enough(there))
            }
            None => enough(succeeded.len()),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(codes: &[(&str, i32)], condition: Option<&str>) -> Pod {
        let statuses: Vec<Value> = codes
            .iter()
            .map(|(name, code)| {
                json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                       "state": {"terminated": {"exitCode": code}}})
            })
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "status": {"containerStatuses": statuses,
                       "conditions": condition.map(|c| json!([{"type": c, "status": "True"}]))},
        }))
        .unwrap()
    }

    #[track_caller]
    fn check(rules: Value, pod: &Pod, expected: Failure) {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": rules})).unwrap();
        assert_eq!(judge(Some(&policy), pod), expected);
    }

    #[test]
    fn failures() {
        let exit = |action: &str, operator: &str, values: &[i32], container: Option<&str>| {
            json!({"action": action,
                   "onExitCodes": {"operator": operator, "values": values, "containerName": container}})
        };
        let disrupted =
            json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]});
        let failed = pod(&[("a", 0), ("b", 42)], None);
        let message = "Container b for pod ns/p failed with exit code 42 matching FailJob rule at index 1";
        check(
            json!([disrupted.clone(), exit("FailJob", "In", &[42], None)]),
            &failed,
            Failure::Job(message.into()),
        );
        check(json!([exit("FailIndex", "NotIn", &[1], None)]), &failed, Failure::Index);
        check(json!([exit("Count", "In", &[42], None)]), &failed, Failure::Counts);
        // A container that has succeeded matches nothing.
        check(json!([exit("Ignore", "NotIn", &[42], None)]), &failed, Failure::Counts);
        check(json!([exit("Ignore", "In", &[42], Some("a"))]), &failed, Failure::Counts);
        check(json!([disrupted.clone()]), &pod(&[("a", 1)], Some("DisruptionTarget")), Failure::Ignored);
        let job =
            json!({"action": "FailJob", "onPodConditions": [{"type": "ConfigIssue", "status": "True"}]});
        let message = "Pod ns/p has condition ConfigIssue matching FailJob rule at index 0";
        check(json!([job]), &pod(&[], Some("ConfigIssue")), Failure::Job(message.into()));
        assert_eq!(judge(None, &failed), Failure::Counts);
    }

    #[track_caller]
    fn check_success(rules: Value, succeeded: &str, expected: Option<usize>) {
        let policy: SuccessPolicy = serde_json::from_value(json!({"rules": rules})).unwrap();
        assert_eq!(success(Some(&policy), 10, &Indexes::parse(succeeded, 10)), expected);
    }

    #[test]
    fn successes() {
        check_success(json!([{"succeededCount": 2}]), "1", None);
        check_success(json!([{"succeededCount": 2}]), "1,5", Some(0));
        check_success(json!([{"succeededIndexes": "0-2"}, {"succeededCount": 3}]), "3-5", Some(1));
        check_success(json!([{"succeededIndexes": "0-2"}]), "0-1", None);
        check_success(json!([{"succeededIndexes": "0-2", "succeededCount": 2}]), "0-1", Some(0));
        check_success(json!([{"succeededIndexes": "20"}]), "0-9", None);
        check_success(json!([{"succeededCount": 0}]), "", None);
    }
}
