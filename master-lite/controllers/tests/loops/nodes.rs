//! Nodes: pods that wait for them, pods that leave them, their certificates.

use std::time::Duration;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use keelson_client::pods;
use keelson_controllers::{ControllersConfig, SigningConfig};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use crate::cluster::{Cluster, eventually};

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
