//! keelson-kubelet: what a node does for the Kubernetes API.
//!
//! The pod half ([`pods`] and what it stands on) turns pods that are bound to this node into calls of the runtime
//! seam (`keelson-cri`) and reports their status.

pub mod certs;
pub mod node;
pub mod pods;
