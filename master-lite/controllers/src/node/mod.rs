//! What becomes of nodes: health and taints, the eviction that taints cause, and their parts of the pod network.

pub mod health;
pub mod ipam;
pub mod lifecycle;
pub mod taint_eviction;
