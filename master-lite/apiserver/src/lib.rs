//! The Kubernetes API over HTTP: request parsing, the stages of a write, watch cache, discovery, and the seams
//! for authentication, authorization and admission.
//!
//! Never here: what a controller does, how bytes reach the disk (`keelson-store`), what a schema is
//! (`keelson-api`).

pub mod admission;
pub mod aggregator;
pub mod allocate;
mod answer;
pub mod auth;
pub mod authn;
pub mod authz;
mod backend_tls;
pub mod bootstrap;
pub mod cache;
pub mod core;
mod definitions;
pub mod delete;
pub mod discovery;
pub mod extension;
pub mod filter;
mod follow;
pub mod handlers;
mod in_flight;
pub mod keys;
pub mod kubelet_proxy;
pub mod metrics;
pub mod negotiate;
pub mod options;
mod owners;
mod pick;
pub mod pki;
pub mod present;
pub mod request_info;
pub mod reviews;
mod serve;
pub mod server;
pub mod status;
pub mod stored;
mod websocket;
pub mod wire;
pub mod write;

pub use serve::Timeouts;
pub use server::{Config, Server, ServerError, Serving, StoreConfig};
