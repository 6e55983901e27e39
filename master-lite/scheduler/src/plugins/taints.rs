//! Taints that the pod does not tolerate.

use k8s_openapi::api::core::v1::{Pod, Toleration};
use keelson_client::{pods, taints};

use crate::framework::{ClusterEvent, Filter, Prepared, Rejection, Score, normalize};
use crate::node_info::{NodeInfo, PodInfo, Snapshot};

/// Keeps pods off nodes whose taints they don't tolerate, and prefers nodes with fewer such taints.
pub struct TaintToleration;

const FORBIDDING: &[&str] = &[taints::NO_SCHEDULE, taints::NO_EXECUTE];

impl Filter for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Snapshot) -> Prepared<'a> {
        let tolerations = pods::tolerations(&pod.pod);
        Prepared::Check(Box::new(move |node| {
            match taints::first_untolerated(taints::of(&node.node), tolerations, FORBIDDING) {
                None => Ok(()),
                Some(_) => Err(Rejection::unresolvable("node(s) had untolerated taint(s)")),
            }
        }))
    }

    fn wakes(&self, pod: &Pod, event: &ClusterEvent) -> bool {
        let ClusterEvent::Node { new, .. } = event else { return false };
        taints::first_untolerated(taints::of(new), pods::tolerations(pod), FORBIDDING).is_none()
    }
}

impl Score for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn weight(&self) -> i64 {
        3
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], _: &Snapshot) -> Option<Vec<i64>> {
        let tolerations: Vec<&Toleration> = pods::tolerations(&pod.pod)
            .iter()
            .filter(|t| matches!(t.effect.as_deref(), None | Some("" | taints::PREFER_NO_SCHEDULE)))
            .collect();
        let scores = nodes.iter().map(|node| {
            let bad = taints::of(&node.node)
                .iter()
                .filter(|taint| taint.effect == taints::PREFER_NO_SCHEDULE)
                .filter(|taint| !tolerations.iter().any(|t| taints::tolerates(t, taint)))
                .count();
            i64::try_from(bad).unwrap_or(i64::MAX)
        });
        Some(normalize(scores.collect(), true))
    }
}
