//! The pod network: keelson-cni's driver behind the runtime's trait, and what follows the API for it.

mod adapter;
mod pod_range;
mod ranges;
mod routes;

pub use adapter::CniNetwork;
pub use pod_range::{PodRangeConfig, follow_pod_ranges};
pub use ranges::ClusterRanges;
pub use routes::{RouteConfig, keep_routes};
