//! Deep checks of objects, kind by kind, with the paths and words of upstream's `pkg/apis/*/validation` (v1.36).
//!
//! All of it is pure: a tree and, for changes, the tree before. Strategies call the functions that this module
//! re-exports; metadata that every kind shares is checked by [`super::metadata`].

mod access;
mod admission;
mod admission_policies;
mod certificates;
mod claims;
mod conditions;
mod config;
mod containers;
mod cron_job;
mod device_claims;
mod device_slices;
mod endpoints;
mod env;
mod errors;
mod event;
mod flow_control;
mod ingress;
mod job;
mod job_policies;
mod job_status;
mod network_classes;
mod network_policy;
mod node;
mod pod;
mod pod_resize;
mod pod_update;
mod policy;
mod probes;
mod quota;
mod registration;
mod resources;
mod rules;
mod runtime_class;
mod scheduling;
mod security;
mod selectors;
mod service;
mod small;
mod storage;
#[cfg(test)]
mod tests;
mod volumes;
mod workload;
mod workload_status;

pub(super) use access::{role, role_binding};
pub(super) use admission::{webhooks, webhooks_update};
pub(super) use admission_policies::{
    mutating_binding, mutating_policy, validating_binding, validating_policy, validating_policy_status,
};
pub(super) use certificates::{signing_request, signing_request_update};
pub(super) use claims::{claim, claim_status, claim_update, persistent_volume, persistent_volume_update};
pub(super) use config::{config_map, config_map_update, secret, secret_update};
pub(super) use cron_job::cron_job;
pub(super) use device_claims::{
    claim_status as claim_status_of_device, claim_template, device_class, immutable_spec, resource_claim,
};
pub(super) use device_slices::{resource_slice, resource_slice_update};
pub(super) use endpoints::{endpoint_slice, endpoints};
pub(super) use errors::same;
pub(super) use event::event;
pub(super) use flow_control::{flow_schema, flow_status, priority_level};
pub(super) use ingress::ingress;
pub(super) use job::{job, job_update};
pub(super) use job_status::job_status_update;
pub(super) use network_classes::{
    ingress_class, ingress_class_update, ip_address, ip_address_name, ip_address_update, service_cidr,
    service_cidr_update,
};
pub(super) use network_policy::network_policy;
pub(super) use node::{node, node_update};
pub(super) use pod::pod;
pub(super) use pod_resize::pod_resize;
pub(super) use pod_update::{ephemeral_containers_update, pod_update};
pub(super) use policy::{controller_revision, disruption_budget, disruption_budget_status};
pub(super) use quota::{
    limit_range, resource_quota, resource_quota_status, resource_quota_update, resource_quota_warnings,
};
pub(super) use registration::{api_service, api_service_status};
pub(super) use runtime_class::{runtime_class, runtime_class_update};
pub(super) use service::{service, service_update};
pub(super) use small::{lease, namespace, priority_class, priority_class_update};
pub(super) use storage::{
    attachment, attachment_status, attachment_update, attributes_class, attributes_class_update, capacity,
    capacity_update, csi_driver, csi_driver_update, csi_node, csi_node_update, storage_class,
    storage_class_update,
};
pub(super) use workload::{
    daemon_set, deployment, immutable_selector, pod_template, replica_set, replication_controller,
    stateful_set, stateful_set_update,
};
pub(super) use workload_status::{
    daemon_set_status, deployment_status, replicas_status, stateful_set_status,
};
