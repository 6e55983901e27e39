//! Nobody grants what they don't hold: the checks on writes of roles and bindings
//! (upstream's `pkg/registry/rbac/*/policybased`).

use std::sync::Arc;

use serde_json::Value;

use super::rule::{PolicyRule, escalation_message, uncovered};
use super::{ClusterAuthorizer, MASTERS, RBAC_GROUP, RBAC_RESOURCES};
use crate::extension::{
    Attributes, Authorizer as _, AuthorizerAttributes, Decision, Operation, Result, StatusError,
    ValidatingAdmission,
};

/// Refuses roles and bindings that would give rights their writer lacks, unless the writer may `escalate` the role
/// or `bind` it.
pub struct Escalation {
    authorizer: Arc<ClusterAuthorizer>,
}

impl Escalation {
    /// Checks against what this authorizer grants.
    pub fn new(authorizer: Arc<ClusterAuthorizer>) -> Self {
        Self { authorizer }
    }

    async fn allowed(
        &self,
        attributes: &Attributes,
        verb: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> bool {
        let ask = AuthorizerAttributes {
            user: attributes.user.clone(),
            verb: verb.to_owned(),
            namespace: namespace.to_owned(),
            group: RBAC_GROUP.to_owned(),
            version: "*".to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            resource_request: true,
            ..AuthorizerAttributes::default()
        };
        self.authorizer.authorize(&ask).await == Decision::Allow
    }

    /// The rules that a write would hand out, or `None` if it needs no check.
    async fn granted(&self, attributes: &Attributes, object: &Value) -> Result<Option<Vec<PolicyRule>>> {
        let namespace = attributes.namespace.as_str();
        match attributes.resource.resource.as_str() {
            resource @ ("roles" | "clusterroles") => {
                if self.allowed(attributes, "escalate", resource, namespace, &attributes.name).await {
                    return Ok(None);
                }
                // A role that aggregates gives away all that its selectors match, now and later.
                let aggregates = |o: &Value| o["aggregationRule"].is_object();
                if aggregates(object) || attributes.old_object.as_deref().is_some_and(aggregates) {
                    return Ok(Some(everything()));
                }
                Ok(Some(
                    object["rules"].as_array().into_iter().flatten().map(PolicyRule::from_value).collect(),
                ))
            }
            "rolebindings" | "clusterrolebindings" => {
                let role_ref = &object["roleRef"];
                let resource = match role_ref["kind"].as_str() {
                    Some("Role") => "roles",
                    _ => "clusterroles",
                };
                let name = role_ref["name"].as_str().unwrap_or_default();
                if self.allowed(attributes, "bind", resource, namespace, name).await {
                    return Ok(None);
                }
                match self.authorizer.policy().role_reference(role_ref, namespace) {
                    Ok(rules) => Ok(Some(rules.to_vec())),
                    Err(why) => Err(StatusError::new(404, "NotFound", why)),
                }
            }
            _ => Ok(None),
        }
    }
}

#[async_trait::async_trait]
impl ValidatingAdmission for Escalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    async fn validate(&self, attributes: &Attributes) -> Result<()> {
        let concerns = attributes.resource.group == RBAC_GROUP
            && RBAC_RESOURCES.contains(&attributes.resource.resource.as_str())
            && attributes.subresource.is_empty()
            && matches!(attributes.operation, Operation::Create | Operation::Update);
        let Some(object) = attributes.object.as_ref().filter(|_| concerns) else { return Ok(()) };
        if attributes.user.in_group(MASTERS) {
            return Ok(());
        }
        // Garbage collection must be able to touch a role whose rights it doesn't hold.
        if attributes.old_object.as_deref().is_some_and(|old| only_collection_fields(object, old)) {
            return Ok(());
        }
        let Some(granted) = self.granted(attributes, object).await? else { return Ok(()) };
        let user = &attributes.user;
        let (held, _, _) = self.authorizer.rules_for(user, &attributes.namespace);
        let missing = uncovered(&held, &granted);
        if missing.is_empty() {
            return Ok(());
        }
        Err(StatusError::forbidden(
            &attributes.resource,
            &attributes.name,
            escalation_message(&user.name, &user.groups, missing),
        ))
    }
}

fn everything() -> Vec<PolicyRule> {
    let all = || vec!["*".to_owned()];
    vec![
        PolicyRule { verbs: all(), api_groups: all(), resources: all(), ..PolicyRule::default() },
        PolicyRule { verbs: all(), non_resource_urls: all(), ..PolicyRule::default() },
    ]
}

/// Whether an update changes nothing but ownerReferences, finalizers and managedFields.
fn only_collection_fields(new: &Value, old: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        if let Some(meta) = object["metadata"].as_object_mut() {
            for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
                meta.remove(field);
            }
        }
        object
    };
    strip(new) == strip(old)
}

#[cfg(test)]
mod tests {
    use keelson_api::meta::{GroupResource, GroupVersionKind};
    use serde_json::json;

    use super::super::fake::FakeReader;
    use super::*;
    use crate::extension::UserInfo;

    fn world() -> Arc<ClusterAuthorizer> {
        let role = |name: &str, rules: Value| {
            (RBAC_GROUP, "clusterroles", json!({"metadata": {"name": name}, "rules": rules}))
        };
        let bind = |role: &str, user: &str| {
            (
                RBAC_GROUP,
                "clusterrolebindings",
                json!({"metadata": {"name": format!("{role}-{user}")},
                "roleRef": {"kind": "ClusterRole", "name": role}, "subjects": [{"kind": "User", "name": user}]}),
            )
        };
        Arc::new(ClusterAuthorizer::new(Arc::new(FakeReader::new(vec![
            role("reader", json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}])),
            role("powerful", json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])),
            role(
                "binder",
                json!([{"apiGroups": [RBAC_GROUP], "resources": ["clusterroles"], "verbs": ["bind"], "resourceNames": ["powerful"]}]),
            ),
            role(
                "escalator",
                json!([{"apiGroups": [RBAC_GROUP], "resources": ["roles"], "verbs": ["escalate"]}]),
            ),
            bind("reader", "jane"),
            bind("binder", "bob"),
            bind("escalator", "eve"),
        ]))))
    }

    #[tokio::test]
    async fn nobody_grants_more_than_they_hold() {
        let plugin = Escalation::new(world());
        let check = async |user: &str, resource: &str, object: Value, old: Option<Value>, want: &str| {
            let attributes = Attributes {
                operation: if old.is_some() { Operation::Update } else { Operation::Create },
                kind: GroupVersionKind::new(RBAC_GROUP, "v1", "Role"),
                resource: GroupResource::new(RBAC_GROUP, resource),
                version: "v1".into(),
                subresource: String::new(),
                namespace: if resource.starts_with("cluster") { String::new() } else { "a".into() },
                name: "x".into(),
                user: UserInfo::new(user, &["g"]),
                object: Some(object),
                old_object: old.map(Arc::new),
                dry_run: false,
                options: Value::Null,
                hooks: crate::extension::Hooks::default(),
            };
            let got = plugin.validate(&attributes).await.err().map(|e| e.message).unwrap_or_default();
            assert_eq!(got, want);
        };
        let rule = |verb: &str| json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}], "metadata": {"name": "x"}});
        check("jane", "roles", rule("get"), None, "").await;
        let denied = "roles.rbac.authorization.k8s.io \"x\" is forbidden: user \"jane\" (groups=[\"g\"]) is attempting to grant \
                      RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}";
        check("jane", "roles", rule("delete"), None, denied).await;
        let mut collected = rule("delete");
        collected["metadata"]["finalizers"] = json!(["x"]);
        check("jane", "roles", collected, Some(rule("delete")), "").await;
        check("eve", "roles", rule("delete"), None, "").await;
        let bind = |role: &str| json!({"roleRef": {"kind": "ClusterRole", "name": role}});
        check("jane", "rolebindings", bind("reader"), None, "").await;
        check("bob", "clusterrolebindings", bind("powerful"), None, "").await;
        let gone = "clusterrole.rbac.authorization.k8s.io \"none\" not found";
        check("jane", "rolebindings", bind("none"), None, gone).await;
    }
}
