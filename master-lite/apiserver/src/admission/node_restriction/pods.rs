//! Pods: mirror pods only, and only what is bound to the node.

use keelson_api::meta::GroupResource;
use serde_json::Value;

use super::{NodeRestriction, same_map};
use crate::admission::forbidden;
use crate::authz::rbac::text;
use crate::authz::relations::{MIRROR_POD, config_map_names, is_mirror, secret_names};
use crate::authz::rule::go_quote;
use crate::extension::{Attributes, Operation, Result, StatusError};

impl NodeRestriction {
    pub(super) fn pod(&self, node: &str, attributes: &Attributes) -> Result<()> {
        let quoted = go_quote(node);
        match attributes.operation {
            Operation::Create => self.mirror_pod(node, attributes),
            Operation::Delete => {
                let pod = self.existing_pod(&attributes.namespace, &attributes.name)?;
                if text(&pod, "/spec/nodeName") == node {
                    return Ok(());
                }
                Err(forbidden(
                    attributes,
                    format!("node {quoted} can only delete pods with spec.nodeName set to itself"),
                ))
            }
            other => Err(forbidden(
                attributes,
                format!(
                    "unexpected operation {}, node {quoted} can only create and delete mirror pods",
                    go_quote(other.as_str())
                ),
            )),
        }
    }

    fn mirror_pod(&self, node: &str, attributes: &Attributes) -> Result<()> {
        let Some(pod) = &attributes.object else { return Ok(()) };
        let quoted = go_quote(node);
        let refuse = |why: String| Err(forbidden(attributes, why));
        if !is_mirror(pod) {
            return refuse(format!(
                "pod does not have {} annotation, node {quoted} can only create mirror pods",
                go_quote(MIRROR_POD)
            ));
        }
        if text(pod, "/spec/nodeName") != node {
            return refuse(format!("node {quoted} can only create pods with spec.nodeName set to itself"));
        }
        let owners = pod["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
        let owner = match owners {
            [owner] => owner,
            [] => {
                return refuse(format!(
                    "node {quoted} can only create pods with an owner reference set to itself"
                ));
            }
            _ => {
                return refuse(format!(
                    "node {quoted} can only create pods with a single owner reference set to itself"
                ));
            }
        };
        if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
            return refuse(format!(
                "node {quoted} can only create pods with an owner reference set to itself"
            ));
        }
        if owner["controller"] != true {
            return refuse(format!(
                "node {quoted} can only create pods with a controller owner reference set to itself"
            ));
        }
        if owner["blockOwnerDeletion"] == true {
            return refuse(format!("node {quoted} must not set blockOwnerDeletion on an owner reference"));
        }
        let nodes = GroupResource::new("", "nodes");
        let stored =
            self.reader.get(&nodes, None, node).ok_or_else(|| StatusError::not_found(&nodes, node))?;
        let (given, uid) = (text(owner, "/uid"), text(&stored, "/metadata/uid"));
        if given != uid {
            return refuse(format!("node {node} UID mismatch: expected {given} got {uid}"));
        }
        match api_reference(pod) {
            Some(resource) => refuse(format!("node {quoted} can not create pods that reference {resource}")),
            None => Ok(()),
        }
    }
}

pub(super) fn pod_status(node: &str, attributes: &Attributes) -> Result<()> {
    let refuse = |why: String| Err(forbidden(attributes, why));
    let quoted = go_quote(node);
    let (Operation::Update, Some(old), Some(new)) =
        (attributes.operation, &attributes.old_object, &attributes.object)
    else {
        return refuse(format!("unexpected operation {}", go_quote(attributes.operation.as_str())));
    };
    if text(old, "/spec/nodeName") != node {
        return refuse(format!(
            "node {quoted} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    if !same_map(&old["metadata"]["labels"], &new["metadata"]["labels"]) {
        return refuse(format!("node {quoted} cannot update labels through pod status"));
    }
    if old["status"]["resourceClaimStatuses"] != new["status"]["resourceClaimStatuses"] {
        return refuse(format!("node {quoted} cannot update resource claim statues"));
    }
    if old["status"]["extendedResourceClaimStatus"] != new["status"]["extendedResourceClaimStatus"] {
        return refuse(format!("node {quoted} cannot update extended resource claim status"));
    }
    Ok(())
}

/// The first kind of API object that a pod refers to (upstream's `HasAPIObjectReference`).
fn api_reference(pod: &Value) -> Option<&'static str> {
    let spec = &pod["spec"];
    let array = |v: &'_ Value, key: &str| v[key].as_array().cloned().unwrap_or_default();
    if !text(spec, "/serviceAccountName").is_empty() {
        return Some("serviceaccounts");
    }
    if secret_names(pod).next().is_some() {
        return Some("secrets");
    }
    if config_map_names(pod).next().is_some() {
        return Some("configmaps");
    }
    if !array(spec, "resourceClaims").is_empty() {
        return Some("resourceclaims");
    }
    const LOCAL: [&str; 7] = ["downwardAPI", "emptyDir", "hostPath", "image", "nfs", "iscsi", "fc"];
    for volume in array(spec, "volumes") {
        if LOCAL.iter().any(|kind| volume[*kind].is_object()) {
            continue;
        }
        if volume["csi"].is_object() {
            return Some("csidrivers (via CSI volumes)");
        }
        if volume["persistentVolumeClaim"].is_object() {
            return Some("persistentvolumeclaims");
        }
        if volume["ephemeral"].is_object() {
            return Some("persistentvolumeclaims (via ephemeral volumes)");
        }
        if volume["projected"].is_object() {
            for source in array(&volume["projected"], "sources") {
                if source["serviceAccountToken"].is_object() {
                    return Some("serviceaccounts (via projected volumes)");
                }
                if source["clusterTrustBundle"].is_object() {
                    return Some("clustertrustbundles");
                }
                if !source["downwardAPI"].is_object() {
                    return Some("unknown projected volume sources");
                }
            }
            continue;
        }
        // A volume without a source is an emptyDir; any other kind isn't known to be harmless.
        if volume.as_object().is_some_and(|v| v.len() > 1) {
            return Some("volumes of an unknown type");
        }
    }
    None
}
