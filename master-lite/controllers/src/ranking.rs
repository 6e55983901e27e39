//! Which pods go first when there are too many (`ActivePodsWithRanks`, `ActivePods`).

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{meta, pods};

/// The annotation that lets a user say what a pod's loss costs.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `count` pods of `active` that go first. `related` are all active pods of the same deployment: of two
/// pods alike the one goes whose node has more of them.
pub fn to_delete(active: &[Arc<Pod>], related: &[Arc<Pod>], count: usize, now: &Time) -> Vec<Arc<Pod>> {
    let mut crowd: HashMap<&str, usize> = HashMap::new();
    for pod in related {
        *crowd.entry(pods::node_name(pod).unwrap_or_default()).or_default() += 1;
    }
    let rank = |pod: &Pod| crowd.get(pods::node_name(pod).unwrap_or_default()).copied().unwrap_or(0);
    let mut sorted = active.to_vec();
    if count < sorted.len() {
        sorted.sort_by(|a, b| compare(a, rank(a), b, rank(b), now));
    }
    sorted.truncate(count);
    sorted
}

fn compare(a: &Pod, rank_a: usize, b: &Pod, rank_b: usize, now: &Time) -> Ordering {
    let assigned = |pod: &Pod| pods::node_name(pod).is_some();
    let both_ready = pods::is_ready(a) && pods::is_ready(b);
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_order(a).cmp(&phase_order(b)))
        .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| rank_b.cmp(&rank_a))
        .then_with(|| {
            if both_ready {
                younger_first(ready_since(a), ready_since(b), a, b, now)
            } else {
                Ordering::Equal
            }
        })
        .then_with(|| Reverse(restarts(a)).cmp(&Reverse(restarts(b))))
        .then_with(|| {
            let created = |pod: &Pod| pod.metadata.creation_timestamp.clone();
            younger_first(created(a), created(b), a, b, now)
        })
}

/// The order in which the pods of a job go: those that have done the least first.
pub fn least_advanced_first(a: &Pod, b: &Pod) -> Ordering {
    let assigned = |pod: &Pod| pods::node_name(pod).is_some();
    let both_ready = pods::is_ready(a) && pods::is_ready(b);
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_order(a).cmp(&phase_order(b)))
        .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
        .then_with(|| if both_ready { later_first(ready_since(a), ready_since(b)) } else { Ordering::Equal })
        .then_with(|| Reverse(restarts(a)).cmp(&Reverse(restarts(b))))
        .then_with(|| {
            let created = |pod: &Pod| pod.metadata.creation_timestamp.clone();
            later_first(created(a), created(b))
        })
}

/// No time at all counts as the latest.
fn later_first(a: Option<Time>, b: Option<Time>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => b.cmp(&a),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

fn phase_order(pod: &Pod) -> u8 {
    match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    meta::annotation(&pod.metadata, DELETION_COST).and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn ready_since(pod: &Pod) -> Option<Time> {
    pods::condition(pod, "Ready")?.last_transition_time.clone()
}

/// The most restarts of any container: regular ones first, sidecars break a tie.
fn restarts(pod: &Pod) -> (i32, i32) {
    let Some(status) = &pod.status else { return (0, 0) };
    let most = |statuses: &Option<Vec<k8s_openapi::api::core::v1::ContainerStatus>>| {
        statuses.iter().flatten().map(|s| s.restart_count).max().unwrap_or(0)
    };
    (most(&status.container_statuses), most(&status.init_container_statuses))
}

/// Ages are compared by their logarithm (KEP-2185), so that among pods of about one age chance decides (the uid is
/// as good as chance), and not all pods of one failure domain go because they started last.
fn younger_first(a: Option<Time>, b: Option<Time>, pod_a: &Pod, pod_b: &Pod, now: &Time) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) if a != b => logarithm(&a, now)
            .cmp(&logarithm(&b, now))
            .then_with(|| pod_a.metadata.uid.cmp(&pod_b.metadata.uid)),
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        _ => Ordering::Equal,
    }
}

fn logarithm(then: &Time, now: &Time) -> i64 {
    let age = meta::since(now, then).as_nanos();
    if age <= 0 { -1 } else { i64::from(age.ilog2()) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, node: Option<&str>, ready: bool, extra: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "uid": name, "annotations": {}},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" },
                 "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        for (key, value) in extra.as_object().unwrap() {
            pod["metadata"][key] = value.clone();
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[track_caller]
    fn check(pods: &[Arc<Pod>], first: &str) {
        let now = meta::now();
        let mut reversed = pods.to_vec();
        reversed.reverse();
        for order in [pods.to_vec(), reversed] {
            let doomed = to_delete(&order, pods, 1, &now);
            assert_eq!(meta::name(&doomed[0].metadata), first);
        }
    }

    #[test]
    fn order() {
        let none = || json!({});
        check(&[pod("a", Some("n"), true, none()), pod("b", None, false, none())], "b");
        check(&[pod("a", Some("n"), true, none()), pod("b", Some("n"), false, none())], "b");
        let cheap = json!({"annotations": {DELETION_COST: "-5"}});
        check(&[pod("a", Some("n"), true, none()), pod("b", Some("m"), true, cheap)], "b");
        let crowded = [
            pod("a", Some("n"), true, none()),
            pod("b", Some("m"), true, json!({"creationTimestamp": "2026-01-01T00:00:00Z"})),
            pod("c", Some("m"), true, json!({"creationTimestamp": "2020-01-01T00:00:00Z"})),
        ];
        check(&crowded, "b");
    }

    #[test]
    fn order_in_a_job() {
        let check = |first: Arc<Pod>, second: Arc<Pod>| {
            assert_eq!(least_advanced_first(&first, &second), Ordering::Less);
            assert_eq!(least_advanced_first(&second, &first), Ordering::Greater);
        };
        let none = || json!({});
        check(pod("a", None, true, none()), pod("b", Some("n"), false, none()));
        check(pod("a", Some("n"), false, none()), pod("b", Some("n"), true, none()));
        let created = |time: &str| json!({"creationTimestamp": time});
        let (young, old) = (created("2026-01-02T00:00:00Z"), created("2026-01-01T00:00:00Z"));
        check(pod("a", Some("n"), false, young), pod("b", Some("n"), false, old));
        check(
            pod("a", Some("n"), false, none()),
            pod("b", Some("n"), false, created("2026-01-01T00:00:00Z")),
        );
    }

    #[test]
    fn all_or_none() {
        let pods = [pod("a", None, false, json!({}))];
        assert_eq!(to_delete(&pods, &pods, 1, &meta::now()).len(), 1);
        assert!(to_delete(&pods, &pods, 0, &meta::now()).is_empty());
    }
}
