//! pods/exec, pods/attach and pods/portforward.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response};

use super::dial::Trust;
use super::location::{container, kubelet};
use super::relay::{Destination, relay};
use super::{Backend, logs::encode};
use crate::authz::rbac::text;
use crate::extension::{Body, Connector, RequestContext, Result, StatusError};

/// A kubelet finds out soon whether it can start a stream.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Run a command.
    Exec,
    /// Join the container's own process.
    Attach,
    /// Reach ports of the pod.
    PortForward,
}

/// A connector that hands the client's stream to the kubelet.
pub(super) struct Stream {
    backend: Arc<Backend>,
    kind: Kind,
}

impl Stream {
    pub(super) fn new(backend: Arc<Backend>, kind: Kind) -> Self {
        Self { backend, kind }
    }
}

#[async_trait::async_trait]
impl Connector for Stream {
    fn verbs(&self) -> &'static [&'static str] {
        &["create", "get"]
    }

    async fn connect(&self, context: &RequestContext, request: Request<Body>) -> Result<Response<Body>> {
        self.backend.ensure_may_create(context)?;
        let (namespace, name) = (context.info.namespace.as_str(), context.info.name.as_str());
        let pod = self.backend.get("pods", Some(namespace), name)?;
        let prefix = match self.kind {
            Kind::Exec => "exec",
            Kind::Attach => "attach",
            Kind::PortForward => "portForward",
        };
        let mut target = format!("/{prefix}/{}/{}", encode(namespace), encode(name));
        if self.kind != Kind::PortForward {
            let container = container(&pod, context.query("container").unwrap_or_default())?;
            target.push('/');
            target.push_str(&encode(&container));
        }
        let node = text(&pod, "/spec/nodeName");
        if node.is_empty() {
            return Err(StatusError::bad_request(format!("pod {name} does not have a host assigned")));
        }
        let (host, port) = kubelet(&*self.backend.get("nodes", None, node)?)?;
        let query = query(self.kind, &context.query);
        if !query.is_empty() {
            target = format!("{target}?{query}");
        }
        let sender = self.backend.dialer.kubelet(&host, port, Trust::Signed).await?;
        let headers = HeaderMap::new();
        let authority = authority(&host, port);
        relay(request, Destination { sender, authority, target, patience: PATIENCE, headers }).await
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The kubelet's parameters for ours (`input`, `output`, `error`, `tty`, `command`, `port`).
fn query(kind: Kind, given: &[(String, String)]) -> String {
    let mut out: Vec<String> = Vec::new();
    if kind == Kind::PortForward {
        let ports = given.iter().filter(|(k, _)| k == "ports").flat_map(|(_, v)| v.split(','));
        let ports: Vec<&str> = ports.filter(|p| p.parse::<u16>().is_ok()).collect();
        if !ports.is_empty() {
            out.push(format!("port={}", encode(&ports.join(","))));
        }
        return out.join("&");
    }
    for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if flag(given, ours) {
            out.push(format!("{theirs}=1"));
        }
    }
    if kind == Kind::Exec {
        out.extend(
            given.iter().filter(|(k, _)| k == "command").map(|(_, v)| format!("command={}", encode(v))),
        );
    }
    out.join("&")
}

/// A boolean parameter as upstream's query conversion reads it: there, and neither `0` nor `false`.
pub(super) fn flag(given: &[(String, String)], key: &str) -> bool {
    given.iter().find(|(k, _)| k == key).is_some_and(|(_, v)| v != "0" && !v.eq_ignore_ascii_case("false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_translated() {
        let check = |kind: Kind, given: &[(&str, &str)], want: &str| {
            let given: Vec<(String, String)> =
                given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(query(kind, &given), want);
        };
        check(
            Kind::Exec,
            &[
                ("command", "sh"),
                ("command", "-c"),
                ("command", "a b&c=1"),
                ("stdin", "true"),
                ("stdout", "1"),
                ("stderr", "false"),
                ("tty", ""),
            ],
            "input=1&output=1&tty=1&command=sh&command=-c&command=a%20b%26c%3D1",
        );
        check(Kind::Attach, &[("command", "sh"), ("stdout", "true"), ("stderr", "true")], "output=1&error=1");
        check(Kind::PortForward, &[("ports", "80"), ("ports", "443,x")], "port=80%2C443");
        check(Kind::PortForward, &[], "");
    }
}
