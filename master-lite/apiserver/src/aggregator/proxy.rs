//! Requests sent on to another server, with what the user is (`pkg/apiserver/handler_proxy.go`).

use std::fmt::Write as _;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};

use super::Remote;
use crate::extension::{Body, ConnectionInfo, UserInfo, full_body};
use crate::handlers::Call;
use crate::kubelet_proxy::relay::{Destination, relay};
use crate::status::{Result, StatusError};

/// Discovery is quick, or it is not there (`aggregatedDiscoveryTimeout`).
const DISCOVERY_PATIENCE: Duration = Duration::from_secs(5);
/// What else is asked may take as long as the client waits.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const REMOTE_USER: HeaderName = HeaderName::from_static("x-remote-user");
const REMOTE_UID: HeaderName = HeaderName::from_static("x-remote-uid");
const REMOTE_GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const REMOTE_EXTRA: &str = "x-remote-extra-";

/// Sends a request on that this server has authorized, and brings the answer back.
pub(crate) async fn forward(call: &Call, remote: &Remote, request: Request<Body>) -> Result<Response<Body>> {
    if !remote.is_available() {
        return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "service unavailable"));
    }
    if let Err(why) = remote.tls() {
        return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, &why));
    }
    let mut headers = user_headers(&call.user)?;
    if let Some(value) = forwarded_for(&request) {
        headers.insert(FORWARDED_FOR, value);
    }
    let sender = match remote.connect(&call.core).await {
        Ok(sender) => sender,
        Err(why) => {
            tracing::debug!(service = %remote.spec.name, why, "no way to the server of an APIService");
            return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "service unavailable"));
        }
    };
    let uri = request.uri();
    let target = uri.path_and_query().map_or(uri.path(), |whole| whole.as_str()).to_owned();
    let is_discovery = !call.info.is_resource_request && call.info.path == remote.spec.path();
    let patience = if is_discovery { DISCOVERY_PATIENCE } else { PATIENCE };
    let destination = Destination { sender, authority: remote.spec.authority(), target, patience, headers };
    let answer = relay(request, destination).await?;
    if answer.status().is_redirection() && answer.headers().contains_key(header::LOCATION) {
        // Who is sent elsewhere would take this server's word for it, and credentials along.
        let why = "the backend attempted to redirect this request, which is not permitted";
        return Ok(plain(StatusCode::BAD_GATEWAY, why));
    }
    Ok(answer)
}

/// What Go's `http.Error` answers.
fn plain(code: StatusCode, why: &str) -> Response<Body> {
    let mut response = Response::new(full_body(format!("{why}\n")));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The user, as servers behind a front proxy read it (`transport.SetAuthProxyHeaders`).
///
/// # Errors
/// When the user can't be said in headers.
pub(super) fn user_headers(user: &UserInfo) -> Result<HeaderMap> {
    let value = |text: &str| {
        HeaderValue::from_bytes(text.as_bytes()).map_err(|_no_value| {
            StatusError::internal(format!("{text:?} can't be said to the server behind"))
        })
    };
    let mut headers = HeaderMap::new();
    headers.insert(REMOTE_USER, value(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert(REMOTE_UID, value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append(REMOTE_GROUP, value(group)?);
    }
    for (key, values) in &user.extra {
        let name = HeaderName::try_from(format!("{REMOTE_EXTRA}{}", escaped(key))).map_err(|_no_value| {
            StatusError::internal(format!("{key:?} can't be said to the server behind"))
        })?;
        for text in values {
            headers.append(name.clone(), value(text)?);
        }
    }
    Ok(headers)
}

/// A key as part of a header's name: what may not stand there is `%`-encoded.
fn escaped(key: &str) -> String {
    let mut out = String::new();
    for byte in key.bytes() {
        let is_token = byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
        if is_token {
            out.push(char::from(byte));
        } else {
            // Writing into a text can't fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The clients on the way, this server's own last.
fn forwarded_for(request: &Request<Body>) -> Option<HeaderValue> {
    let address = request.extensions().get::<ConnectionInfo>()?.remote_addr?.ip().to_string();
    let before: Vec<&str> =
        request.headers().get_all(FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok()).collect();
    let all: Vec<&str> = before.into_iter().chain([address.as_str()]).collect();
    HeaderValue::from_str(&all.join(", ")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_said_in_headers() {
        let mut user = UserInfo::new("jane doe", &["a", "b"]);
        user.extra.insert("example.com/project%".into(), vec!["x".into(), "y".into()]);
        let headers = user_headers(&user).unwrap();
        let all = |name: &str| {
            headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(all("x-remote-user"), ["jane doe"]);
        assert_eq!(all("x-remote-group"), ["a", "b"]);
        assert_eq!(all("x-remote-extra-example.com%2fproject%25"), ["x", "y"]);
        assert!(!headers.contains_key("x-remote-uid"));
        user.uid = "u".into();
        assert_eq!(user_headers(&user).unwrap()["x-remote-uid"], "u");
        user.name = "two\nlines".into();
        assert_eq!(user_headers(&user).unwrap_err().code, 500);
    }

    #[test]
    fn clients_are_listed() {
        let mut request = Request::new(full_body(""));
        assert_eq!(forwarded_for(&request), None);
        let info = ConnectionInfo { remote_addr: "192.0.2.7:1".parse().ok(), ..Default::default() };
        request.extensions_mut().insert(info);
        assert_eq!(forwarded_for(&request).unwrap(), "192.0.2.7");
        request.headers_mut().insert("x-forwarded-for", HeaderValue::from_static("10.0.0.1"));
        assert_eq!(forwarded_for(&request).unwrap(), "10.0.0.1, 192.0.2.7");
    }
}
