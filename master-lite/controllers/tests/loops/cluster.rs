//! The harness: a server in memory, the controllers, the scheduler, and a kubelet that makes every bound pod ready.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::{Delta, Informer, meta, pods};
use keelson_controllers::{ClientFactory, ControllersConfig};
use keelson_scheduler::SchedulerConfig;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::fake_api::FakeApi;

/// A server with controllers, a scheduler and a kubelet at work.
pub struct Cluster {
    pub client: Client,
    shutdown: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cluster {
    pub async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, ControllersConfig::default()).await
    }

    pub async fn start_with(nodes: usize, config: ControllersConfig) -> Self {
        let api = FakeApi::new();
        let cluster = Cluster { client: api.client(), shutdown: CancellationToken::new() };
        let factory = {
            let api = api.clone();
            ClientFactory::new(move |_| api.client())
        };
        let (client, shutdown) = (&cluster.client, &cluster.shutdown);
        cluster.create(Api::<Namespace>::all(client.clone()), json!({"metadata": {"name": "ns"}})).await;
        for n in 0..nodes {
            let node = json!({
                "metadata": {"name": format!("n{n}"), "labels": {"kubernetes.io/hostname": format!("n{n}")}},
                "status": {"allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"},
                           "conditions": [{"type": "Ready", "status": "True"}]},
            });
            cluster.create(Api::<Node>::all(client.clone()), node).await;
        }
        tokio::spawn(keelson_controllers::run(factory, config, shutdown.clone()));
        tokio::spawn(keelson_scheduler::run(client.clone(), SchedulerConfig::default(), shutdown.clone()));
        cluster.kubelet();
        cluster
    }

    /// Makes each bound pod running and ready; one that has ended stays so, as with a kubelet.
    fn kubelet(&self) {
        let pods = Informer::<Pod>::new();
        let client = self.client.clone();
        pods.on_change(move |delta: &Delta<Pod>| {
            let pod = delta.object().clone();
            let done = pods::is_ready(&pod) || pods::is_terminal(&pod);
            if matches!(delta, Delta::Deleted(_)) || pods::node_name(&pod).is_none() || done {
                return;
            }
            let api: Api<Pod> = Api::namespaced(client.clone(), meta::namespace(&pod.metadata));
            let number: u64 = meta::uid(&pod.metadata).rsplit('-').next().unwrap().parse().unwrap();
            tokio::spawn(async move {
                let ip = format!("10.244.{}.{}", number / 250, number % 250);
                let status = json!({"status": {
                    "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": meta::now()}],
                }});
                let _ = api
                    .patch_status(
                        meta::name(&pod.metadata),
                        &PatchParams::default(),
                        &Patch::Strategic(status),
                    )
                    .await;
            });
        });
        let api = Api::all(self.client.clone());
        tokio::spawn(pods.run(api, watcher::Config::default(), self.shutdown.clone()));
    }

    /// Posts the status of one node again and again.
    pub fn heartbeat(&self, node: &'static str) {
        let (client, shutdown) = (self.client.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            let api: Api<Node> = Api::all(client);
            for beat in 0u32.. {
                let then = format!("2026-01-01T00:{:02}:{:02}Z", beat / 60 % 60, beat % 60);
                let status = json!({"status": {"conditions": [
                    {"type": "Ready", "status": "True", "lastHeartbeatTime": then}]}});
                let _ = api.patch_status(node, &PatchParams::default(), &Patch::Strategic(status)).await;
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = sleep(Duration::from_millis(200)) => {}
                }
            }
        });
    }

    pub async fn create<K>(&self, api: Api<K>, object: serde_json::Value) -> K
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
    {
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "ns")
    }

    pub async fn deploy(&self, replicas: i32) {
        let deployment = json!({
            "metadata": {"name": "web"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate",
                             "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                "progressDeadlineSeconds": 600,
                "revisionHistoryLimit": 10,
                "template": {"metadata": {"labels": {"app": "web"}},
                             "spec": {"containers": [{"name": "c", "image": "a"}]}},
            },
        });
        self.create(self.api::<Deployment>(), deployment).await;
        let service = json!({
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        });
        self.create(self.api::<Service>(), service).await;
    }

    pub async fn patch_deployment(&self, patch: serde_json::Value) {
        let api = self.api::<Deployment>();
        api.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    pub async fn ready_endpoints(&self) -> usize {
        let slices = self.api::<EndpointSlice>().list(&ListParams::default()).await.unwrap();
        slices
            .iter()
            .flat_map(|s| s.endpoints.iter().flatten())
            .filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)))
            .count()
    }

    pub async fn is_rolled_out(&self, replicas: i32) -> bool {
        let deployment = self.api::<Deployment>().get("web").await.unwrap();
        let status = deployment.status.unwrap_or_default();
        let zero_is_none = |n: i32| (n != 0).then_some(n);
        status.observed_generation == deployment.metadata.generation
            && status.replicas == zero_is_none(replicas)
            && status.updated_replicas == zero_is_none(replicas)
            && status.available_replicas == zero_is_none(replicas)
    }
}

/// Waits for what `check` says.
pub async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let start = Instant::now();
    while !check().await {
        assert!(start.elapsed() < Duration::from_secs(20), "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
