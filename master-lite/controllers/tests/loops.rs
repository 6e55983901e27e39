//! The controllers and the scheduler at work together, against an API server in memory and a kubelet that makes every
//! bound pod ready.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test, in helpers too")]

mod fake_api;

use std::time::Duration;

use fake_api::FakeApi;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::{Delta, Informer, meta, pods};
use keelson_controllers::{ClientFactory, ControllersConfig, SigningConfig};
use keelson_scheduler::SchedulerConfig;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

struct Cluster {
    client: Client,
    shutdown: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cluster {
    async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, ControllersConfig::default()).await
    }

    async fn start_with(nodes: usize, config: ControllersConfig) -> Self {
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

    /// Makes each bound pod running and ready.
    fn kubelet(&self) {
        let pods = Informer::<Pod>::new();
        let client = self.client.clone();
        pods.on_change(move |delta: &Delta<Pod>| {
            let pod = delta.object().clone();
            if matches!(delta, Delta::Deleted(_)) || pods::node_name(&pod).is_none() || pods::is_ready(&pod) {
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
    fn heartbeat(&self, node: &'static str) {
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

    async fn create<K>(&self, api: Api<K>, object: serde_json::Value) -> K
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
    {
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "ns")
    }

    async fn deploy(&self, replicas: i32) {
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

    async fn patch_deployment(&self, patch: serde_json::Value) {
        let api = self.api::<Deployment>();
        api.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    async fn ready_endpoints(&self) -> usize {
        let slices = self.api::<EndpointSlice>().list(&ListParams::default()).await.unwrap();
        slices
            .iter()
            .flat_map(|s| s.endpoints.iter().flatten())
            .filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)))
            .count()
    }

    async fn is_rolled_out(&self, replicas: i32) -> bool {
        let deployment = self.api::<Deployment>().get("web").await.unwrap();
        let status = deployment.status.unwrap_or_default();
        let zero_is_none = |n: i32| (n != 0).then_some(n);
        status.observed_generation == deployment.metadata.generation
            && status.replicas == zero_is_none(replicas)
            && status.updated_replicas == zero_is_none(replicas)
            && status.available_replicas == zero_is_none(replicas)
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let start = Instant::now();
    while !check().await {
        assert!(start.elapsed() < Duration::from_secs(20), "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

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

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_furnished_and_emptied() {
    let cluster = Cluster::start(1).await;
    eventually("service account", || async {
        cluster.api::<ServiceAccount>().get_opt("default").await.unwrap().is_some()
    })
    .await;
    cluster.deploy(2).await;
    eventually("rolled out", || cluster.is_rolled_out(2)).await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.delete("ns", &DeleteParams::default()).await.unwrap();
    eventually("namespace gone", || async { namespaces.get_opt("ns").await.unwrap().is_none() }).await;
    assert!(cluster.api::<Pod>().list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_waits_and_says_why() {
    let cluster = Cluster::start(0).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
        {"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
    cluster.create(cluster.api::<Pod>(), pod).await;
    eventually("said", || async {
        let events = cluster.api::<Event>().list(&ListParams::default()).await.unwrap();
        let pod = cluster.api::<Pod>().get("p").await.unwrap();
        let condition = pods::condition(&pod, "PodScheduled");
        events.iter().any(|e| e.reason.as_deref() == Some("FailedScheduling"))
            && condition.is_some_and(|c| c.reason.as_deref() == Some("Unschedulable"))
    })
    .await;
    let node = json!({"metadata": {"name": "late"}, "status": {
        "allocatable": {"cpu": "2", "pods": "10"}, "conditions": [{"type": "Ready", "status": "True"}]}});
    cluster.create(Api::<Node>::all(cluster.client.clone()), node).await;
    eventually("bound", || async {
        pods::node_name(&cluster.api::<Pod>().get("p").await.unwrap()) == Some("late")
    })
    .await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    eventually("pod CIDR", || async {
        let node = nodes.get("late").await.unwrap();
        node.spec.and_then(|s| s.pod_cidr).as_deref() == Some("10.244.0.0/24")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_left() {
    let config = ControllersConfig {
        node_monitor_grace_period: Duration::from_secs(2),
        node_monitor_period: Duration::from_millis(200),
        ..Default::default()
    };
    let cluster = Cluster::start_with(2, config).await;
    cluster.heartbeat("n1");
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "nodeSelector": {"kubernetes.io/hostname": "n0"},
        "containers": [{"name": "c"}],
        "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists",
                         "effect": "NoExecute", "tolerationSeconds": 2}],
    }});
    cluster.create(cluster.api::<Pod>(), pod).await;
    eventually("ready", || async { pods::is_ready(&cluster.api::<Pod>().get("p").await.unwrap()) }).await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    eventually("unreachable", || async {
        let node = nodes.get("n0").await.unwrap();
        let pairs: Vec<_> =
            keelson_client::taints::of(&node).iter().map(|t| (t.key.clone(), t.effect.clone())).collect();
        ["NoSchedule", "NoExecute"]
            .iter()
            .all(|effect| pairs.contains(&("node.kubernetes.io/unreachable".into(), (*effect).into())))
    })
    .await;
    eventually("evicted", || async { cluster.api::<Pod>().get_opt("p").await.unwrap().is_none() }).await;
    assert!(keelson_client::taints::of(&nodes.get("n1").await.unwrap()).is_empty());
    cluster.heartbeat("n0");
    eventually("back", || async { keelson_client::taints::of(&nodes.get("n0").await.unwrap()).is_empty() })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_its_certificates_and_no_other() {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let config = ControllersConfig {
        signing: Some(SigningConfig {
            ca_certificate: ca.self_signed(&ca_key).unwrap().pem(),
            ca_key: ca_key.serialize_pem(),
            max_validity: Duration::from_secs(3600),
        }),
        ..Default::default()
    };
    let cluster = Cluster::start_with(1, config).await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let addresses = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
    nodes.patch_status("n0", &PatchParams::default(), &Patch::Merge(addresses)).await.unwrap();
    let csrs: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let ask = |name: &'static str, signer: &'static str, purpose: &'static str, names: Vec<String>| {
        let (cluster, csrs) = (&cluster, csrs.clone());
        async move {
            let mut params = rcgen::CertificateParams::new(names).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n0");
            params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
            let key = rcgen::KeyPair::generate().unwrap();
            let pem = params.serialize_request(&key).unwrap().pem().unwrap();
            let csr = json!({"metadata": {"name": name}, "spec": {
                "signerName": signer,
                "request": k8s_openapi::ByteString(pem.into_bytes()),
                "usages": ["digital signature", purpose],
                "username": "system:node:n0",
                "groups": ["system:nodes", "system:authenticated"],
            }});
            cluster.create(csrs, csr).await;
        }
    };
    let (client, serving) = ("kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving");
    ask("wrong", serving, "server auth", vec!["10.0.0.2".into()]).await;
    ask("client", client, "client auth", vec![]).await;
    ask("serving", serving, "server auth", vec!["n0".into(), "10.0.0.1".into()]).await;
    for name in ["client", "serving"] {
        eventually(name, || async {
            csrs.get(name).await.unwrap().status.is_some_and(|s| s.certificate.is_some())
        })
        .await;
    }
    assert!(csrs.get("wrong").await.unwrap().status.is_none());
}
