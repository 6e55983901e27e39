//! Pure rules about a node's conditions and taints.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::taints::{self, NO_EXECUTE, NO_SCHEDULE};

/// The node says that it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The node says nothing.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that a silent kubelet can't vouch for any more.
pub const KUBELET_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Which condition in which state stands for which taint.
const CONDITION_TAINTS: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// One condition of a node.
pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// The status of the node's `Ready` condition; `Unknown` if it has none.
pub fn ready(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |c| c.status.as_str())
}

/// The conditions of a node whose kubelet has been silent for too long; nothing if they say so already.
pub fn silent_conditions(node: &Node, now: &Time) -> Option<Vec<NodeCondition>> {
    let changed: Vec<NodeCondition> = KUBELET_CONDITIONS
        .iter()
        .filter_map(|kind| match condition(node, kind) {
            Some(present) if present.status == "Unknown" => None,
            Some(present) => Some(NodeCondition {
                status: "Unknown".into(),
                reason: Some("NodeStatusUnknown".into()),
                message: Some("Kubelet stopped posting node status.".into()),
                last_transition_time: Some(now.clone()),
                ..present.clone()
            }),
            None => Some(NodeCondition {
                type_: (*kind).into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(now.clone()),
            }),
        })
        .collect();
    (!changed.is_empty()).then_some(changed)
}

/// Whether pods that don't tolerate it must leave a node that is not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// Yes.
    Allowed,
    /// Not now, but a taint that is there stays.
    Held,
    /// No: every node is in trouble, so that the fault is likely on our side.
    Withdrawn,
}

/// The taints that the node should have; nothing if it has them.
pub fn wanted_taints(node: &Node, eviction: Eviction, now: &Time) -> Option<Vec<Taint>> {
    let present = taints::of(node);
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in CONDITION_TAINTS {
        if condition(node, kind).is_some_and(|c| c.status == *status) {
            wanted.push((key, NO_SCHEDULE));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    // A node that has not said anything yet keeps the taint that admission gave it.
    let registered = condition(node, "Ready").is_some();
    let down = match ready(node) {
        "False" if registered => Some(NOT_READY),
        "Unknown" if registered => Some(UNREACHABLE),
        _ => None,
    };
    if let Some(key) = down {
        let has = present.iter().any(|t| t.key == key && t.effect == NO_EXECUTE);
        if eviction == Eviction::Allowed || (eviction == Eviction::Held && has) {
            wanted.push((key, NO_EXECUTE));
        }
    }
    let is_ours = |taint: &Taint| match taint.effect.as_str() {
        NO_EXECUTE => taint.key == NOT_READY || taint.key == UNREACHABLE,
        NO_SCHEDULE => {
            taint.key == UNSCHEDULABLE
                || (registered && CONDITION_TAINTS.iter().any(|(_, _, key)| taint.key == *key))
        }
        _ => false,
    };
    let mut result: Vec<Taint> = present
        .iter()
        .filter(|t| !is_ours(t) || wanted.contains(&(t.key.as_str(), t.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !result.iter().any(|t| t.key == key && t.effect == effect) {
            result.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(now.clone()),
                value: None,
            });
        }
    }
    (result != present).then_some(result)
}

/// How long to wait between two nodes that are emptied; nothing when none may be. Upstream's defaults: one in ten
/// seconds, none when more than 55% are in trouble (in large clusters: one in a hundred seconds).
pub fn eviction_pause(nodes: usize, in_trouble: usize) -> Option<Duration> {
    if in_trouble >= nodes {
        return None;
    }
    if in_trouble > 2 && in_trouble * 100 >= nodes * 55 {
        return (nodes > 50).then_some(Duration::from_secs(100));
    }
    Some(Duration::from_secs(10))
}

#[cfg(test)]
mod tests {
    use keelson_client::meta;
    use serde_json::json;

    use super::*;

    fn node(ready: Option<&str>, taints: &[(&str, &str)], unschedulable: bool) -> Node {
        let conditions: Vec<_> = ready.iter().map(|s| json!({"type": "Ready", "status": s})).collect();
        let taints: Vec<_> = taints.iter().map(|(k, e)| json!({"key": k, "effect": e})).collect();
        serde_json::from_value(json!({
            "spec": {"taints": taints, "unschedulable": unschedulable},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    #[track_caller]
    fn check(node: Node, eviction: Eviction, expected: Option<&[(&str, &str)]>) {
        let wanted = wanted_taints(&node, eviction, &meta::now());
        let pairs = wanted
            .as_ref()
            .map(|taints| taints.iter().map(|t| (t.key.as_str(), t.effect.as_str())).collect::<Vec<_>>());
        assert_eq!(pairs.as_deref(), expected);
    }

    #[test]
    fn taints_follow_conditions() {
        use Eviction::{Allowed, Held, Withdrawn};
        check(
            node(Some("True"), &[(NOT_READY, NO_SCHEDULE), ("mine", NO_SCHEDULE)], false),
            Allowed,
            Some(&[("mine", NO_SCHEDULE)]),
        );
        check(node(Some("True"), &[], false), Allowed, None);
        check(node(None, &[(NOT_READY, NO_SCHEDULE)], false), Allowed, None);
        let both = [(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)];
        check(node(Some("Unknown"), &[], false), Allowed, Some(&both));
        check(node(Some("Unknown"), &[], false), Held, Some(&both[..1]));
        check(node(Some("Unknown"), &both, false), Held, None);
        check(node(Some("Unknown"), &both, false), Withdrawn, Some(&both[..1]));
        check(node(Some("True"), &[], true), Allowed, Some(&[(UNSCHEDULABLE, NO_SCHEDULE)]));
    }

    #[test]
    fn silence_is_said_once() {
        let now = meta::now();
        let changed = silent_conditions(&node(Some("True"), &[], false), &now).unwrap();
        assert_eq!(changed.len(), 4);
        assert_eq!(changed[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(changed[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        let mut told = node(None, &[], false);
        told.status.as_mut().unwrap().conditions = Some(changed);
        assert!(silent_conditions(&told, &now).is_none());
    }

    #[test]
    fn pauses() {
        assert_eq!(eviction_pause(1, 1), None);
        assert_eq!(eviction_pause(3, 1), Some(Duration::from_secs(10)));
        assert_eq!(eviction_pause(10, 6), None);
        assert_eq!(eviction_pause(100, 60), Some(Duration::from_secs(100)));
    }
}
