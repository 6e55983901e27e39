//! What `kubectl get` shows of each kind (`pkg/printers/internalversion` of v1.36).
//!
//! A kind's columns are rows of data: header, type, priority, description, and a function from the object's tree
//! and the time to the cell. The API server always makes every cell; a client leaves out those of priority 1
//! unless it was asked for `-o wide`.

mod access;
mod admission;
mod core;
mod device;
mod duration;
mod event;
mod node;
mod pod;
mod policy;
mod registration;
mod service;
mod storage;
#[cfg(test)]
mod tests;
mod tree;
#[cfg(test)]
mod upstream_tests;
mod workload;

use std::sync::Arc;

use serde_json::{Value, json};

pub use duration::{age, human_duration};

/// A printed column (`metav1.TableColumnDefinition` and how its cell is made).
#[derive(Clone)]
pub struct Column {
    /// Header as in `kubectl get`, capitalized: `Ready`.
    pub name: String,
    /// OpenAPI type: `string`, `integer`, `boolean`, `date`.
    pub kind: &'static str,
    /// OpenAPI format: `name` for the name, else mostly empty.
    pub format: &'static str,
    /// What the column says, for tools that explain it.
    pub description: String,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
    /// Makes the cell from the object; `now` is seconds since 1970, for ages.
    pub cell: Arc<Cell>,
}

/// Makes a cell from an object and the time.
pub type Cell = dyn Fn(&Value, i64) -> Value + Send + Sync;

impl Column {
    /// The `metav1.TableColumnDefinition`.
    pub fn definition(&self) -> Value {
        json!({
            "name": self.name, "type": self.kind, "format": self.format,
            "description": self.description, "priority": self.priority,
        })
    }
}

/// How the objects of a kind become rows of a `meta.k8s.io/v1 Table`.
#[derive(Clone)]
pub struct Printer {
    /// All columns, in order; the name is one of them.
    pub columns: Vec<Column>,
    /// Makes the row's `conditions` (a finished pod has one).
    pub conditions: fn(&Value) -> Vec<Value>,
}

impl Printer {
    /// `columnDefinitions` of a Table.
    pub fn definitions(&self) -> Vec<Value> {
        self.columns.iter().map(Column::definition).collect()
    }

    /// A `metav1.TableRow` without its `object`; `now` is seconds since 1970.
    pub fn row(&self, object: &Value, now: i64) -> Value {
        let cells: Vec<Value> = self.columns.iter().map(|column| (column.cell)(object, now)).collect();
        let conditions = (self.conditions)(object);
        if conditions.is_empty() {
            json!({"cells": cells})
        } else {
            json!({"cells": cells, "conditions": conditions})
        }
    }
}

/// A built-in column, as data.
#[derive(Clone, Copy)]
struct Spec {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    priority: i32,
    description: &'static str,
    cell: fn(&Value, i64) -> Value,
}

impl Spec {
    const fn new(
        kind: &'static str,
        name: &'static str,
        description: &'static str,
        cell: fn(&Value, i64) -> Value,
    ) -> Self {
        Self { name, kind, format: "", priority: 0, description, cell }
    }

    /// Shown with `-o wide` only.
    const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }

    const fn name_format(mut self) -> Self {
        self.format = "name";
        self
    }
}

const fn text(name: &'static str, description: &'static str, cell: fn(&Value, i64) -> Value) -> Spec {
    Spec::new("string", name, description, cell)
}

const fn integer(name: &'static str, description: &'static str, cell: fn(&Value, i64) -> Value) -> Spec {
    Spec::new("integer", name, description, cell)
}

const fn boolean(name: &'static str, description: &'static str, cell: fn(&Value, i64) -> Value) -> Spec {
    Spec::new("boolean", name, description, cell)
}

/// `metadata.name`.
const NAME: Spec = text("Name", "Name of the object, unique among its kind in its namespace.", |o, _| {
    tree::get(o, "metadata.name")
})
.name_format();

/// Time since `metadata.creationTimestamp`.
const AGE: Spec = text("Age", "Time since the object was created.", |o, now| {
    age(&o["metadata"]["creationTimestamp"], now).into()
});

/// Columns of kinds that no one wrote columns for (upstream's `NewDefaultTableConvertor`).
const DEFAULT: &[Spec] = &[
    NAME,
    Spec::new("date", "Created At", "When the object was created.", |o, _| {
        match &o["metadata"]["creationTimestamp"] {
            // Go prints the zero time in full.
            Value::Null => "0001-01-01T00:00:00Z".into(),
            created => created.clone(),
        }
    }),
];

/// The printer of a kind.
pub fn printer(group: &str, kind: &str) -> Printer {
    let columns = find(group, kind)
        .iter()
        .map(|spec| Column {
            name: spec.name.to_owned(),
            kind: spec.kind,
            format: spec.format,
            description: spec.description.to_owned(),
            priority: spec.priority,
            cell: Arc::new(spec.cell),
        })
        .collect();
    let conditions: fn(&Value) -> Vec<Value> =
        if (group, kind) == ("", "Pod") { pod::conditions } else { |_| Vec::new() };
    Printer { columns, conditions }
}

fn find(group: &str, kind: &str) -> &'static [Spec] {
    match (group, kind) {
        ("", "Pod") => pod::POD,
        ("", "PodTemplate") => workload::POD_TEMPLATE,
        ("", "Node") => node::NODE,
        ("" | "events.k8s.io", "Event") => event::EVENT,
        ("", "ReplicationController") => workload::REPLICATION_CONTROLLER,
        ("", "ComponentStatus") => core::COMPONENT_STATUS,
        ("", "ConfigMap") => core::CONFIG_MAP,
        ("", "Namespace") => core::NAMESPACE,
        ("", "ResourceQuota") => core::RESOURCE_QUOTA,
        ("", "Secret") => core::SECRET,
        ("", "ServiceAccount") => core::SERVICE_ACCOUNT,
        ("coordination.k8s.io", "Lease") => core::LEASE,
        ("scheduling.k8s.io", "PriorityClass") => core::PRIORITY_CLASS,
        ("node.k8s.io", "RuntimeClass") => core::RUNTIME_CLASS,
        (
            "admissionregistration.k8s.io",
            "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration",
        ) => core::WEBHOOKS,
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => admission::MUTATING_POLICY,
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => admission::VALIDATING_POLICY,
        (
            "admissionregistration.k8s.io",
            "MutatingAdmissionPolicyBinding" | "ValidatingAdmissionPolicyBinding",
        ) => admission::POLICY_BINDING,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => policy::FLOW_SCHEMA,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => policy::PRIORITY_LEVEL,
        ("resource.k8s.io", "DeviceClass" | "ResourceClaimTemplate") => device::NAMED,
        ("resource.k8s.io", "ResourceClaim") => device::RESOURCE_CLAIM,
        ("resource.k8s.io", "ResourceSlice") => device::RESOURCE_SLICE,
        ("", "Service") => service::SERVICE,
        ("", "Endpoints") => service::ENDPOINTS,
        ("discovery.k8s.io", "EndpointSlice") => service::ENDPOINT_SLICE,
        ("networking.k8s.io", "Ingress") => service::INGRESS,
        ("networking.k8s.io", "IngressClass") => service::INGRESS_CLASS,
        ("networking.k8s.io", "NetworkPolicy") => service::NETWORK_POLICY,
        ("networking.k8s.io", "ServiceCIDR") => service::SERVICE_CIDR,
        ("networking.k8s.io", "IPAddress") => service::IP_ADDRESS,
        ("", "PersistentVolume") => storage::PERSISTENT_VOLUME,
        ("", "PersistentVolumeClaim") => storage::PERSISTENT_VOLUME_CLAIM,
        ("storage.k8s.io", "StorageClass") => storage::STORAGE_CLASS,
        ("storage.k8s.io", "VolumeAttachment") => storage::VOLUME_ATTACHMENT,
        ("storage.k8s.io", "VolumeAttributesClass") => storage::VOLUME_ATTRIBUTES_CLASS,
        ("storage.k8s.io", "CSINode") => storage::CSI_NODE,
        ("storage.k8s.io", "CSIDriver") => storage::CSI_DRIVER,
        ("apps", "ControllerRevision") => workload::CONTROLLER_REVISION,
        ("apps", "DaemonSet") => workload::DAEMON_SET,
        ("apps", "Deployment") => workload::DEPLOYMENT,
        ("apps", "ReplicaSet") => workload::REPLICA_SET,
        ("apps", "StatefulSet") => workload::STATEFUL_SET,
        ("batch", "CronJob") => workload::CRON_JOB,
        ("batch", "Job") => workload::JOB,
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => access::ROLE_BINDING,
        ("certificates.k8s.io", "CertificateSigningRequest") => access::CERTIFICATE_SIGNING_REQUEST,
        ("apiregistration.k8s.io", "APIService") => registration::API_SERVICE,
        ("autoscaling", "HorizontalPodAutoscaler") => policy::HORIZONTAL_POD_AUTOSCALER,
        ("autoscaling", "Scale") => policy::SCALE,
        ("policy", "PodDisruptionBudget") => policy::POD_DISRUPTION_BUDGET,
        // Roles, ClusterRoles, LimitRanges and CSIStorageCapacities are here upstream too.
        _ => DEFAULT,
    }
}
