//! Workloads of upstream's scheduler_perf (`test/integration/scheduler_perf/*/performance-config.yaml`), with its templates.
//! Numbers of pods follow from the number of nodes so that those for 500 and 5,000 nodes are upstream's.

use clap::ValueEnum;
use serde_json::{Value, json};

/// One of upstream's test cases, under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Workload {
    /// Pods that want nothing but room.
    SchedulingBasic,
    /// Required node affinity.
    SchedulingNodeAffinity,
    /// Required affinity to pods of the same zone.
    SchedulingPodAffinity,
    /// Required anti-affinity to pods of the same host.
    SchedulingPodAntiAffinity,
    /// Preferred affinity to pods of the same host.
    SchedulingPreferredPodAffinity,
    /// Preferred anti-affinity to pods of the same host.
    SchedulingPreferredPodAntiAffinity,
    /// Hard spreading over three zones.
    TopologySpreading,
    /// Soft spreading over three zones.
    PreferredTopologySpreading,
    /// Pods that must preempt others.
    PreemptionBasic,
    /// Pods that want nothing but room, while others that must preempt come, five a second.
    PreemptionAsync,
    /// Pods that want nothing but room, while others that fit nowhere come, five a second.
    Unschedulable,
}

/// Pods of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Pods {
    /// How many.
    pub count: usize,
    /// Their namespace.
    pub namespace: &'static str,
    /// What they want.
    pub kind: Kind,
}

/// What a pod wants: upstream's templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `pod-default.yaml`.
    Default,
    /// `pod-with-node-affinity.yaml`.
    NodeAffinity,
    /// `pod-with-pod-affinity.yaml`.
    Affinity,
    /// `pod-with-pod-anti-affinity.yaml`.
    AntiAffinity,
    /// `pod-with-preferred-pod-affinity.yaml`.
    PreferredAffinity,
    /// `pod-with-preferred-pod-anti-affinity.yaml`.
    PreferredAntiAffinity,
    /// `pod-with-topology-spreading.yaml`.
    Spreading,
    /// `pod-with-preferred-topology-spreading.yaml`.
    PreferredSpreading,
    /// `pod-low-priority.yaml`.
    LowPriority,
    /// `pod-high-priority.yaml`.
    HighPriority,
    /// `pod-high-priority-large-cpu.yaml`.
    TooLarge,
}

/// Namespaces of the pods.
pub const NAMESPACES: [&str; 3] = ["sched-0", "sched-1", "churn"];
/// Class of the pods with priority. Upstream writes the number into the pods, and has the admission switched off that refuses
/// that.
pub const PRIORITY_CLASS: &str = "bench-high";
/// Its number.
pub const PRIORITY: i64 = 10;
const ZONE: &str = "topology.kubernetes.io/zone";
const HOSTNAME: &str = "kubernetes.io/hostname";

impl Workload {
    /// Zones of the nodes, in turn; none where nodes have no zone.
    fn zones(self) -> &'static [&'static str] {
        match self {
            Self::SchedulingNodeAffinity | Self::SchedulingPodAffinity => &["zone1"],
            Self::TopologySpreading | Self::PreferredTopologySpreading => &["moon-1", "moon-2", "moon-3"],
            _ => &[],
        }
    }

    /// One of the nodes (`node-default.yaml`).
    pub fn node(self, number: usize) -> Value {
        let name = format!("scheduler-perf-{number}");
        let mut labels = json!({HOSTNAME: name});
        let zones = self.zones();
        if !zones.is_empty() {
            labels[ZONE] = json!(zones[number % zones.len()]);
        }
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "status": {
                "capacity": {"pods": "110", "cpu": "4", "memory": "32Gi"},
                "allocatable": {"pods": "110", "cpu": "4", "memory": "32Gi"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        })
    }

    /// Pods that are scheduled before the measured ones.
    pub fn first(self, nodes: usize) -> Pods {
        let (count, kind) = match self {
            Self::SchedulingBasic => (nodes.min(1_000), Kind::Default),
            Self::SchedulingNodeAffinity => (nodes, Kind::NodeAffinity),
            Self::SchedulingPodAffinity => (nodes, Kind::Affinity),
            Self::SchedulingPodAntiAffinity => (nodes / 5, Kind::AntiAffinity),
            Self::SchedulingPreferredPodAffinity => (nodes, Kind::PreferredAffinity),
            Self::SchedulingPreferredPodAntiAffinity => (nodes, Kind::PreferredAntiAffinity),
            Self::TopologySpreading | Self::PreferredTopologySpreading => (nodes.max(1_000), Kind::Default),
            Self::PreemptionBasic | Self::PreemptionAsync => (4 * nodes, Kind::LowPriority),
            Self::Unschedulable => (nodes / 50, Kind::Default),
        };
        Pods { count, namespace: NAMESPACES[0], kind }
    }

    /// Pods whose scheduling is timed.
    pub fn measured(self, nodes: usize) -> Pods {
        let spread = if nodes < 5_000 { 1_000 } else { 2_000 };
        let (count, kind) = match self {
            Self::SchedulingBasic | Self::Unschedulable => (1_000, Kind::Default),
            Self::SchedulingNodeAffinity => (1_000, Kind::NodeAffinity),
            Self::SchedulingPodAffinity => (1_000, Kind::Affinity),
            Self::SchedulingPodAntiAffinity => (1_000.min(nodes * 4 / 5), Kind::AntiAffinity),
            Self::SchedulingPreferredPodAffinity => (1_000, Kind::PreferredAffinity),
            Self::SchedulingPreferredPodAntiAffinity => (1_000, Kind::PreferredAntiAffinity),
            Self::TopologySpreading => (spread, Kind::Spreading),
            Self::PreferredTopologySpreading => (spread, Kind::PreferredSpreading),
            Self::PreemptionBasic => (nodes, Kind::HighPriority),
            Self::PreemptionAsync => (nodes, Kind::Default),
        };
        Pods { count, namespace: NAMESPACES[1], kind }
    }

    /// What comes five times a second meanwhile.
    pub fn churn(self) -> Option<Kind> {
        match self {
            Self::PreemptionAsync => Some(Kind::HighPriority),
            Self::Unschedulable => Some(Kind::TooLarge),
            _ => None,
        }
    }
}

impl Kind {
    /// A pod of it.
    pub fn pod(self, name: &str) -> Value {
        let (cpu, limited) = match self {
            Self::LowPriority => ("900m", true),
            Self::HighPriority => ("3000m", true),
            Self::TooLarge => ("9", false),
            _ => ("100m", true),
        };
        let mut resources = json!({"requests": {"cpu": cpu, "memory": "500Mi"}});
        if limited {
            resources["limits"] = resources["requests"].clone();
        }
        let mut spec = json!({"containers": [{
            "name": "pause", "image": "registry.k8s.io/pause:3.10.2", "ports": [{"containerPort": 80}], "resources": resources,
        }]});
        let mut labels = json!({});
        let mut coloured = |color: &str| {
            labels = json!({"color": color});
            json!({"matchLabels": {"color": color}})
        };
        let term = |selector: Value, key: &str| json!({"labelSelector": selector, "topologyKey": key, "namespaces": ["sched-1", "sched-0"]});
        match self {
            Self::Default => {}
            Self::NodeAffinity => {
                let zones = json!({"key": ZONE, "operator": "In", "values": ["zone1", "zone2"]});
                let terms = json!({"nodeSelectorTerms": [{"matchExpressions": [zones]}]});
                spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = terms;
            }
            Self::Affinity => {
                let terms = json!([term(coloured("blue"), ZONE)]);
                spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = terms;
            }
            Self::AntiAffinity => {
                let terms = json!([term(coloured("green"), HOSTNAME)]);
                spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = terms;
            }
            Self::PreferredAffinity => {
                let terms = json!([{"weight": 1, "podAffinityTerm": term(coloured("red"), HOSTNAME)}]);
                spec["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = terms;
            }
            Self::PreferredAntiAffinity => {
                let terms = json!([{"weight": 1, "podAffinityTerm": term(coloured("yellow"), HOSTNAME)}]);
                spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] =
                    terms;
            }
            Self::Spreading | Self::PreferredSpreading => {
                let when = if self == Self::Spreading { "DoNotSchedule" } else { "ScheduleAnyway" };
                spec["topologySpreadConstraints"] = json!([{
                    "maxSkew": 5, "topologyKey": ZONE, "whenUnsatisfiable": when, "labelSelector": coloured("blue"),
                }]);
            }
            Self::LowPriority => spec["terminationGracePeriodSeconds"] = json!(0),
            Self::HighPriority | Self::TooLarge => spec["priorityClassName"] = json!(PRIORITY_CLASS),
        }
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's numbers of initial and of measured pods.
    #[test]
    fn numbers_of_pods_are_upstreams() {
        let check = |workload: Workload, nodes, first, measured| {
            let counts = (workload.first(nodes).count, workload.measured(nodes).count);
            assert_eq!(counts, (first, measured), "{workload:?}");
        };
        check(Workload::SchedulingBasic, 500, 500, 1_000);
        check(Workload::SchedulingBasic, 5_000, 1_000, 1_000);
        check(Workload::SchedulingPodAntiAffinity, 500, 100, 400);
        check(Workload::SchedulingPodAntiAffinity, 5_000, 1_000, 1_000);
        check(Workload::SchedulingPodAffinity, 500, 500, 1_000);
        check(Workload::SchedulingPodAffinity, 5_000, 5_000, 1_000);
        check(Workload::TopologySpreading, 500, 1_000, 1_000);
        check(Workload::TopologySpreading, 5_000, 5_000, 2_000);
        check(Workload::PreemptionBasic, 1_000, 4_000, 1_000);
        check(Workload::PreemptionAsync, 5_000, 20_000, 5_000);
        check(Workload::Unschedulable, 500, 10, 1_000);
        check(Workload::Unschedulable, 5_000, 100, 1_000);
    }

    #[test]
    fn pods_carry_the_labels_that_they_select() {
        for kind in [Kind::Affinity, Kind::AntiAffinity, Kind::PreferredAffinity, Kind::Spreading] {
            let pod = kind.pod("a");
            let color = pod["metadata"]["labels"]["color"].as_str().unwrap();
            assert!(pod["spec"].to_string().contains(&format!(r#"{{"color":"{color}"}}"#)), "{pod}");
        }
        assert_eq!(Kind::Default.pod("a")["spec"].get("affinity"), None);
    }

    #[test]
    fn zones_go_round() {
        let zone = |n| Workload::TopologySpreading.node(n)["metadata"]["labels"][ZONE].clone();
        assert_eq!([zone(0), zone(1), zone(3)], ["moon-1", "moon-2", "moon-1"]);
        assert_eq!(Workload::SchedulingBasic.node(0)["metadata"]["labels"].get(ZONE), None);
    }

    #[test]
    fn names_are_upstreams() {
        let names: Vec<String> = Workload::value_variants()
            .iter()
            .filter_map(|workload| Some(workload.to_possible_value()?.get_name().to_owned()))
            .collect();
        assert_eq!(names[0], "SchedulingBasic");
        assert_eq!(names.last().map(String::as_str), Some("Unschedulable"));
    }
}
