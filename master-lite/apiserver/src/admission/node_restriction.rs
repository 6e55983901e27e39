//! NodeRestriction: a node changes its own Node and the status of its own pods, makes mirror pods only, and gets tokens
//! only for pods bound to it (`plugin/pkg/admission/noderestriction`).

use std::collections::BTreeSet;
use std::sync::Arc;

use keelson_api::meta::GroupResource;
use serde_json::{Map, Value};

use super::certificates::subject;
use super::forbidden;
use crate::authz::ClusterAuthorizer;
use crate::authz::node::node_identity;
use crate::authz::rbac::text;
use crate::authz::relations::{MIRROR_POD, config_map_names, is_mirror, secret_names};
use crate::authz::rule::go_quote;
use crate::extension::{
    Attributes, AuthorizerAttributes, Decision, MutatingAdmission, ObjectReader, Operation, Result,
    StatusError, UserInfo,
};

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

/// The plug-in.
pub struct NodeRestriction {
    reader: Arc<dyn ObjectReader>,
    authorizer: Arc<ClusterAuthorizer>,
}

impl NodeRestriction {
    /// Looks pods and nodes up in this cache; asks this authorizer about token audiences.
    pub fn new(reader: Arc<dyn ObjectReader>, authorizer: Arc<ClusterAuthorizer>) -> Self {
        Self { reader, authorizer }
    }

    fn existing_pod(&self, namespace: &str, name: &str) -> Result<Arc<Value>> {
        let pods = GroupResource::new("", "pods");
        self.reader.get(&pods, Some(namespace), name).ok_or_else(|| StatusError::not_found(&pods, name))
    }

    fn check(&self, node: &str, attributes: &Attributes) -> Result<()> {
        let refuse = |why: String| Err(forbidden(attributes, why));
        let own = attributes.name == node;
        match (
            attributes.resource.group.as_str(),
            attributes.resource.resource.as_str(),
            attributes.subresource.as_str(),
        ) {
            ("", "pods", "") => self.pod(node, attributes),
            ("", "pods", "status") => pod_status(node, attributes),
            ("", "pods", "eviction") => match attributes.operation {
                Operation::Create => match self.existing_pod(&attributes.namespace, &attributes.name)? {
                    pod if text(&pod, "/spec/nodeName") == node => Ok(()),
                    _ => refuse(format!("node {node} can only evict pods with spec.nodeName set to itself")),
                },
                other => refuse(format!("unexpected operation {}", other.as_str())),
            },
            ("", "pods", other) => refuse(format!(
                "unexpected pod subresource {}, only 'status' and 'eviction' are allowed",
                go_quote(other)
            )),
            ("", "nodes", _) => node_object(node, attributes),
            ("", "persistentvolumeclaims", "status") => claim_status(node, attributes),
            ("", "persistentvolumeclaims", _) => refuse("may only update PVC status".to_owned()),
            ("", "serviceaccounts", "token") if attributes.operation == Operation::Create => {
                let Some(object) = &attributes.object else { return Ok(()) };
                self.check_token_request(&attributes.user, &attributes.namespace, &attributes.name, object)
            }
            ("coordination.k8s.io", "leases", _) => {
                if attributes.namespace != "kube-node-lease" {
                    refuse("can only access leases in the \"kube-node-lease\" system namespace".to_owned())
                } else if !own {
                    refuse("can only access node lease with the same name as the requesting node".to_owned())
                } else {
                    Ok(())
                }
            }
            ("storage.k8s.io", "csinodes", _) if !own => {
                refuse("can only access CSINode with the same name as the requesting node".to_owned())
            }
            ("resource.k8s.io", "resourceslices", _) => resource_slice(node, attributes),
            ("certificates.k8s.io", "certificatesigningrequests", "") => signing_request(node, attributes),
            ("certificates.k8s.io", "podcertificaterequests", _) => {
                refuse("PodCertificateRequest feature gate is disabled".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn pod(&self, node: &str, attributes: &Attributes) -> Result<()> {
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

    /// Checks a TokenRequest of a user that may be a node; others pass.
    ///
    /// # Errors
    /// 403 or 404 if the request is a node's and isn't bound to a pod of it, or asks for an audience that the pod
    /// doesn't mention.
    pub fn check_token_request(
        &self,
        user: &UserInfo,
        namespace: &str,
        account: &str,
        object: &Value,
    ) -> Result<()> {
        let Some(node) = node_identity(user) else { return Ok(()) };
        let refuse = |why: String| {
            Err(StatusError::forbidden(&GroupResource::new("", "serviceaccounts"), account, why))
        };
        let reference = &object["spec"]["boundObjectRef"];
        let name = text(reference, "/name");
        if reference["apiVersion"] != "v1" || reference["kind"] != "Pod" || name.is_empty() {
            return refuse("node requested token not bound to a pod".to_owned());
        }
        let uid = text(reference, "/uid");
        if uid.is_empty() {
            return refuse("node requested token with a pod binding without a uid".to_owned());
        }
        let pod = self.existing_pod(namespace, name)?;
        if text(&pod, "/metadata/uid") != uid {
            return refuse(format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ));
        }
        if text(&pod, "/spec/nodeName") != node {
            return refuse("node requested token bound to a pod scheduled on a different node".to_owned());
        }
        let audience = match object["spec"]["audiences"].as_array().map(Vec::as_slice).unwrap_or_default() {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return refuse("node may only request 0 or 1 audiences".to_owned()),
        };
        if self.pod_mentions_audience(&pod, namespace, audience)
            || self.may_request_audience(user, namespace, account, audience)
        {
            return Ok(());
        }
        refuse(format!(
            "audience {} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            go_quote(audience),
            user.name
        ))
    }

    fn may_request_audience(&self, user: &UserInfo, namespace: &str, account: &str, audience: &str) -> bool {
        let ask = AuthorizerAttributes {
            user: user.clone(),
            verb: "request-serviceaccounts-token-audience".to_owned(),
            namespace: namespace.to_owned(),
            version: "v1".to_owned(),
            resource: audience.to_owned(),
            name: account.to_owned(),
            resource_request: true,
            ..AuthorizerAttributes::default()
        };
        self.authorizer.decide(&ask) == Decision::Allow
    }

    /// Whether a projected token of the pod, or a CSI driver that it uses, wants the audience.
    fn pod_mentions_audience(&self, pod: &Value, namespace: &str, audience: &str) -> bool {
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        volumes.into_iter().any(|volume| {
            let sources = volume["projected"]["sources"].as_array().into_iter().flatten();
            let projected = sources.filter(|s| s["serviceAccountToken"].is_object());
            if projected.into_iter().any(|s| text(s, "/serviceAccountToken/audience") == audience) {
                return true;
            }
            let driver = self.csi_driver(pod, namespace, volume);
            driver.is_some_and(|driver| {
                let object =
                    self.reader.get(&GroupResource::new("storage.k8s.io", "csidrivers"), None, &driver);
                object.is_some_and(|o| {
                    o["spec"]["tokenRequests"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .any(|t| text(t, "/audience") == audience)
                })
            })
        })
    }

    fn csi_driver(&self, pod: &Value, namespace: &str, volume: &Value) -> Option<String> {
        if let Some(driver) = volume["csi"]["driver"].as_str() {
            return Some(driver.to_owned());
        }
        let claim = if volume["ephemeral"].is_object() {
            format!("{}-{}", text(pod, "/metadata/name"), text(volume, "/name"))
        } else {
            volume["persistentVolumeClaim"]["claimName"].as_str()?.to_owned()
        };
        let claim =
            self.reader.get(&GroupResource::new("", "persistentvolumeclaims"), Some(namespace), &claim)?;
        let volume = self.reader.get(
            &GroupResource::new("", "persistentvolumes"),
            None,
            text(&claim, "/spec/volumeName"),
        )?;
        volume["spec"]["csi"]["driver"].as_str().map(str::to_owned)
    }
}

#[async_trait::async_trait]
impl MutatingAdmission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn admit(&self, attributes: &mut Attributes) -> Result<()> {
        match node_identity(&attributes.user) {
            None => Ok(()),
            Some("") => {
                let why = format!("could not determine node from user {}", go_quote(&attributes.user.name));
                Err(forbidden(attributes, why))
            }
            Some(node) => self.check(node, attributes),
        }
    }
}

fn pod_status(node: &str, attributes: &Attributes) -> Result<()> {
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

fn node_object(node: &str, attributes: &Attributes) -> Result<()> {
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

fn same_map(a: &Value, b: &Value) -> bool {
    let items = |v: &Value| v.as_object().cloned().unwrap_or_default();
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

fn claim_status(node: &str, attributes: &Attributes) -> Result<()> {
    let (Operation::Update, Some(old), Some(new)) =
        (attributes.operation, &attributes.old_object, &attributes.object)
    else {
        return Err(forbidden(
            attributes,
            format!("unexpected operation {}", go_quote(attributes.operation.as_str())),
        ));
    };
    let rest = |object: &Value| {
        let mut object = object.clone();
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("resourceVersion");
            meta.remove("managedFields");
        }
        if let Some(status) = object["status"].as_object_mut() {
            for field in ["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"] {
                status.remove(field);
            }
        }
        object
    };
    if rest(old) == rest(new) {
        return Ok(());
    }
    let why = format!(
        "node {} is not allowed to update fields other than status.quantity and status.conditions",
        go_quote(node)
    );
    Err(forbidden(attributes, why))
}

fn resource_slice(node: &str, attributes: &Attributes) -> Result<()> {
    let of = |object: Option<&Value>| object.is_some_and(|o| text(o, "/spec/nodeName") == node);
    match attributes.operation {
        Operation::Create if !of(attributes.object.as_ref()) => Err(forbidden(
            attributes,
            "can only create ResourceSlice with the same NodeName as the requesting node",
        )),
        Operation::Delete if !of(attributes.old_object.as_deref()) => Err(forbidden(
            attributes,
            "can only delete ResourceSlice with the same NodeName as the requesting node",
        )),
        _ => Ok(()),
    }
}

/// A node asks for certificates of its own only.
fn signing_request(node: &str, attributes: &Attributes) -> Result<()> {
    let Some(object) = attributes.object.as_ref().filter(|_| attributes.operation == Operation::Create)
    else {
        return Ok(());
    };
    let signer = text(object, "/spec/signerName");
    if !matches!(signer, "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet") {
        return Ok(());
    }
    let subject =
        subject(object).map_err(|why| forbidden(attributes, format!("unable to parse csr: {why}")))?;
    if subject.common_name != format!("system:node:{node}") {
        return Err(forbidden(attributes, format!("can only create a node CSR with CN=system:node:{node}")));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::certificates::tests::request;
    use super::super::testing::{by_node, create, update};
    use super::*;
    use crate::authz::fake::FakeReader;

    fn plugin() -> NodeRestriction {
        let reader: Arc<dyn ObjectReader> = Arc::new(FakeReader::new(vec![
            ("", "nodes", json!({"metadata": {"name": "n1", "uid": "node-uid"}})),
            (
                "",
                "pods",
                json!({"metadata": {"name": "mine", "namespace": "a", "uid": "u1"}, "spec": {"nodeName": "n1",
                "volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}, {"serviceAccountToken": {"audience": "vault"}}]}}]}}),
            ),
            (
                "",
                "pods",
                json!({"metadata": {"name": "other", "namespace": "a", "uid": "u2"}, "spec": {"nodeName": "n2"}}),
            ),
        ]));
        NodeRestriction::new(reader.clone(), Arc::new(ClusterAuthorizer::new(reader)))
    }

    async fn check(attributes: Attributes, want: &str) {
        let mut attributes = by_node(attributes, "n1");
        let got = plugin().admit(&mut attributes).await.err().map(|e| e.message).unwrap_or_default();
        assert_eq!(got.split_once("is forbidden: ").map_or(got.as_str(), |(_, why)| why), want);
    }

    #[tokio::test]
    async fn nodes_change_themselves_only() {
        let node = |name: &str, labels: Value, taints: Value| json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}});
        let fine = json!({"kubernetes.io/hostname": "n1", "mine": "1", "x.node.kubernetes.io/y": "1", "example.com/z": "1"});
        check(create("", "nodes", node("n1", fine.clone(), json!([{"key": "k"}]))), "").await;
        check(
            create("", "nodes", node("n2", json!({}), json!([]))),
            "node \"n1\" is not allowed to modify node \"n2\"",
        )
        .await;
        let bad =
            json!({"node-restriction.kubernetes.io/a": "1", "node-role.kubernetes.io/control-plane": ""});
        check(
            create("", "nodes", node("n1", bad.clone(), json!([]))),
            "node \"n1\" is not allowed to set the following labels: node-restriction.kubernetes.io/a, node-role.kubernetes.io/control-plane",
        )
        .await;
        let old = node("n1", bad.clone(), json!([{"key": "k"}]));
        check(update("", "nodes", old.clone(), old.clone()), "").await;
        check(
            update("", "nodes", old.clone(), node("n1", bad.clone(), json!([]))),
            "node \"n1\" is not allowed to modify taints",
        )
        .await;
        let untainted = node("n1", json!({}), json!(null));
        check(
            update("", "nodes", untainted.clone(), node("n1", bad, json!([]))),
            "is not allowed to modify labels: node-restriction.kubernetes.io/a, node-role.kubernetes.io/control-plane",
        )
        .await;
        check(update("", "nodes/status", untainted.clone(), untainted), "").await;
    }

    #[tokio::test]
    async fn pods_of_the_node_only() {
        let pod = |name: &str, node: &str, status: &str| json!({"metadata": {"name": name, "namespace": "a"}, "spec": {"nodeName": node}, "status": {"phase": status}});
        check(update("", "pods/status", pod("p", "n1", "a"), pod("p", "n1", "b")), "").await;
        check(
            update("", "pods/status", pod("p", "n2", "a"), pod("p", "n2", "b")),
            "node \"n1\" can only update pod status for pods with spec.nodeName set to itself",
        )
        .await;
        let delete =
            |name: &str| Attributes { operation: Operation::Delete, ..create("", "pods", pod(name, "", "")) };
        check(delete("mine"), "").await;
        check(delete("other"), "node \"n1\" can only delete pods with spec.nodeName set to itself").await;
        check(
            create("", "pods", pod("p", "n1", "")),
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"n1\" can only create mirror pods",
        )
        .await;
        let mut mirror = pod("p", "n1", "");
        mirror["metadata"]["annotations"] = json!({MIRROR_POD: "x"});
        let no_owner = "node \"n1\" can only create pods with an owner reference set to itself";
        check(create("", "pods", mirror.clone()), no_owner).await;
        mirror["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "node-uid", "controller": true}]);
        check(create("", "pods", mirror.clone()), "").await;
        mirror["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]);
        check(create("", "pods", mirror), "node \"n1\" can not create pods that reference secrets").await;
        check(
            create("", "pods/exec", pod("mine", "", "")),
            "unexpected pod subresource \"exec\", only 'status' and 'eviction' are allowed",
        )
        .await;
    }

    #[tokio::test]
    async fn tokens_for_pods_of_the_node() {
        let token = |name: &str, uid: &str, audiences: Value| {
            let object = json!({"metadata": {"name": "bot", "namespace": "a"}, "spec": {"audiences": audiences,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}}});
            create("", "serviceaccounts/token", object)
        };
        check(token("mine", "u1", json!([])), "").await;
        check(token("mine", "u1", json!(["vault"])), "").await;
        check(
            token("mine", "u1", json!(["bank"])),
            "audience \"bank\" not found in pod spec volume, system:node:n1 is not authorized to request tokens for this audience",
        )
        .await;
        check(token("mine", "u1", json!(["a", "b"])), "node may only request 0 or 1 audiences").await;
        check(token("mine", "", json!([])), "node requested token with a pod binding without a uid").await;
        check(
            token("other", "u2", json!([])),
            "node requested token bound to a pod scheduled on a different node",
        )
        .await;
        check(token("", "", json!([])), "node requested token not bound to a pod").await;
    }

    #[tokio::test]
    async fn certificates_of_the_node() {
        let csr = |signer: &str, name: &str| {
            create("certificates.k8s.io", "certificatesigningrequests", request(signer, name, "system:nodes"))
        };
        check(csr("kubernetes.io/kubelet-serving", "system:node:n1"), "").await;
        check(
            csr("kubernetes.io/kubelet-serving", "system:node:n2"),
            "can only create a node CSR with CN=system:node:n1",
        )
        .await;
        check(csr("example.com/x", "system:node:n2"), "").await;
    }

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
