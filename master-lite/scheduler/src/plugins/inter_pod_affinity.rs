//! Affinity and anti-affinity among pods.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;

use crate::framework::{ClusterEvent, Filter, MAX_SCORE, Prepared, Rejection, Score};
use crate::node_info::{AffinityTerm, NodeInfo, PodInfo, Snapshot};

/// Honours the pod's own terms, and the required anti-affinity of pods that are placed already.
pub struct InterPodAffinity;

/// How much of something is in each domain: by the label that tells them apart, and its value.
type Domains<'s> = HashMap<&'s str, HashMap<&'s str, i64>>;

fn count<'s>(domains: &mut Domains<'s>, node: &'s NodeInfo, key: &'s str, by: i64) {
    if let Some(value) = node.label(key) {
        *domains.entry(key).or_default().entry(value).or_insert(0) += by;
    }
}

fn in_domain(domains: &Domains<'_>, node: &NodeInfo, key: &str) -> bool {
    domains.get(key).is_some_and(|values| node.label(key).is_some_and(|value| values.contains_key(value)))
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
        for node in snapshot.nodes.iter().filter(|node| node.intolerant > 0) {
            for term in node.pods.iter().flat_map(|placed| &placed.affinity.required_anti) {
                if term.matches(&pod.pod, namespaces) {
                    count(&mut existing_anti, node, &term.topology_key, 1);
                }
            }
        }
        if existing_anti.is_empty() && own.required.is_empty() && own.required_anti.is_empty() {
            return Prepared::Skip;
        }
        let cares = !own.required.is_empty() || !own.required_anti.is_empty();
        for node in snapshot.nodes.iter().filter(|_| cares) {
            for placed in &node.pods {
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
            if existing_anti.keys().any(|key| in_domain(&existing_anti, node, key)) {
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
        let cares = !pod.affinity.preferred.is_empty() || !pod.affinity.preferred_anti.is_empty();
        let mut domains = Domains::new();
        for node in snapshot.nodes.iter().filter(|node| cares || node.choosy > 0) {
            for placed in &node.pods {
                let (placed, own, its) = (&**placed, &pod.affinity, &placed.affinity);
                let preferred = own.preferred.iter().map(|t| (t, placed, t.weight));
                let shunned = own.preferred_anti.iter().map(|t| (t, placed, -t.weight));
                let required_by = its.required.iter().map(|t| (t, pod, HARD_AFFINITY_WEIGHT));
                let preferred_by = its.preferred.iter().map(|t| (t, pod, t.weight));
                let shunned_by = its.preferred_anti.iter().map(|t| (t, pod, -t.weight));
                let terms = preferred.chain(shunned).chain(required_by).chain(preferred_by).chain(shunned_by);
                for (term, about, weight) in terms {
                    if term.matches(&about.pod, namespaces) {
                        count(&mut domains, node, &term.topology_key, weight);
                    }
                }
            }
        }
        if domains.is_empty() {
            return None;
        }
        let weight = |node: &NodeInfo, key: &str, values: &HashMap<&str, i64>| {
            node.label(key).and_then(|value| values.get(value)).copied().unwrap_or(0)
        };
        let raw: Vec<i64> = nodes
            .iter()
            .map(|node| domains.iter().map(|(key, values)| weight(node, key, values)).sum())
            .collect();
        let (least, most) = (raw.iter().min().copied()?, raw.iter().max().copied()?);
        let stretch =
            |score: i64| if most > least { MAX_SCORE * (score - least) / (most - least) } else { 0 };
        Some(raw.into_iter().map(stretch).collect())
    }
}
