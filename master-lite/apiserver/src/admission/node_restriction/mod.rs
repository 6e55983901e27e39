//! NodeRestriction: a node changes its own Node and the status of its own pods, makes mirror pods only, and gets tokens
//! only for pods bound to it (`plugin/pkg/admission/noderestriction`).

mod node;
mod pods;
mod tokens;

use std::sync::Arc;

use keelson_api::meta::GroupResource;
use serde_json::Value;

use super::certificates::subject;
use super::forbidden;
use crate::authz::ClusterAuthorizer;
use crate::authz::node::node_identity;
use crate::authz::rbac::text;
use crate::authz::rule::go_quote;
use crate::extension::{Attributes, MutatingAdmission, ObjectReader, Operation, Result, StatusError};
use node::node_object;
use pods::pod_status;

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

fn same_map(a: &Value, b: &Value) -> bool {
    let items = |v: &Value| v.as_object().cloned().unwrap_or_default();
    items(a) == items(b)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::certificates::tests::request;
    use super::super::testing::{by_node, create, update};
    use super::*;
    use crate::authz::fake::FakeReader;
    use crate::authz::relations::MIRROR_POD;

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
}
