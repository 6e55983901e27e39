//! A node joins, registers and keeps its Node and Lease, against a made-up API server that signs what it is asked to.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/api.rs"]
mod api;
#[path = "support/runtime.rs"]
#[allow(dead_code, reason = "shared with the streaming tests")]
mod runtime;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keelson_cri::{CriError, Image, ImageService, RegistryAuth};
use keelson_kubelet::certs::{
    CertificateStore, JoinOptions, NodeIdentity, ServingCertificate, Template, join, serving,
};
use keelson_kubelet::node::{NodeConfig, NodeManager, Thresholds};
use tokio_util::sync::CancellationToken;

use api::FakeApi;

struct NoImages;

#[async_trait::async_trait]
impl ImageService for NoImages {
    async fn pull_image(&self, reference: &str, _auths: &[RegistryAuth]) -> Result<Image, CriError> {
        Err(CriError::NotFound(reference.to_owned()))
    }
    async fn image_status(&self, _reference: &str) -> Result<Option<Image>, CriError> {
        Ok(None)
    }
    async fn list_images(&self) -> Result<Vec<Image>, CriError> {
        Ok(Vec::new())
    }
    async fn remove_image(&self, _reference: &str) -> Result<(), CriError> {
        Ok(())
    }
    async fn fs_info(&self) -> Result<(PathBuf, u64), CriError> {
        Ok(("/".into(), 0))
    }
}

fn options(dir: &Path) -> JoinOptions {
    JoinOptions {
        node_name: "n1".into(),
        bootstrap_kubeconfig: Some(dir.join("bootstrap-kubelet.conf")),
        kubeconfig: dir.join("kubelet.conf"),
        cert_dir: dir.join("pki"),
    }
}

async fn joined(api: &FakeApi, dir: &Path) -> NodeIdentity {
    std::fs::write(dir.join("bootstrap-kubelet.conf"), api.kubeconfig()).unwrap();
    tokio::time::timeout(Duration::from_secs(20), join(options(dir))).await.unwrap().unwrap()
}

/// Looks again until `condition` holds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = SystemTime::now() + Duration::from_secs(20);
    while !condition() {
        assert!(SystemTime::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn bootstrapping_happens_once() {
    let (api, dir) = (FakeApi::start(Duration::from_secs(3600)).await, tempfile::tempdir().unwrap());
    joined(&api, dir.path()).await;
    let requests = api.list("certificatesigningrequests");
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0]["spec"]["signerName"], "kubernetes.io/kube-apiserver-client-kubelet");
    let stored = CertificateStore::new(dir.path().join("pki"), "kubelet-client").load().unwrap().unwrap();
    assert_eq!(stored.common_name, "system:node:n1");
    let kubeconfig = std::fs::read_to_string(dir.path().join("kubelet.conf")).unwrap();
    assert!(kubeconfig.contains("kubelet-client-current.pem"), "{kubeconfig}");
    // Again: from disk, without the bootstrap kubeconfig.
    std::fs::remove_file(dir.path().join("bootstrap-kubelet.conf")).unwrap();
    join(options(dir.path())).await.unwrap();
    assert_eq!(api.list("certificatesigningrequests").len(), 1);
}

#[tokio::test]
async fn without_credentials_joining_fails() {
    let dir = tempfile::tempdir().unwrap();
    assert!(join(options(dir.path())).await.is_err());
}

#[tokio::test]
async fn certificates_are_renewed_before_they_end() {
    let (api, dir) = (FakeApi::start(Duration::from_secs(4)).await, tempfile::tempdir().unwrap());
    let identity = joined(&api, dir.path()).await;
    let client = identity.client.clone();
    let store = CertificateStore::new(dir.path().join("pki"), "kubelet-client");
    let first = store.load().unwrap().unwrap().not_after;
    let rotating = tokio::spawn(identity.rotate());
    eventually("a second certificate", || store.load().unwrap().unwrap().not_after > first).await;
    // The client still works.
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(client.clone());
    assert!(nodes.list(&Default::default()).await.unwrap().items.is_empty());
    rotating.abort();

    let shown = Arc::new(ServingCertificate::default());
    let template = Template::serving("n1", "n1", vec!["10.0.0.1".parse().unwrap()]);
    let store = CertificateStore::new(dir.path().join("pki"), "kubelet-server");
    let maintaining = tokio::spawn(serving::maintain(client, template, store.clone(), shown.clone()));
    eventually("a serving certificate", || shown.is_set()).await;
    let serving = store.load().unwrap().unwrap();
    assert_eq!(serving.dns_names, ["n1"]);
    assert_eq!(serving.ip_addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    maintaining.abort();
}

#[tokio::test]
async fn a_node_registers_and_becomes_ready() {
    let (api, dir) = (FakeApi::start(Duration::from_secs(3600)).await, tempfile::tempdir().unwrap());
    let client = joined(&api, dir.path()).await.client;
    let mut config = NodeConfig::new("n1", vec!["10.89.0.11".parse().unwrap()]);
    config.root_dir = dir.path().to_owned();
    // The disk is the machine's, and how full it is not the test's business.
    let thresholds = "memory.available<1Mi,nodefs.available<1Mi,imagefs.available<1Mi";
    config.eviction_hard = Thresholds::parse(thresholds).unwrap();
    let runtime = Arc::new(runtime::FakeRuntime::default());
    let node = NodeManager::new(config, client, runtime, Arc::new(NoImages)).unwrap();
    let shutdown = CancellationToken::new();
    let mut spec = node.spec();
    let running = tokio::spawn(node.clone().run(shutdown.clone()));

    let ready = || {
        api.list("nodes").iter().any(|node| {
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True" && c["reason"] == "KubeletReady")
        })
    };
    eventually("the node is Ready", ready).await;
    let object = &api.list("nodes")[0];
    assert_eq!(object["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    assert_eq!(object["status"]["addresses"][0]["address"], "10.89.0.11");
    assert_eq!(object["status"]["nodeInfo"]["kubeletVersion"], "v1.36.0+keelson");
    assert_eq!(object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);

    eventually("a lease", || !api.list("leases").is_empty()).await;
    let lease = &api.list("leases")[0];
    assert_eq!(lease["spec"]["holderIdentity"], "n1");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], object["metadata"]["uid"]);

    api.merge("nodes", "n1", serde_json::json!({ "spec": { "podCIDR": "10.244.3.0/24" } }));
    tokio::time::timeout(Duration::from_secs(10), async {
        while spec.borrow_and_update().pod_cidr.as_deref() != Some("10.244.3.0/24") {
            spec.changed().await.unwrap();
        }
    })
    .await
    .unwrap();

    let reasons = || -> Vec<String> {
        api.list("events")
            .iter()
            .map(|event| event["reason"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    // Ready from the first report on, so that nothing turned.
    let wanted = ["Starting", "NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"];
    eventually("events", || wanted.iter().all(|wanted| reasons().iter().any(|reason| reason == wanted)))
        .await;
    shutdown.cancel();
    running.await.unwrap();
}
