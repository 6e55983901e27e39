//! Discovery, version, health, metrics, OpenAPI.

use http::{HeaderValue, Method, Response, StatusCode, header};
use keelson_api::codec::MediaType;
use serde_json::{Value, json};

use super::Call;
use crate::answer;
use crate::discovery;
use crate::extension::{Body, full_body};
use crate::negotiate::{self, Offer};
use crate::status::Result;

/// What the server says it is.
pub const GIT_VERSION: &str = "v1.36.0+keelson";

/// Upstream's plain 404 for paths it doesn't have.
pub(super) fn no_such_page() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn text(code: StatusCode, body: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(full_body(body));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

pub(super) fn answer(call: &Call, method: &Method) -> Result<Response<Body>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Ok(no_such_page());
    }
    let path = call.info.path.trim_end_matches('/');
    if let Some(response) = call.core.paths.iter().find_map(|handler| handler(path)) {
        return Ok(response);
    }
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let table = &*call.core.table();
    let found = match parts.as_slice() {
        [] => Some(json!({"paths": paths(call)})),
        ["api"] | ["apis"] if discovery::wants_aggregated(&call.headers) => {
            return Ok(aggregated(call, parts[0] == "api"));
        }
        ["api"] => Some(discovery::api_versions(host(call))),
        ["apis"] => Some(discovery::api_group_list(&call.core.groups())),
        ["api", version] => discovery::api_resource_list(table, "", version),
        ["apis", group] => discovery::api_group_at(&call.core.groups(), group),
        ["apis", group, version] => discovery::api_resource_list(table, group, version),
        ["version"] => Some(version()),
        ["healthz" | "livez" | "readyz", rest @ ..] => return Ok(health(call, parts[0], rest)),
        ["metrics"] => {
            let mut response = text(StatusCode::OK, call.core.render_metrics());
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            return Ok(response);
        }
        _ => None,
    };
    let Some(value) = found else { return Ok(no_such_page()) };
    let media = match parts.as_slice() {
        ["api" | "apis", ..] => {
            negotiate::form(&call.headers, Offer { protobuf: true, shapes: false })?.media
        }
        _ => MediaType::Json,
    };
    Ok(answer::encoded(StatusCode::OK, media, answer::encode(media, &value)?))
}

fn host(call: &Call) -> &str {
    call.headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

fn paths(call: &Call) -> Vec<String> {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for group in call.core.groups().iter().filter(|group| !group.name.is_empty()) {
        let path = format!("/apis/{}", group.name);
        paths.extend(group.versions.iter().map(|version| format!("{path}/{}", version.name)));
        paths.push(path);
    }
    paths.sort();
    paths.extend(
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
            .map(str::to_owned),
    );
    paths
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean", "buildDate": "",
        "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

fn aggregated(call: &Call, core: bool) -> Response<Body> {
    let body = discovery::aggregated(&call.core.table(), &call.core.groups(), core).to_string();
    let etag = discovery::etag(body.as_bytes());
    let matches = call
        .headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .any(|v| v.to_str().is_ok_and(|v| v.contains(&etag)));
    let mut response = if matches {
        let mut response = Response::new(full_body(""));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        answer::encoded(StatusCode::OK, MediaType::Json, body)
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(discovery::AGGREGATED));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(value) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// Health by upstream's checks' names. The server only listens once its cache is filled, so a check that it can
/// answer at all is nearly all there is; the store is asked through the cache's task.
fn health(call: &Call, which: &str, rest: &[&str]) -> Response<Body> {
    let following = !call.core.cache_task.is_finished();
    let checks = [("ping", true), ("log", true), ("etcd", following), ("informer-sync", following)];
    if let [name] = rest {
        return match checks.iter().find(|(check, _)| check == name) {
            Some((_, true)) => text(StatusCode::OK, "ok"),
            Some((_, false)) => {
                text(StatusCode::INTERNAL_SERVER_ERROR, "internal server error: check failed\n")
            }
            None => no_such_page(),
        };
    }
    let excluded: Vec<&str> =
        call.query.0.iter().filter(|(k, _)| k == "exclude").map(|(_, v)| v.as_str()).collect();
    let mut lines = String::new();
    let mut good = true;
    for (name, ok) in checks {
        if excluded.contains(&name) {
            lines.push_str(&format!("[+]{name} excluded: ok\n"));
        } else if ok {
            lines.push_str(&format!("[+]{name} ok\n"));
        } else {
            good = false;
            lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    if !good {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{which} check failed\n"));
    }
    if call.query.get("verbose").is_some() {
        return text(StatusCode::OK, format!("{lines}{which} check passed\n"));
    }
    text(StatusCode::OK, "ok")
}
