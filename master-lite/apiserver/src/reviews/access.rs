//! SubjectAccessReview, LocalSubjectAccessReview and SelfSubjectAccessReview.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_api::field::FieldError;
use keelson_api::meta::GroupVersionKind;
use serde_json::{Value, json};

use super::{attributes, has_metadata, invalid, stamp};
use crate::authz::ClusterAuthorizer;
use crate::authz::rbac::text;
use crate::authz::rule::strings;
use crate::extension::{Decision, RequestContext, Result, StatusError, UserInfo, VirtualResource};

/// Whom a review may ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Any user, anywhere.
    Anyone,
    /// Any user, in one namespace.
    Local,
    /// The one who asks.
    Oneself,
}

/// One of the three reviews.
pub(super) struct AccessReview {
    authorizer: Arc<ClusterAuthorizer>,
    scope: Scope,
}

impl AccessReview {
    pub(super) fn new(authorizer: Arc<ClusterAuthorizer>, scope: Scope) -> Self {
        Self { authorizer, scope }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let spec = &object["spec"];
        let mut errors = attributes::validate(spec, self.scope != Scope::Oneself);
        let local = self.scope == Scope::Local;
        if has_metadata(object, if local { &["namespace"] } else { &[] }) {
            let why = if local { "must be empty except for namespace" } else { "must be empty" };
            errors.push(FieldError::invalid("metadata", &object["metadata"], why));
        }
        if local {
            let namespace = &spec["resourceAttributes"]["namespace"];
            if spec["resourceAttributes"].is_object()
                && namespace.as_str().unwrap_or_default() != text(object, "/metadata/namespace")
            {
                errors.push(FieldError::invalid(
                    "spec.resourceAttributes.namespace",
                    namespace,
                    "must match metadata.namespace",
                ));
            }
            if spec["nonResourceAttributes"].is_object() {
                let why = "disallowed on this kind of request";
                errors.push(FieldError::invalid(
                    "spec.nonResourceAttributes",
                    &spec["nonResourceAttributes"],
                    why,
                ));
            }
        }
        errors
    }
}

#[async_trait::async_trait]
impl VirtualResource for AccessReview {
    fn kind(&self) -> GroupVersionKind {
        let kind = match self.scope {
            Scope::Anyone => "SubjectAccessReview",
            Scope::Local => "LocalSubjectAccessReview",
            Scope::Oneself => "SelfSubjectAccessReview",
        };
        GroupVersionKind::new("authorization.k8s.io", "v1", kind)
    }

    async fn create(&self, context: &RequestContext, mut object: Value) -> Result<Value> {
        if self.scope == Scope::Local && text(&object, "/metadata/namespace").is_empty() {
            // As for every namespaced object, the path's namespace is the object's.
            object["metadata"]["namespace"] = json!(context.info.namespace);
        }
        let errors = self.validate(&object);
        if !errors.is_empty() {
            return Err(invalid(&self.kind(), &errors));
        }
        if self.scope == Scope::Local && text(&object, "/metadata/namespace") != context.info.namespace {
            let why =
                format!("spec.resourceAttributes.namespace must match namespace: {}", context.info.namespace);
            return Err(StatusError::bad_request(why));
        }
        let user = match self.scope {
            Scope::Oneself => context.user.clone(),
            _ => subject(&object["spec"]),
        };
        let (asked, error) = attributes::read(user, &object["spec"]);
        let (allowed, denied, reason) = match self.authorizer.decide(&asked) {
            Decision::Allow => (true, false, self.authorizer.reason(&asked)),
            Decision::Deny(reason) => (false, true, reason),
            Decision::NoOpinion(reason) => (false, false, reason),
        };
        let mut status = json!({"allowed": allowed});
        if denied {
            status["denied"] = json!(true);
        }
        if !reason.is_empty() {
            status["reason"] = json!(reason);
        }
        if !error.is_empty() {
            status["evaluationError"] = json!(error);
        }
        object["status"] = status;
        stamp(&self.kind(), &mut object);
        Ok(object)
    }
}

/// The user that a spec names.
fn subject(spec: &Value) -> UserInfo {
    let extra: BTreeMap<String, Vec<String>> = spec["extra"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| (key.clone(), strings(&spec["extra"], key)))
        .collect();
    UserInfo {
        name: text(spec, "/user").to_owned(),
        uid: text(spec, "/uid").to_owned(),
        groups: strings(spec, "groups"),
        extra,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::context;
    use super::*;
    use crate::authz::RBAC_GROUP;
    use crate::authz::fake::FakeReader;

    async fn ask(scope: Scope, user: &str, object: Value) -> Result<Value> {
        let reader = FakeReader::new(vec![
            (
                RBAC_GROUP,
                "clusterroles",
                json!({"metadata": {"name": "r"}, "rules": [
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}, {"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]}),
            ),
            (
                RBAC_GROUP,
                "clusterrolebindings",
                json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
                "subjects": [{"kind": "User", "name": "jane"}]}),
            ),
        ]);
        let review = AccessReview::new(Arc::new(ClusterAuthorizer::new(Arc::new(reader))), scope);
        let answer = review.create(&context(UserInfo::new(user, &[]), "a", ""), object).await?;
        assert_eq!(answer["kind"], review.kind().kind);
        Ok(answer["status"].clone())
    }

    #[tokio::test]
    async fn answers() {
        let list = |verb: &str| json!({"spec": {"user": "jane", "resourceAttributes": {"verb": verb, "resource": "pods", "namespace": "a"}}});
        let reason = r#"RBAC: allowed by ClusterRoleBinding "b" of ClusterRole "r" to User "jane""#;
        assert_eq!(
            ask(Scope::Anyone, "me", list("list")).await,
            Ok(json!({"allowed": true, "reason": reason}))
        );
        assert_eq!(ask(Scope::Anyone, "me", list("get")).await, Ok(json!({"allowed": false})));
        assert_eq!(
            ask(Scope::Local, "me", list("list")).await,
            Ok(json!({"allowed": true, "reason": reason}))
        );
        assert_eq!(
            ask(Scope::Oneself, "jane", list("list")).await,
            Ok(json!({"allowed": true, "reason": reason}))
        );
        assert_eq!(ask(Scope::Oneself, "me", list("list")).await, Ok(json!({"allowed": false})));
        let path = json!({"spec": {"nonResourceAttributes": {"verb": "get", "path": "/metrics"}}});
        assert_eq!(ask(Scope::Oneself, "jane", path).await.unwrap()["allowed"], true);
    }

    #[tokio::test]
    async fn nonsense_is_invalid() {
        let check = async |scope: Scope, object: Value, want: &str| {
            let got = ask(scope, "me", object).await.unwrap_err();
            assert_eq!(got.code, 422);
            assert!(got.message.contains(want), "{}", got.message);
        };
        check(
            Scope::Oneself,
            json!({"spec": {}}),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )
        .await;
        let both = json!({"spec": {"user": "x", "resourceAttributes": {}, "nonResourceAttributes": {}}});
        check(Scope::Anyone, both, "cannot be specified in combination with resourceAttributes").await;
        check(
            Scope::Anyone,
            json!({"spec": {"resourceAttributes": {}}}),
            "at least one of user or group must be specified",
        )
        .await;
        let elsewhere = json!({"spec": {"user": "x", "resourceAttributes": {"namespace": "b"}}});
        check(Scope::Local, elsewhere, "must match metadata.namespace").await;
        let named = json!({"metadata": {"name": "x"}, "spec": {"resourceAttributes": {}}});
        check(Scope::Oneself, named, "must be empty").await;
    }
}
