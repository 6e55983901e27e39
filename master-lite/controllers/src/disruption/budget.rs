//! What a PodDisruptionBudget allows. All pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::{meta, pods};

use crate::percent::{Round, scaled};

/// How long an eviction that was allowed may take to become a deletion.
const DELETION_TIMEOUT: Duration = Duration::from_secs(2 * 60);
/// How long a pod may be announced as about to be disrupted without being deleted.
const STALE_TIMEOUT: Duration = Duration::from_secs(2 * 60);
/// The condition that says whether the budget allows disruptions.
const ALLOWED: &str = "DisruptionAllowed";

/// Of what a budget's numbers are a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// Of the pods that it selects.
    Pods,
    /// Of what the controllers of these pods want.
    Scale,
    /// It has no numbers.
    Nothing,
}

/// Of what the budget's numbers are a part.
pub fn whole(budget: &PodDisruptionBudget) -> Whole {
    let spec = budget.spec.as_ref();
    match (spec.and_then(|s| s.max_unavailable.as_ref()), spec.and_then(|s| s.min_available.as_ref())) {
        (Some(_), _) | (None, Some(IntOrString::String(_))) => Whole::Scale,
        (None, Some(IntOrString::Int(_))) => Whole::Pods,
        (None, None) => Whole::Nothing,
    }
}

/// How many of `expected` pods must be healthy.
fn desired(budget: &PodDisruptionBudget, expected: i32) -> i32 {
    let Some(spec) = &budget.spec else { return 0 };
    match &spec.max_unavailable {
        Some(most) => (expected - scaled(Some(most), expected, Round::Up)).max(0),
        None => scaled(spec.min_available.as_ref(), expected, Round::Up),
    }
}

/// Pods whose eviction was allowed lately.
#[derive(Debug, Default, PartialEq)]
pub struct Disrupted {
    /// By name, when; those that are being deleted by now are left out.
    pub pending: BTreeMap<String, Time>,
    /// Those that should have been deleted and were not.
    pub spared: Vec<String>,
    /// When to look again.
    pub recheck: Option<Duration>,
}

/// Looks at what has become of evictions that were allowed.
pub fn disrupted(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], now: &Time) -> Disrupted {
    let mut result = Disrupted::default();
    let noted = budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
    let Some(noted) = noted else { return result };
    for pod in pods.iter().filter(|pod| !pods::is_terminating(pod)) {
        let name = meta::name(&pod.metadata);
        let Some(since) = noted.get(name) else { continue };
        match meta::until(now, &meta::plus(since, DELETION_TIMEOUT)) {
            None => result.spared.push(name.to_owned()),
            Some(left) => {
                result.recheck = Some(result.recheck.map_or(left, |soonest| soonest.min(left)));
                result.pending.insert(name.to_owned(), since.clone());
            }
        }
    }
    result
}

/// The budget's new status, with `expected` pods.
pub fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: i32,
    pending: &BTreeMap<String, Time>,
    now: &Time,
) -> PodDisruptionBudgetStatus {
    let healthy = |pod: &&Arc<Pod>| {
        !pods::is_terminating(pod) && !pending.contains_key(meta::name(&pod.metadata)) && pods::is_ready(pod)
    };
    let healthy = i32::try_from(pods.iter().filter(healthy).count()).unwrap_or(i32::MAX);
    let desired = desired(budget, expected);
    // A budget that selects nothing yet allows nothing: its first pods may come before we look again.
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let present = budget.status.clone().unwrap_or_default();
    let mut status = PodDisruptionBudgetStatus {
        // Go prints these always.
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!pending.is_empty()).then(|| pending.clone()),
        observed_generation: budget.metadata.generation,
        conditions: present.conditions,
    };
    let (word, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    set_condition(&mut status, word, reason, "", now);
    status
}

/// The status when none could be worked out: nothing is allowed.
pub fn failed(budget: &PodDisruptionBudget, why: &str, now: &Time) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    set_condition(&mut status, "False", "SyncFailed", why, now);
    status
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    word: &str,
    reason: &str,
    message: &str,
    now: &Time,
) {
    let observed_generation = status.observed_generation;
    let conditions = status.conditions.get_or_insert_default();
    let present = conditions.iter_mut().find(|condition| condition.type_ == ALLOWED);
    let since = present.as_ref().filter(|c| c.status == word).map(|c| c.last_transition_time.clone());
    let new = Condition {
        type_: ALLOWED.into(),
        status: word.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation,
        last_transition_time: since.unwrap_or_else(|| now.clone()),
    };
    match present {
        Some(present) => *present = new,
        None => conditions.push(new),
    }
}

/// After what time the pod's announcement of its disruption is stale, if it has one: whoever made it has not gone on.
/// The kubelet may take as long as it likes.
pub fn stale_after(pod: &Pod, now: &Time) -> Option<Duration> {
    let announced = pods::condition(pod, "DisruptionTarget").filter(|c| c.status == "True")?;
    let by_kubelet = announced.reason.as_deref() == Some("TerminationByKubelet");
    if pods::is_terminating(pod) || pods::is_terminal(pod) || by_kubelet {
        return None;
    }
    let since = announced.last_transition_time.as_ref().unwrap_or(now);
    Some(meta::until(now, &meta::plus(since, STALE_TIMEOUT)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn budget(spec: Value, disrupted: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({
            "metadata": {"generation": 3}, "spec": spec,
            "status": {"disruptedPods": disrupted, "currentHealthy": 0, "desiredHealthy": 0,
                       "disruptionsAllowed": 0, "expectedPods": 0},
        }))
        .unwrap()
    }

    fn pod(name: &str, ready: bool, going: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "deletionTimestamp": going.then_some("2026-01-01T00:00:00Z")},
                "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
            }))
            .unwrap(),
        )
    }

    fn pods() -> Vec<Arc<Pod>> {
        let all =
            [pod("a", true, false), pod("b", true, false), pod("c", false, false), pod("d", true, true)];
        all.into()
    }

    #[track_caller]
    fn check(spec: Value, expected: i32, of: Whole, desired: i32, allowed: i32) {
        let budget = budget(spec, Value::Null);
        let status = status(&budget, &pods(), expected, &BTreeMap::new(), &meta::now());
        assert_eq!(whole(&budget), of);
        assert_eq!(
            (status.current_healthy, status.desired_healthy, status.disruptions_allowed),
            (Some(2), Some(desired), Some(allowed))
        );
        let condition = &status.conditions.unwrap()[0];
        let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
        assert_eq!((&*condition.reason, condition.observed_generation), (reason, Some(3)));
    }

    #[test]
    fn numbers() {
        check(json!({"minAvailable": 1}), 4, Whole::Pods, 1, 1);
        check(json!({"minAvailable": 3}), 4, Whole::Pods, 3, 0);
        check(json!({"minAvailable": "30%"}), 4, Whole::Scale, 2, 0);
        check(json!({"maxUnavailable": 3}), 4, Whole::Scale, 1, 1);
        check(json!({"maxUnavailable": "60%"}), 4, Whole::Scale, 1, 1);
        check(json!({"maxUnavailable": 9}), 4, Whole::Scale, 0, 2);
        check(json!({"minAvailable": 0}), 0, Whole::Pods, 0, 0);
        check(json!({}), 0, Whole::Nothing, 0, 0);
    }

    #[test]
    fn evictions_that_were_allowed_count_until_they_are_seen() {
        let now = meta::now();
        let ago = |seconds: i64| Time(now.0 - std::time::Duration::from_secs(seconds.unsigned_abs()));
        let noted = json!({"a": ago(30), "b": ago(300), "d": ago(30), "gone": ago(30)});
        let budget = budget(json!({"minAvailable": 1}), noted);
        let found = disrupted(&budget, &pods(), &now);
        assert_eq!(found.pending.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(found.spared, ["b"]);
        assert!((89..=90).contains(&found.recheck.unwrap().as_secs()));
        let status = status(&budget, &pods(), 4, &found.pending, &now);
        assert_eq!((status.current_healthy, status.disruptions_allowed), (Some(1), Some(0)));
    }

    #[test]
    fn conditions_keep_their_time() {
        let early = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let mut budget = budget(json!({"minAvailable": 3}), Value::Null);
        budget.status = Some(status(&budget, &pods(), 4, &BTreeMap::new(), &early));
        let again = status(&budget, &pods(), 4, &BTreeMap::new(), &meta::now());
        assert_eq!(Some(&again), budget.status.as_ref());
        let failed = failed(&budget, "why", &meta::now());
        let condition = &failed.conditions.unwrap()[0];
        assert_eq!((&*condition.reason, &*condition.message), ("SyncFailed", "why"));
        assert_eq!(condition.last_transition_time, early);
    }

    #[test]
    fn stale_announcements() {
        let now = meta::now();
        let announced = |seconds: u64, reason: &str, phase: &str| -> Pod {
            let since = Time(now.0 - std::time::Duration::from_secs(seconds));
            serde_json::from_value(json!({"status": {"phase": phase, "conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": since}]}}))
            .unwrap()
        };
        assert_eq!(stale_after(&announced(500, "R", "Running"), &now), Some(Duration::ZERO));
        assert!((99..=100).contains(&stale_after(&announced(20, "R", "Running"), &now).unwrap().as_secs()));
        assert_eq!(stale_after(&announced(500, "TerminationByKubelet", "Running"), &now), None);
        assert_eq!(stale_after(&announced(500, "R", "Failed"), &now), None);
        assert_eq!(stale_after(&Pod::default(), &now), None);
    }
}
