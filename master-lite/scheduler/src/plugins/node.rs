//! Rules about the node itself: its name, whether it takes pods, its labels.

use k8s_openapi::api::core::v1::{Node, NodeAffinity as NodeAffinitySpec, Pod};
use keelson_client::selector::{node_accepted, node_term_matches};
use keelson_client::{pods, taints};

use crate::framework::{ClusterEvent, Filter, Prepared, Rejection, Score, normalize};
use crate::node_info::{NodeInfo, PodInfo, Snapshot};

/// The taint that a cordoned node has; a pod that tolerates it may go there.
pub const TAINT_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A pod that names its node goes there or nowhere.
pub struct NodeName;

impl Filter for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Snapshot) -> Prepared<'a> {
        let Some(wanted) = pods::node_name(&pod.pod) else { return Prepared::Skip };
        Prepared::Check(Box::new(move |node| {
            if node.name() == wanted {
                return Ok(());
            }
            Err(Rejection::unresolvable("node(s) didn't match the requested node name"))
        }))
    }

    fn wakes(&self, _: &Pod, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::Node { old: None, .. })
    }
}

/// A cordoned node takes only pods that tolerate that.
pub struct NodeUnschedulable;

fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false)
}

fn tolerates_cordon(pod: &Pod) -> bool {
    let taint = k8s_openapi::api::core::v1::Taint {
        key: TAINT_UNSCHEDULABLE.into(),
        effect: taints::NO_SCHEDULE.into(),
        ..Default::default()
    };
    pods::tolerations(pod).iter().any(|t| taints::tolerates(t, &taint))
}

impl Filter for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Snapshot) -> Prepared<'a> {
        if tolerates_cordon(&pod.pod) {
            return Prepared::Skip;
        }
        Prepared::Check(Box::new(|node| {
            if is_cordoned(&node.node) {
                return Err(Rejection::unresolvable("node(s) were unschedulable"));
            }
            Ok(())
        }))
    }

    fn wakes(&self, _: &Pod, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::Node { new, .. } if !is_cordoned(new))
    }
}

/// `nodeSelector` and node affinity.
pub struct NodeAffinity;

fn affinity(pod: &Pod) -> Option<&NodeAffinitySpec> {
    pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()
}

/// Whether the pod's `nodeSelector` and required node affinity accept the node.
pub fn accepted(pod: &Pod, node: &Node) -> bool {
    pod.spec.as_ref().is_none_or(|spec| node_accepted(spec, node))
}

impl Filter for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Snapshot) -> Prepared<'a> {
        let spec = pod.pod.spec.as_ref();
        let selects = spec.and_then(|s| s.node_selector.as_ref()).is_some_and(|s| !s.is_empty());
        let requires = affinity(&pod.pod)
            .is_some_and(|a| a.required_during_scheduling_ignored_during_execution.is_some());
        if !selects && !requires {
            return Prepared::Skip;
        }
        Prepared::Check(Box::new(|node| {
            if accepted(&pod.pod, &node.node) {
                return Ok(());
            }
            Err(Rejection::unresolvable("node(s) didn't match Pod's node affinity/selector"))
        }))
    }

    fn wakes(&self, pod: &Pod, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::Node { new, .. } if accepted(pod, new))
    }
}

impl Score for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], _: &Snapshot) -> Option<Vec<i64>> {
        let preferred = affinity(&pod.pod)?.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        let scores = nodes.iter().map(|node| {
            preferred
                .iter()
                .filter(|term| node_term_matches(&term.preference, &node.node))
                .map(|term| i64::from(term.weight))
                .sum()
        });
        Some(normalize(scores.collect(), false))
    }
}
