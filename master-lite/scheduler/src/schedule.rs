//! The decision: which node shall have a pod.

use std::sync::Arc;

use crate::framework::{Filter, FitError, NodeCheck, Prepared, Rejection};
use crate::node_info::{NodeInfo, PodInfo, Snapshot};
use crate::plugins;

/// Chooses a node for `pod`: the one it is nominated to if that will do; else of those that every filter accepts the
/// one with the best weighted score; among equals the snapshot's turn decides. Looks at nothing but its arguments.
///
/// # Errors
/// [`FitError`] says what each node lacks.
pub fn schedule(pod: &PodInfo, snapshot: &Snapshot) -> Result<Arc<NodeInfo>, FitError> {
    let mut error = FitError { nodes: snapshot.nodes.len(), ..Default::default() };
    let checks = match prepare(plugins::FILTERS, pod, snapshot) {
        Ok(checks) => checks,
        Err((plugin, reason)) => {
            error.never = Some(reason);
            error.plugins.insert(plugin);
            return Err(error);
        }
    };
    let accepts = |at: usize| {
        beside_nominated(plugins::FILTERS, pod, snapshot, at).and_then(|()| ask(&checks, &snapshot.nodes[at]))
    };
    // Room was made there: it is most likely the only node that will do.
    let nominated = snapshot.nominated_node(pod).and_then(|name| snapshot.position(name));
    if let Some(at) = nominated.filter(|at| accepts(*at).is_ok()) {
        return Ok(snapshot.nodes[at].clone());
    }
    let mut feasible: Vec<&Arc<NodeInfo>> = Vec::with_capacity(snapshot.nodes.len());
    let mut refused = Vec::new();
    for (at, node) in snapshot.nodes.iter().enumerate() {
        match accepts(at) {
            Ok(()) => feasible.push(node),
            Err(refusal) => refused.push((node, refusal)),
        }
    }
    best(pod, &feasible, snapshot).ok_or_else(|| {
        for (node, (plugin, rejection)) in refused {
            error.plugins.insert(plugin);
            error.rejections.insert(node.name().to_owned(), rejection);
        }
        error
    })
}

/// The name of the filter that said no, and what it said.
pub(crate) type Refusal = (&'static str, Rejection);

type Checks<'a> = Vec<(&'static str, NodeCheck<'a>)>;

/// Prepares those of `filters` that the pod concerns.
fn prepare<'a>(
    filters: &[&dyn Filter],
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
) -> Result<Checks<'a>, (&'static str, String)> {
    let mut checks = Checks::new();
    for filter in filters {
        match filter.prepare(pod, snapshot) {
            Prepared::Skip => {}
            Prepared::Check(check) => checks.push((filter.name(), check)),
            Prepared::Never(reason) => return Err((filter.name(), reason)),
        }
    }
    Ok(checks)
}

/// As upstream the first filter that says no speaks for the node.
fn ask(checks: &Checks<'_>, node: &NodeInfo) -> Result<(), Refusal> {
    for (name, check) in checks {
        check(node).map_err(|rejection| (*name, rejection))?;
    }
    Ok(())
}

fn ask_in(filters: &[&dyn Filter], pod: &PodInfo, snapshot: &Snapshot, at: usize) -> Result<(), Refusal> {
    let checks = prepare(filters, pod, snapshot)
        .map_err(|(plugin, reason)| (plugin, Rejection::unresolvable(reason)))?;
    ask(&checks, &snapshot.nodes[at])
}

/// Whether the node at `at` still accepts the pod when those that come first have come there (as on it, they count for
/// every filter).
fn beside_nominated(
    filters: &[&dyn Filter],
    pod: &PodInfo,
    snapshot: &Snapshot,
    at: usize,
) -> Result<(), Refusal> {
    if snapshot.nominated.is_empty() {
        return Ok(());
    }
    let node = &snapshot.nodes[at];
    let mut ahead = snapshot.ahead_of(pod, node.name()).peekable();
    if ahead.peek().is_none() {
        return Ok(());
    }
    let mut crowded = (**node).clone();
    ahead.for_each(|other| crowded.add_pod(other.clone()));
    ask_in(filters, pod, &snapshot.with_node(at, crowded), at)
}

/// Whether the node at `at` accepts the pod, both with and without the pods that are nominated to it and come first: it
/// is not certain that they will come, and the pod may need them (affinity) as well as their room.
pub(crate) fn fits(
    filters: &[&dyn Filter],
    pod: &PodInfo,
    snapshot: &Snapshot,
    at: usize,
) -> Result<(), Refusal> {
    beside_nominated(filters, pod, snapshot, at)?;
    ask_in(filters, pod, snapshot, at)
}

/// The filters that may say no about the pod in this cluster, or in one with fewer pods on its nodes.
pub(crate) fn concerning(pod: &PodInfo, snapshot: &Snapshot) -> Vec<&'static dyn Filter> {
    let mut crowded = snapshot.clone();
    for nomination in snapshot.nominated.values() {
        if let Some(at) = crowded.position(&nomination.node) {
            crowded.node_mut(at).add_pod(nomination.pod.clone());
        }
    }
    let concerns = |filter: &&dyn Filter| !matches!(filter.prepare(pod, &crowded), Prepared::Skip);
    plugins::FILTERS.iter().copied().filter(concerns).collect()
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

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
