//! What a decision looks at: pods and nodes with everything that plugins need computed once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodAffinityTerm};
use keelson_client::pods::{self, Resources};
use keelson_client::selector::Labels;
use keelson_client::{Selector, meta};
use keelson_quantity::{self as quantity, Quantity};

/// Requests that scoring assumes for a container that states none (`GetNonzeroRequests`).
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// A port that a pod takes on its host: address, protocol, number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The host's address, `0.0.0.0` for all.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port on the host.
    pub port: i32,
}

impl HostPort {
    /// Whether two pods on one node can't both have these.
    pub fn conflicts(&self, other: &HostPort) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == "0.0.0.0" || other.ip == "0.0.0.0")
    }
}

/// A compiled term of pod affinity or anti-affinity.
#[derive(Debug, Clone)]
pub struct AffinityTerm {
    namespaces: BTreeSet<String>,
    namespace_selector: Selector,
    selector: Selector,
    /// The node label that tells domains apart.
    pub topology_key: String,
    /// The weight of a preferred term; 0 for a required one.
    pub weight: i64,
}

impl AffinityTerm {
    fn compile(pod: &Pod, term: &PodAffinityTerm, weight: i32) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(meta::namespace(&pod.metadata).to_owned());
        }
        let labels = pod.metadata.labels.as_ref();
        let mut label_selector = term.label_selector.clone();
        if let Some(selector) = &mut label_selector {
            // The API server merges these into the selector; doing it again changes nothing.
            for (keys, operator) in [(&term.match_label_keys, "In"), (&term.mismatch_label_keys, "NotIn")] {
                for key in keys.iter().flatten() {
                    if let Some(value) = labels.and_then(|l| l.get(key)) {
                        selector.match_expressions.get_or_insert_default().push(
                            k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement {
                                key: key.clone(),
                                operator: operator.into(),
                                values: Some(vec![value.clone()]),
                            },
                        );
                    }
                }
            }
        }
        AffinityTerm {
            namespaces,
            // Validation refuses unknown operators; one that slips through selects nothing.
            namespace_selector: Selector::compile(term.namespace_selector.as_ref())
                .unwrap_or_else(|_| Selector::nothing()),
            selector: Selector::compile(label_selector.as_ref()).unwrap_or_else(|_| Selector::nothing()),
            topology_key: term.topology_key.clone(),
            weight: weight.into(),
        }
    }

    /// Whether the term is about `pod`.
    pub fn matches(&self, pod: &Pod, namespaces: &BTreeMap<String, Labels>) -> bool {
        let namespace = meta::namespace(&pod.metadata);
        (self.namespaces.contains(namespace) || self.namespace_selector.matches(namespaces.get(namespace)))
            && self.selector.matches(pod.metadata.labels.as_ref())
    }
}

/// The four kinds of terms of one pod.
#[derive(Debug, Clone, Default)]
pub struct Affinity {
    /// Pods that must be in the domain.
    pub required: Vec<AffinityTerm>,
    /// Pods that must not be in the domain.
    pub required_anti: Vec<AffinityTerm>,
    /// Pods that had better be in the domain.
    pub preferred: Vec<AffinityTerm>,
    /// Pods that had better not be in the domain.
    pub preferred_anti: Vec<AffinityTerm>,
}

/// A pod, and what is computed from it once.
#[derive(Debug, Clone)]
pub struct PodInfo {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What it asks for.
    pub requests: Resources,
    /// Milli-CPU that scoring counts for it: a container that states none counts as 100m.
    pub scored_cpu: i64,
    /// Bytes of memory that scoring counts for it: a container that states none counts as 200Mi.
    pub scored_memory: i64,
    /// Ports it takes on its host.
    pub host_ports: Vec<HostPort>,
    /// Its affinity to other pods.
    pub affinity: Affinity,
    /// Uid of its controller.
    pub owner: Option<Arc<str>>,
}

impl Affinity {
    /// Whether the pod cares at all about the company it has.
    pub fn is_empty(&self) -> bool {
        self.required.is_empty()
            && self.required_anti.is_empty()
            && self.preferred.is_empty()
            && self.preferred_anti.is_empty()
    }
}

impl PodInfo {
    /// Computes what the plugins need to know of `pod`.
    pub fn new(pod: Arc<Pod>) -> Self {
        let requests = pods::requests(&pod);
        let scored = |name: &str, default: i64, read: fn(Quantity) -> i64| {
            let stated = requests.get(name).copied().unwrap_or_default();
            let silent = containers(&pod).filter(|c| !requests_any(c, name)).count();
            read(stated).saturating_add(default.saturating_mul(i64::try_from(silent).unwrap_or(0)))
        };
        PodInfo {
            scored_cpu: scored("cpu", DEFAULT_MILLI_CPU, Quantity::milli_value),
            scored_memory: scored("memory", DEFAULT_MEMORY, Quantity::value),
            host_ports: host_ports(&pod),
            affinity: affinity(&pod),
            owner: meta::controller_of(&pod.metadata).map(|owner| owner.uid.as_str().into()),
            requests,
            pod,
        }
    }

    /// How much of a resource it asks for.
    pub fn request(&self, name: &str) -> Quantity {
        self.requests.get(name).copied().unwrap_or_default()
    }

    /// The pod's uid.
    pub fn uid(&self) -> &str {
        meta::uid(&self.pod.metadata)
    }

    /// The pod's priority.
    pub fn priority(&self) -> i32 {
        pods::priority(&self.pod)
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|s| s.containers.iter())
}

fn requests_any(container: &Container, name: &str) -> bool {
    container
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref())
        .is_some_and(|requests| requests.contains_key(name))
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|port| {
            Some(HostPort {
                ip: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into()),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: port.host_port.filter(|p| *p > 0)?,
            })
        })
        .collect()
}

fn affinity(pod: &Pod) -> Affinity {
    let mut terms = Affinity::default();
    let Some(affinity) = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()) else { return terms };
    if let Some(with) = &affinity.pod_affinity {
        let required = with.required_during_scheduling_ignored_during_execution.iter().flatten();
        terms.required = required.map(|t| AffinityTerm::compile(pod, t, 0)).collect();
        let preferred = with.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        terms.preferred =
            preferred.map(|t| AffinityTerm::compile(pod, &t.pod_affinity_term, t.weight)).collect();
    }
    if let Some(without) = &affinity.pod_anti_affinity {
        let required = without.required_during_scheduling_ignored_during_execution.iter().flatten();
        terms.required_anti = required.map(|t| AffinityTerm::compile(pod, t, 0)).collect();
        let preferred = without.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        terms.preferred_anti =
            preferred.map(|t| AffinityTerm::compile(pod, &t.pod_affinity_term, t.weight)).collect();
    }
    terms
}

/// How much of CPU or memory a node has and how much of it is taken. As every decision reads it of every node, it is kept
/// in the forms in which it is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Amount {
    /// What the pods ask for together.
    pub requested: Quantity,
    /// What the node has for pods.
    pub allocatable: Quantity,
    /// The same two as balancing counts them: milli-CPU, bytes.
    pub share: (f64, f64),
    /// What the node has as scoring counts it: milli-CPU, bytes.
    pub scored: i64,
}

/// Amounts as balancing counts them: milli-CPU, bytes.
pub fn cpu_share(amount: Quantity) -> f64 {
    amount.milli_value() as f64
}

/// As [`cpu_share`].
pub fn memory_share(amount: Quantity) -> f64 {
    amount.milli_value() as f64 / 1000.0
}

/// A node with the pods on it.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The node.
    pub node: Arc<Node>,
    /// The pods on it, those included whose binding is under way.
    pub pods: Vec<Arc<PodInfo>>,
    /// What the pods ask for together.
    pub requested: Resources,
    /// Milli-CPU that scoring counts for them.
    pub scored_cpu: i64,
    /// Memory that scoring counts for them.
    pub scored_memory: i64,
    /// What the node has for pods.
    pub allocatable: Resources,
    /// CPU, of both.
    pub cpu: Amount,
    /// Memory, of both.
    pub memory: Amount,
    /// How many pods it may have.
    pub most_pods: i64,
    /// How many pods of each controller it has that are not on their way out; the controllers' uids.
    pub owners: HashMap<Arc<str>, u32>,
    /// How many of its pods care about their company.
    pub choosy: u32,
    /// How many of its pods stand no company of some kind.
    pub intolerant: u32,
}

impl NodeInfo {
    /// A node without pods.
    pub fn new(node: Arc<Node>) -> Self {
        let mut info = NodeInfo {
            node: node.clone(),
            pods: Vec::new(),
            requested: Resources::new(),
            scored_cpu: 0,
            scored_memory: 0,
            allocatable: Resources::new(),
            cpu: Amount::default(),
            memory: Amount::default(),
            most_pods: 0,
            owners: HashMap::new(),
            choosy: 0,
            intolerant: 0,
        };
        info.set_node(node);
        info
    }

    fn count_amounts(&mut self) {
        let amount = |name: &str, share: fn(Quantity) -> f64, scored: fn(Quantity) -> i64| {
            let (requested, allocatable) = (self.requested(name), self.allocatable(name));
            let share = (share(requested), share(allocatable));
            Amount { requested, allocatable, share, scored: scored(allocatable) }
        };
        let cpu = amount("cpu", cpu_share, Quantity::milli_value);
        let memory = amount("memory", memory_share, Quantity::value);
        (self.cpu, self.memory) = (cpu, memory);
        self.most_pods = self.allocatable("pods").value();
    }

    fn count_company(&mut self, pod: &PodInfo, more: bool) {
        let by = |count: &mut u32| *count = if more { *count + 1 } else { count.saturating_sub(1) };
        if !pod.affinity.is_empty() {
            by(&mut self.choosy);
        }
        if !pod.affinity.required_anti.is_empty() {
            by(&mut self.intolerant);
        }
        let Some(owner) = pod.owner.as_ref().filter(|_| !pods::is_terminating(&pod.pod)) else { return };
        if let Some(count) = self.owners.get_mut(owner) {
            by(count);
            if *count == 0 {
                self.owners.remove(owner);
            }
        } else if more {
            self.owners.insert(owner.clone(), 1);
        }
    }

    /// Takes the node's new version.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        self.allocatable =
            allocatable.into_iter().flatten().map(|(k, v)| (k.clone(), quantity::of(v))).collect();
        self.node = node;
        self.count_amounts();
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        meta::name(&self.node.metadata)
    }

    /// The value of one of the node's labels.
    pub fn label(&self, key: &str) -> Option<&str> {
        meta::label(&self.node.metadata, key)
    }

    /// How much of a resource the node has for pods.
    pub fn allocatable(&self, name: &str) -> Quantity {
        self.allocatable.get(name).copied().unwrap_or_default()
    }

    /// How much of a resource its pods ask for.
    pub fn requested(&self, name: &str) -> Quantity {
        self.requested.get(name).copied().unwrap_or_default()
    }

    /// Counts a pod as placed here.
    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        pods::add(&mut self.requested, &pod.requests);
        self.scored_cpu = self.scored_cpu.saturating_add(pod.scored_cpu);
        self.scored_memory = self.scored_memory.saturating_add(pod.scored_memory);
        self.count_amounts();
        self.count_company(&pod, true);
        self.pods.push(pod);
    }

    /// Counts the pod with this uid as gone; whether it was here.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(at) = self.pods.iter().position(|p| p.uid() == uid) else { return false };
        let pod = self.pods.swap_remove(at);
        for (name, amount) in &pod.requests {
            if let Some(total) = self.requested.get_mut(name) {
                *total = *total - *amount;
            }
        }
        self.scored_cpu = self.scored_cpu.saturating_sub(pod.scored_cpu);
        self.scored_memory = self.scored_memory.saturating_sub(pod.scored_memory);
        self.count_amounts();
        self.count_company(&pod, false);
        true
    }
}

/// Where the node of this name is among nodes that are ordered by name, or belongs.
pub(crate) fn position(nodes: &[Arc<NodeInfo>], name: &str) -> Result<usize, usize> {
    nodes.binary_search_by(|node| node.name().cmp(name))
}

/// The cluster at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The nodes, by name.
    pub nodes: Arc<Vec<Arc<NodeInfo>>>,
    /// The labels of every namespace, for selectors over them.
    pub namespaces: Arc<BTreeMap<String, Labels>>,
    /// On how many nodes each image is, by its name with tag or digest.
    pub image_spread: Arc<HashMap<String, usize>>,
    /// Pods that wait for room which was made for them, by uid.
    pub nominated: Arc<BTreeMap<String, Nomination>>,
    /// Chooses among nodes of equal score, so that equal pods spread out.
    pub turn: usize,
}

/// A pod and the node on which room is kept for it (`status.nominatedNodeName`).
#[derive(Debug, Clone)]
pub struct Nomination {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// The node's name.
    pub node: String,
}

impl Snapshot {
    /// Where in [`Snapshot::nodes`] the node of this name is.
    pub fn position(&self, name: &str) -> Option<usize> {
        position(&self.nodes, name).ok()
    }

    /// The state of one node, to be changed; a snapshot that has it too keeps it as it is.
    pub fn node_mut(&mut self, at: usize) -> &mut NodeInfo {
        Arc::make_mut(&mut Arc::make_mut(&mut self.nodes)[at])
    }

    /// The node that `pod` is nominated to.
    pub fn nominated_node(&self, pod: &PodInfo) -> Option<&str> {
        self.nominated.get(pod.uid()).map(|nomination| nomination.node.as_str())
    }

    /// The pods that are nominated to a node and that `pod` must leave their room: those of its own priority or above.
    pub fn ahead_of<'s>(&'s self, pod: &'s PodInfo, node: &'s str) -> impl Iterator<Item = &'s Arc<PodInfo>> {
        let ahead = move |n: &&Nomination| {
            n.node == node && n.pod.priority() >= pod.priority() && n.pod.uid() != pod.uid()
        };
        self.nominated.values().filter(ahead).map(|nomination| &nomination.pod)
    }

    /// The same cluster with another state of one node.
    pub fn with_node(&self, at: usize, node: NodeInfo) -> Snapshot {
        let mut changed = self.clone();
        Arc::make_mut(&mut changed.nodes)[at] = Arc::new(node);
        changed
    }
}
