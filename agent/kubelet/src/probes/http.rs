//! HTTP GET to a pod, over HTTP/1.1, with TLS that checks nothing: probes and hooks know no names or authorities.
//!
//! Source: upstream `pkg/probe/http/http.go` and `request.go`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{ProbeOutcome, resolve_port};

const MAX_BODY: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;
const USER_AGENT: &str = "kube-probe/1.36";

/// Where to send a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpTarget {
    /// `http` or `https`.
    pub https: bool,
    /// Name or address to connect to.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path with query.
    pub path: String,
    /// Headers of the pod's author.
    pub headers: Vec<(String, String)>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    /// Status code.
    pub status: u16,
    /// Beginning of the body.
    pub body: String,
    /// `Location` header.
    pub location: Option<String>,
}

impl HttpTarget {
    /// Resolves an action; without a host the pod's address counts.
    pub fn new(
        action: &HTTPGetAction,
        container: &Container,
        pod_ip: Option<IpAddr>,
    ) -> Result<Self, String> {
        let host = match action.host.as_deref().filter(|h| !h.is_empty()) {
            Some(host) => host.to_owned(),
            None => pod_ip.map(|ip| ip.to_string()).ok_or("pod has no IP address yet")?,
        };
        let path = action.path.as_deref().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let headers =
            action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
        let https = action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
        Ok(Self { https, host, port: resolve_port(&action.port, container)?, path, headers })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The URL, for messages.
    pub fn url(&self) -> String {
        format!("{}://{}{}", if self.https { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// Sends one GET; the timeout covers everything.
pub async fn get(target: &HttpTarget, timeout: Duration) -> Result<HttpAnswer, String> {
    match tokio::time::timeout(timeout, get_inner(target)).await {
        Ok(result) => result.map_err(|e| format!("Get {:?}: {e}", target.url())),
        Err(_elapsed) => Err(format!(
            "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            target.url()
        )),
    }
}

async fn get_inner(target: &HttpTarget) -> Result<HttpAnswer, String> {
    let authority = target.authority();
    let tcp =
        TcpStream::connect(&authority).await.map_err(|e| format!("dial tcp {authority}: connect: {e}"))?;
    if target.https {
        let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
        let tls =
            TlsConnector::from(trusting_config()?).connect(name, tcp).await.map_err(|e| e.to_string())?;
        exchange(target, tls).await
    } else {
        exchange(target, tcp).await
    }
}

async fn exchange<S>(target: &HttpTarget, stream: S) -> Result<HttpAnswer, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    // Ends when the sender is dropped, which the caller's deadline does.
    let driver = tokio::spawn(connection);
    let mut request = Request::get(target.path.parse::<Uri>().map_err(|e| e.to_string())?);
    let given = |name: &str| target.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    if !given("host") {
        request = request.header("Host", target.authority());
    }
    if !given("user-agent") {
        request = request.header("User-Agent", USER_AGENT);
    }
    if !given("accept") {
        request = request.header("Accept", "*/*");
    }
    for (name, value) in target.headers.iter().filter(|(_, v)| !v.is_empty()) {
        request = request.header(name.as_str(), value.as_str());
    }
    let request =
        request.header("Connection", "close").body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = response.status().as_u16();
    let location = response.headers().get("location").and_then(|l| l.to_str().ok()).map(str::to_owned);
    let body = match Limited::new(response.into_body(), MAX_BODY).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        // A body longer than what is shown, or cut off: the status has been read.
        Err(_too_long) => String::new(),
    };
    driver.abort();
    Ok(HttpAnswer { status, body, location })
}

/// An HTTP probe: 2xx and 3xx are well; redirects to the same host are followed, others are not and count as well.
pub async fn probe(target: &HttpTarget, timeout: Duration) -> ProbeOutcome {
    let mut target = target.clone();
    for _ in 0..=MAX_REDIRECTS {
        let answer = match get(&target, timeout).await {
            Ok(answer) => answer,
            Err(error) => return ProbeOutcome::Failure(error),
        };
        if !(200..400).contains(&answer.status) {
            return ProbeOutcome::Failure(format!("HTTP probe failed with statuscode: {}", answer.status));
        }
        let next = answer.location.filter(|_| matches!(answer.status, 301 | 302 | 303 | 307 | 308));
        match next.and_then(|l| redirect(&target, &l)) {
            Some(next) => target = next,
            None => return ProbeOutcome::Success,
        }
    }
    ProbeOutcome::Failure(format!("Get {:?}: stopped after {MAX_REDIRECTS} redirects", target.url()))
}

/// The next target when it is on the same host.
fn redirect(from: &HttpTarget, location: &str) -> Option<HttpTarget> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(HttpTarget { path: location.to_owned(), ..from.clone() });
    }
    let uri: Uri = location.parse().ok()?;
    let https = match uri.scheme_str()? {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    let host = uri.host()?.trim_matches(['[', ']']);
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    (host == from.host).then(|| HttpTarget { https, port, path, ..from.clone() })
}

fn trusting_config() -> Result<Arc<rustls::ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Takes any certificate, as upstream's probes do (`InsecureSkipVerify`).
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn serve(answers: Vec<&'static str>) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 4096];
                let n = stream.read(&mut buffer).await.unwrap();
                assert!(String::from_utf8_lossy(&buffer[..n]).contains("kube-probe/1.36"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    fn target(port: u16) -> HttpTarget {
        HttpTarget { https: false, host: "127.0.0.1".into(), port, path: "/x".into(), headers: vec![] }
    }

    async fn check(answers: Vec<&'static str>, want: ProbeOutcome) {
        let port = serve(answers).await;
        assert_eq!(probe(&target(port), Duration::from_secs(5)).await, want);
    }

    #[tokio::test]
    async fn statuses() {
        check(vec!["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"], ProbeOutcome::Success).await;
        check(
            vec!["HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"],
            ProbeOutcome::Failure("HTTP probe failed with statuscode: 500".into()),
        )
        .await;
        check(
            vec!["HTTP/1.1 302 F\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 204 N\r\n\r\n"],
            ProbeOutcome::Success,
        )
        .await;
        check(
            vec!["HTTP/1.1 302 F\r\nLocation: http://example.org/\r\nContent-Length: 0\r\n\r\n"],
            ProbeOutcome::Success,
        )
        .await;
    }

    #[tokio::test]
    async fn refused() {
        let ProbeOutcome::Failure(message) = probe(&target(1), Duration::from_secs(5)).await else {
            panic!("port 1 must not answer")
        };
        assert!(
            message.starts_with("Get \"http://127.0.0.1:1/x\": dial tcp 127.0.0.1:1: connect: "),
            "{message}"
        );
    }
}
