//! Daemon sets.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_client::{meta, pods};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually};

fn image(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
}

async fn daemon(cluster: &Cluster) {
    let mut set = json!({
        "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"app": "d"}},
            "revisionHistoryLimit": 10,
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
            "template": {"metadata": {"labels": {"app": "d"}}},
        },
    });
    set["spec"]["template"]["spec"] = image("a")["spec"]["template"]["spec"].clone();
    cluster.create(cluster.api::<DaemonSet>(), set).await;
}

/// Images by node, of pods that stay.
async fn images(cluster: &Cluster) -> BTreeMap<String, String> {
    let pods = cluster.api::<Pod>().list(&ListParams::default()).await.unwrap();
    pods.iter()
        .filter(|pod| !pods::is_terminating(pod))
        .filter_map(|pod| {
            let image = pod.spec.as_ref()?.containers[0].image.clone()?;
            Some((pods::node_name(pod)?.to_owned(), image))
        })
        .collect()
}

async fn is_everywhere(cluster: &Cluster, image: &str, nodes: i32) -> bool {
    let set = cluster.api::<DaemonSet>().get("d").await.unwrap();
    let status = set.status.unwrap_or_default();
    let images = images(cluster).await;
    images.len() == usize::try_from(nodes).unwrap()
        && images.values().all(|i| i == image)
        && status.observed_generation == set.metadata.generation
        && status.desired_number_scheduled == nodes
        && status.number_available == Some(nodes)
        && status.updated_number_scheduled == Some(nodes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_is_on_every_node_that_will_have_it() {
    let cluster = Cluster::start(2).await;
    daemon(&cluster).await;
    eventually("two", || is_everywhere(&cluster, "a", 2)).await;
    let node = json!({"metadata": {"name": "late"}, "status": {
        "allocatable": {"cpu": "2", "pods": "10"}, "conditions": [{"type": "Ready", "status": "True"}]}});
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    cluster.create(nodes.clone(), node).await;
    eventually("three", || is_everywhere(&cluster, "a", 3)).await;
    let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}});
    nodes.patch("late", &PatchParams::default(), &Patch::Merge(taint)).await.unwrap();
    eventually("two again", || is_everywhere(&cluster, "a", 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_daemon_is_replaced() {
    let cluster = Cluster::start(1).await;
    daemon(&cluster).await;
    eventually("there", || is_everywhere(&cluster, "a", 1)).await;
    let pods = cluster.api::<Pod>();
    let pod = pods.list(&ListParams::default()).await.unwrap().items.remove(0);
    let failed = json!({"status": {"phase": "Failed", "conditions": [{"type": "Ready", "status": "False"}]}});
    let name = meta::name(&pod.metadata);
    pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(failed)).await.unwrap();
    eventually("replaced", || async {
        pods.get_opt(name).await.unwrap().is_none() && is_everywhere(&cluster, "a", 1).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_is_rolled_and_rolled_back() {
    let cluster = Cluster::start(3).await;
    daemon(&cluster).await;
    eventually("first", || is_everywhere(&cluster, "a", 3)).await;
    let sets = cluster.api::<DaemonSet>();
    for wanted in ["b", "a"] {
        sets.patch("d", &PatchParams::default(), &Patch::Merge(image(wanted))).await.unwrap();
        eventually(wanted, || is_everywhere(&cluster, wanted, 3)).await;
    }
    let revisions = cluster.api::<ControllerRevision>().list(&ListParams::default()).await.unwrap();
    let mut numbers: Vec<_> = revisions.iter().map(|r| r.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3]);
}
