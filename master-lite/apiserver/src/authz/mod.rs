//! Authorization: `system:masters`, then the Node authorizer, then RBAC; the first that allows decides.

pub mod bootstrap;
pub mod escalation;
#[cfg(test)]
pub(crate) mod fake;
pub mod node;
pub mod rbac;
pub mod reconcile;
pub mod relations;
pub mod rule;

use std::sync::Arc;

use keelson_api::meta::GroupResource;
use parking_lot::RwLock;

use crate::extension::{Authorizer, AuthorizerAttributes, Decision, ObjectReader, UserInfo};
use crate::status::StatusError;
use rbac::{Policy, PolicyObjects, Verdict};
use rule::{Ask, PolicyRule};

/// API group of roles and bindings.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// Members may do everything, always.
pub const MASTERS: &str = "system:masters";

/// Plural names of the RBAC resources.
const RBAC_RESOURCES: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

/// The server's authorizer, `--authorization-mode=Node,RBAC` in upstream's terms.
pub struct ClusterAuthorizer {
    reader: Arc<dyn ObjectReader>,
    node_rules: Vec<PolicyRule>,
    policy: RwLock<(Option<[u64; 4]>, Arc<Policy>)>,
}

impl ClusterAuthorizer {
    /// An authorizer over the objects of a cache.
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader, node_rules: bootstrap::node_rules(), policy: RwLock::new((None, Arc::default())) }
    }

    /// The compiled roles and bindings as they are now. Compiles only after one of them has changed.
    pub fn policy(&self) -> Arc<Policy> {
        let resources = RBAC_RESOURCES.map(|resource| GroupResource::new(RBAC_GROUP, resource));
        // Versions are read before the lists: a change in between makes the next request compile again, never
        // leaves a stale policy behind a new version.
        let versions = [0, 1, 2, 3].map(|i| self.reader.resource_version(&resources[i]));
        {
            let cached = self.policy.read();
            if cached.0 == Some(versions) {
                return cached.1.clone();
            }
        }
        let list = |i: usize| self.reader.list(&resources[i], None);
        let objects = PolicyObjects {
            cluster_roles: list(0),
            roles: list(1),
            cluster_role_bindings: list(2),
            role_bindings: list(3),
        };
        let policy = Arc::new(Policy::compile(&objects));
        *self.policy.write() = (Some(versions), policy.clone());
        policy
    }

    /// All rules that apply to a user in a namespace, for SelfSubjectRulesReview; the errors met; and whether the
    /// list is incomplete because the user is a node, whose rights no list can show.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<PolicyRule>, Vec<String>, bool) {
        let (mut rules, mut errors) = self.policy().rules_for(&user.name, &user.groups, namespace);
        let is_node = node::node_identity(user).is_some();
        if is_node {
            errors.insert(0, "node authorizer does not support user rule resolution".to_owned());
        }
        if user.in_group(MASTERS) {
            let all = || vec!["*".to_owned()];
            rules.push(PolicyRule {
                verbs: all(),
                api_groups: all(),
                resources: all(),
                ..PolicyRule::default()
            });
            rules.push(PolicyRule { verbs: all(), non_resource_urls: all(), ..PolicyRule::default() });
        }
        (rules, errors, is_node)
    }

    /// The decision, without waiting: everything is in memory.
    pub fn decide(&self, attributes: &AuthorizerAttributes) -> Decision {
        if attributes.user.in_group(MASTERS) {
            return Decision::Allow;
        }
        let node_reason = match node::authorize(&*self.reader, &self.node_rules, attributes) {
            Decision::NoOpinion(reason) => reason,
            decided => return decided,
        };
        let user = &attributes.user;
        match self.policy().authorize(&user.name, &user.groups, &attributes.namespace, &ask_of(attributes)) {
            Verdict::Allow(reason) => {
                tracing::trace!(
                    user = user.name,
                    verb = attributes.verb,
                    resource = attributes.resource,
                    reason,
                    "allowed"
                );
                Decision::Allow
            }
            Verdict::NoOpinion(reason) => {
                let reasons: Vec<String> =
                    [node_reason, reason].into_iter().filter(|r| !r.is_empty()).collect();
                Decision::NoOpinion(reasons.join("\n"))
            }
        }
    }

    /// The binding that allows a request, as SubjectAccessReview reports it; empty if RBAC doesn't.
    pub fn reason(&self, attributes: &AuthorizerAttributes) -> String {
        let user = &attributes.user;
        match self.policy().authorize(&user.name, &user.groups, &attributes.namespace, &ask_of(attributes)) {
            Verdict::Allow(reason) => reason,
            Verdict::NoOpinion(_) => String::new(),
        }
    }
}

#[async_trait::async_trait]
impl Authorizer for ClusterAuthorizer {
    async fn authorize(&self, attributes: &AuthorizerAttributes) -> Decision {
        self.decide(attributes)
    }
}

/// What a rule sees of a request.
pub(crate) fn ask_of(attributes: &AuthorizerAttributes) -> Ask<'_> {
    if attributes.resource_request {
        Ask::Resource {
            verb: &attributes.verb,
            group: &attributes.group,
            resource: &attributes.resource,
            subresource: &attributes.subresource,
            name: &attributes.name,
        }
    } else {
        Ask::NonResource { verb: &attributes.verb, path: &attributes.path }
    }
}

/// The 403 of a request that nobody allows.
pub fn forbidden(attributes: &AuthorizerAttributes, reason: &str) -> StatusError {
    let resource = GroupResource::new(&attributes.group, &attributes.resource);
    StatusError::forbidden(&resource, &attributes.name, forbidden_message(attributes, reason))
}

/// The text of a 403 after `... is forbidden: `, as upstream's `ForbiddenStatusError` words it, with the reason.
pub fn forbidden_message(attributes: &AuthorizerAttributes, reason: &str) -> String {
    use rule::go_quote;
    let user = go_quote(&attributes.user.name);
    let verb = &attributes.verb;
    let message = if attributes.resource_request {
        let resource = if attributes.subresource.is_empty() {
            attributes.resource.clone()
        } else {
            format!("{}/{}", attributes.resource, attributes.subresource)
        };
        let scope = if attributes.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {}", go_quote(&attributes.namespace))
        };
        format!(
            "User {user} cannot {verb} resource {} in API group {} {scope}",
            go_quote(&resource),
            go_quote(&attributes.group)
        )
    } else {
        format!("User {user} cannot {verb} path {}", go_quote(&attributes.path))
    };
    // As upstream does, so that the text can't be taken for HTML.
    let message = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    if reason.is_empty() { message } else { format!("{message}: {reason}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::fake::FakeReader;
    use super::*;

    fn attributes(user: UserInfo, verb: &str, namespace: &str, resource: &str) -> AuthorizerAttributes {
        AuthorizerAttributes {
            user,
            verb: verb.into(),
            namespace: namespace.into(),
            version: "v1".into(),
            resource: resource.into(),
            resource_request: true,
            ..AuthorizerAttributes::default()
        }
    }

    #[test]
    fn policy_follows_the_cache() {
        let reader = Arc::new(FakeReader::default());
        let authorizer = ClusterAuthorizer::new(reader.clone());
        let ask = attributes(UserInfo::new("jane", &[]), "list", "a", "pods");
        assert_eq!(authorizer.decide(&ask), Decision::NoOpinion(String::new()));
        reader.add(
            RBAC_GROUP,
            "clusterroles",
            json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]}),
        );
        reader.add(
            RBAC_GROUP,
            "rolebindings",
            json!({"metadata": {"name": "b", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
                "subjects": [{"kind": "User", "name": "jane"}]}),
        );
        assert_eq!(authorizer.decide(&ask), Decision::Allow);
        assert_eq!(
            authorizer.reason(&ask),
            r#"RBAC: allowed by RoleBinding "b/a" of ClusterRole "r" to User "jane""#
        );
        assert!(Arc::ptr_eq(&authorizer.policy(), &authorizer.policy()));
        reader.remove("b");
        assert_eq!(authorizer.decide(&ask), Decision::NoOpinion(String::new()));
        let master = attributes(UserInfo::new("root", &[MASTERS]), "delete", "", "nodes");
        assert_eq!(authorizer.decide(&master), Decision::Allow);
    }

    #[test]
    fn refusals_read_as_upstream() {
        let check = |attributes: &AuthorizerAttributes, reason: &str, want: &str| {
            assert_eq!(forbidden_message(attributes, reason), want);
        };
        let mut ask = attributes(UserInfo::new("x", &[]), "list", "default", "pods");
        check(&ask, "", r#"User "x" cannot list resource "pods" in API group "" in the namespace "default""#);
        ask.subresource = "exec".into();
        ask.namespace = String::new();
        ask.group = "g".into();
        check(
            &ask,
            "why",
            r#"User "x" cannot list resource "pods/exec" in API group "g" at the cluster scope: why"#,
        );
        ask.resource_request = false;
        ask.path = "/metrics".into();
        check(&ask, "", r#"User "x" cannot list path "/metrics""#);
    }
}
