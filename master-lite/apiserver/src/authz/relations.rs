//! Which objects a pod gives its node the right to read: the Node authorizer's relations.
//!
//! Upstream keeps a graph fed by informers (`authorizer/node/graph.go`). Here the question is answered from the
//! watch cache itself, by looking at the node's pods in the one namespace in question: nothing to keep in step, and a node
//! that has just seen its pod in a watch is never refused because a graph lags behind.

use std::collections::BTreeSet;

use keelson_api::meta::GroupResource;
use serde_json::Value;

use super::rbac::text;
use crate::extension::ObjectReader;

/// Annotation of mirror pods, which never grant anything.
pub(crate) const MIRROR_POD: &str = "kubernetes.io/config.mirror";

/// A kind of object that a node may be related to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Related {
    /// Pod bound to the node.
    Pod,
    /// Secret of a pod, or of a volume of its claims.
    Secret,
    /// ConfigMap of a pod.
    ConfigMap,
    /// ServiceAccount of a pod.
    ServiceAccount,
    /// Claim of a pod.
    PersistentVolumeClaim,
    /// Volume bound to a claim of a pod.
    PersistentVolume,
    /// ResourceClaim of a pod.
    ResourceClaim,
    /// VolumeAttachment to the node.
    VolumeAttachment,
    /// ResourceSlice of the node.
    ResourceSlice,
}

/// Whether a path leads from the object to the node. `namespace` is empty for cluster-scoped kinds.
pub fn related(reader: &dyn ObjectReader, node: &str, kind: Related, namespace: &str, name: &str) -> bool {
    let core = |resource: &str| GroupResource::new("", resource);
    match kind {
        Related::Pod => reader
            .field(&core("pods"), Some(namespace), name, "spec.nodeName")
            .is_some_and(|bound_to| bound_to == node),
        Related::PersistentVolume => reader
            .get(&core("persistentvolumes"), None, name)
            .is_some_and(|pv| volume_related(reader, node, &pv)),
        Related::VolumeAttachment => owned(reader, "storage.k8s.io", "volumeattachments", name, node),
        Related::ResourceSlice => owned(reader, "resource.k8s.io", "resourceslices", name, node),
        Related::Secret => {
            pod_related(reader, node, kind, namespace, name)
                || reader.list(&core("persistentvolumes"), None).iter().any(|pv| {
                    volume_secrets(pv).any(|s| s == (namespace, name)) && volume_related(reader, node, pv)
                })
        }
        _ => pod_related(reader, node, kind, namespace, name),
    }
}

fn owned(reader: &dyn ObjectReader, group: &str, resource: &str, name: &str, node: &str) -> bool {
    reader
        .get(&GroupResource::new(group, resource), None, name)
        .is_some_and(|o| text(&o, "/spec/nodeName") == node)
}

fn pod_related(reader: &dyn ObjectReader, node: &str, kind: Related, namespace: &str, name: &str) -> bool {
    reader.references_on(node, namespace).iter().any(|references| references.have(kind, name))
}

fn volume_related(reader: &dyn ObjectReader, node: &str, volume: &Value) -> bool {
    let (namespace, claim) = (text(volume, "/spec/claimRef/namespace"), text(volume, "/spec/claimRef/name"));
    !claim.is_empty() && pod_related(reader, node, Related::PersistentVolumeClaim, namespace, claim)
}

/// True for pods that mirror a static pod.
pub(crate) fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"].get(MIRROR_POD).is_some()
}

/// Names of what one pod refers to in its namespace; of a mirror pod, which grants nothing, there are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct References {
    secrets: Names,
    config_maps: Names,
    service_account: Box<str>,
    claims: Names,
    resource_claims: Names,
}

type Names = Box<[Box<str>]>;

impl References {
    /// Reads a pod.
    pub fn of(pod: &Value) -> Self {
        if is_mirror(pod) {
            return Self::default();
        }
        fn distinct(names: impl Iterator<Item = impl AsRef<str>>) -> Names {
            names.map(|name| Box::from(name.as_ref())).collect::<BTreeSet<Box<str>>>().into_iter().collect()
        }
        Self {
            secrets: distinct(secret_names(pod)),
            config_maps: distinct(config_map_names(pod)),
            service_account: text(pod, "/spec/serviceAccountName").into(),
            claims: distinct(claim_names(pod)),
            resource_claims: distinct(resource_claim_names(pod)),
        }
    }

    fn have(&self, kind: Related, name: &str) -> bool {
        let among = |names: &Names| names.iter().any(|n| **n == *name);
        match kind {
            Related::Secret => among(&self.secrets),
            Related::ConfigMap => among(&self.config_maps),
            Related::ServiceAccount => *self.service_account == *name,
            Related::PersistentVolumeClaim => among(&self.claims),
            Related::ResourceClaim => among(&self.resource_claims),
            _ => false,
        }
    }
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// Init, ordinary and ephemeral containers.
pub(crate) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let spec = &pod["spec"];
    items(spec, "initContainers").chain(items(spec, "containers")).chain(items(spec, "ephemeralContainers"))
}

fn env_names<'a>(
    pod: &'a Value,
    value_from: &'static str,
    env_from: &'static str,
) -> impl Iterator<Item = &'a str> {
    containers(pod).flat_map(move |c| {
        let env = items(c, "env").map(move |e| text(&e["valueFrom"][value_from], "/name"));
        env.chain(items(c, "envFrom").map(move |e| text(&e[env_from], "/name")))
    })
}

/// Names of all Secrets that a pod refers to (upstream's `VisitPodSecretNames`).
pub(crate) fn secret_names(pod: &Value) -> impl Iterator<Item = &str> {
    let pull = items(&pod["spec"], "imagePullSecrets").map(|s| text(s, "/name"));
    let volumes = items(&pod["spec"], "volumes").flat_map(|v| {
        let direct = [
            text(v, "/secret/secretName"),
            text(v, "/azureFile/secretName"),
            text(v, "/csi/nodePublishSecretRef/name"),
            text(v, "/cephfs/secretRef/name"),
            text(v, "/cinder/secretRef/name"),
            text(v, "/flexVolume/secretRef/name"),
            text(v, "/rbd/secretRef/name"),
            text(v, "/scaleIO/secretRef/name"),
            text(v, "/iscsi/secretRef/name"),
            text(v, "/storageos/secretRef/name"),
        ];
        direct.into_iter().chain(items(&v["projected"], "sources").map(|s| text(s, "/secret/name")))
    });
    pull.chain(env_names(pod, "secretKeyRef", "secretRef")).chain(volumes).filter(|n| !n.is_empty())
}

/// Names of all ConfigMaps that a pod refers to (upstream's `VisitPodConfigmapNames`).
pub(crate) fn config_map_names(pod: &Value) -> impl Iterator<Item = &str> {
    let volumes = items(&pod["spec"], "volumes").flat_map(|v| {
        std::iter::once(text(v, "/configMap/name"))
            .chain(items(&v["projected"], "sources").map(|s| text(s, "/configMap/name")))
    });
    env_names(pod, "configMapKeyRef", "configMapRef").chain(volumes).filter(|n| !n.is_empty())
}

fn claim_names(pod: &Value) -> impl Iterator<Item = String> {
    let pod_name = text(pod, "/metadata/name");
    items(&pod["spec"], "volumes").filter_map(move |v| {
        if v["ephemeral"].is_object() {
            return Some(format!("{pod_name}-{}", text(v, "/name")));
        }
        Some(text(v, "/persistentVolumeClaim/claimName")).filter(|n| !n.is_empty()).map(str::to_owned)
    })
}

fn resource_claim_names(pod: &Value) -> impl Iterator<Item = &str> {
    let direct = items(&pod["spec"], "resourceClaims").map(|c| text(c, "/resourceClaimName"));
    let made = items(&pod["status"], "resourceClaimStatuses").map(|c| text(c, "/resourceClaimName"));
    let extended = std::iter::once(text(pod, "/status/extendedResourceClaimStatus/resourceClaimName"));
    direct.chain(made).chain(extended).filter(|n| !n.is_empty())
}

/// Secrets of a PersistentVolume that a kubelet may see, as (namespace, name).
fn volume_secrets(volume: &Value) -> impl Iterator<Item = (&str, &str)> {
    const REFS: [&str; 10] = [
        "/spec/csi/nodePublishSecretRef",
        "/spec/csi/nodeStageSecretRef",
        "/spec/csi/nodeExpandSecretRef",
        "/spec/cephfs/secretRef",
        "/spec/cinder/secretRef",
        "/spec/flexVolume/secretRef",
        "/spec/rbd/secretRef",
        "/spec/scaleIO/secretRef",
        "/spec/iscsi/secretRef",
        "/spec/storageos/secretRef",
    ];
    let claim_namespace = text(volume, "/spec/claimRef/namespace");
    let azure = (text(volume, "/spec/azureFile/secretNamespace"), text(volume, "/spec/azureFile/secretName"));
    REFS.iter()
        .filter_map(move |pointer| volume.pointer(pointer))
        .map(|r| (text(r, "/namespace"), text(r, "/name")))
        .chain(std::iter::once(azure))
        .filter(|(_, name)| !name.is_empty())
        .map(move |(namespace, name)| (if namespace.is_empty() { claim_namespace } else { namespace }, name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake::FakeReader;
    use super::*;

    fn world() -> FakeReader {
        FakeReader::new(vec![
            (
                "",
                "pods",
                json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {
                "nodeName": "n1", "serviceAccountName": "bot",
                "imagePullSecrets": [{"name": "pull"}],
                "initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "init-env"}}}]}],
                "containers": [{"envFrom": [{"secretRef": {"name": "from"}}, {"configMapRef": {"name": "cm-from"}}]}],
                "volumes": [
                    {"name": "s", "secret": {"secretName": "vol"}},
                    {"name": "p", "projected": {"sources": [{"secret": {"name": "proj"}}, {"configMap": {"name": "cm-proj"}}]}},
                    {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                    {"name": "e", "ephemeral": {"volumeClaimTemplate": {}}}]}}),
            ),
            (
                "",
                "pods",
                json!({"metadata": {"name": "m", "namespace": "a", "annotations": {MIRROR_POD: "x"}}, "spec": {
                "nodeName": "n1", "volumes": [{"secret": {"secretName": "mirror"}}]}}),
            ),
            (
                "",
                "pods",
                json!({"metadata": {"name": "q", "namespace": "a"}, "spec": {"nodeName": "n2", "serviceAccountName": "other"}}),
            ),
            (
                "",
                "persistentvolumes",
                json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "a", "name": "claim"},
                "csi": {"nodeStageSecretRef": {"namespace": "k", "name": "stage"}, "controllerPublishSecretRef": {"namespace": "k", "name": "ctl"}}}}),
            ),
            (
                "storage.k8s.io",
                "volumeattachments",
                json!({"metadata": {"name": "va"}, "spec": {"nodeName": "n1"}}),
            ),
        ])
    }

    #[test]
    fn paths_from_objects_to_nodes() {
        let world = world();
        let check = |node: &str, kind: Related, namespace: &str, name: &str, want: bool| {
            assert_eq!(
                related(&world, node, kind, namespace, name),
                want,
                "{node} {kind:?} {namespace}/{name}"
            );
        };
        for secret in ["pull", "init-env", "from", "vol", "proj"] {
            check("n1", Related::Secret, "a", secret, true);
            check("n2", Related::Secret, "a", secret, false);
            check("n1", Related::Secret, "b", secret, false);
        }
        check("n1", Related::Secret, "a", "mirror", false);
        check("n1", Related::Secret, "k", "stage", true);
        check("n1", Related::Secret, "k", "ctl", false);
        check("n1", Related::ConfigMap, "a", "cm-from", true);
        check("n1", Related::ConfigMap, "a", "cm-proj", true);
        check("n1", Related::ServiceAccount, "a", "bot", true);
        check("n1", Related::ServiceAccount, "a", "other", false);
        check("n1", Related::PersistentVolumeClaim, "a", "claim", true);
        check("n1", Related::PersistentVolumeClaim, "a", "p-e", true);
        check("n1", Related::PersistentVolume, "", "pv", true);
        check("n2", Related::PersistentVolume, "", "pv", false);
        check("n1", Related::VolumeAttachment, "", "va", true);
        check("n2", Related::VolumeAttachment, "", "va", false);
        check("n1", Related::Pod, "a", "p", true);
        check("n2", Related::Pod, "a", "p", false);
    }
}
