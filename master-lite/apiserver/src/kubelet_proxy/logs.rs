//! pods/log.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use keelson_api::field::FieldError;
use keelson_api::meta::GroupVersionKind;
use serde_json::json;

use super::Backend;
use super::dial::Trust;
use super::location::{container, kubelet};
use super::relay::{Destination, relay};
use super::streams::{authority, flag};
use crate::authz::rbac::text;
use crate::extension::{Body, Connector, RequestContext, Result, StatusError, full_body};
use crate::websocket::{Content, Upgrade};

/// A kubelet answers at once, before the first line.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much of a kubelet's error is shown.
const MAX_ERROR: usize = 50_000;

/// The connector.
pub(super) struct Logs {
    backend: Arc<Backend>,
}

impl Logs {
    pub(super) fn new(backend: Arc<Backend>) -> Self {
        Self { backend }
    }
}

#[async_trait::async_trait]
impl Connector for Logs {
    fn verbs(&self) -> &'static [&'static str] {
        &["get"]
    }

    async fn connect(&self, context: &RequestContext, mut request: Request<Body>) -> Result<Response<Body>> {
        let (namespace, name) = (context.info.namespace.as_str(), context.info.name.as_str());
        let upgrade = Upgrade::of(&mut request, Content::Stream)?;
        let query = query(name, &context.query)?;
        let pod = self.backend.get("pods", Some(namespace), name)?;
        let container = container(&pod, context.query("container").unwrap_or_default())?;
        let node = text(&pod, "/spec/nodeName");
        if node.is_empty() {
            // Not yet anywhere: no lines, and no error, as upstream.
            let mut response = Response::new(full_body(bytes::Bytes::new()));
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        }
        let (host, port) = kubelet(&*self.backend.get("nodes", None, node)?)?;
        let mut target =
            format!("/containerLogs/{}/{}/{}", encode(namespace), encode(name), encode(&container));
        if !query.is_empty() {
            target = format!("{target}?{query}");
        }
        let trusting = flag(&context.query, "insecureSkipTLSVerifyBackend");
        let trust = if trusting { Trust::Anyone } else { Trust::Signed };
        let sender = self.backend.dialer.kubelet(&host, port, trust).await?;
        // Of the client's request nothing but the parameters goes on.
        let mut onward = Request::new(full_body(bytes::Bytes::new()));
        *onward.method_mut() = http::Method::GET;
        drop(request);
        let headers = HeaderMap::new();
        let authority = authority(&host, port);
        let destination = Destination { sender, authority, target, patience: PATIENCE, headers };
        let answer = relay(onward, destination).await?;
        if !answer.status().is_success() {
            return Err(error_of(answer).await);
        }
        let mut response = Response::new(answer.into_body());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        match upgrade {
            Some(upgrade) => upgrade.answer(response),
            None => Ok(response),
        }
    }
}

/// A kubelet's refusal as a Status, with its text as the message.
async fn error_of(answer: Response<Body>) -> StatusError {
    let status = answer.status();
    let text = match tokio::time::timeout(PATIENCE, read_some(answer.into_body())).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim_end().to_owned(),
        Err(_elapsed) => "the kubelet's error could not be read".to_owned(),
    };
    match status.as_u16() {
        400 => StatusError::bad_request(text),
        500 => StatusError::internal(text),
        code => {
            let reason = match code {
                401 => "Unauthorized",
                403 => "Forbidden",
                404 => "NotFound",
                409 => "Conflict",
                429 => "TooManyRequests",
                503 => "ServiceUnavailable",
                504 => "Timeout",
                _ => "",
            };
            StatusError::new(code, reason, text)
        }
    }
}

/// The beginning of a body, as far as it can be read.
async fn read_some(mut body: Body) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        out.extend_from_slice(frame.data_ref().map(|d| &d[..]).unwrap_or_default());
        if out.len() >= MAX_ERROR {
            out.truncate(MAX_ERROR);
            break;
        }
    }
    out
}

/// The kubelet's parameters for ours, checked.
fn query(pod: &str, given: &[(String, String)]) -> Result<String> {
    let value = |key: &str| given.iter().find(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str());
    let number = |key: &str| -> Result<Option<i64>> {
        let Some(text) = value(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_not_a_number| {
            StatusError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
        })
    };
    let (tail, limit, since) = (number("tailLines")?, number("limitBytes")?, number("sinceSeconds")?);
    let since_time = value("sinceTime");
    let stream = value("stream").unwrap_or("All");
    let mut errors = Vec::new();
    let mut at_least = |field: &str, value: Option<i64>, least: i64, why: &str| {
        if let Some(value) = value.filter(|v| *v < least) {
            errors.push(FieldError::invalid(field, &json!(value), why));
        }
    };
    at_least("tailLines", tail, 0, "must be greater than or equal to 0");
    at_least("limitBytes", limit, 1, "must be greater than 0");
    at_least("sinceSeconds", since, 1, "must be greater than 0");
    if since.is_some() && since_time.is_some() {
        errors
            .push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if !matches!(stream, "All" | "Stdout" | "Stderr") {
        errors.push(FieldError::not_supported("stream", &json!(stream), &["All", "Stderr", "Stdout"]));
    } else if stream != "All" && tail.is_some() {
        errors.push(FieldError::forbidden(
            "",
            "`tailLines` and specific `stream` are mutually exclusive for now",
        ));
    }
    if !errors.is_empty() {
        return Err(StatusError::invalid(&GroupVersionKind::new("", "v1", "PodLogOptions"), pod, &errors));
    }
    let mut out: Vec<String> = Vec::new();
    for key in ["follow", "previous", "timestamps"] {
        if flag(given, key) {
            out.push(format!("{key}=true"));
        }
    }
    for (key, value) in [("sinceSeconds", since), ("tailLines", tail), ("limitBytes", limit)] {
        out.extend(value.map(|v| format!("{key}={v}")));
    }
    if let Some(time) = since_time {
        if chrono::DateTime::parse_from_rfc3339(time).is_err() {
            return Err(StatusError::bad_request(format!("sinceTime {time:?} is not in RFC 3339 format")));
        }
        out.push(format!("sinceTime={}", encode(time)));
    }
    if stream != "All" {
        out.push(format!("stream={stream}"));
    }
    Ok(out.join("&"))
}

/// Percent-encodes all but unreserved characters (RFC 3986, 2.3), for one path segment or query value.
pub(super) fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, b| {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(b));
        } else {
            // Writing to a String can't fail.
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let check = |given: &[(&str, &str)], want: Result<&str, &str>| {
            let given: Vec<(String, String)> =
                given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let got = query("p", &given).map_err(|e| e.message);
            match want {
                Ok(text) => assert_eq!(got.as_deref(), Ok(text)),
                Err(part) => assert!(got.as_ref().is_err_and(|m| m.contains(part)), "{got:?}"),
            }
        };
        check(&[("container", "c")], Ok(""));
        check(
            &[("follow", "true"), ("timestamps", "false"), ("tailLines", "0")],
            Ok("follow=true&tailLines=0"),
        );
        check(
            &[("sinceTime", "2026-01-01T00:00:00+01:00")],
            Ok("sinceTime=2026-01-01T00%3A00%3A00%2B01%3A00"),
        );
        check(
            &[("tailLines", "-1")],
            Err(
                "PodLogOptions \"p\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0",
            ),
        );
        check(&[("limitBytes", "0")], Err("limitBytes: Invalid value: 0: must be greater than 0"));
        check(&[("tailLines", "x")], Err("strconv.ParseInt: parsing \"x\": invalid syntax"));
        check(
            &[("sinceSeconds", "5"), ("sinceTime", "2026-01-01T00:00:00Z")],
            Err("at most one of `sinceTime` or `sinceSeconds`"),
        );
        check(&[("stream", "Stdout")], Ok("stream=Stdout"));
        check(&[("stream", "x")], Err("stream: Unsupported value"));
    }

    proptest::proptest! {
        #[test]
        fn encoded_text_is_one_segment(text in "\\PC{0,40}") {
            let encoded = encode(&text);
            let uri: http::Uri = format!("/x/{encoded}?a={encoded}").parse().unwrap();
            proptest::prop_assert_eq!(uri.path(), format!("/x/{encoded}"));
        }
    }
}
