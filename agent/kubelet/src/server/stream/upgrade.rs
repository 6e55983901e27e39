//! Which upgrade a request asks for.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderName, Request};

/// Header in which SPDY clients offer protocols and servers answer with one.
pub(super) const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Header that lists what a server would have accepted.
pub(super) const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

/// Whether the request wants any upgrade.
pub(crate) fn is_upgrade<B>(request: &Request<B>) -> bool {
    is_websocket(request) || is_spdy(request)
}

/// Whether the request wants a WebSocket.
pub(super) fn is_websocket<B>(request: &Request<B>) -> bool {
    wants(request, "websocket")
}

/// Whether the request wants SPDY/3.1.
pub(super) fn is_spdy<B>(request: &Request<B>) -> bool {
    wants(request, "spdy/3.1")
}

fn wants<B>(request: &Request<B>, protocol: &str) -> bool {
    has_token(request, &CONNECTION, "upgrade") && has_token(request, &UPGRADE, protocol)
}

fn has_token<B>(request: &Request<B>, name: &HeaderName, token: &str) -> bool {
    tokens(request, name).any(|known| known.eq_ignore_ascii_case(token))
}

/// All comma-separated values of a header.
pub(super) fn tokens<'a, B>(request: &'a Request<B>, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// The first protocol that the client offers and the server knows: the client's order decides, as in upstream.
pub(super) fn negotiate<'a, 'b>(
    mut offered: impl Iterator<Item = &'a str>,
    known: &'b [&'b str],
) -> Option<&'b str> {
    offered.find_map(|offer| known.iter().copied().find(|known| *known == offer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder();
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn upgrades() {
        assert!(is_spdy(&request(&[("Connection", "keep-alive, Upgrade"), ("Upgrade", "SPDY/3.1")])));
        assert!(is_websocket(&request(&[("Connection", "upgrade"), ("Upgrade", "WebSocket")])));
        assert!(!is_upgrade(&request(&[("Upgrade", "websocket")])));
    }

    #[test]
    fn the_clients_order_decides() {
        let request =
            request(&[("X-Stream-Protocol-Version", "v9, v3"), ("X-Stream-Protocol-Version", "v4")]);
        assert_eq!(negotiate(tokens(&request, &STREAM_PROTOCOL), &["v4", "v3"]), Some("v3"));
        assert_eq!(negotiate(["v9"].into_iter(), &["v4"]), None);
    }
}
