//! Gives each node its part of the pod network.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use keelson_client::{Delta, EventType, Informer, Key, Recorder, WorkQueue, meta, run_workers};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::{Context, Task};
use crate::error::Result;

const NAME: &str = "node-ipam-controller";
const ACCOUNT: &str = "node-controller";

/// Starts the controller; without a network in the settings it does nothing.
pub fn start(context: &Context) -> Task {
    let Some(network) = context.config.cluster_cidr else { return Box::pin(async {}) };
    let Some(allocator) = CidrAllocator::new(network, context.config.node_cidr_mask) else {
        let mask = context.config.node_cidr_mask;
        tracing::error!(%network, mask, "the node CIDR mask does not fit the cluster's network: no pod CIDRs");
        return Box::pin(async {});
    };
    let controller = Arc::new(Controller {
        client: context.client(ACCOUNT),
        recorder: context.recorder(ACCOUNT, "cidrAllocator"),
        nodes: context.informers.nodes.clone(),
        allocator: Mutex::new(allocator),
        queue: WorkQueue::new(),
    });
    let on_node = controller.clone();
    controller.nodes.on_change(move |delta| {
        let node = delta.object();
        {
            // Parts in use are known before any is given: handlers run before the first sync ends.
            let mut allocator = on_node.allocator.lock();
            let change = match delta {
                Delta::Deleted(_) => CidrAllocator::release,
                _ => CidrAllocator::occupy,
            };
            cidrs(node).for_each(|cidr| change(&mut allocator, cidr));
        }
        on_node.queue.add(Key::of(&**node));
        if matches!(delta, Delta::Deleted(_)) {
            // One that waited for room may have it now.
            for waiting in on_node.nodes.list().iter().filter(|n| cidrs(n).next().is_none()) {
                on_node.queue.add(Key::of(&**waiting));
            }
        }
    });
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        tokio::select! { () = shutdown.cancelled() => return, () = controller.nodes.synced() => {} }
        let queue = controller.queue.clone();
        // One worker, so that a node never gets two parts.
        run_workers(NAME, queue, 1, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    })
}

fn cidrs(node: &Node) -> impl Iterator<Item = IpNet> {
    let spec = node.spec.as_ref();
    let list = spec.and_then(|s| s.pod_cidrs.as_deref()).unwrap_or_default();
    let single = spec.and_then(|s| s.pod_cidr.as_ref()).filter(|_| list.is_empty());
    list.iter().chain(single).filter_map(|cidr| cidr.parse().ok())
}

struct Controller {
    client: Client,
    recorder: Recorder,
    nodes: Arc<Informer<Node>>,
    allocator: Mutex<CidrAllocator>,
    queue: Arc<WorkQueue<Key>>,
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result {
        let Some(node) = self.nodes.get(key) else { return Ok(()) };
        if cidrs(&node).next().is_some() {
            return Ok(());
        }
        let given = self.allocator.lock().allocate();
        let Some(cidr) = given else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.recorder.event(&*node, EventType::Normal, "CIDRNotAvailable", message);
            return Ok(());
        };
        let patch = json!({
            "metadata": {"uid": node.metadata.uid},
            "spec": {"podCIDR": cidr.to_string(), "podCIDRs": [cidr.to_string()]},
        });
        let api: Api<Node> = Api::all(self.client.clone());
        match api.patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => Ok(()),
            Err(error) => {
                // Refused for certain, or lost on the way: if it was written after all, the watch occupies it again.
                self.allocator.lock().release(cidr);
                if meta::is_not_found(&error) { Ok(()) } else { Err(error.into()) }
            }
        }
    }
}

/// Equal parts of a network, given out in turn so that a part is reused as late as can be.
#[derive(Debug, Clone)]
pub struct CidrAllocator {
    network: IpNet,
    mask: u8,
    used: BTreeSet<u32>,
    next: u32,
    count: u32,
}

/// More parts than these are not tracked (upstream's limit of 2^16).
const MOST_BITS: u8 = 16;

impl CidrAllocator {
    /// Parts of `network` with prefixes of `mask` bits; nothing if that can't be, or gives more than 2^16 parts.
    pub fn new(network: IpNet, mask: u8) -> Option<Self> {
        let bits = mask.checked_sub(network.prefix_len())?;
        if bits > MOST_BITS || mask > network.max_prefix_len() {
            return None;
        }
        Some(CidrAllocator {
            network: network.trunc(),
            mask,
            used: BTreeSet::new(),
            next: 0,
            count: 1 << bits,
        })
    }

    /// Gives a part that no one has.
    pub fn allocate(&mut self) -> Option<IpNet> {
        let index = (0..self.count)
            .map(|step| (self.next + step) % self.count)
            .find(|index| !self.used.contains(index))?;
        self.used.insert(index);
        self.next = (index + 1) % self.count;
        self.at(index)
    }

    /// Notes that `cidr` is in use. One that is larger than a part takes all parts within it.
    pub fn occupy(&mut self, cidr: IpNet) {
        for index in self.range(cidr) {
            self.used.insert(index);
        }
    }

    /// Notes that `cidr` is free.
    pub fn release(&mut self, cidr: IpNet) {
        for index in self.range(cidr) {
            self.used.remove(&index);
        }
    }

    fn shift(&self) -> u8 {
        self.network.max_prefix_len() - self.mask
    }

    fn at(&self, index: u32) -> Option<IpNet> {
        let offset = u128::from(index) << self.shift();
        let address = match self.network.network() {
            IpAddr::V4(base) => {
                IpAddr::V4(Ipv4Addr::from(u32::from(base).checked_add(u32::try_from(offset).ok()?)?))
            }
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base).checked_add(offset)?)),
        };
        IpNet::new(address, self.mask).ok()
    }

    fn range(&self, cidr: IpNet) -> std::ops::Range<u32> {
        let number = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u128::from(u32::from(ip)),
            IpAddr::V6(ip) => u128::from(ip),
        };
        if cidr.network().is_ipv4() != self.network.network().is_ipv4() {
            return 0..0;
        }
        let base = number(self.network.network());
        let (first, last) = (number(cidr.network()), number(cidr.broadcast()));
        if last < base || first > number(self.network.broadcast()) {
            return 0..0;
        }
        let index = |n: u128| u32::try_from(n.saturating_sub(base) >> self.shift()).unwrap_or(u32::MAX);
        index(first)..index(last).saturating_add(1).min(self.count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn allocator() -> CidrAllocator {
        CidrAllocator::new("10.244.0.0/16".parse().unwrap(), 24).unwrap()
    }

    #[test]
    fn parts_in_turn() {
        let mut allocator = allocator();
        allocator.occupy("10.244.1.0/24".parse().unwrap());
        allocator.occupy("192.168.0.0/24".parse().unwrap());
        let mut next = || allocator.allocate().unwrap().to_string();
        assert_eq!([next(), next()], ["10.244.0.0/24", "10.244.2.0/24"]);
        allocator.release("10.244.0.0/24".parse().unwrap());
        assert_eq!(allocator.allocate().unwrap().to_string(), "10.244.3.0/24");
    }

    #[test]
    fn settings_that_make_no_sense() {
        assert!(CidrAllocator::new("10.0.0.0/16".parse().unwrap(), 8).is_none());
        assert!(CidrAllocator::new("10.0.0.0/8".parse().unwrap(), 30).is_none());
        assert!(CidrAllocator::new("10.0.0.0/24".parse().unwrap(), 33).is_none());
        assert!(CidrAllocator::new("fd00::/48".parse().unwrap(), 64).is_some());
    }

    proptest! {
        #[test]
        fn no_part_is_given_twice(actions in proptest::collection::vec(any::<Option<u8>>(), 0..600)) {
            let mut allocator = allocator();
            let mut held: Vec<IpNet> = Vec::new();
            for action in actions {
                match action {
                    Some(at) if !held.is_empty() => {
                        let cidr = held.swap_remove(usize::from(at) % held.len());
                        allocator.release(cidr);
                    }
                    _ => match allocator.allocate() {
                        Some(cidr) => {
                            prop_assert!(!held.contains(&cidr));
                            prop_assert!(allocator.network.contains(&cidr));
                            held.push(cidr);
                        }
                        None => prop_assert_eq!(held.len(), 256),
                    },
                }
            }
        }
    }
}
