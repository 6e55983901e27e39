//! Namespaces.

use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, ListParams};

use crate::cluster::{Cluster, eventually};

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
