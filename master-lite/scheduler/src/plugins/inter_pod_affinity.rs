//! Affinity and anti-affinity among pods.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;

use crate::framework::{ClusterEvent, Filter, MAX_SCORE, Prepared, Rejection, Score};
use crate::node_info::{AffinityTerm, NodeInfo, PodInfo, Snapshot};

/// Honours the pod's own terms, and the required anti-affinity of pods that are placed already.
pub struct InterPodAffinity;

/// Label key and value of a domain, and how much of something is in it.
type Domains = HashMap<(String, String), i64>;

fn count(domains: &mut Domains, node: &NodeInfo, key: &str, by: i64) {
    if let Some(value) = node.label(key) {
        *domains.entry((key.to_owned(), value.to_owned())).or_insert(0) += by;
    }
}

fn in_domain(domains: &Domains, node: &NodeInfo, key: &str) -> bool {
    node.label(key).is_some_and(|value| domains.contains_key(&(key.to_owned(), value.to_owned())))
}

impl Filter for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, snapshot: &'a Snapshot) -> Prepared<'a> {
        let namespaces = &*snapshot.namespaces;
        let own = &pod.affinity;
        let mut existing_anti = Domains::new();
        let mut affinity = Domains::new();
        let mut anti = Domains::new();
        for node in &snapshot.nodes {
            for placed in &node.pods {
                for term in &placed.affinity.required_anti {
                    if term.matches(&pod.pod, namespaces) {
                        count(&mut existing_anti, node, &term.topology_key, 1);
                    }
                }
                // A pod counts for affinity only when it matches every term.
                if !own.required.is_empty() && own.required.iter().all(|t| t.matches(&placed.pod, namespaces))
                {
                    for term in &own.required {
                        count(&mut affinity, node, &term.topology_key, 1);
                    }
                }
                for term in own.required_anti.iter().filter(|t| t.matches(&placed.pod, namespaces)) {
                    count(&mut anti, node, &term.topology_key, 1);
                }
            }
        }
        if existing_anti.is_empty() && own.required.is_empty() && own.required_anti.is_empty() {
            return Prepared::Skip;
        }
        // The first pod of a group that wants its own company may go anywhere.
        let first_of_its_kind =
            affinity.is_empty() && own.required.iter().all(|t| t.matches(&pod.pod, namespaces));
        Prepared::Check(Box::new(move |node| {
            let has_keys =
                |terms: &[AffinityTerm]| terms.iter().all(|t| node.label(&t.topology_key).is_some());
            let satisfied = own.required.iter().all(|t| in_domain(&affinity, node, &t.topology_key));
            if !own.required.is_empty() && !(has_keys(&own.required) && (satisfied || first_of_its_kind)) {
                return Err(Rejection::unresolvable("node(s) didn't match pod affinity rules"));
            }
            if own.required_anti.iter().any(|t| in_domain(&anti, node, &t.topology_key)) {
                return Err(Rejection::resolvable("node(s) didn't match pod anti-affinity rules"));
            }
            if existing_anti.keys().any(|(key, value)| node.label(key) == Some(value)) {
                return Err(Rejection::resolvable(
                    "node(s) didn't satisfy existing pods anti-affinity rules",
                ));
            }
            Ok(())
        }))
    }

    fn wakes(&self, _: &Pod, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::PodPlaced(_) | ClusterEvent::PodGone(_) => true,
            ClusterEvent::PodLeaving(_) => false,
            ClusterEvent::Node { old, new } => {
                old.as_ref().is_none_or(|old| old.metadata.labels != new.metadata.labels)
            }
        }
    }
}

/// Upstream's default weight of required affinity of placed pods, for the pod's sake.
const HARD_AFFINITY_WEIGHT: i64 = 1;

impl Score for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Option<Vec<i64>> {
        let namespaces = &*snapshot.namespaces;
        let mut domains = Domains::new();
        for node in &snapshot.nodes {
            for placed in &node.pods {
                let mut weigh = |term: &AffinityTerm, about: &PodInfo, weight: i64| {
                    if term.matches(&about.pod, namespaces) {
                        count(&mut domains, node, &term.topology_key, weight);
                    }
                };
                pod.affinity.preferred.iter().for_each(|t| weigh(t, placed, t.weight));
                pod.affinity.preferred_anti.iter().for_each(|t| weigh(t, placed, -t.weight));
                placed.affinity.required.iter().for_each(|t| weigh(t, pod, HARD_AFFINITY_WEIGHT));
                placed.affinity.preferred.iter().for_each(|t| weigh(t, pod, t.weight));
                placed.affinity.preferred_anti.iter().for_each(|t| weigh(t, pod, -t.weight));
            }
        }
        if domains.is_empty() {
            return None;
        }
        let raw: Vec<i64> = nodes
            .iter()
            .map(|node| {
                domains.iter().filter(|((k, v), _)| node.label(k) == Some(v)).map(|(_, weight)| weight).sum()
            })
            .collect();
        let (least, most) = (raw.iter().min().copied()?, raw.iter().max().copied()?);
        let stretch =
            |score: i64| if most > least { MAX_SCORE * (score - least) / (most - least) } else { 0 };
        Some(raw.into_iter().map(stretch).collect())
    }
}
