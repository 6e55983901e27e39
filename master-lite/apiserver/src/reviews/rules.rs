//! SelfSubjectRulesReview (`kubectl auth can-i --list`).

use std::sync::Arc;

use keelson_api::meta::GroupVersionKind;
use serde_json::{Map, Value, json};

use super::stamp;
use crate::authz::ClusterAuthorizer;
use crate::authz::rbac::text;
use crate::extension::{RequestContext, Result, StatusError, VirtualResource};

/// Lists what one may do in a namespace.
pub(super) struct SelfSubjectRulesReview {
    authorizer: Arc<ClusterAuthorizer>,
}

impl SelfSubjectRulesReview {
    pub(super) fn new(authorizer: Arc<ClusterAuthorizer>) -> Self {
        Self { authorizer }
    }
}

#[async_trait::async_trait]
impl VirtualResource for SelfSubjectRulesReview {
    fn kind(&self) -> GroupVersionKind {
        GroupVersionKind::new("authorization.k8s.io", "v1", "SelfSubjectRulesReview")
    }

    async fn create(&self, context: &RequestContext, object: Value) -> Result<Value> {
        let namespace = text(&object, "/spec/namespace");
        if namespace.is_empty() {
            return Err(StatusError::bad_request("no namespace on request"));
        }
        let (rules, errors, incomplete) = self.authorizer.rules_for(&context.user, namespace);
        let pick = |fields: &[(&str, &Vec<String>)]| -> Value {
            let kept = fields.iter().filter(|(_, list)| !list.is_empty());
            Value::Object(kept.map(|(key, list)| ((*key).to_owned(), json!(list))).collect::<Map<_, _>>())
        };
        let resource: Vec<Value> = rules
            .iter()
            .filter(|r| !r.resources.is_empty())
            .map(|r| {
                pick(&[
                    ("verbs", &r.verbs),
                    ("apiGroups", &r.api_groups),
                    ("resources", &r.resources),
                    ("resourceNames", &r.resource_names),
                ])
            })
            .collect();
        let other: Vec<Value> = rules
            .iter()
            .filter(|r| !r.non_resource_urls.is_empty())
            .map(|r| pick(&[("verbs", &r.verbs), ("nonResourceURLs", &r.non_resource_urls)]))
            .collect();
        let mut answer = json!({
            "metadata": {},
            "spec": {},
            "status": {"resourceRules": resource, "nonResourceRules": other, "incomplete": incomplete},
        });
        if !errors.is_empty() {
            answer["status"]["evaluationError"] = json!(errors.join(", "));
        }
        stamp(&self.kind(), &mut answer);
        Ok(answer)
    }
}
