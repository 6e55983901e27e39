//! Every kind has the columns that upstream's `printers/internalversion` gives it; a star marks those of `-o wide`.

use serde_json::json;

use crate::resources::ResourceTable;

const COLUMNS: &str = "
APIService: Name,Service,Available,Age
CSIDriver: Name,AttachRequired,PodInfoOnMount,StorageCapacity,TokenRequests,RequiresRepublish,Modes,Age
CSINode: Name,Drivers,Age
CSIStorageCapacity: Name,Created At
CertificateSigningRequest: Name,Age,SignerName,Requestor,RequestedDuration,Condition
ClusterRole: Name,Created At
ClusterRoleBinding: Name,Role,Age,Users*,Groups*,ServiceAccounts*
ComponentStatus: Name,Status,Message,Error
ConfigMap: Name,Data,Age
ControllerRevision: Name,Controller,Revision,Age
CronJob: Name,Schedule,Timezone,Suspend,Active,Last Schedule,Age,Containers*,Images*,Selector*
CustomResourceDefinition: Name,Created At
DaemonSet: Name,Desired,Current,Ready,Up-to-date,Available,Node Selector,Age,Containers*,Images*,Selector*
Deployment: Name,Ready,Up-to-date,Available,Age,Containers*,Images*,Selector*
DeviceClass: Name,Age
EndpointSlice: Name,AddressType,Ports,Endpoints,Age
Endpoints: Name,Endpoints,Age
Event: Last Seen,Type,Reason,Object,Subobject*,Source*,Message,First Seen*,Count*,Name*
FlowSchema: Name,PriorityLevel,MatchingPrecedence,DistinguisherMethod,Age,MissingPL
HorizontalPodAutoscaler: Name,Reference,Targets,MinPods,MaxPods,Replicas,Age
IPAddress: Name,ParentRef
Ingress: Name,Class,Hosts,Address,Ports,Age
IngressClass: Name,Controller,Parameters,Age
Job: Name,Status,Completions,Duration,Age,Containers*,Images*,Selector*
Lease: Name,Holder,Age
LimitRange: Name,Created At
MutatingAdmissionPolicy: Name,Mutations,ParamKind,Age
MutatingAdmissionPolicyBinding: Name,PolicyName,ParamRef,Age
MutatingWebhookConfiguration: Name,Webhooks,Age
Namespace: Name,Status,Age
NetworkPolicy: Name,Pod-Selector,Age
Node: Name,Status,Roles,Age,Version,Internal-IP*,External-IP*,OS-Image*,Kernel-Version*,Container-Runtime*
PersistentVolume: Name,Capacity,Access Modes,Reclaim Policy,Status,Claim,StorageClass,VolumeAttributesClass,Reason,Age,VolumeMode*
PersistentVolumeClaim: Name,Status,Volume,Capacity,Access Modes,StorageClass,VolumeAttributesClass,Age,VolumeMode*
Pod: Name,Ready,Status,Restarts,Age,IP*,Node*,Nominated Node*,Readiness Gates*
PodDisruptionBudget: Name,Min Available,Max Unavailable,Allowed Disruptions,Age
PodTemplate: Name,Containers,Images,Pod Labels
PriorityClass: Name,Value,Global-Default,Age,PreemptionPolicy
PriorityLevelConfiguration: Name,Type,NominalConcurrencyShares,Queues,HandSize,QueueLengthLimit,Age
ReplicaSet: Name,Desired,Current,Ready,Age,Containers*,Images*,Selector*
ReplicationController: Name,Desired,Current,Ready,Age,Containers*,Images*,Selector*
ResourceClaim: Name,State,Age
ResourceClaimTemplate: Name,Age
ResourceQuota: Name,Request,Limit,Age
ResourceSlice: Name,Node,Driver,Pool,Age
Role: Name,Created At
RoleBinding: Name,Role,Age,Users*,Groups*,ServiceAccounts*
RuntimeClass: Name,Handler,Age
Secret: Name,Type,Data,Age
Service: Name,Type,Cluster-IP,External-IP,Port(s),Age,Selector*
ServiceAccount: Name,Age
ServiceCIDR: Name,CIDRs,Age
StatefulSet: Name,Ready,Age,Containers*,Images*
StorageClass: Name,Provisioner,ReclaimPolicy,VolumeBindingMode,AllowVolumeExpansion,Age
ValidatingAdmissionPolicy: Name,Validations,ParamKind,Age
ValidatingAdmissionPolicyBinding: Name,PolicyName,ParamRef,Age
ValidatingWebhookConfiguration: Name,Webhooks,Age
VolumeAttachment: Name,Attacher,PV,Node,Attached,Age
VolumeAttributesClass: Name,DriverName,Age
";

#[test]
fn every_kind_has_upstreams_columns() {
    let mut kinds = 0;
    for row in
        ResourceTable::builtin().rows().iter().filter(|row| row.verbs.iter().any(|verb| verb == "list"))
    {
        let names: Vec<String> = row
            .printer
            .definitions()
            .iter()
            .map(|column| {
                let star = if column["priority"] == json!(0) { "" } else { "*" };
                format!("{}{star}", column["name"].as_str().unwrap())
            })
            .collect();
        let line = format!("{}: {}", row.kind, names.join(","));
        assert!(COLUMNS.lines().any(|expected| expected == line), "{line}");
        kinds += 1;
    }
    assert!(kinds > 50, "only {kinds} kinds");
}
