//! The plugins, in the order they are asked. One row each: dispatch is static.

mod images;
mod inter_pod_affinity;
mod node;
mod ports;
mod resources;
mod taints;
mod topology_spread;
mod unsupported;

use crate::framework::{Filter, Score};

/// Every filter; the first that rejects a node speaks for it. Upstream's order.
pub static FILTERS: &[&dyn Filter] = &[
    &unsupported::Unsupported,
    &node::NodeUnschedulable,
    &node::NodeName,
    &taints::TaintToleration,
    &node::NodeAffinity,
    &ports::NodePorts,
    &resources::Fit,
    &topology_spread::PodTopologySpread,
    &inter_pod_affinity::InterPodAffinity,
];

/// Every preference.
pub static SCORES: &[&dyn Score] = &[
    &taints::TaintToleration,
    &node::NodeAffinity,
    &resources::Fit,
    &resources::BalancedAllocation,
    &images::ImageLocality,
    &topology_spread::PodTopologySpread,
    &inter_pod_affinity::InterPodAffinity,
];

/// The filter with this name.
pub fn filter(name: &str) -> Option<&'static dyn Filter> {
    FILTERS.iter().find(|f| f.name() == name).copied()
}
