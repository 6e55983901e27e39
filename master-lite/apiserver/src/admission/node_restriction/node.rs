//! The node's own Node object.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::admission::forbidden;
use crate::authz::rule::go_quote;
use crate::extension::{Attributes, Operation, Result};

/// Labels with Kubernetes' prefixes that a kubelet may set on its own Node.
const KUBELET_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

pub(super) fn node_object(node: &str, attributes: &Attributes) -> Result<()> {
    let refuse = |why: String| Err(forbidden(attributes, why));
    let quoted = go_quote(node);
    if attributes.name != node {
        return refuse(format!("node {quoted} is not allowed to modify node {}", go_quote(&attributes.name)));
    }
    let Some(new) = &attributes.object else { return Ok(()) };
    match (attributes.operation, &attributes.old_object) {
        (Operation::Create, _) => {
            if new["spec"]["configSource"].is_object() {
                return refuse(format!(
                    "node {quoted} is not allowed to create pods with a non-nil configSource"
                ));
            }
            let labels = forbidden_labels(&new["metadata"]["labels"], &Value::Null);
            if !labels.is_empty() {
                return refuse(format!("node {quoted} is not allowed to set the following labels: {labels}"));
            }
        }
        (Operation::Update, Some(old)) => {
            let (new_source, old_source) = (&new["spec"]["configSource"], &old["spec"]["configSource"]);
            if new_source.is_object() && new_source != old_source {
                return refuse(format!(
                    "node {quoted} is not allowed to update configSource to a new non-nil configSource"
                ));
            }
            if !same_list(&new["spec"]["taints"], &old["spec"]["taints"]) {
                return refuse(format!("node {quoted} is not allowed to modify taints"));
            }
            if !same_list(&new["metadata"]["ownerReferences"], &old["metadata"]["ownerReferences"]) {
                return refuse(format!("node {quoted} is not allowed to modify ownerReferences"));
            }
            let labels = forbidden_labels(&new["metadata"]["labels"], &old["metadata"]["labels"]);
            if !labels.is_empty() {
                return refuse(format!("is not allowed to modify labels: {labels}"));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Null, absent and empty are the same list.
fn same_list(a: &Value, b: &Value) -> bool {
    let items = |v: &Value| v.as_array().cloned().unwrap_or_default();
    items(a) == items(b)
}

/// Keys of labels that differ and that a node may not set, in order, joined by commas.
fn forbidden_labels(new: &Value, old: &Value) -> String {
    let none = Map::new();
    let (new, old) = (new.as_object().unwrap_or(&none), old.as_object().unwrap_or(&none));
    let changed: BTreeSet<&str> = new
        .keys()
        .chain(old.keys())
        .filter(|key| new.get(*key) != old.get(*key))
        .map(String::as_str)
        .collect();
    changed.into_iter().filter(|key| !may_set_label(key)).collect::<Vec<_>>().join(", ")
}

fn may_set_label(key: &str) -> bool {
    let Some((namespace, _)) = key.split_once('/') else { return true };
    let within = |domain: &str| {
        namespace == domain || namespace.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    };
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    if within("kubernetes.io") || within("k8s.io") {
        return KUBELET_LABELS.contains(&key)
            || within("kubelet.kubernetes.io")
            || within("node.kubernetes.io");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_a_kubelet() {
        for (key, want) in [
            ("plain", true),
            ("kubernetes.io/arch", true),
            ("kubernetes.io/other", false),
            ("notkubernetes.io/other", true),
            ("a.kubelet.kubernetes.io/x", true),
            ("k8s.io/x", false),
            ("a.node-restriction.kubernetes.io/x", false),
        ] {
            assert_eq!(may_set_label(key), want, "{key}");
        }
    }
}
