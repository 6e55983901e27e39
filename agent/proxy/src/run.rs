//! Keeps the maps at what the API says.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, NodeStatus, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_cni::services::{self, Forward};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::compile::{NodeContext, compile};
use crate::diff::diff;
use crate::error::ProxyError;
use crate::health::{HealthServer, checks};
use crate::kernel::Kernel;
use crate::outside::forwards;

/// How often the addresses of the node's interfaces are looked at though nothing changed in the API.
const RESYNC: Duration = Duration::from_secs(30);

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
    /// All addresses that Services may have.
    pub ranges: Vec<IpNet>,
}

/// Attaches the programs and follows Services, EndpointSlices and Nodes until `shutdown`. The programs stay when it ends.
///
/// # Errors
/// The programs can't be loaded. A change that can't be applied is logged and tried again with the next one.
pub async fn run(client: Client, config: ProxyConfig, shutdown: CancellationToken) -> Result<(), ProxyError> {
    let mut kernel = Kernel::attach(&config.cgroup, &config.pin_dir)?;
    let mut node = NodeContext { name: config.node_name, addresses: Vec::new(), local: config.local };
    let changed = Arc::new(Notify::new());
    let (service_store, services_task) =
        follow::<Service>(client.clone(), watcher::Config::default(), changed.clone(), |_| {}, |_| true);
    // Headless Services have no address to translate.
    let slices_config = watcher::Config::default().labels("!service.kubernetes.io/headless");
    let (slices, slices_task) =
        follow::<EndpointSlice>(client.clone(), slices_config, changed.clone(), |_| {}, |_| true);
    let (nodes, nodes_task) =
        follow::<Node>(client, watcher::Config::default(), changed.clone(), trim, moved());
    tokio::pin!(services_task, slices_task, nodes_task);

    let mut installed = kernel.installed()?;
    let mut health = HealthServer::default();
    let applying = async {
        // Before all lists are whole nothing is touched: what an earlier agent left goes on serving.
        if service_store.wait_until_ready().await.is_err()
            || slices.wait_until_ready().await.is_err()
            || nodes.wait_until_ready().await.is_err()
        {
            return Ok(());
        }
        loop {
            let start = Instant::now();
            let (service_list, slice_list, node_list) =
                (service_store.state(), slices.state(), nodes.state());
            let slice_refs: Vec<&EndpointSlice> = slice_list.iter().map(AsRef::as_ref).collect();
            match addresses() {
                Ok(addresses) => node.addresses = addresses,
                Err(error) => tracing::warn!(%error, "can't list the node's addresses"),
            }
            let image = compile(
                service_list.iter().map(AsRef::as_ref),
                slice_refs.iter().copied(),
                node_list.iter().map(AsRef::as_ref),
                &node,
            );
            let forwards =
                forwards(service_list.iter().map(AsRef::as_ref), slice_refs.iter().copied(), &node);
            let checks = checks(service_list.iter().map(AsRef::as_ref), &slice_refs, &node.name);
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
                health.sync(&checks, false).await;
                installed = kernel.installed()?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            if !ops.is_empty() {
                tracing::debug!(operations = ops.len(), took = ?start.elapsed(), "Services applied");
            }
            health.sync(&checks, forward(forwards, config.ranges.clone()).await).await;
            // Either way it is time to look again.
            let _ = tokio::time::timeout(RESYNC, changed.notified()).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = &mut services_task => Ok(()),
        () = &mut slices_task => Ok(()),
        () = &mut nodes_task => Ok(()),
        result = applying => result,
    }
}

/// Sets the rules for clients from outside and for what no socket was translated for; whether they are in place.
async fn forward(forwards: Vec<Forward>, ranges: Vec<IpNet>) -> bool {
    match tokio::task::spawn_blocking(move || services::ensure(&forwards, &ranges)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "clients outside of the cluster can't be served; trying again"
            );
            false
        }
        Err(error) => {
            tracing::error!(%error, "the rules for clients outside of the cluster were not set");
            false
        }
    }
}

/// The node's IPv4 addresses but those of its loopback, which the programs know.
fn addresses() -> nix::Result<Vec<Ipv4Addr>> {
    let all = nix::ifaddrs::getifaddrs()?;
    let v4 = all.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
    Ok(v4.filter(|address| !address.is_loopback()).collect())
}

/// Leaves of a node what is used here: its status is large, and there may be many nodes.
fn trim(node: &mut Node) {
    let addresses = node.status.take().and_then(|status| status.addresses);
    node.status = Some(NodeStatus { addresses, ..NodeStatus::default() });
    node.spec = None;
    let meta = &mut node.metadata;
    (meta.managed_fields, meta.annotations, meta.labels) = (None, None, None);
}

/// Whether an event is about addresses: a node's status says all the time that it is well.
fn moved() -> impl FnMut(&watcher::Event<Node>) -> bool {
    let mut known: HashMap<Option<String>, Option<NodeStatus>> = HashMap::new();
    move |event| match event {
        watcher::Event::Apply(node) | watcher::Event::InitApply(node) => {
            let status = node.status.clone();
            known.insert(node.metadata.name.clone(), status.clone()) != Some(status)
        }
        watcher::Event::Delete(node) => {
            known.remove(&node.metadata.name);
            true
        }
        watcher::Event::Init => false,
        watcher::Event::InitDone => true,
    }
}

fn follow<K>(
    client: Client,
    config: watcher::Config,
    changed: Arc<Notify>,
    trim: fn(&mut K),
    mut matters: impl FnMut(&watcher::Event<K>) -> bool,
) -> (Store<K>, impl Future<Output = ()>)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + Sync + 'static,
    K: for<'de> k8s_openapi::serde::Deserialize<'de>,
{
    let (store, writer) = reflector::store();
    let stream = watcher(Api::<K>::all(client), config).default_backoff().modify(trim).reflect(writer);
    let task = stream.for_each(move |event| {
        match event {
            Ok(event) if matters(&event) => changed.notify_one(),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "watch of Services, EndpointSlices or Nodes interrupted"),
        }
        std::future::ready(())
    });
    (store, task)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{from_value, json};

    use super::*;

    #[test]
    fn only_addresses_of_nodes_matter() {
        let node = |address: &str, version: &str| {
            let mut node: Node = from_value(json!({
                "metadata": {"name": "n1", "resourceVersion": version, "labels": {"a": "b"}},
                "status": {"addresses": [{"type": "InternalIP", "address": address}],
                    "conditions": [{"type": "Ready", "status": version}]},
            }))
            .unwrap();
            trim(&mut node);
            node
        };
        let mut matters = moved();
        assert!(!matters(&watcher::Event::Init));
        matters(&watcher::Event::InitApply(node("192.0.2.1", "1")));
        assert!(matters(&watcher::Event::InitDone));
        assert!(!matters(&watcher::Event::Apply(node("192.0.2.1", "2"))));
        assert!(matters(&watcher::Event::Apply(node("192.0.2.2", "3"))));
        assert!(matters(&watcher::Event::Delete(node("192.0.2.2", "4"))));
        assert!(matters(&watcher::Event::Apply(node("192.0.2.2", "5"))));
    }
}
