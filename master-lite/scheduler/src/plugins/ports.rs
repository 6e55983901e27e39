//! Ports on the host.

use k8s_openapi::api::core::v1::Pod;

use crate::framework::{ClusterEvent, Filter, Prepared, Rejection};
use crate::node_info::{PodInfo, Snapshot};

/// Two pods can't have one host port on one node.
pub struct NodePorts;

impl Filter for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Snapshot) -> Prepared<'a> {
        if pod.host_ports.is_empty() {
            return Prepared::Skip;
        }
        Prepared::Check(Box::new(|node| {
            let taken = node.pods.iter().flat_map(|p| &p.host_ports);
            if taken.into_iter().any(|t| pod.host_ports.iter().any(|wanted| wanted.conflicts(t))) {
                return Err(Rejection::resolvable(
                    "node(s) didn't have free ports for the requested pod ports",
                ));
            }
            Ok(())
        }))
    }

    fn wakes(&self, _: &Pod, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::Node { old, .. } => old.is_none(),
            ClusterEvent::PodGone(gone) => !PodInfo::new(gone.clone()).host_ports.is_empty(),
            ClusterEvent::PodPlaced(_) | ClusterEvent::PodLeaving(_) => false,
        }
    }
}
