//! The decision: which node shall have a pod.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_client::pods;

use crate::framework::{FitError, NodeCheck, Prepared, Rejection};
use crate::node_info::{NodeInfo, PodInfo, Snapshot};
use crate::plugins;

/// Chooses a node for `pod`: of those that every filter accepts the one with the best weighted score; among
/// equals the snapshot's turn decides. Looks at nothing but its arguments.
///
/// # Errors
/// [`FitError`] says what each node lacks.
pub fn schedule(pod: &PodInfo, snapshot: &Snapshot) -> Result<Arc<NodeInfo>, FitError> {
    let mut error = FitError { nodes: snapshot.nodes.len(), ..Default::default() };
    let mut checks: Vec<(&'static str, NodeCheck)> = Vec::new();
    for filter in plugins::FILTERS {
        match filter.prepare(pod, snapshot) {
            Prepared::Skip => {}
            Prepared::Check(check) => checks.push((filter.name(), check)),
            Prepared::Never(reason) => {
                error.never = Some(reason);
                error.plugins.insert(filter.name());
                error.preemption = Some(unhelpful(error.nodes));
                return Err(error);
            }
        }
    }
    let mut feasible: Vec<&Arc<NodeInfo>> = Vec::new();
    for node in &snapshot.nodes {
        // As upstream the first filter that says no speaks for the node.
        let refused = checks.iter().find_map(|(name, check)| Some((*name, check(node).err()?)));
        match refused {
            None => feasible.push(node),
            Some((plugin, rejection)) => {
                error.plugins.insert(plugin);
                error.rejections.insert(node.name().to_owned(), rejection);
            }
        }
    }
    match best(pod, &feasible, snapshot) {
        Some(node) => Ok(node),
        None => {
            if error.nodes > 0 {
                error.preemption = Some(preemption_message(pod, snapshot, &error.rejections));
            }
            Err(error)
        }
    }
}

fn best(pod: &PodInfo, feasible: &[&Arc<NodeInfo>], snapshot: &Snapshot) -> Option<Arc<NodeInfo>> {
    if let [only] = feasible {
        return Some((*only).clone());
    }
    let nodes: Vec<&NodeInfo> = feasible.iter().map(|node| &***node).collect();
    let mut totals = vec![0i64; nodes.len()];
    for plugin in plugins::SCORES {
        if let Some(scores) = plugin.score(pod, &nodes, snapshot) {
            for (total, score) in totals.iter_mut().zip(scores) {
                *total += plugin.weight() * score;
            }
        }
    }
    let most = totals.iter().max()?;
    let equals: Vec<&Arc<NodeInfo>> =
        feasible.iter().zip(&totals).filter(|(_, total)| *total == most).map(|(node, _)| *node).collect();
    equals.get(snapshot.turn % equals.len().max(1)).map(|node| (*node).clone())
}

fn unhelpful(nodes: usize) -> String {
    format!("preemption: 0/{nodes} nodes are available: {nodes} Preemption is not helpful for scheduling.")
}

/// What upstream's preemption says where it finds nothing to do. Where evicting pods of lower priority might help
/// the message says that they are not evicted.
fn preemption_message(
    pod: &PodInfo,
    snapshot: &Snapshot,
    rejections: &BTreeMap<String, Rejection>,
) -> String {
    let spec = pod.pod.spec.as_ref();
    if spec.and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return "preemption: not eligible due to preemptionPolicy=Never..".into();
    }
    let priority = spec.and_then(|s| s.priority).unwrap_or(0);
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for node in &snapshot.nodes {
        let unresolvable = rejections.get(node.name()).is_none_or(|r| r.unresolvable);
        let lower = node.pods.iter().any(|p| {
            !pods::is_terminating(&p.pod)
                && p.pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0) < priority
        });
        let reason = match (unresolvable, lower) {
            (true, _) => "Preemption is not helpful for scheduling",
            (false, false) => "No preemption victims found for incoming pod",
            (false, true) => "node(s) had pods of lower priority, and this scheduler evicts none",
        };
        *reasons.entry(reason).or_default() += 1;
    }
    let mut counted: Vec<String> = reasons.iter().map(|(why, n)| format!("{n} {why}")).collect();
    counted.sort();
    format!("preemption: 0/{} nodes are available: {}.", snapshot.nodes.len(), counted.join(", "))
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
