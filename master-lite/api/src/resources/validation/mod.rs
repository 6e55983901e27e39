//! Deep checks of objects, kind by kind, with the paths and words of upstream's `pkg/apis/*/validation` (v1.36).
//!
//! All of it is pure: a tree and, for changes, the tree before. Strategies call the functions that this module
//! re-exports; metadata that every kind shares is checked by [`super::metadata`].

mod access;
mod batch;
mod certificates;
mod config;
mod containers;
mod cron;
mod endpoints;
mod env;
mod errors;
mod event;
mod ingress;
mod network_policy;
mod node;
mod pod;
mod pod_update;
mod probes;
mod resources;
mod rules;
mod scheduling;
mod security;
mod selectors;
mod service;
mod small;
#[cfg(test)]
mod tests;
mod volumes;
mod workload;

pub(super) use access::{role, role_binding};
pub(super) use batch::{cron_job, job, job_update};
pub(super) use certificates::{signing_request, signing_request_update};
pub(super) use config::{config_map, config_map_update, secret, secret_update};
pub(super) use endpoints::{endpoint_slice, endpoints};
pub(super) use errors::same;
pub(super) use event::event;
pub(super) use ingress::ingress;
pub(super) use network_policy::network_policy;
pub(super) use node::{node, node_update};
pub(super) use pod::pod;
pub(super) use pod_update::{ephemeral_containers_update, pod_update};
pub(super) use service::{service, service_update};
pub(super) use small::{lease, namespace, priority_class, priority_class_update};
pub(super) use workload::{
    daemon_set, deployment, immutable_selector, pod_template, replica_set, replication_controller,
    stateful_set, stateful_set_update,
};
