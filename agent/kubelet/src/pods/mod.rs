//! Pods bound to this node: where they come from, what is decided about them, and who does it.
//!
//! - [`PodManager`] is the door: the wiring runs it, the kubelet server asks it.
//! - [`ObservedPod`] is what the runtime says of one pod.

mod manager;
mod observed;

pub use manager::{PodManager, PodManagerConfig};
pub use observed::ObservedPod;
