//! What objects of each kind cost (`pkg/quota/v1/evaluator/core`).

use serde_json::Value;

use super::amounts::{self, Amounts, Kind};
use crate::meta::GroupResource;
use crate::resources::selector::LabelSelector;
use keelson_quantity::{Format, Quantity};

/// Resources that upstream's quota system leaves out.
const IGNORED: &[(&str, &str)] = &[
    ("", "bindings"),
    ("", "componentstatuses"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
];
/// Kinds that are counted under their own name too.
const COUNTED: &[&str] = &["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];
const POD_NAMES: &[&str] = &[
    "count/pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
const SERVICE_NAMES: &[&str] =
    &["count/services", "services", "services.nodeports", "services.loadbalancers"];
const CLAIM_NAMES: &[&str] = &["persistentvolumeclaims", "requests.storage"];
const BY_STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const BY_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
const EXTENDED_CLASS: &str = "requests.deviceclass.resource.kubernetes.io/";
/// Most devices that a claim can be given, for claims that ask for all.
const ALL_DEVICES: i64 = 32;

/// How the objects of a resource are measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evaluator {
    /// Pods: by number, and by what their containers request and may use.
    Pods,
    /// Services: by number, node ports and load balancers.
    Services,
    /// PersistentVolumeClaims: by number and size, of all and by storage class.
    Claims,
    /// ResourceClaims: by number, and by devices of each class.
    DeviceClaims,
    /// Everything else: by number.
    Count(GroupResource),
}

/// What is done to an object.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// It exists already.
    pub is_update: bool,
    /// The part that is written.
    pub subresource: &'a str,
    /// The new object.
    pub new: &'a Value,
    /// The object before; null if there was none.
    pub old: &'a Value,
}

fn one() -> Quantity {
    Quantity::with_format(1, Format::DecimalSi)
}

fn number(value: usize) -> Quantity {
    Quantity::with_format(i64::try_from(value).unwrap_or(i64::MAX), Format::DecimalSi)
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

impl Evaluator {
    /// The evaluator of a resource; `None` if quotas have nothing to say about it.
    pub fn of(resource: &GroupResource) -> Option<Self> {
        if IGNORED.contains(&(resource.group.as_str(), resource.resource.as_str())) {
            return None;
        }
        Some(match (resource.group.as_str(), resource.resource.as_str()) {
            ("", "pods") => Self::Pods,
            ("", "services") => Self::Services,
            ("", "persistentvolumeclaims") => Self::Claims,
            ("resource.k8s.io", "resourceclaims") => Self::DeviceClaims,
            _ => Self::Count(resource.clone()),
        })
    }

    /// The evaluators that measure what a quota limits under these names.
    pub fn tracking<'n>(names: impl Iterator<Item = &'n str>) -> Vec<Self> {
        let names: Vec<&str> = names.collect();
        let mut all = vec![Self::Pods, Self::Services, Self::Claims, Self::DeviceClaims];
        for name in &names {
            let (resource, group) = match name.strip_prefix("count/") {
                Some(counted) => counted.split_once('.').unwrap_or((counted, "")),
                None if COUNTED.contains(name) => (*name, ""),
                None => continue,
            };
            if let Some(evaluator @ Self::Count(_)) = Self::of(&GroupResource::new(group, resource))
                && !all.contains(&evaluator)
            {
                all.push(evaluator);
            }
        }
        all.retain(|evaluator| names.iter().any(|name| evaluator.measures(name)));
        all
    }

    /// The resource whose objects it measures.
    pub fn resource(&self) -> GroupResource {
        match self {
            Self::Pods => GroupResource::new("", "pods"),
            Self::Services => GroupResource::new("", "services"),
            Self::Claims => GroupResource::new("", "persistentvolumeclaims"),
            Self::DeviceClaims => GroupResource::new("resource.k8s.io", "resourceclaims"),
            Self::Count(resource) => resource.clone(),
        }
    }

    /// True if the objects' names are enough to measure them.
    pub fn counts_only(&self) -> bool {
        matches!(self, Self::Count(_))
    }

    /// Whether a limit of this name concerns the resource.
    pub fn measures(&self, name: &str) -> bool {
        match self {
            Self::Pods => {
                POD_NAMES.contains(&name)
                    || name.starts_with("hugepages-")
                    || name.starts_with("requests.hugepages-")
                    || (name.starts_with("requests.")
                        && (!is_native(name) || name.starts_with(EXTENDED_CLASS)))
            }
            Self::Services => SERVICE_NAMES.contains(&name),
            Self::Claims => {
                name == "count/persistentvolumeclaims"
                    || CLAIM_NAMES.contains(&name)
                    || CLAIM_NAMES.iter().any(|own| {
                        name.strip_suffix(own).is_some_and(|class| class.ends_with(BY_STORAGE_CLASS))
                    })
            }
            Self::DeviceClaims => {
                name == "count/resourceclaims.resource.k8s.io" || name.ends_with(BY_DEVICE_CLASS)
            }
            Self::Count(resource) => {
                name == count_name(resource)
                    || (resource.group.is_empty() && resource.resource == name && COUNTED.contains(&name))
            }
        }
    }

    /// Whether a change can cost anything.
    pub fn handles(&self, change: &Change<'_>) -> bool {
        let (update, subresource) = (change.is_update, change.subresource);
        match self {
            Self::Pods => match subresource {
                "" => !update || is_terminating(change.new) != is_terminating(change.old),
                "resize" => update,
                _ => false,
            },
            Self::Services | Self::DeviceClaims => subresource.is_empty(),
            Self::Claims => match subresource {
                "" => true,
                "status" => replenishes(change.new, change.old),
                _ => false,
            },
            Self::Count(_) => !update && subresource.is_empty(),
        }
    }

    /// What one object costs. `now` is seconds since 1970.
    pub fn usage(&self, object: &Value, now: i64) -> Amounts {
        match self {
            Self::Pods => pod(object, now),
            Self::Services => service(object),
            Self::Claims => claim(object),
            Self::DeviceClaims => device_claim(object),
            Self::Count(resource) => {
                let mut usage = Amounts::from([(count_name(resource), one())]);
                if resource.group.is_empty() && COUNTED.contains(&resource.resource.as_str()) {
                    usage.insert(resource.resource.clone(), one());
                }
                usage
            }
        }
    }

    /// What an object must say when these limits concern it.
    pub fn constraints(&self, limits: &[&str], object: &Value) -> Result<(), String> {
        if *self == Self::Pods { pod_constraints(limits, object) } else { Ok(()) }
    }

    /// Whether an object is within all scopes of a quota.
    pub fn in_scope(&self, quota: &Value, object: &Value) -> bool {
        let spec = &quota["spec"];
        let named = spec["scopes"].as_array().into_iter().flatten();
        named
            .map(|scope| (scope.as_str().unwrap_or_default(), "Exists", &Value::Null))
            .chain(spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten().map(|e| {
                (
                    e["scopeName"].as_str().unwrap_or_default(),
                    e["operator"].as_str().unwrap_or_default(),
                    &e["values"],
                )
            }))
            .all(|(scope, operator, values)| match self {
                Self::Pods => pod_scope(object, scope, operator, values),
                Self::Claims if scope == "VolumeAttributesClass" => {
                    named_scope(&attribute_classes(object), operator, values)
                }
                _ => false,
            })
    }
}

fn count_name(resource: &GroupResource) -> String {
    format!("count/{resource}")
}

fn is_terminating(pod: &Value) -> bool {
    pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0)
}

fn pod_scope(pod: &Value, scope: &str, operator: &str, values: &Value) -> bool {
    let best_effort = || crate::resources::strategies::qos_class(pod) == "BestEffort";
    match scope {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => {
            let class = pod["spec"]["priorityClassName"].as_str().unwrap_or_default();
            let classes: Vec<&str> = Some(class).filter(|c| !c.is_empty()).into_iter().collect();
            named_scope(&classes, operator, values)
        }
        "CrossNamespacePodAffinity" => reaches_other_namespaces(pod),
        _ => false,
    }
}

/// Whether one of an object's classes is selected; an object without one is selected by `NotIn` and `DoesNotExist`.
fn named_scope(classes: &[&str], operator: &str, values: &Value) -> bool {
    let values: Vec<&str> = values.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let text = match operator {
        "Exists" => return !classes.is_empty(),
        "DoesNotExist" => return classes.is_empty(),
        "In" => format!("class in ({})", values.join(",")),
        "NotIn" => format!("class notin ({})", values.join(",")),
        _ => return false,
    };
    let Ok(selector) = LabelSelector::parse(&text) else { return false };
    if classes.is_empty() {
        return selector.matches(&std::collections::BTreeMap::new());
    }
    classes.iter().any(|class| {
        selector.matches(&std::collections::BTreeMap::from([("class".to_owned(), (*class).to_owned())]))
    })
}

fn reaches_other_namespaces(pod: &Value) -> bool {
    let affinity = &pod["spec"]["affinity"];
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let items = |field: &str| affinity[kind][field].as_array().into_iter().flatten();
        items("requiredDuringSchedulingIgnoredDuringExecution")
            .chain(items("preferredDuringSchedulingIgnoredDuringExecution").map(|w| &w["podAffinityTerm"]))
            .any(|term| {
                term["namespaces"].as_array().is_some_and(|list| !list.is_empty())
                    || !term["namespaceSelector"].is_null()
            })
    })
}

fn pod(pod: &Value, now: i64) -> Amounts {
    let mut usage = Amounts::from([("count/pods".to_owned(), one())]);
    if !is_charged(pod, now) {
        return usage;
    }
    usage.insert("pods".to_owned(), one());
    let requests = amounts::pod_total(pod, Kind::Requests, true);
    let limits = amounts::pod_total(pod, Kind::Limits, true);
    compute(&mut usage, &requests, &limits);
    usage
}

/// A pod that has ended, or that should be gone by now, costs nothing.
fn is_charged(pod: &Value, now: i64) -> bool {
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return false;
    }
    let meta = &pod["metadata"];
    let deleted =
        meta["deletionTimestamp"].as_str().and_then(|t| chrono::DateTime::parse_from_rfc3339(t).ok());
    match (deleted, meta["deletionGracePeriodSeconds"].as_i64()) {
        (Some(deleted), Some(grace)) => now <= deleted.timestamp().saturating_add(grace),
        _ => true,
    }
}

fn compute(usage: &mut Amounts, requests: &Amounts, limits: &Amounts) {
    for (name, amount) in requests {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            usage.insert(name.clone(), *amount);
            usage.insert(format!("requests.{name}"), *amount);
        } else if !is_native(name) || name.starts_with("deviceclass.resource.kubernetes.io/") {
            usage.insert(format!("requests.{name}"), *amount);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            usage.insert(format!("limits.{name}"), *amount);
        }
    }
}

/// Where cpu or memory is limited, each container must say how much of it it takes.
fn pod_constraints(limits: &[&str], pod: &Value) -> Result<(), String> {
    const REQUIRED: &[&str] =
        &["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
    if amounts::has_pod_level(pod) {
        return Ok(());
    }
    let mut missing: Vec<String> = Vec::new();
    for name in REQUIRED.iter().filter(|name| limits.contains(name)) {
        let mut containers: Vec<&str> = Vec::new();
        for container in ["containers", "initContainers"]
            .iter()
            .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        {
            let mut usage = Amounts::new();
            let read = |kind: Kind| amounts::read(&container["resources"][kind.field()]);
            compute(&mut usage, &read(Kind::Requests), &read(Kind::Limits));
            if !usage.contains_key(*name) {
                containers.push(container["name"].as_str().unwrap_or_default());
            }
        }
        containers.sort_unstable();
        if !containers.is_empty() {
            missing.push(format!("{name} for: {}", containers.join(",")));
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("must specify {}", missing.join("; "))) }
}

fn service(service: &Value) -> Amounts {
    let spec = &service["spec"];
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let explicit = ports.iter().filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0).count();
    let (node_ports, balancers) = match spec["type"].as_str() {
        Some("NodePort") => (ports.len(), 0),
        Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => (explicit, 1),
        Some("LoadBalancer") => (ports.len(), 1),
        _ => (0, 0),
    };
    Amounts::from([
        ("count/services".to_owned(), one()),
        ("services".to_owned(), one()),
        ("services.nodeports".to_owned(), number(node_ports)),
        ("services.loadbalancers".to_owned(), number(balancers)),
    ])
}

fn claim(claim: &Value) -> Amounts {
    let mut usage = Amounts::from([
        ("persistentvolumeclaims".to_owned(), one()),
        ("count/persistentvolumeclaims".to_owned(), one()),
    ]);
    let annotation = &claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    let class =
        annotation.as_str().or_else(|| claim["spec"]["storageClassName"].as_str()).unwrap_or_default();
    let mut charge = |name: &str, amount: Quantity| {
        if !class.is_empty() {
            usage.insert(format!("{class}{BY_STORAGE_CLASS}{name}"), amount);
        }
        usage.insert(name.to_owned(), amount);
    };
    charge("persistentvolumeclaims", one());
    let mut storage = amounts::read(&claim["spec"]["resources"]["requests"]);
    storage.retain(|name, _| name == "storage");
    if !storage.is_empty() {
        // A volume that is growing counts with what it was promised.
        let mut promised = amounts::read(&claim["status"]["allocatedResources"]);
        promised.retain(|name, _| name == "storage");
        amounts::raise(&mut storage, &promised);
    }
    if let Some(size) = storage.remove("storage") {
        let whole = size.nanos() % 1_000_000_000 == 0;
        charge(
            "requests.storage",
            if whole { size } else { Quantity::with_format(size.value(), size.format()) },
        );
    }
    usage
}

fn attribute_classes(claim: &Value) -> Vec<&str> {
    [
        &claim["spec"]["volumeAttributesClassName"],
        &claim["status"]["currentVolumeAttributesClassName"],
        &claim["status"]["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
    ]
    .into_iter()
    .filter_map(Value::as_str)
    .filter(|class| !class.is_empty())
    .collect()
}

fn replenishes(new: &Value, old: &Value) -> bool {
    let promised = |claim: &Value| amounts::read(&claim["status"]["allocatedResources"]);
    let classes = |claim: &Value| -> std::collections::BTreeSet<String> {
        attribute_classes(claim).into_iter().map(str::to_owned).collect()
    };
    promised(new) != promised(old) || classes(new) != classes(old)
}

fn device_claim(claim: &Value) -> Amounts {
    let mut usage = Amounts::from([("count/resourceclaims.resource.k8s.io".to_owned(), one())]);
    let devices = |request: &Value| -> (String, Quantity) {
        let count = match request["allocationMode"].as_str() {
            Some("ExactCount") => request["count"].as_i64().unwrap_or(0),
            Some("All") => ALL_DEVICES,
            _ => 0,
        };
        let class = request["deviceClassName"].as_str().unwrap_or_default();
        (format!("{class}{BY_DEVICE_CLASS}"), Quantity::with_format(count, Format::DecimalSi))
    };
    for request in claim["spec"]["devices"]["requests"].as_array().into_iter().flatten() {
        match request["firstAvailable"].as_array().filter(|list| !list.is_empty()) {
            // One of several: the most that any of them takes, class by class.
            Some(alternatives) => {
                let mut most = Amounts::new();
                for alternative in alternatives {
                    amounts::raise(&mut most, &Amounts::from([devices(alternative)]));
                }
                amounts::add(&mut usage, &most);
            }
            None if request["exactly"].is_object() => {
                amounts::add(&mut usage, &Amounts::from([devices(&request["exactly"])]));
            }
            None => {}
        }
    }
    usage
}
