//! Deletes pods whose node has a NoExecute taint that they don't tolerate, or no longer.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{Delta, EventType, Informer, Key, Recorder, WorkQueue, meta, pods, run_workers, taints};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;

use crate::context::{Context, Task};
use crate::error::{Error, Result};

const NAME: &str = "taint-eviction-controller";
const ACCOUNT: &str = "node-controller";
const WORKERS: usize = 8;

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let controller = Arc::new(Controller {
        client: context.client(ACCOUNT),
        recorder: context.recorder(ACCOUNT, NAME),
        nodes: context.informers.nodes.clone(),
        pods: context.informers.pods.clone(),
        queue: WorkQueue::new(),
    });
    let on_pod = controller.clone();
    controller.pods.on_change(move |delta| {
        let pod = delta.object();
        let moved = delta.old().is_none_or(|old| {
            pods::node_name(old) != pods::node_name(pod) || pods::tolerations(old) != pods::tolerations(pod)
        });
        if moved && pods::node_name(pod).is_some() && !matches!(delta, Delta::Deleted(_)) {
            on_pod.queue.add(Key::of(&**pod));
        }
    });
    let on_node = controller.clone();
    controller.nodes.on_change(move |delta| {
        let node = delta.object();
        if delta.old().is_none_or(|old| no_execute(old) != no_execute(node)) {
            let name = meta::name(&node.metadata);
            for pod in on_node.pods.list().iter().filter(|pod| pods::node_name(pod) == Some(name)) {
                on_node.queue.add(Key::of(&**pod));
            }
        }
    });
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            controller.nodes.synced().await;
            controller.pods.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        let queue = controller.queue.clone();
        run_workers(NAME, queue, WORKERS, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    })
}

struct Controller {
    client: Client,
    recorder: Recorder,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<Key>>,
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result {
        let Some(pod) = self.pods.get(key).filter(|pod| !pods::is_terminating(pod)) else { return Ok(()) };
        let node = pods::node_name(&pod).and_then(|name| self.nodes.get(&Key::cluster(name)));
        let Some(node) = node else { return Ok(()) };
        match stay(&no_execute(&node), pods::tolerations(&pod), &meta::now()) {
            Stay::ForEver => Ok(()),
            Stay::For(left) => {
                self.queue.add_after(key.clone(), left);
                Ok(())
            }
            Stay::NotAtAll => self.evict(key, &pod).await,
        }
    }

    async fn evict(&self, key: &Key, pod: &Pod) -> Result {
        let message = format!("Marking for deletion Pod {key}");
        self.recorder.event(pod, EventType::Normal, "TaintManagerEviction", message);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let condition = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "observedGeneration": pod.metadata.generation,
                "lastTransitionTime": meta::now(),
            }]},
        });
        let gone = |error: &kube::Error| meta::is_not_found(error) || meta::is_conflict(error);
        match api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(condition)).await {
            Err(error) if gone(&error) => return Ok(()),
            outcome => outcome?,
        };
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
            ..Default::default()
        };
        match api.delete(&key.name, &params).await {
            Err(error) if !gone(&error) => Err(Error::Api(error)),
            _ => Ok(()),
        }
    }
}

fn no_execute(node: &Node) -> Vec<Taint> {
    taints::of(node).iter().filter(|t| t.effect == taints::NO_EXECUTE).cloned().collect()
}

/// How long a pod may stay.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    ForEver,
    For(Duration),
    NotAtAll,
}

fn stay(taints: &[Taint], tolerations: &[Toleration], now: &Time) -> Stay {
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let Some(toleration) = tolerations.iter().find(|t| taints::tolerates(t, taint)) else {
            return Stay::NotAtAll;
        };
        let Some(seconds) = toleration.toleration_seconds else { continue };
        let Ok(allowed) = u64::try_from(seconds) else { return Stay::NotAtAll };
        // Counted from when the taint came, so that a restart of ours gives no new time.
        let since = taint.time_added.as_ref().unwrap_or(now);
        let deadline = meta::plus(since, Duration::from_secs(allowed));
        match meta::until(now, &deadline) {
            Some(left) => shortest = Some(shortest.map_or(left, |present| present.min(left))),
            None => return Stay::NotAtAll,
        }
    }
    shortest.map_or(Stay::ForEver, Stay::For)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tolerations: &[(&str, Option<i64>)], tainted_for: u64, expected: Stay) {
        let now = Time("2026-01-01T01:00:00Z".parse().unwrap());
        let taint = Taint {
            key: "k".into(),
            effect: taints::NO_EXECUTE.into(),
            time_added: Some(Time(now.0 - Duration::from_secs(tainted_for))),
            value: None,
        };
        let tolerations: Vec<Toleration> = tolerations
            .iter()
            .map(|(key, seconds)| Toleration {
                key: Some(key.to_string()),
                operator: Some("Exists".into()),
                toleration_seconds: *seconds,
                ..Default::default()
            })
            .collect();
        assert_eq!(stay(&[taint], &tolerations, &now), expected);
    }

    #[test]
    fn how_long_a_pod_stays() {
        check(&[], 0, Stay::NotAtAll);
        check(&[("other", None)], 0, Stay::NotAtAll);
        check(&[("k", None)], 0, Stay::ForEver);
        check(&[("k", Some(300))], 100, Stay::For(Duration::from_secs(200)));
        check(&[("k", Some(300))], 300, Stay::NotAtAll);
        check(&[("k", Some(-1))], 0, Stay::NotAtAll);
    }
}
