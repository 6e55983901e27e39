//! Resources: whether they suffice, and how evenly they would be used.

use k8s_openapi::api::core::v1::Pod;
use keelson_client::pods;
use keelson_quantity::{self as quantity, Quantity};

use crate::framework::{ClusterEvent, Filter, MAX_SCORE, Prepared, Rejection, Score};
use crate::node_info::{NodeInfo, PodInfo, Snapshot, cpu_share, memory_share};

/// The node must have what the pod asks for; emptier nodes are better (LeastAllocated).
pub struct Fit;

impl Filter for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Snapshot) -> Prepared<'a> {
        let wanted = |name: &str| pod.request(name);
        let (cpu, memory) = (wanted("cpu"), wanted("memory"));
        let others = || pod.requests.iter().filter(|(name, _)| !matches!(name.as_str(), "cpu" | "memory"));
        let others: Vec<_> = others().filter(|(_, wanted)| !wanted.is_zero()).collect();
        Prepared::Check(Box::new(move |node| {
            let mut rejection = Rejection { reasons: Vec::new(), unresolvable: false };
            if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.most_pods {
                rejection.reasons.push("Too many pods".into());
            }
            let mut check = |name: &str, wanted: Quantity, requested: Quantity, allocatable: Quantity| {
                if !wanted.is_zero() && wanted > allocatable - requested {
                    rejection.reasons.push(format!("Insufficient {name}").into());
                    rejection.unresolvable |= wanted > allocatable;
                }
            };
            check("cpu", cpu, node.cpu.requested, node.cpu.allocatable);
            check("memory", memory, node.memory.requested, node.memory.allocatable);
            for (name, wanted) in &others {
                check(name, **wanted, node.requested(name), node.allocatable(name));
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

/// CPU (milli) and memory (bytes) as scoring counts them: used with the pod, allocatable.
fn usage(pod: &PodInfo, node: &NodeInfo) -> [(i64, i64); 2] {
    [
        (node.scored_cpu.saturating_add(pod.scored_cpu), node.cpu.scored),
        (node.scored_memory.saturating_add(pod.scored_memory), node.memory.scored),
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

fn least_allocated(usage: &[(i64, i64)]) -> i64 {
    let (mut sum, mut counted) = (0, 0);
    for (after, allocatable) in usage.iter().filter(|(_, allocatable)| *allocatable > 0) {
        let free = (allocatable - after).max(0);
        // Only of absurd amounts the product needs more than 64 bits, whose division is slow.
        sum += match free.checked_mul(MAX_SCORE) {
            Some(product) => product / allocatable,
            None => i64::try_from(i128::from(free) * i128::from(MAX_SCORE) / i128::from(*allocatable))
                .unwrap_or(0),
        };
        counted += 1;
    }
    if counted == 0 { 0 } else { sum / counted }
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
        let more = [cpu_share(pod.request("cpu")), memory_share(pod.request("memory"))];
        let score = |node: &&NodeInfo| {
            let shares = [node.cpu.share, node.memory.share];
            let fraction = |at: usize, more: f64| {
                let (used, total) = shares[at];
                (total > 0.0).then(|| ((used + more) / total).min(1.0))
            };
            let before = balance(fraction(0, 0.0), fraction(1, 0.0));
            let after = balance(fraction(0, more[0]), fraction(1, more[1]));
            MAX_SCORE / 2 + (MAX_SCORE / 2 + after - before) / 2
        };
        Some(nodes.iter().map(score).collect())
    }
}

/// 100 less the standard deviation of the fractions in use.
fn balance(a: Option<f64>, b: Option<f64>) -> i64 {
    let deviation = match (a, b) {
        (Some(a), Some(b)) => (a - b).abs() / 2.0,
        _ => 0.0,
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}
