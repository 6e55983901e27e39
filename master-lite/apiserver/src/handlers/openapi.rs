//! `/openapi/v3`: the index, and one document for each group and version. `/openapi/v2`: one document of everything.

use http::{HeaderValue, Response, StatusCode, header};
use keelson_api::codec::MediaType;
use keelson_api::openapi;
use serde_json::json;

use super::{Call, nonresource};
use crate::answer;
use crate::discovery::etag;
use crate::extension::{Body, full_body};
use crate::negotiate;
use crate::status::{Result, StatusError};

/// The index of documents; they are below it.
const V3: &str = "/openapi/v3";
/// The document.
const V2: &str = "/openapi/v2";
/// Media types of the v2 document as clients ask for them, and as they get them.
const V2_FORMS: [(&str, &str); 3] = [
    ("application/json", "application/json"),
    // `@` is not allowed in a media type; clients up to v1.36 ask for it.
    ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", V2_PROTOBUF),
    (V2_PROTOBUF, V2_PROTOBUF),
];
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// True if the path is ours.
pub(super) fn is_openapi(path: &str) -> bool {
    path == V2 || path == V3 || path.starts_with("/openapi/v3/")
}

/// Documents are made on demand and not kept: a client fetches each once and keeps it under its hash.
pub(super) async fn answer(call: &Call) -> Result<Response<Body>> {
    let table = call.core.table();
    if call.info.path == V2 {
        return v2(call).await;
    }
    let path = call.info.path.trim_start_matches(V3).trim_matches('/').to_owned();
    if path.is_empty() {
        let mut index = openapi::v3_index(&table);
        for group in call.core.groups() {
            for version in &group.versions {
                if let Some(url) = version.openapi_of_other_server() {
                    let path = openapi::document_path(&group.name, &version.name);
                    index["paths"][path] = json!({"serverRelativeURL": url});
                }
            }
        }
        let index = answer::encode(MediaType::Json, &index)?;
        return Ok(answer::encoded(StatusCode::OK, MediaType::Json, index));
    }
    let document = tokio::task::spawn_blocking(move || openapi::v3_document(&table, &path))
        .await
        .map_err(StatusError::internal)?;
    let Some(document) = document else { return Ok(nonresource::no_such_page()) };
    let tag = etag(&document);
    let mut response = if is_known(call, &tag) {
        not_modified()
    } else {
        answer::document(StatusCode::OK, "application/json", bytes::Bytes::from_owner(document))
    };
    tag_response(&mut response, &tag);
    let caching = match call.query.get("hash") {
        // The URL names the content, so it never changes.
        Some(_) => "public, immutable",
        None => "no-cache, private",
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    Ok(response)
}

async fn v2(call: &Call) -> Result<Response<Body>> {
    let accepted = negotiate::accepted(&call.headers);
    let form = accepted.iter().find_map(|entry| V2_FORMS.iter().find(|(asked, _)| entry.takes(asked)));
    let Some((_, content_type)) = form else {
        let mut response = Response::new(full_body(""));
        *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
        return Ok(response);
    };
    let table = call.core.table();
    // Of the content, not of its form: `Vary` keeps these apart, as upstream does.
    let tag = format!("\"{}\"", openapi::v2_hash(&table));
    let mut response = if is_known(call, &tag) {
        not_modified()
    } else {
        let make = move || {
            let document = openapi::v2_document(&table);
            if *content_type == V2_PROTOBUF {
                openapi::v2_protobuf(&document)
            } else {
                document.to_string().into()
            }
        };
        let body = tokio::task::spawn_blocking(make).await.map_err(StatusError::internal)?;
        answer::document(StatusCode::OK, content_type, body)
    };
    tag_response(&mut response, &tag);
    Ok(response)
}

fn is_known(call: &Call, tag: &str) -> bool {
    let known = call.headers.get_all(header::IF_NONE_MATCH);
    known.iter().any(|value| value.to_str().is_ok_and(|value| value.contains(tag)))
}

fn not_modified() -> Response<Body> {
    let mut response = Response::new(full_body(""));
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

fn tag_response(response: &mut Response<Body>, tag: &str) {
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
}
