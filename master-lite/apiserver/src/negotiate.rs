//! Which form a client wants its answer in (`k8s.io/apiserver/pkg/endpoints/handlers/negotiation`).

use http::{HeaderMap, header};
use keelson_api::codec::MediaType;

use crate::status::{Result, StatusError};

/// Media types of answers, in the order in which `*/*` takes them.
const ANSWERS: [MediaType; 3] = [MediaType::Json, MediaType::Yaml, MediaType::Protobuf];
/// Media types of watch streams; YAML can't be framed.
const STREAMS: &[&str] =
    &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// The object or list itself.
    #[default]
    Object,
    /// `meta.k8s.io/v1 Table`.
    Table,
    /// `meta.k8s.io/v1 PartialObjectMetadata` or its list.
    PartialMetadata,
}

/// What a client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// How it is encoded.
    pub media: MediaType,
    /// What is shown of it.
    pub shape: Shape,
}

impl Form {
    /// The object itself as JSON.
    pub const JSON: Self = Self { media: MediaType::Json, shape: Shape::Object };
}

/// What there is to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The kind has a protobuf form. (`PartialObjectMetadata` always has.)
    pub protobuf: bool,
    /// Tables and metadata alone can be had.
    pub shapes: bool,
}

/// One entry of an `Accept` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// `application`, lower case; `*` for any.
    kind: String,
    /// `json`, lower case; `*` for any.
    subtype: String,
    /// Parameters in lower-case keys, `q` left out.
    params: Vec<(String, String)>,
    quality: u16,
}

impl Accepted {
    /// A parameter's value.
    pub fn param(&self, key: &str) -> Option<&str> {
        self.params.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// True if a media type (`application/json`) satisfies it, parameters aside.
    pub fn takes(&self, media_type: &str) -> bool {
        let (kind, subtype) = media_type.split_once('/').unwrap_or((media_type, ""));
        (self.kind == "*" || self.kind == kind) && (self.subtype == "*" || self.subtype == subtype)
    }

    /// What it asks to be shown; `None` if that is not on offer.
    fn shape(&self) -> Option<Shape> {
        let [kind, group, version] = ["as", "g", "v"].map(|key| self.param(key));
        if kind.is_none() && group.is_none() && version.is_none() {
            return Some(Shape::Object);
        }
        match (kind?, group?, version?) {
            ("Table", "meta.k8s.io", "v1") => Some(Shape::Table),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
                Some(Shape::PartialMetadata)
            }
            _ => None,
        }
    }
}

/// Reads the `Accept` headers, best first; what is absent accepts anything.
pub fn accepted(headers: &HeaderMap) -> Vec<Accepted> {
    let text: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let text = text.join(",");
    let text = if text.trim().is_empty() { "*/*" } else { &text };
    let mut list: Vec<Accepted> = text.split(',').filter_map(parse_entry).collect();
    // Of the same quality what is named goes before what is left open.
    list.sort_by_key(|entry| (std::cmp::Reverse(entry.quality), entry.kind == "*", entry.subtype == "*"));
    list
}

fn parse_entry(entry: &str) -> Option<Accepted> {
    let mut parts = entry.split(';').map(str::trim);
    let media_type = parts.next()?.to_ascii_lowercase();
    let (kind, subtype) = match media_type.split_once('/') {
        Some((kind, subtype)) if !kind.is_empty() && !subtype.is_empty() => (kind, subtype),
        None if media_type == "*" => ("*", "*"),
        _ => return None,
    };
    let (kind, subtype) = (kind.to_owned(), subtype.to_owned());
    let mut quality = 1000;
    let mut params = Vec::new();
    for part in parts {
        let Some((key, value)) = part.split_once('=') else { continue };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned());
        if key == "q" {
            quality = thousandths(&value)?;
        } else {
            params.push((key, value));
        }
    }
    (quality > 0).then_some(Accepted { kind, subtype, params, quality })
}

/// A quality: RFC 9110 section 12.4.2 allows three digits after the point.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction: String = fraction.chars().chain("000".chars()).take(3).collect();
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u16>().ok()? };
    Some(whole.saturating_mul(1000).saturating_add(fraction.parse().ok()?).min(1000))
}

/// Chooses the form of an answer.
///
/// # Errors
/// 406 when nothing on offer is acceptable.
pub fn form(headers: &HeaderMap, offer: Offer) -> Result<Form> {
    choose(headers, offer).ok_or_else(|| {
        let types = ANSWERS.iter().filter(|media| offer.protobuf || **media != MediaType::Protobuf);
        StatusError::not_acceptable(&types.map(|media| media.as_str()).collect::<Vec<_>>())
    })
}

/// Chooses the form of a watch's events.
///
/// # Errors
/// 406 when nothing on offer is acceptable, or what is can't be streamed.
pub fn stream_form(headers: &HeaderMap, offer: Offer) -> Result<Form> {
    choose(headers, offer)
        .filter(|form| form.media != MediaType::Yaml)
        .ok_or_else(|| StatusError::not_acceptable(&STREAMS[..if offer.protobuf { 2 } else { 1 }]))
}

/// How an error is encoded: as the client would have had it, and as JSON if that can't be.
pub fn error_media(headers: &HeaderMap) -> MediaType {
    choose(headers, Offer { protobuf: true, shapes: false }).map_or(MediaType::Json, |form| form.media)
}

fn choose(headers: &HeaderMap, offer: Offer) -> Option<Form> {
    let list = accepted(headers);
    list.iter().find_map(|entry| ANSWERS.iter().find_map(|media| try_entry(entry, *media, offer)))
}

fn try_entry(entry: &Accepted, media: MediaType, offer: Offer) -> Option<Form> {
    if !entry.takes(media.as_str()) {
        return None;
    }
    let shape = entry.shape()?;
    let possible = match shape {
        Shape::Object => media != MediaType::Protobuf || offer.protobuf,
        // Tables have no protobuf form.
        Shape::Table => offer.shapes && media != MediaType::Protobuf,
        Shape::PartialMetadata => offer.shapes,
    };
    let stream = match entry.param("stream") {
        None | Some("") => true,
        Some(kind) => kind == "watch" && media != MediaType::Yaml,
    };
    let server_version = entry.param("sv").is_none_or(|version| matches!(version, "" | "v1"));
    (possible && stream && server_version).then_some(Form { media, shape })
}

/// True if the client takes gzip.
pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let encodings = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    encodings.flat_map(|text| text.split(',')).any(|token| {
        let mut parts = token.split(';').map(str::trim);
        let refused = |part: &str| part.strip_prefix("q=").is_some_and(|q| thousandths(q) == Some(0));
        parts.next().is_some_and(|coding| coding.eq_ignore_ascii_case("gzip")) && !parts.any(refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILTIN: Offer = Offer { protobuf: true, shapes: true };
    const CUSTOM: Offer = Offer { protobuf: false, shapes: true };

    fn headers(accept: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(header::ACCEPT, accept.parse().unwrap());
        }
        headers
    }

    fn check(offer: Offer, accept: &str, expected: Option<(MediaType, Shape)>) {
        let got = form(&headers(accept), offer).ok().map(|form| (form.media, form.shape));
        assert_eq!(got, expected, "{accept}");
    }

    #[test]
    fn forms() {
        use MediaType::{Json, Protobuf, Yaml};
        use Shape::{Object, PartialMetadata, Table};
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        let client_go = "application/vnd.kubernetes.protobuf,application/json";
        for (accept, expected) in [
            ("", Some((Json, Object))),
            ("*/*", Some((Json, Object))),
            ("*", Some((Json, Object))),
            ("application/*", Some((Json, Object))),
            ("application/yaml", Some((Yaml, Object))),
            ("application/json;q=0.5, application/yaml", Some((Yaml, Object))),
            ("application/json;q=0.5, application/yaml;q=0.25", Some((Json, Object))),
            ("application/json;q=0, application/yaml;q=0.1", Some((Yaml, Object))),
            ("*/*, application/yaml", Some((Yaml, Object))),
            ("text/html, */*;q=0.8", Some((Json, Object))),
            (kubectl, Some((Json, Table))),
            ("application/yaml;as=Table;v=v1;g=meta.k8s.io", Some((Yaml, Table))),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", Some((Json, Object))),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io", None),
            ("application/json;as=Table", None),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", None),
            (
                "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json",
                Some((Json, Object)),
            ),
            (client_go, Some((Protobuf, Object))),
            ("application/vnd.kubernetes.protobuf", Some((Protobuf, Object))),
            ("application/vnd.kubernetes.protobuf;stream=watch", Some((Protobuf, Object))),
            ("application/json;stream=other", None),
            (metadata, Some((Protobuf, PartialMetadata))),
            ("text/plain", None),
            ("json", None),
            ("application/cbor", None),
        ] {
            check(BUILTIN, accept, expected);
        }
        check(CUSTOM, client_go, Some((Json, Object)));
        check(CUSTOM, "application/vnd.kubernetes.protobuf", None);
        check(CUSTOM, metadata, Some((Protobuf, PartialMetadata)));
        let plain = Offer { protobuf: true, shapes: false };
        check(plain, kubectl, Some((Json, Object)));
        check(plain, "application/json;as=Table;v=v1;g=meta.k8s.io", None);
    }

    #[test]
    fn streams() {
        let media = |accept: &str| stream_form(&headers(accept), BUILTIN).map(|form| form.media);
        assert_eq!(media("application/vnd.kubernetes.protobuf;stream=watch"), Ok(MediaType::Protobuf));
        assert_eq!(media("application/json;stream=watch"), Ok(MediaType::Json));
        assert_eq!(
            media("application/yaml").unwrap_err().message,
            "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
        );
    }

    #[test]
    fn errors_are_always_told() {
        assert_eq!(error_media(&headers("text/plain")), MediaType::Json);
        assert_eq!(error_media(&headers("application/vnd.kubernetes.protobuf")), MediaType::Protobuf);
        assert_eq!(
            form(&headers("text/plain"), BUILTIN).unwrap_err().message,
            "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
        );
    }

    #[test]
    fn gzip() {
        let check = |text: &str, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, text.parse().unwrap());
            assert_eq!(takes_gzip(&headers), expected, "{text}");
        };
        check("gzip", true);
        check("br, gzip", true);
        check("deflate, gzip;q=0.5", true);
        check("gzip;q=0", false);
        check("gzip;q=0.000", false);
        check("identity", false);
        check("xgzip", false);
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_read(accept in "[ -~]{0,60}") {
            let _ = form(&headers(&accept), BUILTIN);
        }
    }
}
