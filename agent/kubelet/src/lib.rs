//! keelson-kubelet: what a node does for the Kubernetes API.
//!
//! The node half ([`certs`], [`node`]) joins the cluster and reports the machine. The pod half ([`pods`] and what it
//! stands on) turns pods that are bound to this node into calls of the runtime seam (`keelson-cri`) and reports their
//! status.

pub mod certs;
pub mod clock;
pub mod env;
pub mod events;
mod log_files;
pub mod node;
pub mod objects;
pub mod pods;
pub mod probes;
pub mod server;
pub mod status;
pub mod volumes;
