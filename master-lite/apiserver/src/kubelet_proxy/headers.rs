//! Which headers cross the proxy.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Headers that speak of one connection only (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What a front proxy says of its client: upstream reads nothing else from requests of its own proxy, and takes the
/// same headers of anyone else away.
const REMOTE_USER: &str = "x-remote-";

/// Subprotocol by which browsers send a bearer token: a credential for us, not for what we proxy to.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Whether a request asks to change the protocol.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).into_iter().filter_map(|v| v.to_str().ok());
    let named = values.flat_map(|v| v.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    named && headers.contains_key(header::UPGRADE)
}

/// A request's headers without the client's credentials and without those of its connection; an upgrade keeps its own.
pub(super) fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let upgrade = is_upgrade(headers).then(|| headers.get(header::UPGRADE).cloned()).flatten();
    let mut out = without_hops(headers);
    out.remove(header::AUTHORIZATION);
    out.remove(header::HOST);
    let speaks_of_users = |name: &HeaderName| {
        let name = name.as_str();
        name.starts_with("impersonate-") || name.starts_with(REMOTE_USER)
    };
    let users: Vec<HeaderName> = out.keys().filter(|name| speaks_of_users(name)).cloned().collect();
    for name in users {
        out.remove(name);
    }
    drop_token_protocol(&mut out);
    if let Some(protocol) = upgrade {
        out.insert(header::UPGRADE, protocol);
        out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    out
}

/// Headers without those of the connection, and without those that `Connection` names.
pub(super) fn without_hops(headers: &HeaderMap) -> HeaderMap {
    let mut out = headers.clone();
    for value in headers.get_all(header::CONNECTION) {
        for name in value.to_str().unwrap_or_default().split(',') {
            if let Ok(name) = HeaderName::try_from(name.trim()) {
                out.remove(name);
            }
        }
    }
    for name in &HOP_BY_HOP {
        out.remove(name);
    }
    out
}

fn drop_token_protocol(headers: &mut HeaderMap) {
    let name = header::SEC_WEBSOCKET_PROTOCOL;
    let text = |v: &HeaderValue| v.to_str().unwrap_or_default().to_owned();
    let all: Vec<String> = headers.get_all(&name).into_iter().map(text).collect();
    if !all.iter().any(|v| v.contains(TOKEN_PROTOCOL)) {
        return;
    }
    let joined = all.join(",");
    let kept: Vec<&str> =
        joined.split(',').map(str::trim).filter(|p| !p.starts_with(TOKEN_PROTOCOL)).collect();
    headers.remove(&name);
    if let Ok(value) = HeaderValue::try_from(kept.join(", ")) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn credentials_stay_here() {
        let got = forwarded(&map(&[
            ("authorization", "Bearer x"),
            ("impersonate-user", "a"),
            ("x-remote-user", "a"),
            ("x-remote-extra-scopes", "a"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("host", "h"),
            ("cookie", "kept"),
        ]));
        assert_eq!(got, map(&[("cookie", "kept")]));
    }

    #[test]
    fn upgrades_pass() {
        let got = forwarded(&map(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("sec-websocket-protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.dG9rZW4"),
        ]));
        let want = [
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
        ];
        assert_eq!(got, map(&want));
        assert!(!is_upgrade(&map(&[("upgrade", "h2c")])));
    }
}
