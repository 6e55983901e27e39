//! `metav1.Status` errors in upstream's words (`k8s.io/apimachinery/pkg/api/errors`).

use std::borrow::Cow;

use keelson_api::field::FieldError;
use keelson_api::meta::{GroupResource, GroupVersionKind};
use serde_json::{Value, json};

/// A request's failure as the client sees it: HTTP code, machine-readable reason, message, details.
///
/// What only the operator should see is logged where it happens, not put here.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct StatusError {
    /// HTTP status code.
    pub code: u16,
    /// `metav1.StatusReason`; empty means unknown.
    pub reason: Cow<'static, str>,
    /// Sentence for a person.
    pub message: String,
    /// `metav1.StatusDetails` as JSON, if any.
    pub details: Option<Value>,
    /// `metadata.continue`: with what a list whose token has expired can be gone on with.
    pub continue_token: Option<String>,
}

/// Result of anything that ends in a response.
pub type Result<T, E = StatusError> = std::result::Result<T, E>;

fn details(resource: &GroupResource, name: &str) -> Value {
    let mut map = serde_json::Map::new();
    if !name.is_empty() {
        map.insert("name".into(), name.into());
    }
    if !resource.group.is_empty() {
        map.insert("group".into(), resource.group.as_str().into());
    }
    if !resource.resource.is_empty() {
        map.insert("kind".into(), resource.resource.as_str().into());
    }
    Value::Object(map)
}

impl StatusError {
    /// Any code and reason, without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), details: None, continue_token: None }
    }

    /// 404 for an object.
    pub fn not_found(resource: &GroupResource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{resource} \"{name}\" not found"))
            .with_details(details(resource, name))
    }

    /// 404 for a path or resource the server doesn't have.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with_details(json!({}))
    }

    /// 409 on a create.
    pub fn already_exists(resource: &GroupResource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{resource} \"{name}\" already exists"))
            .with_details(details(resource, name))
    }

    /// 409 on an update, with upstream's prefix.
    pub fn conflict(resource: &GroupResource, name: &str, why: impl std::fmt::Display) -> Self {
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}"))
            .with_details(details(resource, name))
    }

    /// 409 because the resourceVersion sent is no longer the newest.
    pub fn modified(resource: &GroupResource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 403; an empty name speaks of the whole resource.
    pub fn forbidden(resource: &GroupResource, name: &str, why: impl std::fmt::Display) -> Self {
        let message = if resource.resource.is_empty() && resource.group.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} \"{name}\" is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).with_details(details(resource, name))
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 422 with one cause per field error.
    pub fn invalid(gvk: &GroupVersionKind, name: &str, errors: &[FieldError]) -> Self {
        let text = match errors {
            [one] => one.to_string(),
            many => {
                format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
            }
        };
        let kind =
            if gvk.group.is_empty() { gvk.kind.clone() } else { format!("{}.{}", gvk.kind, gvk.group) };
        let causes: Vec<Value> = errors
            .iter()
            .map(|e| json!({"reason": e.kind.reason(), "message": e.body(), "field": e.field}))
            .collect();
        let mut d = details(&GroupResource::new(&gvk.group, &gvk.kind), name);
        d["causes"] = Value::Array(causes);
        Self::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {text}")).with_details(d)
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 405 for a verb a resource doesn't have.
    pub fn method_not_supported(resource: &GroupResource, verb: &str) -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            format!("{verb} is not supported on resources of kind \"{resource}\""),
        )
        .with_details(details(resource, ""))
    }

    /// 410 for a watch or list from a compacted revision.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 406 listing what is offered.
    pub fn not_acceptable(offered: &[&str]) -> Self {
        Self::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {}", offered.join(", ")),
        )
    }

    /// 415 listing what is read.
    pub fn unsupported_media_type(offered: &[&str]) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                offered.join(", ")
            ),
        )
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// 429 with a Retry-After.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::new(429, "TooManyRequests", message)
            .with_details(json!({"retryAfterSeconds": retry_after_seconds}))
    }

    /// 500. The message is shown to the client: keep secrets out of it.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let text = message.to_string();
        Self::new(500, "InternalError", format!("Internal error occurred: {text}"))
            .with_details(json!({"causes": [{"message": text}]}))
    }

    /// 503.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504 because the server gave up.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {}", message.into())).with_details(json!({}))
    }

    /// Replaces the details.
    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// Seconds for a `Retry-After` header, if the details name them.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.details.as_ref()?.get("retryAfterSeconds")?.as_u64()
    }

    /// The whole `Status` object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "message": self.message,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.as_ref().into();
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        if let Some(token) = &self.continue_token {
            status["metadata"]["continue"] = token.as_str().into();
        }
        status["code"] = self.code.into();
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_upstreams() {
        let pods = GroupResource::new("", "pods");
        let deploys = GroupResource::new("apps", "deployments");
        let cases = [
            (StatusError::not_found(&pods, "a"), "pods \"a\" not found"),
            (StatusError::already_exists(&deploys, "b"), "deployments.apps \"b\" already exists"),
            (StatusError::forbidden(&pods, "", "no"), "pods is forbidden: no"),
            (
                StatusError::invalid(
                    &GroupVersionKind::new("apps", "v1", "Deployment"),
                    "c",
                    &[FieldError::required("spec.selector", "")],
                ),
                "Deployment.apps \"c\" is invalid: spec.selector: Required value",
            ),
        ];
        for (error, text) in cases {
            assert_eq!(error.message, text);
        }
    }

    #[test]
    fn details_leave_out_the_empty_group() {
        let value = StatusError::not_found(&GroupResource::new("", "pods"), "a").to_value();
        assert_eq!(value["details"], json!({"name": "a", "kind": "pods"}));
        assert_eq!(value["code"], 404);
    }
}
