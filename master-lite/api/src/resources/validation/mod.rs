//! Deep checks of objects, kind by kind, with the paths and words of upstream's `pkg/apis/*/validation` (v1.36).
//!
//! All of it is pure: a tree and, for changes, the tree before. Strategies call the functions that this module
//! re-exports; metadata that every kind shares is checked by [`super::metadata`].

mod access;
mod certificates;
mod config;
mod containers;
mod cron_job;
mod endpoints;
mod env;
mod errors;
mod event;
mod ingress;
mod job;
mod job_policies;
mod job_status;
mod network_policy;
mod node;
mod pod;
mod pod_resize;
mod pod_update;
mod policy;
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
mod workload_status;

pub(super) use access::{role, role_binding};
pub(super) use certificates::{signing_request, signing_request_update};
pub(super) use config::{config_map, config_map_update, secret, secret_update};
pub(super) use cron_job::cron_job;
pub(super) use endpoints::{endpoint_slice, endpoints};
pub(super) use errors::same;
pub(super) use event::event;
pub(super) use ingress::ingress;
pub(super) use job::{job, job_update};
pub(super) use job_status::job_status_update;
pub(super) use network_policy::network_policy;
pub(super) use node::{node, node_update};
pub(super) use pod::pod;
pub(super) use pod_resize::pod_resize;
pub(super) use pod_update::{ephemeral_containers_update, pod_update};
pub(super) use policy::{controller_revision, disruption_budget, disruption_budget_status};
pub(super) use service::{service, service_update};
pub(super) use small::{lease, namespace, priority_class, priority_class_update};
pub(super) use workload::{
    daemon_set, deployment, immutable_selector, pod_template, replica_set, replication_controller,
    stateful_set, stateful_set_update,
};
pub(super) use workload_status::{
    daemon_set_status, deployment_status, replicas_status, stateful_set_status,
};
