//! Keeps the maps at what the API says.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, NodeStatus, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_cni::services::{self, Forward};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::changes::{Change, Changes, Name};
use crate::compile::{MapImage, NodeContext, compile};
use crate::diff::{Installed, MapOp, diff, diff_refreshed};
use crate::error::ProxyError;
use crate::health::{Check, HealthServer, checks};
use crate::kernel::Kernel;
use crate::outside::forwards;
use crate::refresh::refresh;

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
    let kernel = Kernel::attach(&config.cgroup, &config.pin_dir)?;
    let changes = Changes::default();
    let (services, services_task) =
        follow::<Service>(client.clone(), watcher::Config::default(), |_| {}, |_| changes.anything());
    // Headless Services have no address to translate.
    let slices_config = watcher::Config::default().labels("!service.kubernetes.io/headless");
    let (slices, slices_task) =
        follow::<EndpointSlice>(client.clone(), slices_config, |_| {}, |event| changes.endpoints(event));
    let mut moved = moved();
    let (nodes, nodes_task) = follow::<Node>(client, watcher::Config::default(), trim, |event| {
        if moved(event) {
            changes.anything();
        }
    });
    tokio::pin!(services_task, slices_task, nodes_task);
    let maps = Maps {
        installed: kernel.installed()?,
        kernel,
        image: MapImage::default(),
        node: NodeContext { name: config.node_name, addresses: Vec::new(), local: config.local },
        services,
        slices,
        nodes,
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = &mut services_task => Ok(()),
        () = &mut slices_task => Ok(()),
        () = &mut nodes_task => Ok(()),
        result = keep(maps, &changes, &config.ranges) => result,
    }
}

/// Brings the maps, the rules for clients from outside, and the answers to balancers up to date whenever something changed.
async fn keep(mut maps: Maps, changes: &Changes, ranges: &[IpNet]) -> Result<(), ProxyError> {
    // Before all lists are whole nothing is touched: what an earlier agent left goes on serving.
    if !maps.wait_until_ready().await {
        return Ok(());
    }
    let mut health = HealthServer::default();
    let mut change = Change::Anything;
    let mut resync = Instant::now() + RESYNC;
    loop {
        let whole = match change {
            Change::Anything => true,
            // Nothing outside of the maps is about those that the short way takes. When endpoints come, addresses of the node
            // may have come too, such as the bridge's with the first pod.
            Change::Endpoints(touched) => !maps.refresh(&touched) || maps.moved(),
        };
        if whole {
            let outcome = maps.compile();
            let checks = maps.checks();
            if let Err(error) = outcome {
                tracing::error!(%error, "can't apply a change of Services; trying again");
                health.sync(&checks, false).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                change = Change::Anything;
                continue;
            }
            health.sync(&checks, forward(maps.forwards(), ranges.to_vec()).await).await;
            resync = Instant::now() + RESYNC;
        }
        change = match tokio::time::timeout_at(resync, changes.noted()).await {
            Ok(()) => changes.take(),
            Err(_it_is_time) => Change::Anything,
        };
    }
}

/// The maps, and what they are made of.
struct Maps {
    kernel: Kernel,
    /// What they hold.
    installed: Installed,
    /// What they should hold, as it was last compiled.
    image: MapImage,
    node: NodeContext,
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    nodes: Store<Node>,
}

impl Maps {
    /// Whether all lists are whole; false when that can't be any more.
    async fn wait_until_ready(&self) -> bool {
        self.services.wait_until_ready().await.is_ok()
            && self.slices.wait_until_ready().await.is_ok()
            && self.nodes.wait_until_ready().await.is_ok()
    }

    /// Compiles everything anew and applies what is different.
    fn compile(&mut self) -> Result<(), ProxyError> {
        let start = Instant::now();
        match addresses() {
            Ok(addresses) => self.node.addresses = addresses,
            Err(error) => tracing::warn!(%error, "can't list the node's addresses"),
        }
        let (services, slices, nodes) = (self.services.state(), self.slices.state(), self.nodes.state());
        self.image = compile(
            services.iter().map(AsRef::as_ref),
            slices.iter().map(AsRef::as_ref),
            nodes.iter().map(AsRef::as_ref),
            &self.node,
        );
        let ops = diff(&self.installed, &self.image);
        let applied = self.apply(&ops, start);
        if applied.is_err() {
            self.installed = self.kernel.installed()?;
        }
        applied
    }

    /// Compiles only these Services anew, of which nothing but endpoints has changed, and applies what is different; false
    /// where everything has to be compiled.
    fn refresh(&mut self, touched: &[(Name, Vec<String>)]) -> bool {
        let start = Instant::now();
        let mut refreshed = Vec::new();
        for ((namespace, name), slices) in touched {
            // Without a Service its endpoints are nobody's.
            let Some(service) = self.services.get(&ObjectRef::new(name).within(namespace)) else { continue };
            let slices =
                slices.iter().filter_map(|name| self.slices.get(&ObjectRef::new(name).within(namespace)));
            let slices: Vec<Arc<EndpointSlice>> = slices.collect();
            let slices: Vec<&EndpointSlice> = slices.iter().map(AsRef::as_ref).collect();
            match refresh(&mut self.image, &service, &slices, &self.node) {
                Some(targets) => refreshed.extend(targets),
                None => return false,
            }
        }
        let Some(ops) = diff_refreshed(&self.installed, &self.image, &refreshed) else { return false };
        // A failure leaves `installed` at what was done, and the whole compilation tells it.
        self.apply(&ops, start).is_ok()
    }

    /// Whether the node has other addresses than those that were compiled.
    fn moved(&self) -> bool {
        addresses().is_ok_and(|now| now != self.node.addresses)
    }

    fn apply(&mut self, ops: &[MapOp], start: Instant) -> Result<(), ProxyError> {
        for op in ops {
            self.kernel.apply(op)?;
            self.installed.apply(op);
        }
        if !ops.is_empty() {
            tracing::debug!(operations = ops.len(), took = ?start.elapsed(), "Services applied");
        }
        Ok(())
    }

    /// What clients outside of the cluster may ask for.
    fn forwards(&self) -> Vec<Forward> {
        let (services, slices) = (self.services.state(), self.slices.state());
        forwards(services.iter().map(AsRef::as_ref), slices.iter().map(AsRef::as_ref), &self.node)
    }

    /// What balancers may ask for.
    fn checks(&self) -> BTreeMap<u16, Check> {
        let (services, slices) = (self.services.state(), self.slices.state());
        let slices: Vec<&EndpointSlice> = slices.iter().map(AsRef::as_ref).collect();
        checks(services.iter().map(AsRef::as_ref), &slices, &self.node.name)
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
    trim: fn(&mut K),
    mut seen: impl FnMut(&watcher::Event<K>),
) -> (Store<K>, impl Future<Output = ()>)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + Sync + 'static,
    K: for<'de> k8s_openapi::serde::Deserialize<'de>,
{
    let (store, writer) = reflector::store();
    let stream = watcher(Api::<K>::all(client), config).default_backoff().modify(trim).reflect(writer);
    let task = stream.for_each(move |event| {
        match event {
            // The store has it by now.
            Ok(event) => seen(&event),
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
