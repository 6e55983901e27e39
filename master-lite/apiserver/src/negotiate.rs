//! Which form a client wants its answer in (`k8s.io/apiserver/pkg/endpoints/handlers/negotiation`).

use http::HeaderMap;

use crate::status::{Result, StatusError};

/// Media types that answers come in, for 406 messages.
const OFFERED: &[&str] = &["application/json"];

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The object or list itself.
    Object,
    /// `meta.k8s.io/v1 Table`.
    Table,
    /// `meta.k8s.io/v1 PartialObjectMetadata` or its list.
    PartialMetadata,
}

/// One entry of an `Accept` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// `application/json`, lower case.
    pub media_type: String,
    /// Parameters in lower-case keys, `q` left out.
    pub params: Vec<(String, String)>,
    quality: u16,
}

impl Accepted {
    /// A parameter's value.
    pub fn param(&self, key: &str) -> Option<&str> {
        self.params.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// True if JSON satisfies it.
    pub fn takes_json(&self) -> bool {
        matches!(self.media_type.as_str(), "application/json" | "application/*" | "*/*")
    }
}

/// Reads the `Accept` headers, best first; what is absent accepts anything.
pub fn accepted(headers: &HeaderMap) -> Vec<Accepted> {
    let text: Vec<&str> =
        headers.get_all(http::header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let mut list: Vec<Accepted> = text.join(",").split(',').filter_map(parse_entry).collect();
    if list.is_empty() {
        list.push(Accepted { media_type: "*/*".to_owned(), params: Vec::new(), quality: 1000 });
    }
    list.sort_by_key(|entry| std::cmp::Reverse(entry.quality));
    list
}

fn parse_entry(entry: &str) -> Option<Accepted> {
    let mut parts = entry.split(';').map(str::trim);
    let media_type = parts.next()?.to_ascii_lowercase();
    if media_type.is_empty() {
        return None;
    }
    let mut quality = 1000;
    let mut params = Vec::new();
    for part in parts {
        let (key, value) = part.split_once('=')?;
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned());
        if key == "q" {
            // Thousandths, as RFC 9110 section 12.4.2 allows three digits.
            let (whole, fraction) = value.split_once('.').unwrap_or((&value, ""));
            let fraction: String = fraction.chars().chain("000".chars()).take(3).collect();
            quality = (whole.parse::<u16>().ok()? * 1000 + fraction.parse::<u16>().ok()?).min(1000);
        } else {
            params.push((key, value));
        }
    }
    (quality > 0).then_some(Accepted { media_type, params, quality })
}

/// Chooses the form of an answer to a request for objects.
pub fn shape(headers: &HeaderMap) -> Result<Shape> {
    for entry in accepted(headers).iter().filter(|e| e.takes_json()) {
        let Some(kind) = entry.param("as") else { return Ok(Shape::Object) };
        let meta =
            entry.param("g").is_none_or(|g| g == "meta.k8s.io") && entry.param("v").is_none_or(|v| v == "v1");
        match kind {
            "Table" if meta => return Ok(Shape::Table),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if meta => {
                return Ok(Shape::PartialMetadata);
            }
            _ => {}
        }
    }
    Err(StatusError::not_acceptable(OFFERED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, expected: Option<Shape>) {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(http::header::ACCEPT, accept.parse().unwrap());
        }
        assert_eq!(shape(&headers).ok(), expected, "{accept}");
    }

    #[test]
    fn shapes() {
        check("", Some(Shape::Object));
        check("*/*", Some(Shape::Object));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some(Shape::Table),
        );
        check("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", Some(Shape::Object));
        check("application/vnd.kubernetes.protobuf,application/json", Some(Shape::Object));
        check("application/vnd.kubernetes.protobuf", None);
        check(
            "application/json;q=0.5,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            Some(Shape::PartialMetadata),
        );
    }
}
