//! What a plugin is, and what is said when no node fits.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::node_info::{NodeInfo, PodInfo, Snapshot};

/// The best score a plugin gives a node.
pub const MAX_SCORE: i64 = 100;

/// Why a node can't have a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The reasons, in upstream's words.
    pub reasons: Vec<Cow<'static, str>>,
    /// Whether removing other pods from the node could not help.
    pub unresolvable: bool,
}

impl Rejection {
    /// A rejection that other pods' going could lift.
    pub fn resolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Rejection { reasons: vec![reason.into()], unresolvable: false }
    }

    /// A rejection that stands whatever other pods do.
    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Rejection { reasons: vec![reason.into()], unresolvable: true }
    }
}

/// A filter that knows its pod and the cluster; it answers for one node.
pub type NodeCheck<'a> = Box<dyn Fn(&NodeInfo) -> Result<(), Rejection> + 'a>;

/// What a filter has to say about a pod before any node is looked at.
pub enum Prepared<'a> {
    /// The pod does not concern it.
    Skip,
    /// Ask it about each node.
    Check(NodeCheck<'a>),
    /// No node can have the pod, for this reason.
    Never(String),
}

/// Something that happened and may have made room for pods that wait.
#[derive(Debug, Clone)]
pub enum ClusterEvent {
    /// A node is new or has changed.
    Node {
        /// Before, if it was there.
        old: Option<Arc<Node>>,
        /// Now.
        new: Arc<Node>,
    },
    /// A pod has been placed, or one that is placed has got other labels.
    PodPlaced(Arc<Pod>),
    /// The deletion of a placed pod has begun. It holds what it has until it is gone.
    PodLeaving(Arc<Pod>),
    /// A placed pod has gone or ended, or asks for less; or one that was nominated is so no longer.
    PodGone(Arc<Pod>),
}

/// A rule about where a pod may go.
pub trait Filter: Sync {
    /// Upstream's name of the plugin.
    fn name(&self) -> &'static str;

    /// Looks at the pod and the whole cluster once. A filter that skips the pod skips it in the same cluster with fewer
    /// pods too: preemption counts on that.
    fn prepare<'a>(&self, pod: &'a PodInfo, snapshot: &'a Snapshot) -> Prepared<'a>;

    /// Whether `event` may make a node fit for a pod that this plugin has rejected. To say yes too often costs
    /// time, to say no wrongly leaves the pod waiting.
    fn wakes(&self, pod: &Pod, event: &ClusterEvent) -> bool;
}

/// A preference among the nodes that a pod may go to.
pub trait Score: Sync {
    /// Upstream's name of the plugin.
    fn name(&self) -> &'static str;

    /// How much it weighs against the others.
    fn weight(&self) -> i64;

    /// A score from 0 to [`MAX_SCORE`] for each of `nodes`; none when the pod does not concern it.
    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Option<Vec<i64>>;
}

/// No node fits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FitError {
    /// How many nodes there are.
    pub nodes: usize,
    /// What ruled out every node at once.
    pub never: Option<String>,
    /// What each node lacks.
    pub rejections: BTreeMap<String, Rejection>,
    /// The plugins that rejected a node; their events wake the pod.
    pub plugins: BTreeSet<&'static str>,
    /// What preemption had to say.
    pub preemption: Option<String>,
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 && self.never.is_none() {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available:", self.nodes)?;
        if let Some(never) = &self.never {
            write!(f, " {never}.")?;
        } else {
            let mut histogram: BTreeMap<&str, usize> = BTreeMap::new();
            for reason in self.rejections.values().flat_map(|r| &r.reasons) {
                *histogram.entry(reason).or_default() += 1;
            }
            let mut counted: Vec<String> = histogram.iter().map(|(why, n)| format!("{n} {why}")).collect();
            counted.sort();
            if !counted.is_empty() {
                write!(f, " {}.", counted.join(", "))?;
            }
        }
        if let Some(preemption) = &self.preemption {
            write!(f, " {preemption}")?;
        }
        Ok(())
    }
}

impl std::error::Error for FitError {}

/// Stretches scores so that the largest becomes [`MAX_SCORE`]; turned round when less is better.
pub fn normalize(mut scores: Vec<i64>, reverse: bool) -> Vec<i64> {
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in &mut scores {
        if most > 0 {
            *score = MAX_SCORE * *score / most;
        }
        if reverse {
            *score = MAX_SCORE - *score;
        }
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_counts_reasons() {
        let mut error = FitError { nodes: 3, ..Default::default() };
        for (node, reason) in [("a", "Insufficient cpu"), ("b", "Too many pods"), ("c", "Insufficient cpu")] {
            error.rejections.insert(node.into(), Rejection::resolvable(reason));
        }
        error.preemption = Some("preemption: no.".into());
        assert_eq!(
            error.to_string(),
            "0/3 nodes are available: 1 Too many pods, 2 Insufficient cpu. preemption: no."
        );
        assert_eq!(FitError::default().to_string(), "no nodes available to schedule pods");
    }

    #[test]
    fn normalizing() {
        assert_eq!(normalize(vec![0, 5, 10], false), [0, 50, 100]);
        assert_eq!(normalize(vec![0, 5, 10], true), [100, 50, 0]);
        assert_eq!(normalize(vec![0, 0], true), [100, 100]);
    }
}
