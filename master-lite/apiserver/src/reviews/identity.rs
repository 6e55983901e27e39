//! SelfSubjectReview and TokenReview.

use std::sync::Arc;

use keelson_api::meta::GroupVersionKind;
use serde_json::{Value, json};

use super::stamp;
use crate::authn::TokenAuthenticator;
use crate::authn::service_account::TokenIssuer;
use crate::authz::rbac::text;
use crate::authz::rule::strings;
use crate::extension::{RequestContext, Result, StatusError, UserInfo, VirtualResource};

const GROUP: &str = "authentication.k8s.io";

/// Tells users who they are (`kubectl auth whoami`).
pub(super) struct SelfSubjectReview;

#[async_trait::async_trait]
impl VirtualResource for SelfSubjectReview {
    fn kind(&self) -> GroupVersionKind {
        GroupVersionKind::new(GROUP, "v1", "SelfSubjectReview")
    }

    async fn create(&self, context: &RequestContext, _object: Value) -> Result<Value> {
        let mut answer = json!({
            "metadata": {"creationTimestamp": timestamp(crate::authn::now())},
            "status": {"userInfo": user_info(&context.user)},
        });
        stamp(&self.kind(), &mut answer);
        Ok(answer)
    }
}

/// Tells others (kubelets, extension servers) whose token they were shown.
pub(super) struct TokenReview {
    tokens: Arc<TokenAuthenticator>,
    audiences: Vec<String>,
}

impl TokenReview {
    pub(super) fn new(tokens: Arc<TokenAuthenticator>, issuer: &TokenIssuer) -> Self {
        Self { tokens, audiences: issuer.api_audiences().to_vec() }
    }
}

#[async_trait::async_trait]
impl VirtualResource for TokenReview {
    fn kind(&self) -> GroupVersionKind {
        GroupVersionKind::new(GROUP, "v1", "TokenReview")
    }

    async fn create(&self, _context: &RequestContext, mut object: Value) -> Result<Value> {
        let token = text(&object, "/spec/token");
        if token.is_empty() {
            return Err(StatusError::bad_request("token is required for TokenReview in authentication"));
        }
        let asked = strings(&object["spec"], "audiences");
        let wanted = if asked.is_empty() { &self.audiences } else { &asked };
        let status = match self.tokens.authenticate(token, wanted) {
            Ok(Some(identity)) => json!({
                "authenticated": true,
                "user": user_info(&identity.user),
                "audiences": identity.audiences,
            }),
            Ok(None) => json!({"user": {}, "error": "invalid bearer token"}),
            Err(why) => json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}),
        };
        object["status"] = status;
        stamp(&self.kind(), &mut object);
        Ok(object)
    }
}

/// A user as `authentication.k8s.io` UserInfo, without what is empty.
fn user_info(user: &UserInfo) -> Value {
    let mut out = json!({"username": user.name});
    if !user.uid.is_empty() {
        out["uid"] = json!(user.uid);
    }
    if !user.groups.is_empty() {
        out["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        out["extra"] = json!(user.extra);
    }
    out
}

/// RFC 3339 in whole seconds, as `metav1.Time`.
pub(super) fn timestamp(seconds: i64) -> String {
    chrono::DateTime::from_timestamp(seconds, 0)
        .unwrap_or_default()
        .to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}
