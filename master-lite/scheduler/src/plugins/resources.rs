//! Resources: whether they suffice, and how evenly they would be used.

use k8s_openapi::api::core::v1::Pod;
use keelson_client::pods;
use keelson_quantity::{self as quantity, Quantity};

use crate::framework::{ClusterEvent, Filter, MAX_SCORE, Prepared, Rejection, Score};
use crate::node_info::{NodeInfo, PodInfo, Snapshot};

/// The node must have what the pod asks for; emptier nodes are better (LeastAllocated).
pub struct Fit;

impl Filter for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Snapshot) -> Prepared<'a> {
        Prepared::Check(Box::new(|node| {
            let mut rejection = Rejection { reasons: Vec::new(), unresolvable: false };
            let room = node.allocatable("pods").value();
            if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= room {
                rejection.reasons.push("Too many pods".into());
            }
            for (name, wanted) in pod.requests.iter().filter(|(_, wanted)| !wanted.is_zero()) {
                let allocatable = node.allocatable(name);
                if *wanted > allocatable - node.requested(name) {
                    rejection.reasons.push(format!("Insufficient {name}"));
                    rejection.unresolvable |= *wanted > allocatable;
                }
            }
            if rejection.reasons.is_empty() { Ok(()) } else { Err(rejection) }
        }))
    }

    fn wakes(&self, pod: &Pod, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::PodGone(_) => true,
            ClusterEvent::PodPlaced(_) | ClusterEvent::PodLeaving(_) => false,
            ClusterEvent::Node { new, .. } => {
                let allocatable = new.status.as_ref().and_then(|s| s.allocatable.as_ref());
                pods::requests(pod).iter().all(|(name, wanted)| {
                    let has = allocatable.and_then(|a| a.get(name)).map(quantity::of).unwrap_or_default();
                    *wanted <= has
                })
            }
        }
    }
}

/// Used and allocatable of CPU (milli) and memory (bytes), as scoring counts them: (used before, used after,
/// allocatable).
fn usage(pod: &PodInfo, node: &NodeInfo) -> [(i64, i64, i64); 2] {
    let cpu = node.allocatable("cpu").milli_value();
    let memory = node.allocatable("memory").value();
    [
        (node.scored_cpu, node.scored_cpu.saturating_add(pod.scored_cpu), cpu),
        (node.scored_memory, node.scored_memory.saturating_add(pod.scored_memory), memory),
    ]
}

impl Score for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], _: &Snapshot) -> Option<Vec<i64>> {
        Some(nodes.iter().map(|node| least_allocated(&usage(pod, node))).collect())
    }
}

fn least_allocated(usage: &[(i64, i64, i64)]) -> i64 {
    let scores: Vec<i64> = usage
        .iter()
        .filter(|(_, _, allocatable)| *allocatable > 0)
        .map(|(_, after, allocatable)| {
            let free = (allocatable - after).max(0);
            i64::try_from(i128::from(free) * i128::from(MAX_SCORE) / i128::from(*allocatable)).unwrap_or(0)
        })
        .collect();
    if scores.is_empty() { 0 } else { scores.iter().sum::<i64>() / scores.len() as i64 }
}

/// CPU and memory had better be used to the same degree.
pub struct BalancedAllocation;

impl Score for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], _: &Snapshot) -> Option<Vec<i64>> {
        // A pod that asks for neither changes no balance.
        if pod.request("cpu") == Quantity::ZERO && pod.request("memory") == Quantity::ZERO {
            return None;
        }
        let score = |node: &&NodeInfo| {
            let mut before = Vec::new();
            let mut after = Vec::new();
            for ((name, allocatable), unit) in
                [("cpu", 1000.0), ("memory", 1.0)].map(|(name, unit)| ((name, node.allocatable(name)), unit))
            {
                let total = allocatable.milli_value() as f64 / 1000.0 * unit;
                if total > 0.0 {
                    let used = node.requested(name).milli_value() as f64 / 1000.0 * unit;
                    let more = pod.request(name).milli_value() as f64 / 1000.0 * unit;
                    before.push((used / total).min(1.0));
                    after.push(((used + more) / total).min(1.0));
                }
            }
            MAX_SCORE / 2 + (MAX_SCORE / 2 + balance(&after) - balance(&before)) / 2
        };
        Some(nodes.iter().map(score).collect())
    }
}

/// 100 less the standard deviation of the fractions in use.
fn balance(fractions: &[f64]) -> i64 {
    let deviation = match fractions {
        [a, b] => (a - b).abs() / 2.0,
        _ => 0.0,
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}
