//! Sees to it that each namespace has the service account `default`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{Delta, Key, WorkQueue, meta, run_workers};
use kube::Api;
use kube::api::PostParams;

use crate::context::{Context, Task};
use crate::error::{Error, Result};

const NAME: &str = "service-account-controller";
const DEFAULT: &str = "default";

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let client = context.client(NAME);
    let (namespaces, accounts) =
        (context.informers.namespaces.clone(), context.informers.service_accounts.clone());
    let queue: Arc<WorkQueue<Key>> = WorkQueue::new();
    let on_namespace = queue.clone();
    namespaces.on_change(move |delta| on_namespace.add(Key::of(&**delta.object())));
    let on_account = queue.clone();
    accounts.on_change(move |delta| {
        if let Delta::Deleted(account) = delta
            && meta::name(&account.metadata) == DEFAULT
        {
            on_account.add(Key::cluster(meta::namespace(&account.metadata)));
        }
    });
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            namespaces.synced().await;
            accounts.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        run_workers(NAME, queue, 1, shutdown, move |key| {
            let (client, namespaces, accounts) = (client.clone(), namespaces.clone(), accounts.clone());
            async move {
                let Some(namespace) = namespaces.get(&key) else { return Ok(()) };
                let present = accounts.get(&Key::new(key.name.as_str(), DEFAULT)).is_some();
                if present || namespace.metadata.deletion_timestamp.is_some() {
                    return Ok(());
                }
                ensure(client, &key.name).await
            }
        })
        .await;
    })
}

async fn ensure(client: kube::Client, namespace: &str) -> Result {
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(DEFAULT.into()),
            namespace: Some(namespace.into()),
            ..Default::default()
        },
        ..Default::default()
    };
    match Api::namespaced(client, namespace).create(&PostParams::default(), &account).await {
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
