//! Which pods of lower priority must go so that a pod can be placed (upstream's `DefaultPreemption`).
//!
//! [`preempt`] is pure. For each node that refused the pod for want of room it removes every pod of lower priority in
//! thought, and if the pod then fits puts back ("reprieves") as many as fit beside it, the most important first. Of the nodes for
//! which that works it takes the one where least is lost.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{Selector, meta, pods};

use crate::framework::{Filter, FitError, Rejection};
use crate::node_info::{PodInfo, Snapshot};
use crate::schedule::{concerning, fits};

/// The condition of a pod that is about to be disrupted.
pub const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// Its reason when the scheduler does it.
pub const PREEMPTION_BY_SCHEDULER: &str = "PreemptionByScheduler";

/// At least so many nodes are tried, or all (`minCandidateNodesAbsolute`).
const CANDIDATES_LEAST: usize = 100;
/// Beyond that a tenth of them (`minCandidateNodesPercentage`).
const CANDIDATES_PART: usize = 10;

/// What is to be done for a pod that fits nowhere.
#[derive(Debug, Clone)]
pub enum Preemption {
    /// These pods make room for it.
    Evict(Candidate),
    /// No pod may be evicted for it now. The node it is nominated to stays so.
    NotEligible(&'static str),
    /// Evicting pods does not help. It is nominated to no node.
    NoCandidate(String),
}

/// A node, and the pods that must leave it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The node's name.
    pub node: String,
    /// The pods, the most important first. Some may be about to go anyway.
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of them a PodDisruptionBudget would have kept.
    pub violations: usize,
}

/// Looks for pods whose going makes room for `pod`, which was `refused` everywhere.
pub fn preempt(
    pod: &PodInfo,
    snapshot: &Snapshot,
    refused: &FitError,
    budgets: &[Arc<PodDisruptionBudget>],
    now: &Time,
) -> Preemption {
    if let Some(why) = not_eligible(pod, snapshot, refused) {
        return Preemption::NotEligible(why);
    }
    let (candidates, rejections) = candidates(pod, snapshot, refused, budgets, now);
    match candidates.into_iter().min_by_key(|candidate| loss(candidate, now)) {
        Some(best) => Preemption::Evict(best),
        None => Preemption::NoCandidate(unhelpful(snapshot, &rejections)),
    }
}

fn not_eligible(pod: &PodInfo, snapshot: &Snapshot, refused: &FitError) -> Option<&'static str> {
    let policy = pod.pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref());
    if policy == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = snapshot.nominated_node(pod)?;
    // What was wrong with the node may be beyond help by now: then another must be found.
    if refused.never.is_some() || refused.rejections.get(nominated).is_some_and(|r| r.unresolvable) {
        return None;
    }
    let node = &snapshot.nodes[snapshot.position(nominated)?];
    let leaving = |other: &Arc<PodInfo>| other.priority() < pod.priority() && is_leaving(&other.pod);
    node.pods.iter().any(leaving).then_some("not eligible due to a terminating pod on the nominated node.")
}

/// Whether the pod is being deleted because we wanted its place.
fn is_leaving(pod: &Pod) -> bool {
    pods::is_terminating(pod)
        && pods::condition(pod, DISRUPTION_TARGET)
            .is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some(PREEMPTION_BY_SCHEDULER))
}

/// Nodes where it works, those that break no budget first; and why it doesn't elsewhere.
fn candidates(
    pod: &PodInfo,
    snapshot: &Snapshot,
    refused: &FitError,
    budgets: &[Arc<PodDisruptionBudget>],
    now: &Time,
) -> (Vec<Candidate>, BTreeMap<String, Rejection>) {
    let resolvable = |at: &usize| {
        refused.rejections.get(snapshot.nodes[*at].name()).is_some_and(|rejection| !rejection.unresolvable)
    };
    let potential: Vec<usize> = (0..snapshot.nodes.len()).filter(resolvable).collect();
    let enough = (potential.len() / CANDIDATES_PART).max(CANDIDATES_LEAST);
    let filters = concerning(pod, snapshot);
    let budgets: Vec<Allowance> = budgets.iter().filter_map(|budget| Allowance::of(budget)).collect();
    let (mut gentle, mut violating) = (Vec::new(), Vec::new());
    let mut rejections = BTreeMap::new();
    // Not always the same nodes, when not all of them are tried.
    let start = snapshot.turn % potential.len().max(1);
    for at in potential[start..].iter().chain(&potential[..start]) {
        match victims_on(&filters, pod, snapshot, *at, &budgets, now) {
            Ok(candidate) if candidate.violations == 0 => gentle.push(candidate),
            Ok(candidate) => violating.push(candidate),
            Err(rejection) => {
                rejections.insert(snapshot.nodes[*at].name().to_owned(), rejection);
            }
        }
        if !gentle.is_empty() && gentle.len() + violating.len() >= enough {
            break;
        }
    }
    gentle.append(&mut violating);
    (gentle, rejections)
}

/// The fewest pods whose going makes the pod fit on the node at `at`.
fn victims_on(
    filters: &[&'static dyn Filter],
    pod: &PodInfo,
    snapshot: &Snapshot,
    at: usize,
    budgets: &[Allowance],
    now: &Time,
) -> Result<Candidate, Rejection> {
    let node = &snapshot.nodes[at];
    let lower = node.pods.iter().filter(|other| other.priority() < pod.priority());
    let mut lower: Vec<Arc<PodInfo>> = lower.cloned().collect();
    if lower.is_empty() {
        return Err(Rejection::unresolvable("No preemption victims found for incoming pod"));
    }
    let mut emptied = (**node).clone();
    for other in &lower {
        emptied.remove_pod(other.uid());
    }
    let mut trial = snapshot.with_node(at, emptied);
    fits(filters, pod, &trial, at).map_err(|(_, rejection)| rejection)?;

    lower.sort_by_key(|other| importance(other, now));
    let (violating, gentle) = split(lower, budgets);
    let mut victims = Vec::new();
    let mut reprieve = |other: Arc<PodInfo>| {
        trial.node_mut(at).add_pod(other.clone());
        if fits(filters, pod, &trial, at).is_err() {
            trial.node_mut(at).remove_pod(other.uid());
            victims.push(other);
        }
    };
    violating.iter().cloned().for_each(&mut reprieve);
    gentle.into_iter().for_each(&mut reprieve);
    let violations = victims.iter().filter(|v| violating.iter().any(|other| other.uid() == v.uid())).count();
    victims.sort_by_key(|victim| importance(victim, now));
    debug_assert!(!victims.is_empty(), "the node refused the pod as it is");
    Ok(Candidate { node: node.name().to_owned(), victims, violations })
}

/// A pod that has not started counts as starting now.
fn started(pod: &PodInfo, now: &Time) -> Time {
    pod.pod.status.as_ref().and_then(|s| s.start_time.clone()).unwrap_or_else(|| now.clone())
}

/// The more important is less: higher priority, then the longer run.
fn importance(pod: &PodInfo, now: &Time) -> (Reverse<i32>, Time) {
    (Reverse(pod.priority()), started(pod, now))
}

/// What the eviction of a candidate's pods costs, in the order in which it is weighed: budgets broken, the highest
/// priority, the sum of priorities, the number of pods, how long the most important of them have run.
fn loss(candidate: &Candidate, now: &Time) -> (usize, i32, i64, usize, Reverse<Time>) {
    let victims = &candidate.victims;
    let highest = victims.first().map_or(i32::MIN, |victim| victim.priority());
    // Each counts more than nothing, so that a few pods of negative priority are no better than one.
    let sum = victims.iter().map(|v| i64::from(v.priority()) + i64::from(i32::MAX) + 1).sum();
    let most_important = victims.iter().filter(|victim| victim.priority() == highest);
    let earliest = most_important.map(|victim| started(victim, now)).min().unwrap_or_else(|| now.clone());
    (candidate.violations, highest, sum, victims.len(), Reverse(earliest))
}

/// How many pods a budget still lets go.
struct Allowance {
    namespace: String,
    selector: Selector,
    /// Pods whose eviction the API server has allowed already.
    disrupted: Vec<String>,
    allowed: i32,
}

impl Allowance {
    /// None for a budget that selects nothing.
    fn of(budget: &PodDisruptionBudget) -> Option<Self> {
        let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
        let selector = Selector::compile(selector).ok().filter(|selector| !selector.is_everything())?;
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|s| s.disrupted_pods.as_ref());
        Some(Allowance {
            namespace: meta::namespace(&budget.metadata).to_owned(),
            selector,
            disrupted: disrupted.into_iter().flatten().map(|(name, _)| name.clone()).collect(),
            allowed: status.and_then(|s| s.disruptions_allowed).unwrap_or(0),
        })
    }

    fn counts(&self, pod: &Pod) -> bool {
        self.namespace == meta::namespace(&pod.metadata)
            && pod.metadata.labels.as_ref().is_some_and(|labels| !labels.is_empty())
            && self.selector.matches(pod.metadata.labels.as_ref())
            && !self.disrupted.iter().any(|name| name == meta::name(&pod.metadata))
    }
}

/// Divides pods into those whose going a budget forbids, if all before them go, and the others; both in their order.
fn split(pods: Vec<Arc<PodInfo>>, budgets: &[Allowance]) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: Vec<i32> = budgets.iter().map(|budget| budget.allowed).collect();
    pods.into_iter().partition(|pod| {
        let mut violates = false;
        for (_, left) in budgets.iter().zip(&mut left).filter(|(budget, _)| budget.counts(&pod.pod)) {
            *left -= 1;
            violates |= *left < 0;
        }
        violates
    })
}

/// Why nothing helps, node by node.
fn unhelpful(snapshot: &Snapshot, rejections: &BTreeMap<String, Rejection>) -> String {
    let nodes = snapshot.nodes.len();
    let mut all = rejections.clone();
    for node in snapshot.nodes.iter() {
        all.entry(node.name().to_owned())
            .or_insert_with(|| Rejection::unresolvable("Preemption is not helpful for scheduling"));
    }
    FitError { nodes, rejections: all, ..Default::default() }.to_string()
}

#[cfg(test)]
#[path = "preemption_tests.rs"]
mod tests;
