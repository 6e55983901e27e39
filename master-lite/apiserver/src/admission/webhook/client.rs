//! Calls to webhooks: TLS over a connection of their own, one for each call.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::hook::{Hook, Target};
use crate::authz::rule::go_quote;
use crate::backend_tls::{Trust, client_config};
use crate::extension::full_body;
use crate::kubelet_proxy::{Dialer, Duplex};

/// Most bytes of an answer.
const ANSWER_LIMIT: usize = 16 << 20;
/// How much of a refusal is shown.
const SHOWN: usize = 2048;

/// What calls need.
pub(super) struct Client {
    dialer: Arc<Dialer>,
}

/// Where a call goes.
struct Address {
    /// For certificate and `Host`.
    host: String,
    port: u16,
    path: String,
}

impl Address {
    fn of(target: &Target) -> Result<Self, String> {
        match target {
            Target::Url(url) => {
                let uri: Uri = url.parse().map_err(|error| format!("Unparsable URL: {error}"))?;
                let host = uri.host().ok_or("webhook configuration must have either service or URL")?;
                Ok(Self {
                    host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
                    port: uri.port_u16().unwrap_or(443),
                    path: uri.path().to_owned(),
                })
            }
            Target::Service { namespace, name, port, path } => {
                let slash = if path.starts_with('/') { "" } else { "/" };
                let host = format!("{name}.{namespace}.svc");
                Ok(Self { host, port: *port, path: format!("{slash}{path}") })
            }
        }
    }

    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl Client {
    pub(super) fn new(dialer: Arc<Dialer>) -> Self {
        Self { dialer }
    }

    /// Sends a review and returns the body of the answer.
    ///
    /// # Errors
    /// When there is no answer in time, or none that is a success.
    pub(super) async fn call(&self, hook: &Hook, review: Vec<u8>) -> Result<Bytes, String> {
        let address = Address::of(&hook.target)?;
        let path = format!("{}?timeout={}s", address.path, hook.timeout.as_secs());
        let shown = go_quote(&format!("https://{}{path}", address.authority()));
        let outcome = match tokio::time::timeout(hook.timeout, self.post(hook, &address, &path, review)).await
        {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err("context deadline exceeded".to_owned()),
        };
        let (status, body) =
            outcome.map_err(|error| format!("failed to call webhook: Post {shown}: {error}"))?;
        if status.is_success() {
            return Ok(body);
        }
        Err(format!("failed to call webhook: {}", refusal(status, &body)))
    }

    async fn post(
        &self,
        hook: &Hook,
        address: &Address,
        path: &str,
        review: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), String> {
        let tls = hook.tls.get_or_init(|| client_config(Trust::Bundle(&hook.ca_bundle), None)).clone()?;
        let name = ServerName::try_from(address.host.clone()).map_err(|error| error.to_string())?;
        let stream = self.connect(&hook.target, address).await?;
        let stream = TlsConnector::from(tls).connect(name, stream).await;
        let stream = stream.map_err(|error| format!("tls: {error}"))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        // Ends with the answer, or when the call is given up.
        let connection = tokio::spawn(connection);
        let _ends = Ends(connection.abort_handle());
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, address.authority())
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::CONTENT_TYPE, "application/json")
            .body(full_body(review))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
    }

    async fn connect(&self, target: &Target, address: &Address) -> Result<Box<dyn Duplex>, String> {
        match target {
            Target::Url(_) => {
                let stream = TcpStream::connect((address.host.as_str(), address.port)).await;
                let stream = stream.map_err(|error| format!("dial tcp {}: {error}", address.authority()))?;
                Ok(Box::new(stream))
            }
            Target::Service { namespace, name, port, .. } => {
                let stream = self.dialer.dial_service(namespace, name, *port).await;
                stream.map_err(|error| error.to_string())
            }
        }
    }
}

/// Ends a task when the call does.
struct Ends(tokio::task::AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What an answer that is no success means, in the words of upstream's client.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).trim().to_owned();
    match status.as_u16() {
        404 => "the server could not find the requested resource".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        500.. if !text.is_empty() => {
            format!("an error on the server ({}) has prevented the request from succeeding", go_quote(&text))
        }
        code => {
            format!("the server responded with the status code {code} but did not return more information")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let check = |target: Target, authority: &str, path: &str| {
            let address = Address::of(&target).unwrap();
            assert_eq!((address.authority().as_str(), address.path.as_str()), (authority, path));
        };
        check(Target::Url("https://h.example.com".into()), "h.example.com:443", "/");
        check(Target::Url("https://127.0.0.1:8443/a/b".into()), "127.0.0.1:8443", "/a/b");
        check(Target::Url("https://[::1]:8443/a".into()), "[::1]:8443", "/a");
        let service = |path: &str| Target::Service {
            namespace: "n".into(),
            name: "s".into(),
            port: 8443,
            path: path.into(),
        };
        check(service("/p"), "s.n.svc:8443", "/p");
        check(service(""), "s.n.svc:8443", "/");
    }

    #[test]
    fn refusals_are_told_as_upstream() {
        let told = |code: u16, body: &str| refusal(StatusCode::from_u16(code).unwrap(), body.as_bytes());
        assert_eq!(told(404, "x"), "the server could not find the requested resource");
        assert_eq!(
            told(500, "boom\n"),
            "an error on the server (\"boom\") has prevented the request from succeeding"
        );
        assert_eq!(
            told(403, "x"),
            "the server responded with the status code 403 but did not return more information"
        );
    }
}
