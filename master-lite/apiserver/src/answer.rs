//! Answers on their way out: encoded as the client wants them, and compressed if it takes that.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use keelson_api::codec::{self, MediaType};
use serde_json::Value;

use crate::extension::{Body, full_body};
use crate::negotiate;
use crate::status::{Result, StatusError};

/// Bytes above which objects are compressed: upstream's `defaultGzipThresholdBytes`.
const OBJECTS: usize = 128 * 1024;
/// Bytes above which documents are: that of upstream's handler of them.
const DOCUMENTS: usize = 1400;

/// An answer that is all there and may be compressed if it has more bytes than this.
#[derive(Debug, Clone, Copy)]
struct CompressAbove(usize);

/// Encodes a tree.
///
/// # Errors
/// 500 if it has no such form.
pub fn encode(media: MediaType, value: &Value) -> Result<Bytes> {
    codec::encode(media, value).map(Bytes::from).map_err(StatusError::internal)
}

/// An answer of objects or lists that are encoded already.
pub fn encoded(code: StatusCode, media: MediaType, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = document(code, media.as_str(), body);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response.extensions_mut().insert(CompressAbove(OBJECTS));
    response
}

/// An answer of some other text; no word about caching is said.
pub fn document(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full_body(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.extensions_mut().insert(CompressAbove(DOCUMENTS));
    response
}

/// Compresses an answer if it is worth it and the client, whose request's headers these are, takes it.
pub async fn compress(request: &HeaderMap, response: Response<Body>) -> Response<Body> {
    let Some(CompressAbove(least)) = response.extensions().get::<CompressAbove>().copied() else {
        return response;
    };
    if !negotiate::takes_gzip(request) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // The body is all there, so this neither waits nor fails.
    let whole = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    if whole.len() <= least {
        return Response::from_parts(parts, full_body(whole));
    }
    let plain = whole.clone();
    let Ok(Some(packed)) = tokio::task::spawn_blocking(move || gzip(&plain)).await else {
        return Response::from_parts(parts, full_body(whole));
    };
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    Response::from_parts(parts, full_body(packed))
}

/// Level 1, as upstream: the least work, and hardly larger.
fn gzip(plain: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 8), Compression::fast());
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    async fn check(size: usize, accept: &str, expected: bool) {
        let mut request = HeaderMap::new();
        request.insert(header::ACCEPT_ENCODING, accept.parse().unwrap());
        let text = "a".repeat(size);
        let response = encoded(StatusCode::OK, MediaType::Json, text.clone());
        let response = compress(&request, response).await;
        let packed = response.headers().contains_key(header::CONTENT_ENCODING);
        assert_eq!(
            (packed, response.headers().contains_key(header::VARY)),
            (expected, expected),
            "{size} {accept}"
        );
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let mut back = String::new();
        if packed {
            flate2::read::GzDecoder::new(&*body).read_to_string(&mut back).unwrap();
        } else {
            back = String::from_utf8(body.to_vec()).unwrap();
        }
        assert_eq!(back, text);
    }

    #[tokio::test]
    async fn large_answers_are_compressed() {
        check(OBJECTS + 1, "gzip", true).await;
        check(OBJECTS, "gzip", false).await;
        check(OBJECTS + 1, "identity", false).await;
        check(0, "gzip", false).await;
    }

    #[tokio::test]
    async fn streams_are_left_alone() {
        let mut request = HeaderMap::new();
        request.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        let response = Response::new(full_body("a".repeat(OBJECTS * 2)));
        assert!(!compress(&request, response).await.headers().contains_key(header::CONTENT_ENCODING));
    }
}
