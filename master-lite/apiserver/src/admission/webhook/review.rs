//! The questions to webhooks and their answers (`k8s.io/apiserver/pkg/admission/plugin/webhook/{request,errors}`).

use base64::Engine as _;
use serde_json::{Value, json};

use crate::authz::rbac::text;
use crate::authz::rule::go_quote;
use crate::extension::StatusError;

/// Version of `admission.k8s.io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReviewVersion {
    V1,
    V1Beta1,
}

impl ReviewVersion {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1Beta1),
            _ => None,
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "admission.k8s.io/v1",
            Self::V1Beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

/// The whole question.
pub(super) fn review(
    version: ReviewVersion,
    uid: &str,
    mut request: Value,
    object: &Value,
    old: &Value,
) -> Value {
    request["uid"] = uid.into();
    request["object"] = object.clone();
    request["oldObject"] = old.clone();
    json!({"kind": "AdmissionReview", "apiVersion": version.api_version(), "request": request})
}

/// A webhook's answer.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// It may go on, changed by this patch if there is one.
    Allowed(Option<Value>),
    /// It may not.
    Denied(StatusError),
}

/// Reads an answer. Also returns its warnings.
///
/// # Errors
/// When it is none: that counts as a failure to call.
pub(super) fn answer(
    hook: &str,
    version: ReviewVersion,
    uid: &str,
    mutating: bool,
    body: &[u8],
) -> Result<(Answer, Vec<String>), String> {
    let invalid = |why: String| format!("received invalid webhook response: {why}");
    let review: Value =
        serde_json::from_slice(body).map_err(|error| format!("failed to call webhook: {error}"))?;
    let response = review.get("response").filter(|response| response.is_object());
    let response = response.ok_or_else(|| invalid("webhook response was absent".to_owned()))?;
    if version == ReviewVersion::V1 {
        let given = text(response, "/uid");
        if given != uid {
            return Err(invalid(format!("expected response.uid={}, got {}", go_quote(uid), go_quote(given))));
        }
        let (api_version, kind) = (text(&review, "/apiVersion"), text(&review, "/kind"));
        if api_version != version.api_version() || kind != "AdmissionReview" {
            let wanted = "admission.k8s.io/v1, Kind=AdmissionReview";
            return Err(invalid(format!(
                "expected webhook response of {wanted}, got {api_version}, Kind={kind}"
            )));
        }
    }
    let warnings = response["warnings"].as_array().into_iter().flatten();
    let warnings = warnings.filter_map(|warning| warning.as_str().map(str::to_owned)).collect();
    let patch = text(response, "/patch");
    let patch_type = response["patchType"].as_str();
    match (mutating, version, patch.is_empty(), patch_type) {
        (true, ReviewVersion::V1, false, None) => {
            return Err(invalid("webhook returned response.patch but not response.patchType".to_owned()));
        }
        (true, ReviewVersion::V1, true, Some(_)) => {
            return Err(invalid("webhook returned response.patchType but not response.patch".to_owned()));
        }
        (false, ReviewVersion::V1, false, _) => {
            return Err(invalid("validating webhook may not return response.patch".to_owned()));
        }
        (false, ReviewVersion::V1, true, Some(_)) => {
            return Err(invalid("validating webhook may not return response.patchType".to_owned()));
        }
        _ => {}
    }
    if response["allowed"] != true {
        return Ok((Answer::Denied(denial(hook, &response["status"])), warnings));
    }
    if !mutating || patch.is_empty() {
        return Ok((Answer::Allowed(None), warnings));
    }
    if version == ReviewVersion::V1 && patch_type != Some("JSONPatch") {
        return Err(format!("unsupported patch type {}", go_quote(patch_type.unwrap_or_default())));
    }
    let undecodable = |why: String| format!("received undecodable patch in webhook response: {why}");
    let patch = base64::engine::general_purpose::STANDARD
        .decode(patch)
        .map_err(|error| undecodable(error.to_string()))?;
    let patch: Value = serde_json::from_slice(&patch).map_err(|error| undecodable(error.to_string()))?;
    let is_empty = patch.as_array().is_some_and(Vec::is_empty);
    Ok((Answer::Allowed(Some(patch).filter(|_| !is_empty)), warnings))
}

/// A denial in upstream's words.
fn denial(hook: &str, status: &Value) -> StatusError {
    let by = format!("admission webhook {} denied the request", go_quote(hook));
    let (message, reason) = (text(status, "/message"), text(status, "/reason"));
    let message = match (message, reason) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or_default().max(400);
    let mut error = StatusError::new(code, "", message);
    error.reason = reason.to_owned().into();
    error.details = status.get("details").filter(|details| details.is_object()).cloned();
    error
}

#[cfg(test)]
mod tests {
    use keelson_api::meta::GroupVersionKind;

    use super::*;
    use crate::admission::matching::Place;
    use crate::admission::seen::request;
    use crate::admission::testing::create;

    #[test]
    fn questions_are_whole() {
        let mut attributes =
            create("", "pods/status", json!({"kind": "Pod", "metadata": {"name": "p", "namespace": "a"}}));
        attributes.user.extra.insert("k".into(), vec!["v".into()]);
        attributes.user.uid = "u".into();
        attributes.options = json!({"kind": "CreateOptions"});
        let place = Place { group: "g".into(), version: "v2".into(), resource: "pods".into() };
        let kind = json!({"group": "g", "version": "v2", "kind": "Pod"});
        let request = request(&attributes, "a", &place, &GroupVersionKind::new("g", "v2", "Pod"));
        let review = review(ReviewVersion::V1, "1", request, &json!({"new": 1}), &Value::Null);
        assert_eq!(
            review,
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {
                "uid": "1", "kind": kind, "resource": {"group": "g", "version": "v2", "resource": "pods"},
                "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
                "requestResource": {"group": "", "version": "v1", "resource": "pods"},
                "subResource": "status", "requestSubResource": "status", "name": "p", "namespace": "a",
                "operation": "CREATE", "dryRun": false, "options": {"kind": "CreateOptions"},
                "userInfo": {"username": "kubernetes-admin", "uid": "u", "groups": ["system:masters"], "extra": {"k": ["v"]}},
                "object": {"new": 1}, "oldObject": null,
            }})
        );
    }

    #[test]
    fn answers_are_checked() {
        let read = |mutating: bool, response: Value| {
            let review =
                json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
            answer("h.example.com", ReviewVersion::V1, "1", mutating, review.to_string().as_bytes())
        };
        let patch = base64::engine::general_purpose::STANDARD.encode(r#"[{"op":"remove","path":"/a"}]"#);
        assert_eq!(
            read(true, json!({"uid": "1", "allowed": true, "warnings": ["w"]})),
            Ok((Answer::Allowed(None), vec!["w".to_owned()]))
        );
        let patched = json!({"uid": "1", "allowed": true, "patch": patch, "patchType": "JSONPatch"});
        assert_eq!(
            read(true, patched.clone()),
            Ok((Answer::Allowed(Some(json!([{"op": "remove", "path": "/a"}]))), vec![]))
        );
        let fails = |mutating: bool, response: Value, why: &str| {
            assert_eq!(read(mutating, response).unwrap_err(), why)
        };
        fails(
            false,
            patched,
            "received invalid webhook response: validating webhook may not return response.patch",
        );
        fails(true, Value::Null, "received invalid webhook response: webhook response was absent");
        fails(
            true,
            json!({"uid": "2"}),
            "received invalid webhook response: expected response.uid=\"1\", got \"2\"",
        );
        fails(
            true,
            json!({"uid": "1", "allowed": true, "patch": patch}),
            "received invalid webhook response: webhook returned response.patch but not response.patchType",
        );
        fails(
            true,
            json!({"uid": "1", "allowed": true, "patch": patch, "patchType": "Merge"}),
            "unsupported patch type \"Merge\"",
        );
        let denied =
            |status: Value| match read(false, json!({"uid": "1", "allowed": false, "status": status})) {
                Ok((Answer::Denied(error), _)) => (error.code, error.reason.into_owned(), error.message),
                other => panic!("{other:?}"),
            };
        let by = "admission webhook \"h.example.com\" denied the request";
        assert_eq!(denied(Value::Null), (400, String::new(), format!("{by} without explanation")));
        assert_eq!(
            denied(json!({"message": "no", "reason": "Mine", "code": 403})),
            (403, "Mine".to_owned(), format!("{by}: no"))
        );
        assert_eq!(
            denied(json!({"reason": "Mine", "code": 200})),
            (400, "Mine".to_owned(), format!("{by}: Mine"))
        );
    }
}
