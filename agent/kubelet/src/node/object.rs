//! The Node object as the kubelet makes it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::NodeConfig;
use super::machine::architecture;

/// The Node to create, without status.
pub(super) fn initial(config: &NodeConfig) -> Node {
    let mut annotations = BTreeMap::from([(
        // No attachable volume plugin is here, and the controllers need not wait for one.
        "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
        "true".to_owned(),
    )]);
    if let Some(ip) = config.addresses.first() {
        annotations.insert("alpha.kubernetes.io/provided-node-ip".to_owned(), ip.to_string());
    }
    Node {
        metadata: ObjectMeta {
            name: Some(config.name.clone()),
            labels: Some(labels(config)),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!config.taints.is_empty()).then(|| config.taints.clone()),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

fn labels(config: &NodeConfig) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.hostname.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    labels.extend(config.labels.clone());
    labels
}

/// What an existing Node lacks of our labels and annotations, as a patch; none when it lacks nothing. Taints are not
/// put back: somebody may have removed them on purpose (upstream registers them once too).
pub(super) fn label_patch(existing: &Node, wanted: &Node) -> Option<Value> {
    let missing = |have: &Option<BTreeMap<String, String>>, want: &Option<BTreeMap<String, String>>| {
        let have = have.clone().unwrap_or_default();
        let mut want = want.clone().unwrap_or_default();
        want.retain(|key, value| have.get(key) != Some(value));
        want
    };
    let labels = missing(&existing.metadata.labels, &wanted.metadata.labels);
    let annotations = missing(&existing.metadata.annotations, &wanted.metadata.annotations);
    let nothing = labels.is_empty() && annotations.is_empty();
    (!nothing).then(|| json!({ "metadata": { "labels": labels, "annotations": annotations } }))
}

/// Whether `node` is a newer version than `known` (or another object altogether). Versions are comparable numbers
/// since Kubernetes v1.35 (KEP-5504); where they aren't numbers, the one seen last counts as newer.
pub(super) fn is_newer(node: &Node, known: &Node) -> bool {
    if node.metadata.uid != known.metadata.uid {
        return true;
    }
    let version =
        |node: &Node| node.metadata.resource_version.as_deref().and_then(|text| text.parse::<u64>().ok());
    match (version(node), version(known)) {
        (Some(new), Some(old)) => new > old,
        _ => true,
    }
}

/// Message of the Rebooted event, when the boot id that the API knows is not the one of now.
pub(super) fn reboot(before: Option<&NodeStatus>, boot_id: &str, name: &str) -> Option<String> {
    let known = before?.node_info.as_ref()?.boot_id.as_str();
    (!known.is_empty() && known != boot_id)
        .then(|| format!("Node {name} has been rebooted, boot id: {boot_id}"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeSystemInfo;

    use super::*;

    #[test]
    fn labels_are_upstreams() {
        let mut config = NodeConfig::new("n1", vec!["10.0.0.1".parse().unwrap()]);
        config.labels.insert("disk".to_owned(), "ssd".to_owned());
        let node = initial(&config);
        let labels = node.metadata.labels.unwrap();
        assert_eq!(labels["kubernetes.io/hostname"], "n1");
        assert_eq!(labels["kubernetes.io/os"], "linux");
        assert_eq!(labels["disk"], "ssd");
        assert_eq!(node.spec.unwrap().taints, None);
    }

    #[test]
    fn patch_restores_what_is_missing() {
        let wanted = initial(&NodeConfig::new("n1", Vec::new()));
        assert_eq!(label_patch(&wanted, &wanted), None);
        let mut existing = wanted.clone();
        existing.metadata.labels.as_mut().unwrap().remove("kubernetes.io/os");
        existing.metadata.labels.as_mut().unwrap().insert("mine".to_owned(), "x".to_owned());
        let patch = label_patch(&existing, &wanted).unwrap();
        assert_eq!(patch["metadata"]["labels"], json!({ "kubernetes.io/os": "linux" }));
    }

    fn version(uid: &str, version: &str) -> Node {
        let metadata = ObjectMeta {
            uid: Some(uid.to_owned()),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        };
        Node { metadata, ..Node::default() }
    }

    #[test]
    fn versions() {
        assert!(is_newer(&version("a", "10"), &version("a", "9")));
        assert!(!is_newer(&version("a", "9"), &version("a", "10")));
        assert!(!is_newer(&version("a", "9"), &version("a", "9")));
        assert!(is_newer(&version("b", "1"), &version("a", "10")));
        assert!(is_newer(&version("a", "x"), &version("a", "10")));
    }

    #[test]
    fn reboots() {
        let status = |boot: &str| NodeStatus {
            node_info: Some(NodeSystemInfo { boot_id: boot.to_owned(), ..NodeSystemInfo::default() }),
            ..NodeStatus::default()
        };
        assert!(reboot(Some(&status("old")), "new", "n1").is_some());
        assert!(reboot(Some(&status("new")), "new", "n1").is_none());
        assert!(reboot(None, "new", "n1").is_none());
    }
}
