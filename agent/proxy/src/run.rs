//! Keeps the maps at what the API says.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::compile::{NodeContext, compile};
use crate::diff::diff;
use crate::error::ProxyError;
use crate::kernel::Kernel;

/// What the proxy needs to know of its node.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// cgroup whose sockets see Services: the cgroup2 root on a real node.
    pub cgroup: PathBuf,
    /// Folder of a bpffs, such as `/sys/fs/bpf/keelson`.
    pub pin_dir: PathBuf,
    /// Name of this node.
    pub node_name: String,
    /// Service addresses answered on the node itself (cluster DNS).
    pub local: Vec<Ipv4Addr>,
}

/// Attaches the programs and follows Services and EndpointSlices until `shutdown`. The programs stay when it ends.
///
/// # Errors
/// The programs can't be loaded. A change that can't be applied is logged and tried again with the next one.
pub async fn run(client: Client, config: ProxyConfig, shutdown: CancellationToken) -> Result<(), ProxyError> {
    let mut kernel = Kernel::attach(&config.cgroup, &config.pin_dir)?;
    let node = NodeContext { name: config.node_name, local: config.local };
    let changed = Arc::new(Notify::new());
    let (services, services_task) =
        follow::<Service>(client.clone(), watcher::Config::default(), changed.clone());
    // Headless Services have no address to translate.
    let slices_config = watcher::Config::default().labels("!service.kubernetes.io/headless");
    let (slices, slices_task) = follow::<EndpointSlice>(client, slices_config, changed.clone());
    tokio::pin!(services_task, slices_task);

    let mut installed = kernel.installed()?;
    let applying = async {
        // Before both lists are whole nothing is touched: what an earlier agent left goes on serving.
        if services.wait_until_ready().await.is_err() || slices.wait_until_ready().await.is_err() {
            return Ok(());
        }
        loop {
            let start = Instant::now();
            let (service_list, slice_list) = (services.state(), slices.state());
            let image =
                compile(service_list.iter().map(AsRef::as_ref), slice_list.iter().map(AsRef::as_ref), &node);
            let ops = diff(&installed, &image);
            let mut failure = None;
            for op in &ops {
                match kernel.apply(op) {
                    Ok(()) => installed.apply(op),
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                }
            }
            if let Some(error) = failure {
                tracing::error!(%error, "can't apply a change of Services; trying again");
                installed = kernel.installed()?;
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
            if !ops.is_empty() {
                tracing::debug!(operations = ops.len(), took = ?start.elapsed(), "Services applied");
            }
            changed.notified().await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = &mut services_task => Ok(()),
        () = &mut slices_task => Ok(()),
        result = applying => result,
    }
}

fn follow<K>(
    client: Client,
    config: watcher::Config,
    changed: Arc<Notify>,
) -> (Store<K>, impl Future<Output = ()>)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + Sync + 'static,
    K: for<'de> k8s_openapi::serde::Deserialize<'de>,
{
    let (store, writer) = reflector::store();
    let stream = watcher(Api::<K>::all(client), config).default_backoff().reflect(writer);
    let task = stream.for_each(move |event| {
        match event {
            Ok(_) => changed.notify_one(),
            Err(error) => tracing::warn!(%error, "watch of Services or EndpointSlices interrupted"),
        }
        std::future::ready(())
    });
    (store, task)
}
