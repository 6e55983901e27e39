//! What a daemon set reports.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::pods;

use super::placement::{is_updated, template_generation};
use super::plan::{self, ByNode, Verdicts};

/// Counts nodes and their pods; of several pods on a node the oldest counts. Conditions and the collision count
/// stay; so does the observed generation, unless `observed`.
pub fn compute(
    set: &DaemonSet,
    nodes: &Verdicts,
    by_node: &ByNode,
    hash: &str,
    observed: bool,
    now: &Time,
) -> DaemonSetStatus {
    let wait = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let generation = template_generation(set);
    let (mut desired, mut current, mut misplaced, mut ready, mut updated, mut available) = (0, 0, 0, 0, 0, 0);
    for (node, verdict) in nodes {
        let mut pods = by_node.get(node).cloned().unwrap_or_default();
        plan::sort(&mut pods);
        let pod = pods.first();
        if !verdict.run {
            misplaced += i32::from(pod.is_some());
            continue;
        }
        desired += 1;
        let Some(pod) = pod else { continue };
        current += 1;
        ready += i32::from(pods::is_ready(pod));
        available += i32::from(pods::is_available(pod, wait, now));
        updated += i32::from(is_updated(pod, hash, generation));
    }
    let present = set.status.clone().unwrap_or_default();
    let nonzero = |count: i32| (count != 0).then_some(count);
    DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: current,
        number_misscheduled: misplaced,
        number_ready: ready,
        updated_number_scheduled: nonzero(updated),
        number_available: nonzero(available),
        number_unavailable: nonzero(desired - available),
        observed_generation: if observed { set.metadata.generation } else { present.observed_generation },
        ..present
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keelson_client::meta;
    use serde_json::json;

    use super::super::placement::{HASH_LABEL, Verdict};
    use super::*;

    #[test]
    fn counting() {
        let set: DaemonSet = serde_json::from_value(json!({
            "metadata": {"generation": 4},
            "spec": {"selector": {}, "template": {}, "minReadySeconds": 3600},
            "status": {"observedGeneration": 3, "collisionCount": 1, "currentNumberScheduled": 0,
                       "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0},
        }))
        .unwrap();
        let pod = |node: &str, hash: &str, since: Option<&str>| {
            let pod = json!({
                "metadata": {"name": node, "labels": {HASH_LABEL: hash}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"conditions": [{"type": "Ready", "lastTransitionTime": since,
                                           "status": if since.is_some() { "True" } else { "False" }}]},
            });
            (node.to_owned(), vec![Arc::new(serde_json::from_value(pod).unwrap())])
        };
        let now = meta::now();
        let pods = ByNode::from([
            pod("a", "new", Some("2026-01-01T00:00:00Z")),
            pod("b", "old", Some(&now.0.to_string())),
            pod("c", "new", None),
            pod("d", "new", None),
        ]);
        let nodes = [("a", true), ("b", true), ("c", true), ("d", false), ("e", true), ("f", false)];
        let nodes = nodes.map(|(name, run)| (name.to_owned(), Verdict { run, stay: true })).into();
        let status = compute(&set, &nodes, &pods, "new", true, &now);
        let counts = (
            status.desired_number_scheduled,
            status.current_number_scheduled,
            status.number_misscheduled,
            status.number_ready,
        );
        assert_eq!(counts, (4, 3, 1, 2));
        assert_eq!((status.updated_number_scheduled, status.number_available), (Some(2), Some(1)));
        assert_eq!(status.number_unavailable, Some(3));
        assert_eq!((status.observed_generation, status.collision_count), (Some(4), Some(1)));
        assert_eq!(compute(&set, &nodes, &pods, "new", false, &now).observed_generation, Some(3));
    }
}
