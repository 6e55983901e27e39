//! Jobs, stateful sets and disruption budgets.

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use keelson_client::{meta, pods};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually};

async fn pods_of(cluster: &Cluster, label: &str) -> Vec<Pod> {
    let mut pods = cluster.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
    pods.retain(|pod| meta::label(&pod.metadata, label).is_some());
    pods
}

/// Ends a pod.
async fn end(cluster: &Cluster, pod: &Pod, phase: &str) {
    let status = json!({"status": {"phase": phase, "conditions": [{"type": "Ready", "status": "False"}]}});
    let name = meta::name(&pod.metadata);
    cluster
        .api::<Pod>()
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
        .await
        .unwrap();
}

async fn job_status(cluster: &Cluster) -> Value {
    let job = cluster.api::<Job>().get("j").await.unwrap();
    serde_json::to_value(job.status.unwrap_or_default()).unwrap()
}

async fn is(cluster: &Cluster, condition: &str) -> bool {
    let status = job_status(cluster).await;
    status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == condition && c["status"] == "True")
}

/// The job's label, its selector and the defaults, as the API server fills them in.
async fn run_job(cluster: &Cluster, extra: Value) {
    let mut job = json!({"metadata": {"name": "j"}, "spec": {
        "parallelism": 2, "completions": 3, "backoffLimit": 6, "completionMode": "NonIndexed",
        "podReplacementPolicy": "TerminatingOrFailed",
        "selector": {"matchLabels": {"job": "j"}},
        "template": {"metadata": {"labels": {"job": "j"}},
                     "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]}},
    }});
    for (key, value) in extra.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    cluster.create(cluster.api::<Job>(), job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_as_often_as_it_says_and_counts_each_end_once() {
    let cluster = Cluster::start(1).await;
    run_job(&cluster, json!({})).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let is_next = |pod: &Pod| pods::is_ready(pod) && !seen.contains(&pod.metadata.uid);
        eventually("a pod runs", || async { pods_of(&cluster, "job").await.iter().any(is_next) }).await;
        let pods = pods_of(&cluster, "job").await;
        assert!(pods.iter().filter(|pod| pods::is_active(pod)).count() <= 2, "no more than two at a time");
        let pod = pods.into_iter().find(is_next).unwrap();
        assert_eq!(pod.metadata.finalizers.as_deref().unwrap(), ["batch.kubernetes.io/job-tracking"]);
        end(&cluster, &pod, "Succeeded").await;
        seen.push(pod.metadata.uid);
    }
    eventually("complete", || is(&cluster, "Complete")).await;
    let status = job_status(&cluster).await;
    assert_eq!((&status["succeeded"], &status["failed"]), (&json!(3), &Value::Null));
    assert_eq!(status["uncountedTerminatedPods"], json!({}));
    let pods = pods_of(&cluster, "job").await;
    assert_eq!(pods.len(), 3);
    assert!(pods.iter().all(|pod| pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_too_often_takes_its_pods_down() {
    let cluster = Cluster::start(1).await;
    run_job(&cluster, json!({"backoffLimit": 0})).await;
    eventually("two run", || async {
        pods_of(&cluster, "job").await.iter().filter(|pod| pods::is_ready(pod)).count() == 2
    })
    .await;
    end(&cluster, &pods_of(&cluster, "job").await[0], "Failed").await;
    eventually("failed", || is(&cluster, "Failed")).await;
    eventually("only the failed pod is left", || async { pods_of(&cluster, "job").await.len() == 1 }).await;
    assert_eq!(job_status(&cluster).await["failed"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_keeps_names_over_scaling_and_updates() {
    let cluster = Cluster::start(2).await;
    let set = json!({"metadata": {"name": "web"}, "spec": {
        "replicas": 3, "serviceName": "web", "podManagementPolicy": "OrderedReady", "revisionHistoryLimit": 10,
        "selector": {"matchLabels": {"app": "web"}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        "template": {"metadata": {"labels": {"app": "web"}},
                     "spec": {"containers": [{"name": "c", "image": "a"}]}},
    }});
    let sets = cluster.api::<StatefulSet>();
    cluster.create(sets.clone(), set).await;
    let shows = async |wanted: &[(&str, &str)]| {
        let pods = pods_of(&cluster, "app").await;
        let found: Vec<_> = pods
            .iter()
            .map(|pod| {
                (
                    meta::name(&pod.metadata),
                    pod.spec.as_ref().unwrap().containers[0].image.as_deref().unwrap(),
                )
            })
            .collect();
        let set = sets.get("web").await.unwrap();
        let status = set.status.unwrap_or_default();
        found == wanted
            && status.observed_generation == set.metadata.generation
            && status.ready_replicas == i32::try_from(wanted.len()).ok()
            && status.current_revision == status.update_revision
    };
    eventually("three", || shows(&[("web-0", "a"), ("web-1", "a"), ("web-2", "a")])).await;
    let patch = async |spec: Value| {
        let patch = Patch::Merge(json!({"spec": spec}));
        sets.patch("web", &PatchParams::default(), &patch).await.unwrap();
    };
    patch(json!({"replicas": 2})).await;
    eventually("two", || shows(&[("web-0", "a"), ("web-1", "a")])).await;
    for image in ["b", "a"] {
        patch(json!({"template": {"spec": {"containers": [{"name": "c", "image": image}]}}})).await;
        eventually("rolled", || async { shows(&[("web-0", image), ("web-1", image)]).await }).await;
    }
    let revisions = cluster.api::<ControllerRevision>().list(&ListParams::default()).await.unwrap();
    let mut numbers: Vec<_> = revisions.iter().map(|revision| revision.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3], "going back takes the old revision up again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_follows_the_pods_of_its_deployment() {
    let cluster = Cluster::start(1).await;
    cluster.deploy(4).await;
    let budget = json!({"metadata": {"name": "b"}, "spec": {
        "maxUnavailable": "25%", "selector": {"matchLabels": {"app": "web"}}}});
    let budgets = cluster.api::<PodDisruptionBudget>();
    cluster.create(budgets.clone(), budget).await;
    let shows = async |wanted: [i32; 4]| {
        let status = budgets.get("b").await.unwrap().status.unwrap_or_default();
        let found = [
            status.expected_pods,
            status.current_healthy,
            status.desired_healthy,
            status.disruptions_allowed,
        ];
        found == wanted.map(Some)
    };
    eventually("one may go", || shows([4, 4, 3, 1])).await;
    cluster.patch_deployment(json!({"spec": {"replicas": 8}})).await;
    eventually("two may go", || shows([8, 8, 6, 2])).await;
}
