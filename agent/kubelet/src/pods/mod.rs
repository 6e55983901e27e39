//! Pods bound to this node: where they come from, what is decided about them, and who does it.
//!
//! - [`PodManager`] is the door: the wiring runs it, the kubelet server asks it.
//! - `source` watches the API and the runtime and keeps one `worker` for each pod.
//! - A worker takes [`event`]s, asks [`decide`] (and below it [`actions`]) what to do, and has `ops` do it.
//! - [`ObservedPod`] is what the runtime says of one pod.

pub mod actions;
pub mod admission;
pub mod backoff;
mod container_config;
mod context;
pub mod decide;
pub mod dns;
pub mod event;
#[cfg(test)]
mod fake;
mod gc;
mod hooks;
pub mod hosts;
pub mod local_storage;
mod log_rotation;
mod manager;
mod observed;
mod ops;
pub mod podext;
mod pull;
pub mod qos;
mod qos_tree;
pub mod resize;
pub mod resources;
mod sandbox;
pub mod security;
mod source;
pub mod start;
mod start_times;
mod stop;
mod table;
mod termination;
#[cfg(test)]
pub(crate) mod testing;
mod worker;
#[cfg(test)]
mod worker_tests;

pub use log_rotation::{LogPolicy, LogPolicyError};
pub use manager::{PodManager, PodManagerConfig, PodManagerParts};
pub use observed::ObservedPod;
pub use source::follow_services;
