//! Deployments, their replica sets and pods, and what becomes of them with their owners.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use keelson_client::{meta, pods};
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use crate::cluster::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_is_rolled_out_scaled_and_collected() {
    let cluster = Cluster::start(3).await;
    cluster.deploy(3).await;
    eventually("rolled out", || cluster.is_rolled_out(3)).await;
    eventually("endpoints", || async { cluster.ready_endpoints().await == 3 }).await;
    let on: std::collections::BTreeSet<String> = {
        let pods = cluster.api::<Pod>().list(&ListParams::default()).await.unwrap();
        pods.iter().filter_map(|p| pods::node_name(p).map(str::to_owned)).collect()
    };
    assert_eq!(on.len(), 3, "pods are spread over the nodes");

    cluster.patch_deployment(json!({"spec": {"replicas": 30}})).await;
    eventually("scaled up", || cluster.is_rolled_out(30)).await;
    eventually("endpoints", || async { cluster.ready_endpoints().await == 30 }).await;
    cluster.patch_deployment(json!({"spec": {"replicas": 3}})).await;
    eventually("scaled down", || cluster.is_rolled_out(3)).await;
    eventually("endpoints", || async { cluster.ready_endpoints().await == 3 }).await;

    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    cluster.patch_deployment(image("b")).await;
    eventually("new image", || cluster.is_rolled_out(3)).await;
    cluster.patch_deployment(image("a")).await;
    eventually("old image again", || cluster.is_rolled_out(3)).await;
    let sets = cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap();
    let mut revisions: Vec<_> = sets
        .iter()
        .map(|s| meta::annotation(&s.metadata, "deployment.kubernetes.io/revision").unwrap().to_owned())
        .collect();
    revisions.sort();
    assert_eq!(revisions, ["2", "3"]);
    let deployment = cluster.api::<Deployment>().get("web").await.unwrap();
    assert_eq!(meta::annotation(&deployment.metadata, "deployment.kubernetes.io/revision"), Some("3"));

    cluster.api::<Deployment>().delete("web", &DeleteParams::background()).await.unwrap();
    eventually("collected", || async {
        cluster.api::<Pod>().list(&ListParams::default()).await.unwrap().items.is_empty()
            && cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items.is_empty()
    })
    .await;
    eventually("no endpoints", || async { cluster.ready_endpoints().await == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_never_missing_while_rolling() {
    let cluster = Cluster::start(2).await;
    cluster.deploy(4).await;
    eventually("rolled out", || cluster.is_rolled_out(4)).await;
    eventually("endpoints", || async { cluster.ready_endpoints().await == 4 }).await;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "b"}]}}}});
    cluster.patch_deployment(image).await;
    // With 25% of 4 at most one may be missing.
    eventually("rolled out", || async {
        assert!(cluster.ready_endpoints().await >= 3);
        cluster.is_rolled_out(4).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreground_deletion_and_orphaning() {
    let cluster = Cluster::start(1).await;
    cluster.deploy(2).await;
    eventually("rolled out", || cluster.is_rolled_out(2)).await;
    cluster.api::<Deployment>().delete("web", &DeleteParams::orphan()).await.unwrap();
    eventually("deployment gone", || async {
        cluster.api::<Deployment>().get_opt("web").await.unwrap().is_none()
    })
    .await;
    let sets = cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(sets.len(), 1);
    assert!(meta::controller_of(&sets[0].metadata).is_none());
    assert_eq!(cluster.api::<Pod>().list(&ListParams::default()).await.unwrap().items.len(), 2);
    let name = meta::name(&sets[0].metadata);
    cluster.api::<ReplicaSet>().delete(name, &DeleteParams::foreground()).await.unwrap();
    eventually("all gone", || async {
        cluster.api::<Pod>().list(&ListParams::default()).await.unwrap().items.is_empty()
            && cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items.is_empty()
    })
    .await;
}
