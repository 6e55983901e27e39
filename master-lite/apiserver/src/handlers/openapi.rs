//! `/openapi/v3`: the index, and one document for each group and version.

use http::{HeaderValue, Response, StatusCode, header};
use keelson_api::openapi;

use super::{Call, json_response, nonresource, value_response};
use crate::discovery::etag;
use crate::extension::{Body, full_body};
use crate::status::{Result, StatusError};

/// Paths below this are answered here.
const ROOT: &str = "/openapi/v3";

/// True if the path is ours.
pub(super) fn is_openapi(path: &str) -> bool {
    path == ROOT || path.starts_with("/openapi/v3/")
}

/// Documents are made on demand and not kept: a client fetches each once and keeps it under its hash.
pub(super) async fn answer(call: &Call) -> Result<Response<Body>> {
    let table = call.core.table().clone();
    let path = call.info.path.trim_start_matches(ROOT).trim_matches('/').to_owned();
    if path.is_empty() {
        return Ok(value_response(StatusCode::OK, &openapi::v3_index(&table)));
    }
    let document = tokio::task::spawn_blocking(move || openapi::v3_document(&table, &path))
        .await
        .map_err(StatusError::internal)?;
    let Some(document) = document else { return Ok(nonresource::no_such_page()) };
    let tag = etag(&document);
    let known = call
        .headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.contains(&tag)));
    let mut response = if known {
        let mut response = Response::new(full_body(""));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        json_response(StatusCode::OK, bytes::Bytes::from_owner(document))
    };
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    if call.query.get("hash").is_some() {
        // The URL names the content, so it never changes.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    Ok(response)
}
