//! Strategies of the built-in kinds. Defaults and rules are those of upstream's `pkg/apis/*/v1/defaults.go` and
//! `pkg/registry/*/strategy.go`.

mod access;
mod admission;
mod autoscaling;
mod device;
mod event;
mod network;
pub(in crate::resources) mod pod;
mod pod_template;
mod policy;
mod registration;
mod ruled;
mod simple;
mod storage;
mod workload;

use serde_json::{Map, Value};

pub use access::{CertificateSigningRequest, Rbac};
pub use admission::{
    MUTATING_BINDING, MUTATING_POLICY, MUTATING_WEBHOOKS, VALIDATING_BINDING, VALIDATING_POLICY,
    VALIDATING_WEBHOOKS,
};
pub use autoscaling::{Autoscaler, autoscaler_from_v1, autoscaler_to_v1};
pub use device::{CLAIM_TEMPLATE, DEVICE_CLASS, RESOURCE_CLAIM, RESOURCE_SLICE};
pub use event::{Event, event_from_core, event_to_core};
pub use network::{
    EndpointSlice, Endpoints, INGRESS_CLASS, IP_ADDRESS, Ingress, NetworkPolicy, SERVICE_CIDR, Service,
};
pub use pod::{Pod, qos_class};
pub use policy::{FLOW_SCHEMA, LIMIT_RANGE, PRIORITY_LEVEL, RESOURCE_QUOTA, RUNTIME_CLASS};
pub use registration::{ApiService, local_condition};
pub use simple::{ConfigMap, Lease, Namespace, Node, Plain, PriorityClass, Secret};
pub use storage::{
    ATTACHMENT, ATTRIBUTES_CLASS, CAPACITY, CSI_DRIVER, CSI_NODE, PersistentVolume, PersistentVolumeClaim,
    STORAGE_CLASS,
};
pub use workload::{
    ControllerRevision, CronJob, DaemonSet, Deployment, Job, PodDisruptionBudget, ReplicaSet,
    ReplicationController, StatefulSet, Templated,
};

/// The object at a key, made if absent or null; `None` if something else is there.
fn object_at<'a>(parent: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let map = parent.as_object_mut()?;
    let child = map.entry(key).or_insert(Value::Null);
    if child.is_null() {
        *child = Value::Object(Map::new());
    }
    child.is_object().then_some(child)
}

/// An existing object at a key.
fn child<'a>(parent: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    parent.get_mut(key).filter(|v| v.is_object())
}

/// Sets a field that is absent, null or an empty string.
fn set_default(parent: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = parent.as_object_mut() {
        let missing = match map.get(key) {
            None | Some(Value::Null) => true,
            Some(Value::String(s)) => s.is_empty(),
            Some(_) => false,
        };
        if missing {
            map.insert(key.to_owned(), value.into());
        }
    }
}

/// Sets a number whose zero means "not set".
fn set_default_number(parent: &mut Value, key: &str, value: i64) {
    if let Some(map) = parent.as_object_mut()
        && map.get(key).is_none_or(|v| v.is_null() || v.as_i64() == Some(0))
    {
        map.insert(key.to_owned(), value.into());
    }
}

/// Items of a list that are objects.
fn items<'a>(parent: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    parent.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter(|v| v.is_object())
}
