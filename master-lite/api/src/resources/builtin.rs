//! The rows of the built-in resources.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::columns;
use super::priorities::{REGISTRATION_GROUP, priority};
use super::row::ALL_VERBS;
use super::strategies as s;
use super::{Converter, Resource, ScalePaths, SelectableField, Strategy, Subresource};
use crate::custom::definition::CustomResourceDefinition;
use crate::meta::{GroupResource, GroupVersionKind};

/// Upstream's `--event-ttl`.
const EVENT_TTL: Duration = Duration::from_secs(3600);

/// A row under construction. Later calls refine earlier ones.
struct Row(Resource);

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

/// A stored, namespaced resource with all verbs.
fn row(group: &str, version: &str, kind: &str, plural: &str) -> Row {
    Row(Resource {
        group: group.to_owned(),
        versions: vec![version.to_owned()],
        storage_version: version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
        singular: kind.to_lowercase(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced: true,
        verbs: strings(ALL_VERBS),
        subresources: Vec::new(),
        selectable_fields: Vec::new(),
        storage: GroupResource::new(group, plural),
        converter: None,
        ttl: None,
        tracks_generation: false,
        reset_status_on_create: true,
        is_virtual: false,
        printer: columns::printer(group, kind),
        strategy: Arc::new(s::Plain),
        custom: None,
        views: BTreeMap::new(),
    })
}

/// A resource that only answers POST.
fn computed(group: &str, kind: &str, plural: &str) -> Row {
    let mut made = row(group, "v1", kind, plural).cluster();
    made.0.verbs = strings(&["create"]);
    made.0.is_virtual = true;
    made
}

impl Row {
    fn cluster(mut self) -> Self {
        self.0.namespaced = false;
        self
    }

    fn short(mut self, names: &[&str]) -> Self {
        self.0.short_names = strings(names);
        self
    }

    fn all(mut self) -> Self {
        self.0.categories.push("all".to_owned());
        self
    }

    fn extension(mut self) -> Self {
        self.0.categories.push("api-extensions".to_owned());
        self
    }

    fn generation(mut self) -> Self {
        self.0.tracks_generation = true;
        self
    }

    fn strategy(mut self, strategy: impl Strategy) -> Self {
        self.0.strategy = Arc::new(strategy);
        self
    }

    fn verbs(mut self, verbs: &[&str]) -> Self {
        self.0.verbs = strings(verbs);
        self
    }

    /// Fields under their own names; absent strings are empty.
    fn fields(mut self, names: &[&str]) -> Self {
        for name in names {
            self = self.field(name, name, "");
        }
        self
    }

    fn field(mut self, name: &str, path: &str, absent: &'static str) -> Self {
        self.0.selectable_fields.push(SelectableField {
            name: name.to_owned(),
            path: path.to_owned(),
            absent,
        });
        self
    }

    /// The status subresource; its kind is the resource's own.
    fn status(self) -> Self {
        self.own("status", &["get", "patch", "update"])
    }

    /// A subresource whose kind is the resource's own.
    fn own(self, name: &str, verbs: &[&str]) -> Self {
        let kind = self.0.storage_gvk();
        self.sub(name, kind, verbs)
    }

    fn sub(mut self, name: &str, kind: GroupVersionKind, verbs: &[&str]) -> Self {
        self.0.subresources.push(Subresource {
            name: name.to_owned(),
            kind,
            verbs: strings(verbs),
            scale: None,
        });
        self
    }

    fn scale(mut self) -> Self {
        self.0.subresources.push(Subresource {
            name: "scale".to_owned(),
            kind: GroupVersionKind::new("autoscaling", "v1", "Scale"),
            verbs: strings(&["get", "patch", "update"]),
            scale: Some(ScalePaths {
                spec_replicas: "spec.replicas".to_owned(),
                status_replicas: "status.replicas".to_owned(),
                selector: "spec.selector".to_owned(),
            }),
        });
        self
    }
}

fn core_kind(kind: &str) -> GroupVersionKind {
    GroupVersionKind::new("", "v1", kind)
}

/// Every built-in resource, in the order of discovery.
pub(super) fn rows() -> Vec<Resource> {
    let mut rows = core();
    rows.extend(workloads());
    rows.extend(access());
    rows.extend(storage());
    rows.extend(devices());
    rows.extend(admission());
    rows.extend(rest());
    let mut rows: Vec<Resource> = rows.into_iter().map(|row| row.0).collect();
    // Of several resources of one name, kubectl takes the first. Core is found at a place of its own.
    rows.sort_by_key(|row| {
        let of_group = priority(&row.group, &row.storage_version).map_or(0, |priority| priority.group);
        (!row.group.is_empty(), Reverse(of_group), row.group.clone())
    });
    rows
}

fn core() -> Vec<Row> {
    let mut bindings = computed("", "Binding", "bindings");
    bindings.0.namespaced = true;
    let mut node = row("", "v1", "Node", "nodes")
        .cluster()
        .short(&["no"])
        .status()
        .sub("proxy", core_kind("NodeProxyOptions"), &["create", "delete", "get", "patch", "update"])
        .field("spec.unschedulable", "spec.unschedulable", "false")
        .strategy(s::Node);
    node.0.reset_status_on_create = false;
    let connect = ["create", "get"];
    vec![
        bindings,
        row("", "v1", "ComponentStatus", "componentstatuses")
            .cluster()
            .short(&["cs"])
            .verbs(&["get", "list"]),
        row("", "v1", "ConfigMap", "configmaps").short(&["cm"]).strategy(s::ConfigMap),
        row("", "v1", "Endpoints", "endpoints").short(&["ep"]).strategy(s::Endpoints),
        events("", "events").fields(EVENT_FIELDS).field("source", "source.component|reportingComponent", ""),
        row("", "v1", "LimitRange", "limitranges").short(&["limits"]).strategy(s::LIMIT_RANGE),
        row("", "v1", "Namespace", "namespaces")
            .cluster()
            .short(&["ns"])
            .status()
            .own("finalize", &["update"])
            .fields(&["status.phase"])
            .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"])
            .strategy(s::Namespace),
        node,
        row("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
            .short(&["pvc"])
            .status()
            .strategy(s::PersistentVolumeClaim),
        row("", "v1", "PersistentVolume", "persistentvolumes")
            .cluster()
            .short(&["pv"])
            .status()
            .strategy(s::PersistentVolume),
        row("", "v1", "Pod", "pods")
            .short(&["po"])
            .all()
            .generation()
            .status()
            .sub("attach", core_kind("PodAttachOptions"), &connect)
            .sub("binding", core_kind("Binding"), &["create"])
            .own("ephemeralcontainers", &["get", "patch", "update"])
            .sub("eviction", GroupVersionKind::new("policy", "v1", "Eviction"), &["create"])
            .sub("exec", core_kind("PodExecOptions"), &connect)
            .own("log", &["get"])
            .sub("portforward", core_kind("PodPortForwardOptions"), &connect)
            .sub("proxy", core_kind("PodProxyOptions"), &["create", "delete", "get", "patch", "update"])
            .own("resize", &["get", "patch", "update"])
            .fields(&[
                "spec.nodeName",
                "spec.restartPolicy",
                "spec.schedulerName",
                "spec.serviceAccountName",
                "status.phase",
                "status.podIP",
                "status.nominatedNodeName",
            ])
            .field("spec.hostNetwork", "spec.hostNetwork", "false")
            .field("spec.host", "spec.nodeName", "")
            .strategy(s::Pod),
        row("", "v1", "PodTemplate", "podtemplates").generation().strategy(s::Templated("template")),
        row("", "v1", "ReplicationController", "replicationcontrollers")
            .short(&["rc"])
            .all()
            .generation()
            .status()
            .scale()
            .field("status.replicas", "status.replicas", "0")
            .strategy(s::ReplicationController),
        row("", "v1", "ResourceQuota", "resourcequotas")
            .short(&["quota"])
            .status()
            .strategy(s::RESOURCE_QUOTA),
        row("", "v1", "Secret", "secrets").fields(&["type"]).strategy(s::Secret),
        row("", "v1", "ServiceAccount", "serviceaccounts").short(&["sa"]).sub(
            "token",
            GroupVersionKind::new("authentication.k8s.io", "v1", "TokenRequest"),
            &["create"],
        ),
        row("", "v1", "Service", "services")
            .short(&["svc"])
            .all()
            .status()
            .sub("proxy", core_kind("ServiceProxyOptions"), &["create", "delete", "get", "patch", "update"])
            .fields(&["spec.clusterIP", "spec.type"])
            .strategy(s::Service),
    ]
}

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "type",
];

fn events(group: &str, plural: &str) -> Row {
    let mut events = row(group, "v1", "Event", plural).short(&["ev"]).strategy(s::Event);
    events.0.ttl = Some(EVENT_TTL);
    events
}

fn workloads() -> Vec<Row> {
    let workload = |kind: &str, plural: &str| row("apps", "v1", kind, plural).all().generation().status();
    let mut view = events("events.k8s.io", "events");
    view.0.storage = GroupResource::new("", "events");
    view.0.converter = Some(Converter { from_storage: s::event_from_core, to_storage: s::event_to_core });
    for (name, path) in [
        ("regarding.kind", "involvedObject.kind"),
        ("regarding.namespace", "involvedObject.namespace"),
        ("regarding.name", "involvedObject.name"),
        ("regarding.uid", "involvedObject.uid"),
        ("regarding.apiVersion", "involvedObject.apiVersion"),
        ("regarding.resourceVersion", "involvedObject.resourceVersion"),
        ("regarding.fieldPath", "involvedObject.fieldPath"),
        ("reason", "reason"),
        ("reportingController", "reportingComponent"),
        ("type", "type"),
    ] {
        view = view.field(name, path, "");
    }
    vec![
        row("apps", "v1", "ControllerRevision", "controllerrevisions").strategy(s::ControllerRevision),
        workload("DaemonSet", "daemonsets").short(&["ds"]).strategy(s::DaemonSet),
        workload("Deployment", "deployments").short(&["deploy"]).scale().strategy(s::Deployment),
        workload("ReplicaSet", "replicasets")
            .short(&["rs"])
            .scale()
            .field("status.replicas", "status.replicas", "0")
            .strategy(s::ReplicaSet),
        workload("StatefulSet", "statefulsets").short(&["sts"]).scale().strategy(s::StatefulSet),
        row("batch", "v1", "CronJob", "cronjobs")
            .short(&["cj"])
            .all()
            .generation()
            .status()
            .strategy(s::CronJob),
        row("batch", "v1", "Job", "jobs")
            .all()
            .generation()
            .status()
            .field("status.successful", "status.succeeded", "0")
            .strategy(s::Job),
        row("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
            .generation()
            .strategy(s::EndpointSlice),
        row("coordination.k8s.io", "v1", "Lease", "leases").strategy(s::Lease),
        view,
    ]
}

fn access() -> Vec<Row> {
    let rbac =
        |kind: &str, plural: &str| row("rbac.authorization.k8s.io", "v1", kind, plural).strategy(s::Rbac);
    let mut local = computed("authorization.k8s.io", "LocalSubjectAccessReview", "localsubjectaccessreviews");
    local.0.namespaced = true;
    vec![
        rbac("ClusterRoleBinding", "clusterrolebindings").cluster(),
        rbac("ClusterRole", "clusterroles").cluster(),
        rbac("RoleBinding", "rolebindings"),
        rbac("Role", "roles"),
        row("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests")
            .cluster()
            .short(&["csr"])
            .own("approval", &["get", "patch", "update"])
            .status()
            .fields(&["spec.signerName"])
            .strategy(s::CertificateSigningRequest),
        computed("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews"),
        computed("authentication.k8s.io", "TokenReview", "tokenreviews"),
        local,
        computed("authorization.k8s.io", "SelfSubjectAccessReview", "selfsubjectaccessreviews"),
        computed("authorization.k8s.io", "SelfSubjectRulesReview", "selfsubjectrulesreviews"),
        computed("authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews"),
    ]
}

fn storage() -> Vec<Row> {
    let storage = |kind: &str, plural: &str| row("storage.k8s.io", "v1", kind, plural).cluster();
    let mut capacity = storage("CSIStorageCapacity", "csistoragecapacities").strategy(s::CAPACITY);
    capacity.0.namespaced = true;
    vec![
        storage("CSIDriver", "csidrivers").strategy(s::CSI_DRIVER),
        storage("CSINode", "csinodes").strategy(s::CSI_NODE),
        capacity,
        storage("StorageClass", "storageclasses").short(&["sc"]).strategy(s::STORAGE_CLASS),
        storage("VolumeAttachment", "volumeattachments").status().strategy(s::ATTACHMENT),
        storage("VolumeAttributesClass", "volumeattributesclasses")
            .short(&["vac"])
            .strategy(s::ATTRIBUTES_CLASS),
    ]
}

fn devices() -> Vec<Row> {
    let device = |kind: &str, plural: &str| row("resource.k8s.io", "v1", kind, plural);
    vec![
        device("DeviceClass", "deviceclasses").cluster().generation().strategy(s::DEVICE_CLASS),
        device("ResourceClaim", "resourceclaims").status().strategy(s::RESOURCE_CLAIM),
        device("ResourceClaimTemplate", "resourceclaimtemplates").strategy(s::CLAIM_TEMPLATE),
        device("ResourceSlice", "resourceslices")
            .cluster()
            .generation()
            .fields(&["spec.nodeName", "spec.driver"])
            .strategy(s::RESOURCE_SLICE),
    ]
}

fn admission() -> Vec<Row> {
    let admission = |kind: &str, plural: &str| {
        let mut made = row("admissionregistration.k8s.io", "v1", kind, plural).cluster().generation();
        made.0.categories.push("api-extensions".to_owned());
        made
    };
    vec![
        admission("MutatingAdmissionPolicy", "mutatingadmissionpolicies").strategy(s::MUTATING_POLICY),
        admission("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings")
            .strategy(s::MUTATING_BINDING),
        admission("MutatingWebhookConfiguration", "mutatingwebhookconfigurations")
            .strategy(s::MUTATING_WEBHOOKS),
        admission("ValidatingAdmissionPolicy", "validatingadmissionpolicies")
            .status()
            .strategy(s::VALIDATING_POLICY),
        admission("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")
            .strategy(s::VALIDATING_BINDING),
        admission("ValidatingWebhookConfiguration", "validatingwebhookconfigurations")
            .strategy(s::VALIDATING_WEBHOOKS),
    ]
}

fn rest() -> Vec<Row> {
    let flow = |kind: &str, plural: &str| {
        row("flowcontrol.apiserver.k8s.io", "v1", kind, plural).cluster().generation().status()
    };
    let mut hpa = row("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
        .short(&["hpa"])
        .all()
        .status()
        .strategy(s::Autoscaler);
    let mut older = hpa.0.clone();
    older.subresources[0].kind = older.gvk("v1");
    for column in &mut older.printer.columns {
        let cell = column.cell.clone();
        column.cell = Arc::new(move |object, now| cell(&s::autoscaler_from_v1(object.clone()), now));
    }
    older.converter =
        Some(Converter { from_storage: s::autoscaler_to_v1, to_storage: s::autoscaler_from_v1 });
    hpa.0.versions.push("v1".to_owned());
    older.versions.clone_from(&hpa.0.versions);
    hpa.0.views.insert("v1".to_owned(), Arc::new(older));
    vec![
        row("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
            .short(&["pdb"])
            .generation()
            .status()
            .strategy(s::PodDisruptionBudget),
        row("networking.k8s.io", "v1", "IngressClass", "ingressclasses")
            .cluster()
            .generation()
            .strategy(s::INGRESS_CLASS),
        row("networking.k8s.io", "v1", "Ingress", "ingresses")
            .short(&["ing"])
            .generation()
            .status()
            .strategy(s::Ingress),
        row("networking.k8s.io", "v1", "IPAddress", "ipaddresses")
            .cluster()
            .short(&["ip"])
            .strategy(s::IP_ADDRESS),
        row("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
            .short(&["netpol"])
            .generation()
            .strategy(s::NetworkPolicy),
        row("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs")
            .cluster()
            .status()
            .strategy(s::SERVICE_CIDR),
        row("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses")
            .cluster()
            .short(&["pc"])
            .generation()
            .strategy(s::PriorityClass),
        row("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses").cluster().strategy(s::RUNTIME_CLASS),
        flow("FlowSchema", "flowschemas").strategy(s::FLOW_SCHEMA),
        flow("PriorityLevelConfiguration", "prioritylevelconfigurations").strategy(s::PRIORITY_LEVEL),
        hpa,
        row("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
            .cluster()
            .short(&["crd", "crds"])
            .extension()
            .generation()
            .status()
            .strategy(CustomResourceDefinition),
        row(REGISTRATION_GROUP, "v1", "APIService", "apiservices")
            .cluster()
            .extension()
            .status()
            .strategy(s::ApiService),
    ]
}
