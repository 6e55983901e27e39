//! On which nodes a daemon set has its pods, and how a pod is sent to its node.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    PodTemplateSpec, Toleration,
};
use keelson_client::selector::node_accepted;
use keelson_client::{meta, pods, taints};

/// The label that tells which revision a pod is of; its value is the revision's own label of that name.
pub const HASH_LABEL: &str = "controller-revision-hash";
/// The label and, with [`GENERATION_ANNOTATION`], the older way to tell that.
pub const GENERATION_LABEL: &str = "pod-template-generation";
/// The API server counts the template's changes here.
pub const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";

/// The taints that every daemon pod tolerates, with their effects.
const TOLERATED: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", taints::NO_EXECUTE),
    ("node.kubernetes.io/unreachable", taints::NO_EXECUTE),
    ("node.kubernetes.io/disk-pressure", taints::NO_SCHEDULE),
    ("node.kubernetes.io/memory-pressure", taints::NO_SCHEDULE),
    ("node.kubernetes.io/pid-pressure", taints::NO_SCHEDULE),
    ("node.kubernetes.io/unschedulable", taints::NO_SCHEDULE),
];
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", taints::NO_SCHEDULE);

/// What a node means to a daemon set (`NodeShouldRunDaemonPod`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// A pod shall be made if there is none.
    pub run: bool,
    /// A pod that is there may stay.
    pub stay: bool,
}

/// The rules of one daemon set, ready to be asked about many nodes.
pub struct Placement(PodSpec);

impl Placement {
    /// The rules of `set`.
    pub fn new(set: &DaemonSet) -> Self {
        let mut spec = set.spec.as_ref().and_then(|s| s.template.spec.clone()).unwrap_or_default();
        tolerate(&mut spec);
        Placement(spec)
    }

    /// What `node` means to the set.
    pub fn verdict(&self, node: &Node) -> Verdict {
        let spec = &self.0;
        let wanted = spec.node_name.as_deref().unwrap_or_default();
        if !(wanted.is_empty() || wanted == meta::name(&node.metadata)) || !node_accepted(spec, node) {
            return Verdict { run: false, stay: false };
        }
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        let untolerated =
            |effects: &[&str]| taints::first_untolerated(taints::of(node), tolerations, effects).is_some();
        Verdict {
            run: !untolerated(&[taints::NO_EXECUTE, taints::NO_SCHEDULE]),
            stay: !untolerated(&[taints::NO_EXECUTE]),
        }
    }
}

fn tolerate(spec: &mut PodSpec) {
    let network = spec.host_network.unwrap_or(false).then_some(&NETWORK_UNAVAILABLE);
    let present = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.iter().chain(network) {
        let toleration = Toleration {
            key: Some((*key).into()),
            operator: Some("Exists".into()),
            effect: Some((*effect).into()),
            ..Default::default()
        };
        let same = |other: &&mut Toleration| {
            other.key == toleration.key
                && other.effect == toleration.effect
                && other.operator == toleration.operator
                && other.value.as_deref().unwrap_or_default().is_empty()
        };
        let mut replaced = false;
        // One that ends after a while would let the pod be evicted.
        for other in present.iter_mut().filter(same) {
            *other = toleration.clone();
            replaced = true;
        }
        if !replaced {
            present.push(toleration);
        }
    }
}

/// The generation of the set's template, if it has one that can be read.
pub fn template_generation(set: &DaemonSet) -> Option<i64> {
    meta::annotation(&set.metadata, GENERATION_ANNOTATION)?.parse().ok()
}

/// How the pods of the revision `hash` look (`CreatePodTemplate`).
pub fn pod_template(set: &DaemonSet, hash: &str) -> PodTemplateSpec {
    let mut template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    tolerate(template.spec.get_or_insert_default());
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    if let Some(generation) = template_generation(set) {
        labels.insert(GENERATION_LABEL.into(), generation.to_string());
    }
    if !hash.is_empty() {
        labels.insert(HASH_LABEL.into(), hash.into());
    }
    template
}

/// Sends the template's pods to `node`: the set's own node affinity has been found to hold there and gives way.
pub fn pin(template: &mut PodTemplateSpec, node: &str) {
    let affinity: &mut Affinity = template.spec.get_or_insert_default().affinity.get_or_insert_default();
    let nodes: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    nodes.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.into()]),
            }]),
            match_expressions: None,
        }],
    });
}

/// The node that a daemon pod is on or is meant for.
pub fn target_node(pod: &Pod) -> Option<&str> {
    if let Some(node) = pods::node_name(pod) {
        return Some(node);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let name = fields.into_iter().find(|field| field.key == "metadata.name" && field.operator == "In")?;
    match name.values.as_deref() {
        Some([only]) => Some(only),
        _ => None,
    }
}

/// Whether the pod is of the set's present template.
pub fn is_updated(pod: &Pod, hash: &str, generation: Option<i64>) -> bool {
    let by_hash = !hash.is_empty() && meta::label(&pod.metadata, HASH_LABEL) == Some(hash);
    by_hash
        || generation
            .is_some_and(|g| meta::label(&pod.metadata, GENERATION_LABEL) == Some(g.to_string().as_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(spec: Value) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "d", "annotations": {GENERATION_ANNOTATION: "3"}},
            "spec": {"selector": {}, "template": {"spec": spec}},
        }))
        .unwrap()
    }

    #[track_caller]
    fn check(spec: Value, taint: Option<(&str, &str)>, run: bool, stay: bool) {
        let taints = taint.map(|(key, effect)| json!([{"key": key, "effect": effect}]));
        let node = serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"disk": "ssd"}}, "spec": {"taints": taints},
        }))
        .unwrap();
        assert_eq!(Placement::new(&set(spec)).verdict(&node), Verdict { run, stay });
    }

    #[test]
    fn verdicts() {
        let plain = || json!({"containers": []});
        check(plain(), None, true, true);
        check(json!({"containers": [], "nodeName": "m"}), None, false, false);
        check(json!({"containers": [], "nodeSelector": {"disk": "hdd"}}), None, false, false);
        check(json!({"containers": [], "nodeSelector": {"disk": "ssd"}}), None, true, true);
        check(plain(), Some(("k", "NoSchedule")), false, true);
        check(plain(), Some(("k", "NoExecute")), false, false);
        check(plain(), Some(("k", "PreferNoSchedule")), true, true);
        check(plain(), Some(("node.kubernetes.io/unschedulable", "NoSchedule")), true, true);
        check(plain(), Some(("node.kubernetes.io/not-ready", "NoExecute")), true, true);
        check(plain(), Some(("node.kubernetes.io/network-unavailable", "NoSchedule")), false, true);
        let host = json!({"containers": [], "hostNetwork": true});
        check(host, Some(("node.kubernetes.io/network-unavailable", "NoSchedule")), true, true);
    }

    #[test]
    fn templates_are_marked_and_pinned() {
        let limited = json!([
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
             "tolerationSeconds": 5},
            {"key": "mine", "operator": "Exists"},
        ]);
        let mut template = pod_template(&set(json!({"containers": [], "tolerations": limited})), "h");
        pin(&mut template, "n");
        let labels = template.metadata.clone().unwrap().labels.unwrap();
        assert_eq!((&*labels[HASH_LABEL], &*labels[GENERATION_LABEL]), ("h", "3"));
        let tolerations = template.spec.clone().unwrap().tolerations.unwrap();
        assert_eq!(tolerations.len(), 7);
        assert_eq!(tolerations[0].toleration_seconds, None);
        let pod = Pod { spec: template.spec, metadata: template.metadata.unwrap(), status: None };
        assert_eq!(target_node(&pod), Some("n"));
        assert!(
            is_updated(&pod, "h", None) && is_updated(&pod, "x", Some(3)) && !is_updated(&pod, "x", Some(2))
        );
        assert_eq!(target_node(&Pod::default()), None);
    }
}
