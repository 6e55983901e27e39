//! What an answer of a proxied server must say differently, so that a browser comes back through the proxy: links and
//! redirects to its own paths (`k8s.io/apimachinery/pkg/util/proxy.Transport`).

use std::io::Read as _;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use html5gum::emitters::default::{DefaultEmitter, StartTag, Token};
use html5gum::{HtmlString, Tokenizer};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Response};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::body::Frame;

use crate::extension::{Body, BoxError, Result, StatusError, full_body};

/// Largest page whose links are rewritten; a larger one passes as it is.
const MAX_PAGE: usize = 8 << 20;

/// Headers by which a page behind the proxy would open the API to other pages.
const CORS: [HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];

/// How a page's links become links through the proxy.
pub(super) struct Links {
    /// The path that stands for the root of the server behind: `/api/v1/…/proxy`.
    pub(super) prefix: String,
    /// `host:port` of the server behind.
    pub(super) source: String,
    /// The host that the client asked.
    pub(super) host: String,
}

impl Links {
    /// The answer as the client should see it; `head`: without body.
    pub(super) async fn answered(&self, answer: Response<Body>, head: bool) -> Result<Response<Body>> {
        let (mut parts, body) = answer.into_parts();
        for name in &CORS {
            parts.headers.remove(name);
        }
        if let Some(location) = parts.headers.get(header::LOCATION) {
            let new = location.to_str().ok().and_then(|location| self.link(location));
            if let Some(new) = new.and_then(|new| HeaderValue::try_from(new).ok()) {
                parts.headers.insert(header::LOCATION, new);
            }
            return Ok(Response::from_parts(parts, body));
        }
        let Some(encoding) = Encoding::of(&parts.headers).filter(|_| !head && is_html(&parts.headers)) else {
            return Ok(Response::from_parts(parts, body));
        };
        let (page, rest) = beginning(body).await?;
        if let Some(rest) = rest {
            let first = futures::stream::once(async { Ok::<_, BoxError>(Frame::data(page)) });
            let body = StreamBody::new(first.chain(BodyStream::new(rest))).boxed_unsync();
            return Ok(Response::from_parts(parts, body));
        }
        let Some(new) = encoding.decode(&page).and_then(|plain| self.page(&plain)) else {
            return Ok(Response::from_parts(parts, full_body(page)));
        };
        // The length is the connection's to say; the page goes on as plain text.
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(header::CONTENT_ENCODING);
        Ok(Response::from_parts(parts, full_body(new)))
    }

    /// A link through the proxy; none if it stays what it is: relative, to another host, or through the proxy already.
    fn link(&self, link: &str) -> Option<String> {
        let (origin, host, path) = split(link);
        if !path.starts_with('/') || !(host.is_empty() || host == self.source || host == self.host) {
            return None;
        }
        if path.starts_with(&self.prefix) {
            return None;
        }
        let origin = if host == self.host { origin } else { "" };
        Some(format!("{origin}{}{path}", self.prefix))
    }

    /// A page with its links rewritten; none if it has no link to rewrite.
    fn page(&self, page: &[u8]) -> Option<Vec<u8>> {
        let mut emitter = DefaultEmitter::<usize>::new_with_span();
        emitter.naively_switch_states(true);
        let mut out = Vec::new();
        let mut copied = 0;
        for token in Tokenizer::new_with_emitter(page, emitter) {
            let Ok(token) = token;
            let Token::StartTag(mut tag) = token else { continue };
            if !self.tag(&mut tag) {
                continue;
            }
            let (start, end) = (tag.span.start, tag.span.end);
            // A tag that is not where it should be: better no rewriting than a broken page.
            let source = page.get(start..end).filter(|_| start >= copied)?;
            if !(source.starts_with(b"<") && source.ends_with(b">")) {
                return None;
            }
            out.extend_from_slice(&page[copied..start]);
            write_tag(&tag, &mut out);
            copied = end;
        }
        if copied == 0 {
            return None;
        }
        out.extend_from_slice(&page[copied..]);
        Some(out)
    }

    /// Rewrites the links of a tag; whether there were any.
    fn tag(&self, tag: &mut StartTag<usize>) -> bool {
        let mut changed = false;
        for name in attributes(&tag.name) {
            let Some(value) = tag.attributes.get_mut(name.as_bytes()) else { continue };
            let Some(new) = std::str::from_utf8(&value.value).ok().and_then(|link| self.link(link)) else {
                continue;
            };
            value.value = HtmlString(new.into_bytes());
            changed = true;
        }
        changed
    }
}

/// Origin (`scheme://host`), host, and the rest of a link.
fn split(link: &str) -> (&str, &str, &str) {
    let scheme = link.find(':').filter(|colon| {
        let name = &link[..*colon];
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    });
    let after = scheme.map_or(0, |colon| colon + 1);
    let Some(rest) = link[after..].strip_prefix("//") else {
        // `mailto:x` has no path that is ours.
        return if scheme.is_some() { ("", "", "") } else { ("", "", link) };
    };
    let host_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = &rest[..host_end];
    (&link[..after + 2 + host_end], host, &rest[host_end..])
}

/// The attributes of an element that are links, as upstream lists them.
fn attributes(element: &[u8]) -> &'static [&'static str] {
    match element {
        b"a" | b"area" | b"base" | b"link" => &["href"],
        b"applet" => &["codebase"],
        b"audio" | b"embed" | b"script" | b"source" => &["src"],
        b"blockquote" | b"del" | b"ins" | b"q" => &["cite"],
        b"body" => &["background"],
        b"button" => &["formaction"],
        b"command" => &["icon"],
        b"form" => &["action"],
        b"frame" | b"iframe" => &["longdesc", "src"],
        b"head" => &["profile"],
        b"html" => &["manifest"],
        b"img" => &["longdesc", "src", "usemap"],
        b"input" => &["src", "usemap", "formaction"],
        b"object" => &["classid", "codebase", "data", "usemap"],
        b"video" => &["poster", "src"],
        _ => &[],
    }
}

fn write_tag(tag: &StartTag<usize>, out: &mut Vec<u8>) {
    out.push(b'<');
    out.extend_from_slice(&tag.name);
    for (name, value) in &tag.attributes {
        out.push(b' ');
        out.extend_from_slice(name);
        out.extend_from_slice(b"=\"");
        for byte in value.value.iter() {
            match byte {
                b'&' => out.extend_from_slice(b"&amp;"),
                b'"' => out.extend_from_slice(b"&#34;"),
                b'<' => out.extend_from_slice(b"&lt;"),
                b'>' => out.extend_from_slice(b"&gt;"),
                other => out.push(*other),
            }
        }
        out.push(b'"');
    }
    out.extend_from_slice(if tag.self_closing { b"/>" } else { b">" });
}

fn is_html(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim() == "text/html"
}

/// How a page is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Plain,
    Gzip,
    Deflate,
}

impl Encoding {
    /// None for what can't be read here.
    fn of(headers: &HeaderMap) -> Option<Self> {
        match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"") => Some(Self::Plain),
            Some(b"gzip") => Some(Self::Gzip),
            Some(b"deflate") => Some(Self::Deflate),
            Some(_) => None,
        }
    }

    /// The page; none if it is broken or too large.
    fn decode(self, page: &Bytes) -> Option<Bytes> {
        let mut out = Vec::new();
        let limit = MAX_PAGE as u64 + 1;
        let read = match self {
            Self::Plain => return Some(page.clone()),
            Self::Gzip => flate2::read::GzDecoder::new(&page[..]).take(limit).read_to_end(&mut out),
            Self::Deflate => flate2::read::DeflateDecoder::new(&page[..]).take(limit).read_to_end(&mut out),
        };
        read.ok().filter(|count| *count <= MAX_PAGE).map(|_| out.into())
    }
}

/// The whole of a body, or what was read of a large one and the rest of it.
async fn beginning(mut body: Body) -> Result<(Bytes, Option<Body>)> {
    let mut out = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            StatusError::service_unavailable(format!("error trying to reach service: {error}"))
        })?;
        out.extend_from_slice(frame.data_ref().map(|data| &data[..]).unwrap_or_default());
        if out.len() > MAX_PAGE {
            return Ok((out.freeze(), Some(body)));
        }
    }
    Ok((out.freeze(), None))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn links() -> Links {
        Links { prefix: "/p/proxy".into(), source: "10.0.0.1:80".into(), host: "api:6443".into() }
    }

    #[test]
    fn links_lead_through_the_proxy() {
        for (link, want) in [
            ("/x/", Some("/p/proxy/x/")),
            ("/?a=/b#c", Some("/p/proxy/?a=/b#c")),
            ("http://10.0.0.1:80/x", Some("/p/proxy/x")),
            ("//10.0.0.1:80/x", Some("/p/proxy/x")),
            ("https://api:6443/x", Some("https://api:6443/p/proxy/x")),
            ("https://api:6443/p/proxy/x", None),
            ("/p/proxy/x", None),
            ("x/y", None),
            ("", None),
            ("#top", None),
            ("?a=b", None),
            ("http://10.0.0.1:80", None),
            ("http://other/x", None),
            ("mailto:/x", None),
            ("/a:b", Some("/p/proxy/a:b")),
        ] {
            assert_eq!(links().link(link).as_deref(), want, "{link}");
        }
    }

    #[test]
    fn pages_are_rewritten() {
        let check = |page: &str, want: Option<&str>| {
            let got = links().page(page.as_bytes()).map(|page| String::from_utf8(page).unwrap());
            assert_eq!(got.as_deref(), want, "{page}");
        };
        check("<a href=\"/rewriteme\">test</a>", Some("<a href=\"/p/proxy/rewriteme\">test</a>"));
        check("<a href=\"there\">test</a>", None);
        check("/x <!-- <a href='/x'> --> <script>'<a href=\"/x\">'</script>", None);
        check(
            "\r\n<IMG alt='\"é' src=/x?a&amp;b >\r\nö<br><form action='/y'/>",
            Some("\r\n<img alt=\"&#34;é\" src=\"/p/proxy/x?a&amp;b\">\r\nö<br><form action=\"/p/proxy/y\"/>"),
        );
        check("<a href=\"/x", None);
    }

    #[tokio::test]
    async fn answers_are_rewritten() {
        let answer = async |headers: &[(&'static str, &str)], body: &[u8], head: bool| {
            let mut response = Response::new(full_body(body.to_vec()));
            for (name, value) in headers {
                response.headers_mut().insert(*name, value.parse().unwrap());
            }
            let (parts, body) = links().answered(response, head).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            (parts.headers, String::from_utf8_lossy(&body).into_owned())
        };
        let page = b"<a href=/x>";
        let html = ("content-type", "text/html; charset=utf-8");
        let new = "<a href=\"/p/proxy/x\">";
        let (headers, body) = answer(&[html, ("content-length", "11")], page, false).await;
        assert_eq!((headers.len(), body.as_str()), (1, new));
        assert_eq!(answer(&[("content-type", "text/plain")], page, false).await.1, "<a href=/x>");
        assert_eq!(answer(&[html, ("content-encoding", "br")], page, false).await.1, "<a href=/x>");
        assert_eq!(answer(&[html], b"", true).await.1, "");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(page).unwrap();
        let gzip = gzip.finish().unwrap();
        let (headers, body) = answer(&[html, ("content-encoding", "gzip")], &gzip, false).await;
        assert_eq!((headers.len(), body.as_str()), (1, new));
        let (headers, _) =
            answer(&[("location", "/x"), ("access-control-allow-origin", "*")], b"", false).await;
        assert_eq!((headers.len(), headers["location"].to_str().unwrap()), (1, "/p/proxy/x"));
        let large = vec![b'x'; MAX_PAGE + 2];
        assert_eq!(answer(&[html], &large, false).await.1.len(), large.len());
    }

    proptest::proptest! {
        /// No page panics, and one without elements that have links stays what it is.
        #[test]
        fn any_page_is_taken(page in "([<>/a= \"'&;!\\-\r\n]|<a href=|\\PC){0,60}") {
            let got = links().page(page.as_bytes());
            if !page.contains("<a") {
                proptest::prop_assert_eq!(got, None);
            }
        }
    }
}
