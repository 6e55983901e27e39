//! Publishes the cluster's CA in each namespace, for pods to verify the API server with.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{Key, WorkQueue, meta, run_workers};
use kube::Api;
use kube::api::PostParams;

use crate::context::{Context, Task};
use crate::error::{Error, Result};

const NAME: &str = "root-ca-cert-publisher";
const CONFIG_MAP: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

/// Starts the controller; without a CA in the settings it does nothing.
pub fn start(context: &Context) -> Task {
    if context.config.root_ca.is_empty() {
        return Box::pin(async {});
    }
    let config = context.config.clone();
    let client = context.client(NAME);
    let (namespaces, published) = (context.informers.namespaces.clone(), context.informers.root_cas.clone());
    let queue: Arc<WorkQueue<Key>> = WorkQueue::new();
    let on_namespace = queue.clone();
    namespaces.on_change(move |delta| on_namespace.add(Key::of(&**delta.object())));
    let on_map = queue.clone();
    published.on_change(move |delta| on_map.add(Key::cluster(meta::namespace(&delta.object().metadata))));
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            namespaces.synced().await;
            published.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        run_workers(NAME, queue, 1, shutdown, move |key| {
            let (client, config) = (client.clone(), config.clone());
            let (namespaces, published) = (namespaces.clone(), published.clone());
            async move {
                let Some(namespace) = namespaces.get(&key) else { return Ok(()) };
                if namespace.metadata.deletion_timestamp.is_some() {
                    return Ok(());
                }
                let present = published.get(&Key::new(key.name.as_str(), CONFIG_MAP));
                publish(client, &key.name, &config.root_ca, present.as_deref()).await
            }
        })
        .await;
    })
}

async fn publish(client: kube::Client, namespace: &str, ca: &str, present: Option<&ConfigMap>) -> Result {
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let data = Some([("ca.crt".to_owned(), ca.to_owned())].into());
    let outcome = match present {
        Some(map) if map.data == data => return Ok(()),
        Some(map) => {
            let map = ConfigMap { data, ..map.clone() };
            api.replace(CONFIG_MAP, &PostParams::default(), &map).await
        }
        None => {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(CONFIG_MAP.into()),
                    namespace: Some(namespace.into()),
                    annotations: Some([("kubernetes.io/description".into(), DESCRIPTION.into())].into()),
                    ..Default::default()
                },
                data,
                ..Default::default()
            };
            api.create(&PostParams::default(), &map).await
        }
    };
    match outcome {
        Err(error)
            if !meta::is_already_exists(&error)
                && !meta::is_namespace_terminating(&error)
                && !meta::is_not_found(&error) =>
        {
            Err(Error::Api(error))
        }
        _ => Ok(()),
    }
}
