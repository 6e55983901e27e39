//! What a request asks for, read from method, path and query as upstream's `RequestInfoFactory` does
//! (`k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`).
//!
//! Authorization decides on exactly this, and the dispatcher acts on exactly this, so the two can't differ.

use http::Method;

/// Parsed form of a request's line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// True for `/api/v1/...` and `/apis/GROUP/VERSION/...` that name a resource.
    pub is_resource_request: bool,
    /// The path as sent, without the query.
    pub path: String,
    /// get, list, watch, create, update, patch, delete, deletecollection, proxy; the lower-case method otherwise.
    pub verb: String,
    /// `api` or `apis`.
    pub api_prefix: String,
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; empty for cluster-scoped requests. For `namespaces/x` itself it is `x`, as upstream has it.
    pub namespace: String,
    /// Plural resource name.
    pub resource: String,
    /// Subresource, such as `status`.
    pub subresource: String,
    /// Object's name; empty for collections.
    pub name: String,
    /// What follows the subresource (the path to a proxied server), without a leading slash.
    pub rest: String,
    /// `fieldSelector` as sent.
    pub field_selector: String,
    /// `labelSelector` as sent.
    pub label_selector: String,
}

impl RequestInfo {
    /// Reads a request's line. Paths that are no resource requests keep only `path` and `verb`.
    pub fn parse(method: &Method, path: &str, query: Option<&str>) -> Self {
        let mut info =
            Self { path: path.to_owned(), verb: method.as_str().to_ascii_lowercase(), ..Self::default() };
        let parts: Vec<String> =
            path.trim_matches('/').split('/').filter(|p| !p.is_empty()).map(percent_decode).collect();
        let mut rest = parts.as_slice();
        match rest.first().map(String::as_str) {
            Some("api") if rest.len() >= 3 => {
                info.version.clone_from(&rest[1]);
                rest = &rest[2..];
                info.api_prefix = "api".into();
            }
            Some("apis") if rest.len() >= 4 => {
                info.group.clone_from(&rest[1]);
                info.version.clone_from(&rest[2]);
                rest = &rest[3..];
                info.api_prefix = "apis".into();
            }
            _ => return info,
        }
        info.is_resource_request = true;
        // The old forms /api/v1/watch/... and /api/v1/proxy/... name the verb in the path.
        let special = matches!(rest[0].as_str(), "watch" | "proxy");
        if special {
            if rest.len() < 2 {
                info.is_resource_request = false;
                return info;
            }
            info.verb.clone_from(&rest[0]);
            rest = &rest[1..];
        } else {
            info.verb = match *method {
                Method::POST => "create",
                Method::GET | Method::HEAD => "get",
                Method::PUT => "update",
                Method::PATCH => "patch",
                Method::DELETE => "delete",
                _ => "",
            }
            .to_owned();
        }
        if rest[0] == "namespaces"
            && let Some(ns) = rest.get(1)
        {
            info.namespace.clone_from(ns);
            // /namespaces/x/status and /finalize are subresources of the namespace itself.
            if rest.len() > 2 && !matches!(rest[2].as_str(), "status" | "finalize") {
                rest = &rest[2..];
            }
        }
        info.resource.clone_from(&rest[0]);
        if let Some(name) = rest.get(1) {
            info.name.clone_from(name);
        }
        if let Some(sub) = rest.get(2) {
            info.subresource.clone_from(sub);
        }
        if rest.len() > 3 {
            info.rest = raw_tail(path, parts.len() - (rest.len() - 3));
        }
        let query: Vec<(String, String)> = query.map(parse_query).unwrap_or_default();
        let get = |k: &str| query.iter().find(|(key, _)| key == k).map(|(_, v)| v.as_str());
        if let Some(selector) = get("fieldSelector") {
            info.field_selector = selector.to_owned();
        }
        if let Some(selector) = get("labelSelector") {
            info.label_selector = selector.to_owned();
        }
        let watch = matches!(get("watch"), Some("1" | "true" | "t" | "T" | "TRUE" | "True" | ""));
        if info.name.is_empty() && info.verb == "get" {
            info.verb = if watch { "watch" } else { "list" }.to_owned();
            // A list that can only match one object is authorized for that name.
            if let Some(name) = single_name(&info.field_selector) {
                info.name = name;
            }
        }
        if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection".to_owned();
        }
        info
    }

    /// True if the path names one object (as opposed to `name` inferred from a field selector).
    pub fn is_collection(&self) -> bool {
        matches!(self.verb.as_str(), "list" | "watch" | "deletecollection")
            || (self.verb == "create" && self.name.is_empty())
    }
}

/// The value of `metadata.name=x` when that is a requirement of the selector.
fn single_name(selector: &str) -> Option<String> {
    selector.split(',').find_map(|term| {
        let value = term.strip_prefix("metadata.name=")?;
        let value = value.strip_prefix('=').unwrap_or(value);
        (!value.is_empty()).then(|| value.to_owned())
    })
}

/// The part of `path` after its first `skip` segments, as sent (not decoded).
fn raw_tail(path: &str, skip: usize) -> String {
    let mut rest = path.trim_start_matches('/');
    for _ in 0..skip {
        rest = rest.split_once('/').map_or("", |(_, tail)| tail).trim_start_matches('/');
    }
    rest.to_owned()
}

/// Splits a query string into decoded pairs, in order.
pub fn parse_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key.replace('+', " ")), percent_decode(value.replace('+', " ")))
        })
        .collect()
}

/// Undoes %XX; what is no valid escape stays as it is, and bytes that are no UTF-8 are replaced.
pub fn percent_decode(text: impl AsRef<str>) -> String {
    let bytes = text.as_ref().as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    let hex = |b: u8| (b as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
    while i < bytes.len() {
        if bytes[i] == b'%'
            && i + 2 < bytes.len()
            && let (Some(high), Some(low)) = (hex(bytes[i + 1]), hex(bytes[i + 2]))
        {
            out.push(high * 16 + low);
            i += 3;
            continue;
        }
        out.push(bytes[i]);
        i += 1;
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, target: &str, expected: &str) {
        let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
        let info = RequestInfo::parse(&method.parse().unwrap(), path, query);
        let text = format!(
            "{} {}/{} ns={} {}/{} sub={} rest={}",
            info.verb,
            info.group,
            info.version,
            info.namespace,
            info.resource,
            info.name,
            info.subresource,
            info.rest
        );
        assert_eq!(text, expected, "{method} {target}");
    }

    #[test]
    fn resource_requests() {
        check("GET", "/api/v1/namespaces/a/pods", "list /v1 ns=a pods/ sub= rest=");
        check("GET", "/api/v1/namespaces/a/pods?watch=true", "watch /v1 ns=a pods/ sub= rest=");
        check("GET", "/api/v1/pods?watch=0", "list /v1 ns= pods/ sub= rest=");
        check("GET", "/api/v1/namespaces/a/pods/b/log", "get /v1 ns=a pods/b sub=log rest=");
        check("GET", "/api/v1/namespaces/a", "get /v1 ns=a namespaces/a sub= rest=");
        check("PUT", "/api/v1/namespaces/a/finalize", "update /v1 ns=a namespaces/a sub=finalize rest=");
        check("GET", "/api/v1/namespaces", "list /v1 ns= namespaces/ sub= rest=");
        check(
            "DELETE",
            "/apis/apps/v1/namespaces/a/deployments",
            "deletecollection apps/v1 ns=a deployments/ sub= rest=",
        );
        check(
            "PATCH",
            "/apis/apps/v1/namespaces/a/deployments/d/scale",
            "patch apps/v1 ns=a deployments/d sub=scale rest=",
        );
        check("GET", "/api/v1/nodes/n/proxy/logs/a%2Fb/", "get /v1 ns= nodes/n sub=proxy rest=logs/a%2Fb/");
        check("GET", "/api/v1/secrets?fieldSelector=metadata.name%3Dx", "list /v1 ns= secrets/x sub= rest=");
        check("GET", "/api/v1/watch/namespaces/a/pods/b", "watch /v1 ns=a pods/b sub= rest=");
    }

    #[test]
    fn other_paths() {
        for path in ["/", "/api", "/api/v1", "/apis/apps/v1", "/healthz", "/openapi/v3/api/v1"] {
            let info = RequestInfo::parse(&Method::GET, path, None);
            assert!(!info.is_resource_request, "{path}");
            assert_eq!(info.verb, "get");
        }
    }
}
