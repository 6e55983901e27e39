//! Topology spread constraints.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use keelson_client::{Selector, meta, pods, taints};

use super::node::accepted;
use crate::framework::{ClusterEvent, Filter, MAX_SCORE, Prepared, Rejection, Score};
use crate::node_info::{NodeInfo, PodInfo, Snapshot};

/// The label by which every node is told from the others.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Keeps the numbers of matching pods in different domains close together.
pub struct PodTopologySpread;

enum Alike {
    Selected(Selector),
    /// The default constraints count pods of the same controller.
    SameController(String),
}

struct Constraint {
    max_skew: i64,
    key: String,
    alike: Alike,
    min_domains: Option<i64>,
    honour_affinity: bool,
    honour_taints: bool,
}

impl Constraint {
    fn compile(pod: &Pod, constraint: &TopologySpreadConstraint) -> Self {
        let mut selector = constraint.label_selector.clone();
        if let Some(selector) = &mut selector {
            for key in constraint.match_label_keys.iter().flatten() {
                if let Some(value) = meta::label(&pod.metadata, key) {
                    selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                        key: key.clone(),
                        operator: "In".into(),
                        values: Some(vec![value.to_owned()]),
                    });
                }
            }
        }
        Constraint {
            max_skew: constraint.max_skew.into(),
            key: constraint.topology_key.clone(),
            alike: Alike::Selected(
                Selector::compile(selector.as_ref()).unwrap_or_else(|_| Selector::nothing()),
            ),
            min_domains: constraint.min_domains.map(i64::from),
            honour_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honour_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    /// Upstream's system defaults: soft, three a host and five a zone.
    fn defaults(pod: &Pod) -> Vec<Self> {
        let Some(owner) = meta::controller_of(&pod.metadata) else { return Vec::new() };
        [(HOSTNAME, 3), ("topology.kubernetes.io/zone", 5)]
            .map(|(key, max_skew)| Constraint {
                max_skew,
                key: key.into(),
                alike: Alike::SameController(owner.uid.clone()),
                min_domains: None,
                honour_affinity: true,
                honour_taints: false,
            })
            .into()
    }

    fn is_alike(&self, pod: &Pod, other: &Pod) -> bool {
        meta::namespace(&pod.metadata) == meta::namespace(&other.metadata)
            && match &self.alike {
                Alike::Selected(selector) => selector.matches(other.metadata.labels.as_ref()),
                Alike::SameController(uid) => meta::is_controlled_by(&other.metadata, uid),
            }
    }

    fn includes(&self, pod: &Pod, node: &NodeInfo) -> bool {
        let tolerated = || {
            let effects = [taints::NO_SCHEDULE, taints::NO_EXECUTE];
            taints::first_untolerated(taints::of(&node.node), pods::tolerations(pod), &effects).is_none()
        };
        (!self.honour_affinity || accepted(pod, &node.node)) && (!self.honour_taints || tolerated())
    }

    /// How many pods like this one a node has.
    fn count_on(&self, pod: &Pod, node: &NodeInfo) -> i64 {
        let alike = match &self.alike {
            Alike::SameController(uid) => return node.owners.get(uid.as_str()).copied().unwrap_or(0).into(),
            Alike::Selected(_) => {
                node.pods.iter().filter(|p| !pods::is_terminating(&p.pod) && self.is_alike(pod, &p.pod))
            }
        };
        i64::try_from(alike.count()).unwrap_or(i64::MAX)
    }

    /// How many pods like this one each domain has.
    fn count<'n>(&self, pod: &Pod, nodes: impl Iterator<Item = &'n NodeInfo>) -> Domains<'n> {
        let mut domains = Domains::new();
        for node in nodes.filter(|node| self.includes(pod, node)) {
            if let Some(value) = node.label(&self.key) {
                *domains.entry(value).or_insert(0) += self.count_on(pod, node);
            }
        }
        domains
    }
}

/// Numbers of pods, by the value of the label that tells domains apart.
type Domains<'n> = HashMap<&'n str, i64>;

fn constraints(pod: &Pod, when: &str) -> Vec<Constraint> {
    let all = pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default();
    if all.is_empty() && when == "ScheduleAnyway" {
        return Constraint::defaults(pod);
    }
    all.iter().filter(|c| c.when_unsatisfiable == when).map(|c| Constraint::compile(pod, c)).collect()
}

impl Filter for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, snapshot: &'a Snapshot) -> Prepared<'a> {
        let constraints = constraints(&pod.pod, "DoNotSchedule");
        if constraints.is_empty() {
            return Prepared::Skip;
        }
        // Only nodes that have every key are counted.
        let counted = || {
            let keys: Vec<&str> = constraints.iter().map(|c| c.key.as_str()).collect();
            snapshot
                .nodes
                .iter()
                .map(|n| &**n)
                .filter(move |node| keys.iter().all(|key| node.label(key).is_some()))
        };
        let domains: Vec<(Domains<'_>, i64, i64)> = constraints
            .iter()
            .map(|constraint| {
                let domains = constraint.count(&pod.pod, counted());
                let too_few = constraint
                    .min_domains
                    .is_some_and(|least| i64::try_from(domains.len()).unwrap_or(i64::MAX) < least);
                let least = if too_few { 0 } else { domains.values().copied().min().unwrap_or(0) };
                (domains, least, i64::from(constraint.is_alike(&pod.pod, &pod.pod)))
            })
            .collect();
        Prepared::Check(Box::new(move |node| {
            for (constraint, (domains, least, own)) in constraints.iter().zip(&domains) {
                let Some(value) = node.label(&constraint.key) else {
                    return Err(Rejection::unresolvable(
                        "node(s) didn't match pod topology spread constraints (missing required label)",
                    ));
                };
                let present = domains.get(value).copied().unwrap_or(0);
                if present + own - least > constraint.max_skew {
                    return Err(Rejection::resolvable(
                        "node(s) didn't match pod topology spread constraints",
                    ));
                }
            }
            Ok(())
        }))
    }

    fn wakes(&self, pod: &Pod, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::PodPlaced(other)
            | ClusterEvent::PodLeaving(other)
            | ClusterEvent::PodGone(other) => {
                meta::namespace(&pod.metadata) == meta::namespace(&other.metadata)
            }
            ClusterEvent::Node { .. } => true,
        }
    }
}

impl Score for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Option<Vec<i64>> {
        let constraints = constraints(&pod.pod, "ScheduleAnyway");
        if constraints.is_empty() {
            return None;
        }
        let mut raw = vec![0.0f64; nodes.len()];
        for constraint in &constraints {
            // A key with many domains weighs more, for its counts are smaller.
            let weight = |domains: usize| ((domains + 2) as f64).ln();
            let scored = |count: i64, weight: f64| count as f64 * weight + (constraint.max_skew - 1) as f64;
            // As upstream: each node is a domain of its own, and only those are counted that are asked about.
            if constraint.key == HOSTNAME {
                let weight = weight(nodes.len());
                for (total, node) in raw.iter_mut().zip(nodes) {
                    if node.label(HOSTNAME).is_some() {
                        *total += scored(constraint.count_on(&pod.pod, node), weight);
                    }
                }
                continue;
            }
            let domains = constraint.count(&pod.pod, snapshot.nodes.iter().map(|n| &**n));
            let weight = weight(domains.len());
            for (total, node) in raw.iter_mut().zip(nodes) {
                if let Some(count) = node.label(&constraint.key).and_then(|value| domains.get(value)) {
                    *total += scored(*count, weight);
                }
            }
        }
        let scores: Vec<i64> = raw.iter().map(|score| score.round() as i64).collect();
        let (least, most) = (scores.iter().min().copied()?, scores.iter().max().copied()?);
        let turn = |score: i64| if most == 0 { MAX_SCORE } else { MAX_SCORE * (most + least - score) / most };
        Some(scores.into_iter().map(turn).collect())
    }
}
