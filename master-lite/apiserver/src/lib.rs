//! The Kubernetes API over HTTP: request parsing, the stages of a write, watch cache, discovery, and the seams
//! for authentication, authorization and admission.
//!
//! Never here: what a controller does, how bytes reach the disk (`keelson-store`), what a schema is
//! (`keelson-api`).

pub mod admission;
pub mod auth;
pub mod authn;
pub mod authz;
pub mod extension;
pub mod kubelet_proxy;
pub mod pki;
pub mod request_info;
pub mod reviews;
pub mod status;
