//! Connections to an API server: HTTP/2 over TLS, one TCP connection each, and no client library between the load and the
//! wire. Windows are those of Go's client, which most clients of an API server are.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::ConfigExt;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::objects;

/// What may be under way to us on one stream: `transportDefaultStreamFlow` of `golang.org/x/net/http2`.
const STREAM_WINDOW: u32 = 4 << 20;
/// And on one connection: `transportDefaultConnFlow` of the same.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// An answer that takes longer has failed.
pub const LIMIT: Duration = Duration::from_secs(120);

/// JSON, which is also what is sent.
pub const JSON: &str = "application/json";
/// Kubernetes' protobuf.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// A server, and who asks it.
pub struct Target {
    /// Host and port.
    authority: String,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Target {
    /// The server and user of a kubeconfig.
    pub async fn of(kubeconfig: &Path) -> Result<Self> {
        let config = crate::config(kubeconfig).await?;
        let mut tls = config.rustls_client_config()?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let url = &config.cluster_url;
        let host = url.host().context("the kubeconfig's server has no host")?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
        let authority = format!("{host}:{}", url.port_u16().unwrap_or(443));
        Ok(Self { authority, name, tls: TlsConnector::from(Arc::new(tls)) })
    }

    /// A connection.
    pub async fn connect(&self) -> Result<Connection> {
        self.connect_with(STREAM_WINDOW).await
    }

    /// A connection with other windows of its streams.
    pub async fn connect_with(&self, window: u32) -> Result<Connection> {
        let connect = async {
            let stream = TcpStream::connect(&self.authority).await?;
            stream.set_nodelay(true)?;
            let stream = self.tls.connect(self.name.clone(), stream).await?;
            let (requests, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(window)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .handshake(TokioIo::new(stream))
                .await?;
            // Its end is the end of what is asked over it.
            tokio::spawn(connection);
            anyhow::Ok(requests)
        };
        let requests = tokio::time::timeout(LIMIT, connect)
            .await
            .context("connecting takes too long")?
            .with_context(|| format!("connect to {}", self.authority))?;
        Ok(Connection { requests, authority: self.authority.clone() })
    }

    /// So many connections.
    pub async fn connections(&self, count: usize) -> Result<Vec<Connection>> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(self.connect().await?);
        }
        Ok(all)
    }
}

/// A request.
pub struct Ask {
    method: Method,
    path: String,
    accept: &'static str,
    content_type: &'static str,
    body: Bytes,
}

impl Ask {
    /// GET, answered as JSON.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, Bytes::new())
    }

    /// POST of JSON.
    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self::new(Method::POST, path, body)
    }

    /// PUT of JSON.
    pub fn put(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self::new(Method::PUT, path, body)
    }

    /// PATCH with a merge patch.
    pub fn merge_patch(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self::new(Method::PATCH, path, body).sends("application/merge-patch+json")
    }

    /// DELETE.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path, Bytes::new())
    }

    fn new(method: Method, path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method, path: path.into(), accept: JSON, content_type: JSON, body: body.into() }
    }

    /// Wants another form of answer.
    pub fn accepts(self, accept: &'static str) -> Self {
        Self { accept, ..self }
    }

    /// Sends another form of body.
    pub fn sends(self, content_type: &'static str) -> Self {
        Self { content_type, ..self }
    }
}

/// One connection; its clones are that same one.
#[derive(Clone)]
pub struct Connection {
    requests: SendRequest<Full<Bytes>>,
    authority: String,
}

impl Connection {
    /// Sends a request; gives the head of the answer, whatever its status, with the body still to come.
    pub async fn send(&mut self, ask: Ask) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(ask.method)
            .uri(format!("https://{}{}", self.authority, ask.path))
            .header(header::ACCEPT, ask.accept)
            .header(header::USER_AGENT, "keelson-bench");
        if !ask.body.is_empty() {
            request = request.header(header::CONTENT_TYPE, ask.content_type);
        }
        let request = request.body(Full::new(ask.body))?;
        self.requests.ready().await?;
        Ok(self.requests.send_request(request).await?)
    }

    /// Sends a request and reads the answer to its end.
    pub async fn answer(&mut self, ask: Ask) -> Result<(StatusCode, Bytes)> {
        let whole = async {
            let response = self.send(ask).await?;
            Ok((response.status(), response.into_body().collect().await?.to_bytes()))
        };
        tokio::time::timeout(LIMIT, whole).await.context("the answer takes too long")?
    }

    /// As [`Connection::answer`], of which only a good one is accepted.
    pub async fn ask(&mut self, ask: Ask) -> Result<Bytes> {
        let what = format!("{} {}", ask.method, ask.path);
        let (status, body) = self.answer(ask).await.with_context(|| what.clone())?;
        accept(&what, status, &body)?;
        Ok(body)
    }

    /// As [`Connection::ask`], but lets the body go as it comes; gives its length.
    pub async fn drain(&mut self, ask: Ask) -> Result<usize> {
        let what = format!("{} {}", ask.method, ask.path);
        let drain = async {
            let response = self.send(ask).await?;
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                accept(&what, status, &body.collect().await?.to_bytes())?;
                return Ok(0);
            }
            let mut length = 0;
            while let Some(frame) = body.frame().await {
                length += frame?.data_ref().map_or(0, Bytes::len);
            }
            anyhow::Ok(length)
        };
        tokio::time::timeout(LIMIT, drain).await.context("the answer takes too long")?.context(what.clone())
    }

    /// Creates something, which may be there already.
    pub async fn ensure(&mut self, path: &str, object: &serde_json::Value) -> Result<()> {
        let (status, body) = self.answer(Ask::post(path, object.to_string())).await?;
        if status != StatusCode::CONFLICT {
            accept(&format!("POST {path}"), status, &body)?;
        }
        Ok(())
    }
}

fn accept(what: &str, status: StatusCode, body: &[u8]) -> Result<()> {
    if !status.is_success() {
        bail!("{what}: {status}: {}", String::from_utf8_lossy(body).chars().take(500).collect::<String>());
    }
    Ok(())
}

/// A watch, begun anew after the last event whenever the server ends it, as clients do: kube-apiserver ends one that is slower
/// than its events.
pub struct Watch {
    connection: Connection,
    /// Up to where it says from which version.
    path: String,
    version: String,
    body: Incoming,
    ended: Arc<AtomicUsize>,
}

/// How often a watch may be ended.
const ENDS: usize = 10_000;

impl Watch {
    /// Begins one of what comes after a version. `ended` counts how often the server ends it.
    pub async fn begin(
        mut connection: Connection,
        path: &str,
        version: &str,
        ended: &Arc<AtomicUsize>,
    ) -> Result<Self> {
        let body = begin(&mut connection, path, version).await?;
        let (path, version) = (path.to_owned(), version.to_owned());
        Ok(Self { connection, path, version, body, ended: ended.clone() })
    }

    /// Hands each event and its time over; gives why it can't go on.
    pub async fn follow(mut self, mut each: impl FnMut(&[u8], Instant)) -> anyhow::Error {
        loop {
            if let Err(error) = self.read(&mut each).await {
                return error;
            }
            if self.ended.fetch_add(1, Ordering::Relaxed) > ENDS {
                return anyhow::anyhow!("watches are ended again and again");
            }
            self.body = match begin(&mut self.connection, &self.path, &self.version).await {
                Ok(body) => body,
                Err(error) => return error,
            };
        }
    }

    /// Reads until the server ends it.
    async fn read(&mut self, each: &mut impl FnMut(&[u8], Instant)) -> Result<()> {
        let mut lines = Lines::default();
        while let Some(frame) = self.body.frame().await {
            let now = Instant::now();
            let Ok(data) = frame?.into_data() else { continue };
            let (mut last, mut failed) = (None, None);
            lines.take(&data, |line| {
                if line.starts_with(b"{\"type\":\"ERROR\"") {
                    failed = Some(String::from_utf8_lossy(line).into_owned());
                } else {
                    last = objects::version_in(line).or(last.take());
                    each(line, now);
                }
            });
            if let Some(failed) = failed {
                bail!("the watch says {failed}");
            }
            self.version = last.unwrap_or_else(|| std::mem::take(&mut self.version));
        }
        Ok(())
    }
}

/// Begins a watch and lets it be.
pub async fn begin(connection: &mut Connection, path: &str, version: &str) -> Result<Incoming> {
    let ask = Ask::get(format!("{path}?watch=1&resourceVersion={version}"));
    let response = tokio::time::timeout(LIMIT, connection.send(ask));
    let response = response.await.context("a watch does not begin")??;
    if !response.status().is_success() {
        bail!("a watch of {path} is answered with {}", response.status());
    }
    Ok(response.into_body())
}

/// Puts together lines that come in parts, as the events of a watch do.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// Takes what came now; gives away each line that ends in it.
    fn take(&mut self, data: &[u8], mut each: impl FnMut(&[u8])) {
        let mut parts = data.split(|&byte| byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            self.0.extend_from_slice(part);
            if parts.peek().is_some() {
                each(&self.0);
                self.0.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together() {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        for part in ["on", "e\ntwo\nth", "ree", "\n"] {
            lines.take(part.as_bytes(), |line| seen.push(String::from_utf8_lossy(line).into_owned()));
        }
        assert_eq!(seen, ["one", "two", "three"]);
    }
}
