//! Pods bound to this node: where they come from, what is decided about them, and who does it.
//!
//! - [`PodManager`] is the door: the wiring runs it, the kubelet server asks it.
//! - [`ObservedPod`] is what the runtime says of one pod.
//! - [`actions`] decides, purely, what a pod needs next.

pub mod actions;
pub mod backoff;
mod manager;
mod observed;
pub mod podext;
pub mod qos;
pub mod resources;
pub mod security;
#[cfg(test)]
pub(crate) mod testing;

pub use manager::{PodManager, PodManagerConfig};
pub use observed::ObservedPod;
