//! Deletes pods that no kubelet will: ended ones beyond the limit, those of nodes that are gone, and those that are
//! being deleted and were never scheduled.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_client::{Key, meta, pods, taints};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;

use crate::context::{Context, Task};

const NAME: &str = "pod-garbage-collector";
const PERIOD: Duration = Duration::from_secs(20);
/// How long a node must be missing before its pods count as orphans.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let client = context.client(NAME);
    let (pods, nodes) = (context.informers.pods.clone(), context.informers.nodes.clone());
    let threshold = context.config.terminated_pod_threshold;
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            pods.synced().await;
            nodes.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        let mut missing: HashMap<String, Instant> = HashMap::new();
        let mut ticks = tokio::time::interval(PERIOD);
        loop {
            tokio::select! { () = shutdown.cancelled() => return, _ = ticks.tick() => {} }
            let all = pods.list();
            let node = |name: &str| nodes.get(&Key::cluster(name));
            note_missing(&mut missing, all.iter().map(|pod| &**pod), &node, Instant::now());
            for pod in surplus(all.iter().map(|pod| &**pod).collect(), threshold) {
                delete(&client, pod, None).await;
            }
            for pod in &all {
                match verdict(pod, &missing, &node, Instant::now()) {
                    Verdict::Stays => {}
                    Verdict::Goes => delete(&client, pod, None).await,
                    Verdict::Orphan => {
                        let api: Api<Node> = Api::all(client.clone());
                        // The cache may be behind; nothing is deleted by force on its word alone.
                        let name = pods::node_name(pod).unwrap_or_default();
                        if matches!(api.get_opt(name).await, Ok(None)) {
                            delete(&client, pod, Some("PodGC: node no longer exists")).await;
                        }
                    }
                }
            }
        }
    })
}

fn note_missing<'a>(
    missing: &mut HashMap<String, Instant>,
    pods: impl Iterator<Item = &'a Pod>,
    node: &dyn Fn(&str) -> Option<std::sync::Arc<Node>>,
    now: Instant,
) {
    let mut seen: HashMap<String, Instant> = HashMap::new();
    for name in pods.filter_map(pods::node_name).filter(|name| node(name).is_none()) {
        seen.insert(name.to_owned(), missing.get(name).copied().unwrap_or(now));
    }
    *missing = seen;
}

/// Ended pods beyond the limit, oldest first.
fn surplus(pods: Vec<&Pod>, threshold: usize) -> Vec<&Pod> {
    let mut ended: Vec<&Pod> =
        pods.into_iter().filter(|pod| pods::is_terminal(pod) && !pods::is_terminating(pod)).collect();
    if threshold == 0 || ended.len() <= threshold {
        return Vec::new();
    }
    ended.sort_by(|a, b| {
        let by_age = a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp);
        by_age.then_with(|| a.metadata.name.cmp(&b.metadata.name))
    });
    ended.truncate(ended.len() - threshold);
    ended
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stays,
    Goes,
    Orphan,
}

fn verdict(
    pod: &Pod,
    missing: &HashMap<String, Instant>,
    node: &dyn Fn(&str) -> Option<std::sync::Arc<Node>>,
    now: Instant,
) -> Verdict {
    let Some(name) = pods::node_name(pod) else {
        return if pods::is_terminating(pod) { Verdict::Goes } else { Verdict::Stays };
    };
    match (node(name), missing.get(name)) {
        (None, Some(since)) if now - *since >= QUARANTINE => Verdict::Orphan,
        (Some(node), _) => {
            let out = taints::of(&node).iter().any(|t| t.key == OUT_OF_SERVICE);
            let down = crate::node::health::ready(&node) != "True";
            if out && down && pods::is_terminating(pod) { Verdict::Goes } else { Verdict::Stays }
        }
        _ => Verdict::Stays,
    }
}

async fn delete(client: &Client, pod: &Pod, disruption: Option<&str>) {
    let api: Api<Pod> = Api::namespaced(client.clone(), meta::namespace(&pod.metadata));
    let name = meta::name(&pod.metadata);
    if let Some(message) = disruption.filter(|_| !pods::is_terminal(pod)) {
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"phase": "Failed", "conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByPodGC",
                "message": message,
                "observedGeneration": pod.metadata.generation,
                "lastTransitionTime": meta::now(),
            }]},
        });
        if let Err(error) = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            tracing::debug!(pod = %Key::of(pod), error = %meta::message(&error), "cannot mark the pod failed");
        }
    }
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
        ..Default::default()
    };
    match api.delete(name, &params).await {
        Err(error) if !meta::is_not_found(&error) && !meta::is_conflict(&error) => {
            tracing::warn!(pod = %Key::of(pod), error = %meta::message(&error), "cannot delete the pod");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: Option<&str>, phase: &str, deleting: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z",
                         "deletionTimestamp": deleting.then_some("2026-01-01T00:00:00Z")},
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes() {
        let none = |_: &str| None;
        let start = Instant::now();
        let missing = HashMap::from([("gone".to_string(), start)]);
        let check = |pod: Pod, now, expected| assert_eq!(verdict(&pod, &missing, &none, now), expected);
        check(pod("a", None, "Pending", false), start, Verdict::Stays);
        check(pod("a", None, "Pending", true), start, Verdict::Goes);
        check(pod("a", Some("gone"), "Running", false), start, Verdict::Stays);
        check(pod("a", Some("gone"), "Running", false), start + QUARANTINE, Verdict::Orphan);
    }

    #[test]
    fn the_oldest_ended_pods_are_surplus() {
        let pods = [
            pod("b", None, "Failed", false),
            pod("a", None, "Succeeded", false),
            pod("c", None, "Running", false),
        ];
        let names: Vec<_> =
            surplus(pods.iter().collect(), 1).iter().map(|p| p.metadata.name.clone().unwrap()).collect();
        assert_eq!(names, ["a"]);
        assert!(surplus(pods.iter().collect(), 2).is_empty());
    }
}
