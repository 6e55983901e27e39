//! The Node authorizer: what a kubelet may do, by the pods bound to its node
//! (upstream's `plugin/pkg/auth/authorizer/node/node_authorizer.go`).

use crate::extension::{AuthorizerAttributes, Decision, ObjectReader, UserInfo};

use super::ask_of;
use super::relations::{Related, related};
use super::rule::PolicyRule;

/// The node a user is: `system:node:NAME` in group `system:nodes`. `Some("")` for a member of the group with no
/// proper name, which is a node but not one that can be told from others.
pub fn node_identity(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:")?;
    user.in_group("system:nodes").then_some(name)
}

/// Decides for nodes; has no opinion on other users.
pub fn authorize(
    reader: &dyn ObjectReader,
    rules: &[PolicyRule],
    attributes: &AuthorizerAttributes,
) -> Decision {
    let Some(node) = node_identity(&attributes.user) else { return no("") };
    if node.is_empty() {
        return no(format!("unknown node for user \"{}\"", attributes.user.name));
    }
    let request = Request { reader, node, attributes };
    if attributes.resource_request {
        match (attributes.group.as_str(), attributes.resource.as_str()) {
            ("", "secrets") => return request.read_one(Related::Secret),
            ("", "configmaps") => return request.read_one(Related::ConfigMap),
            ("", "persistentvolumeclaims") if attributes.subresource == "status" => {
                return request.claim_status();
            }
            ("", "persistentvolumeclaims") => return request.get(Related::PersistentVolumeClaim),
            ("", "persistentvolumes") => return request.get(Related::PersistentVolume),
            ("resource.k8s.io", "resourceclaims") => return request.get(Related::ResourceClaim),
            ("storage.k8s.io", "volumeattachments") => return request.get(Related::VolumeAttachment),
            ("", "serviceaccounts") => return request.service_account(),
            ("coordination.k8s.io", "leases") => return request.lease(),
            ("storage.k8s.io", "csinodes") => return request.csi_node(),
            ("resource.k8s.io", "resourceslices") => return request.resource_slice(),
            ("", "nodes") => return request.node_object(),
            ("", "pods") => return request.pod(),
            ("certificates.k8s.io", "podcertificaterequests") => return no(""),
            _ => {}
        }
    }
    let ask = ask_of(attributes);
    if rules.iter().any(|rule| rule.allows(&ask)) { Decision::Allow } else { no("") }
}

fn no(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion(reason.into())
}

/// One request of one node.
struct Request<'a> {
    reader: &'a dyn ObjectReader,
    node: &'a str,
    attributes: &'a AuthorizerAttributes,
}

impl Request<'_> {
    fn verb(&self) -> &str {
        &self.attributes.verb
    }

    fn subresource(&self) -> &str {
        &self.attributes.subresource
    }

    fn by_relation(&self, kind: Related) -> Decision {
        if self.attributes.name.is_empty() {
            return no("No Object name found");
        }
        if related(self.reader, self.node, kind, &self.attributes.namespace, &self.attributes.name) {
            Decision::Allow
        } else {
            no(format!("no relationship found between node '{}' and this object", self.node))
        }
    }

    fn get(&self, kind: Related) -> Decision {
        if self.verb() != "get" {
            return no("can only get individual resources of this type");
        }
        if !self.subresource().is_empty() {
            return no("cannot get subresource");
        }
        self.by_relation(kind)
    }

    fn read_one(&self, kind: Related) -> Decision {
        if !matches!(self.verb(), "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !self.subresource().is_empty() {
            return no("cannot read subresource");
        }
        if self.attributes.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.by_relation(kind)
    }

    fn claim_status(&self) -> Decision {
        if !matches!(self.verb(), "update" | "patch") {
            return no("can only get/update/patch this type");
        }
        self.by_relation(Related::PersistentVolumeClaim)
    }

    fn service_account(&self) -> Decision {
        if self.verb() == "get" && self.subresource().is_empty() {
            return self.read_one(Related::ServiceAccount);
        }
        if self.verb() != "create" || self.attributes.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if self.subresource() != "token" {
            return no("can only create token subresource of serviceaccount");
        }
        self.by_relation(Related::ServiceAccount)
    }

    fn lease(&self) -> Decision {
        if !matches!(self.verb(), "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a node lease");
        }
        if self.attributes.namespace != "kube-node-lease" {
            return no("can only access leases in the \"kube-node-lease\" system namespace");
        }
        // On create the name is in the body, which NodeRestriction checks.
        if self.verb() != "create" && self.attributes.name != self.node {
            return no("can only access node lease with the same name as the requesting node");
        }
        Decision::Allow
    }

    fn csi_node(&self) -> Decision {
        if !matches!(self.verb(), "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a CSINode");
        }
        if !self.subresource().is_empty() {
            return no("cannot authorize CSINode subresources");
        }
        if self.verb() != "create" && self.attributes.name != self.node {
            return no("can only access CSINode with the same name as the requesting node");
        }
        Decision::Allow
    }

    fn resource_slice(&self) -> Decision {
        if !self.subresource().is_empty() {
            return no("cannot authorize ResourceSlice subresources");
        }
        match self.verb() {
            "create" => Decision::Allow,
            "get" | "update" | "patch" | "delete" => self.by_relation(Related::ResourceSlice),
            "watch" | "list" | "deletecollection" if self.selects_own("spec.nodeName") => Decision::Allow,
            "watch" | "list" | "deletecollection" => {
                no("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    /// Names are compared, not looked up, so that a kubelet can ask for its Node before it has made it.
    fn node_object(&self) -> Decision {
        match (self.subresource(), self.verb()) {
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Decision::Allow,
            ("", "get" | "list" | "watch") => match self.attributes.name.as_str() {
                name if name == self.node => Decision::Allow,
                "" => no(format!("node '{}' cannot read all nodes, only its own Node object", self.node)),
                name => no(format!("node '{}' cannot read '{name}', only its own Node object", self.node)),
            },
            _ => no(""),
        }
    }

    fn pod(&self) -> Decision {
        match (self.subresource(), self.verb()) {
            ("", "get") => self.get(Related::Pod),
            ("", "list" | "watch") if self.selects_own("spec.nodeName") => Decision::Allow,
            ("", "list" | "watch") if !self.attributes.name.is_empty() => self.by_relation(Related::Pod),
            ("", "list" | "watch") => no("can only list/watch pods with spec.nodeName field selector"),
            // NodeRestriction limits these to mirror pods and pods bound to the node.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Decision::Allow
            }
            _ => no(""),
        }
    }

    /// Whether the field selector limits the request to objects whose `field` is this node.
    fn selects_own(&self, field: &str) -> bool {
        selector_requires(&self.attributes.field_selector, field, self.node)
    }
}

/// Whether a field selector (`a=b,c!=d`) requires that `field` equals `value`.
pub(crate) fn selector_requires(selector: &str, field: &str, value: &str) -> bool {
    selector.split(',').any(|term| match term.split_once('=') {
        // `a!=b` splits into `a!` and `b`; `a==b` into `a` and `=b`.
        Some((key, rest)) => key == field && rest.strip_prefix('=').unwrap_or(rest) == value,
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::bootstrap::node_rules;
    use super::super::fake::FakeReader;
    use super::*;

    #[test]
    fn a_node_may_do_what_its_pods_need() {
        let reader = FakeReader::new(vec![(
            "",
            "pods",
            json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"nodeName": "n1", "serviceAccountName": "bot",
                "volumes": [{"secret": {"secretName": "s"}}, {"configMap": {"name": "c"}}]}}),
        )]);
        let rules = node_rules();
        // verb, group, resource/subresource, namespace, name, field selector; the reason for a refusal, or `allow`.
        let check = |request: [&str; 6], want: &str| {
            let [verb, group, resource, namespace, name, selector] = request;
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let attributes = AuthorizerAttributes {
                user: UserInfo::new("system:node:n1", &["system:nodes"]),
                verb: verb.into(),
                namespace: namespace.into(),
                group: group.into(),
                version: "v1".into(),
                resource: resource.into(),
                subresource: subresource.into(),
                name: name.into(),
                resource_request: true,
                field_selector: selector.into(),
                ..AuthorizerAttributes::default()
            };
            let got = match authorize(&reader, &rules, &attributes) {
                Decision::Allow => "allow".to_owned(),
                Decision::Deny(reason) | Decision::NoOpinion(reason) => reason,
            };
            assert_eq!(got, want, "{request:?}");
        };
        let unrelated = "no relationship found between node 'n1' and this object";
        check(["get", "", "secrets", "a", "s", ""], "allow");
        check(["watch", "", "secrets", "a", "s", ""], "allow");
        check(["get", "", "secrets", "a", "t", ""], unrelated);
        check(["list", "", "secrets", "a", "", ""], "No Object name found");
        check(["update", "", "secrets", "a", "s", ""], "can only read resources of this type");
        check(["get", "", "configmaps", "a", "c", ""], "allow");
        check(["create", "", "serviceaccounts/token", "a", "bot", ""], "allow");
        check(["create", "", "serviceaccounts/token", "a", "root", ""], unrelated);
        check(
            ["create", "", "serviceaccounts", "a", "", ""],
            "can only create tokens for individual service accounts",
        );
        check(["update", "coordination.k8s.io", "leases", "kube-node-lease", "n1", ""], "allow");
        check(
            ["update", "coordination.k8s.io", "leases", "kube-node-lease", "n2", ""],
            "can only access node lease with the same name as the requesting node",
        );
        check(
            ["update", "coordination.k8s.io", "leases", "kube-system", "n1", ""],
            "can only access leases in the \"kube-node-lease\" system namespace",
        );
        check(["get", "", "nodes", "", "n1", ""], "allow");
        check(["get", "", "nodes", "", "n2", ""], "node 'n1' cannot read 'n2', only its own Node object");
        check(["list", "", "nodes", "", "", ""], "node 'n1' cannot read all nodes, only its own Node object");
        check(["delete", "", "nodes", "", "n1", ""], "");
        check(["patch", "", "nodes/status", "", "n1", ""], "allow");
        check(["list", "", "pods", "", "", "spec.nodeName=n1"], "allow");
        check(["watch", "", "pods", "", "", "spec.nodeName==n1,status.phase!=Failed"], "allow");
        let scoped = "can only list/watch pods with spec.nodeName field selector";
        check(["list", "", "pods", "", "", "spec.nodeName!=n1"], scoped);
        check(["list", "", "pods", "", "", "spec.nodeName=n2"], scoped);
        check(["get", "", "pods", "a", "p", ""], "allow");
        check(["get", "", "pods", "a", "q", ""], unrelated);
        check(["patch", "", "pods/status", "a", "p", ""], "allow");
        check(["create", "", "pods/exec", "a", "p", ""], "");
        check(["list", "", "services", "", "", ""], "allow");
        check(["create", "", "events", "a", "", ""], "allow");
        check(["list", "discovery.k8s.io", "endpointslices", "", "", ""], "");
    }

    #[test]
    fn others_are_no_nodes() {
        assert_eq!(node_identity(&UserInfo::new("system:node:n", &[])), None);
        assert_eq!(node_identity(&UserInfo::new("n", &["system:nodes"])), None);
        assert_eq!(node_identity(&UserInfo::new("system:node:n", &["system:nodes"])), Some("n"));
    }
}
