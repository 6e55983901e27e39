//! `CONNECT address:port`: a TCP connection to a pod of this node, for whoever has no route to the pod network — the
//! control plane, which serves pods/proxy and services/proxy and calls webhooks.
//!
//! Only addresses of this node's own pods can be reached: what the runtime gave them, not what their status says, since
//! whoever may write a pod's status could point it anywhere. The node's own addresses are never among them (a pod of the
//! host's network has none of its own): the caller has reached one of those already, and dials them itself.
//!
//! Who asks must hold a client certificate of the cluster with `create` on `nodes/proxy`: the API server does. A bearer
//! token is not enough, so that no service account can get past network policies this way.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use http::uri::Authority;
use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use keelson_cri::{CriError, PodSandboxState, PodSandboxStatus};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::Backend;
use super::answer::text;
use super::auth::User;
use super::stream::idled;

/// Deadline for reaching the port: shorter than the caller's, so that the caller learns why.
const DIAL: Duration = Duration::from_secs(8);
/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    /// The connection showed no client certificate.
    #[error("CONNECT takes a client certificate")]
    NoCertificate,
    /// The request names no IP address and port.
    #[error("{0:?} is not an IP address and port")]
    NotAnAddress(String),
    /// Nobody here has the address.
    #[error("no pod of this node has the address {0}")]
    NotHere(IpAddr),
    /// The pods could not be listed.
    #[error("list pods")]
    Runtime(#[from] CriError),
    /// The pod refuses.
    #[error("dial tcp {0}: {1}")]
    Dial(SocketAddr, #[source] io::Error),
    /// The pod is silent.
    #[error("dial tcp {0}: i/o timeout")]
    Timeout(SocketAddr),
}

impl ConnectError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotAnAddress(_) => StatusCode::BAD_REQUEST,
            Self::NoCertificate | Self::NotHere(_) => StatusCode::FORBIDDEN,
            Self::Runtime(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Dial(..) => StatusCode::BAD_GATEWAY,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// Dials, answers 200, and copies both ways in a task of its own until both sides have ended.
pub(super) async fn connect(backend: &Backend, request: Request<Body>) -> Response<Body> {
    let dialled = match target(&request) {
        Ok(address) => dial(backend, address).await,
        Err(error) => Err(error),
    };
    let pod = match dialled {
        Ok(pod) => pod,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "CONNECT");
            return text(error.status(), error.to_string());
        }
    };
    let idle = backend.config.streaming_idle;
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(client) => join(TokioIo::new(client), pod, idle).await,
            Err(error) => tracing::debug!(%error, "tunnel was not opened"),
        }
    });
    Response::new(Body::empty())
}

/// Where a request that may be made wants to go.
fn target(request: &Request<Body>) -> Result<SocketAddr, ConnectError> {
    // Only the TLS layer of this server puts it there.
    if request.extensions().get::<User>().is_none() {
        return Err(ConnectError::NoCertificate);
    }
    address(request.uri().authority())
}

async fn dial(backend: &Backend, address: SocketAddr) -> Result<TcpStream, ConnectError> {
    let sandboxes = backend.runtime.list_pod_sandboxes().await?;
    if !has(&sandboxes, address.ip()) {
        return Err(ConnectError::NotHere(address.ip()));
    }
    match tokio::time::timeout(DIAL, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, %address, "TCP_NODELAY");
            }
            Ok(stream)
        }
        Ok(Err(error)) => Err(ConnectError::Dial(address, error)),
        Err(_elapsed) => Err(ConnectError::Timeout(address)),
    }
}

/// Whether a sandbox that runs was given the address.
fn has(sandboxes: &[PodSandboxStatus], ip: IpAddr) -> bool {
    let ready = sandboxes.iter().filter(|sandbox| sandbox.state == PodSandboxState::Ready);
    ready.flat_map(|sandbox| &sandbox.ips).any(|known| *known == ip)
}

/// The socket address that an authority is; a name is never resolved.
fn address(authority: Option<&Authority>) -> Result<SocketAddr, ConnectError> {
    let shown = authority.map(Authority::as_str).unwrap_or_default();
    shown
        .parse()
        .ok()
        .filter(|address: &SocketAddr| address.port() != 0)
        .ok_or_else(|| ConnectError::NotAnAddress(shown.to_owned()))
}

async fn join(client: impl AsyncRead + AsyncWrite, pod: TcpStream, idle: Duration) {
    let (from_client, to_client) = tokio::io::split(client);
    let (from_pod, to_pod) = pod.into_split();
    let (activity, active) = watch::channel(());
    let copied = async {
        tokio::try_join!(one_way(from_client, to_pod, &activity), one_way(from_pod, to_client, &activity))
    };
    tokio::select! {
        result = copied => if let Err(error) = result {
            // Either side may simply vanish.
            tracing::debug!(%error, "tunnel broke");
        },
        () = idled(active, idle) => tracing::debug!("tunnel closed: idle"),
    }
}

/// Copies until the end, and passes the end on.
async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    activity: &watch::Sender<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        activity.send_replace(());
        to.write_all(&buffer[..count]).await?;
        // TLS may keep the end of a record back until it is flushed.
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_are_dialled() {
        let check = |text: &str, want: Option<&str>| {
            let authority: Authority = text.parse().unwrap();
            assert_eq!(address(Some(&authority)).ok().map(|a| a.to_string()).as_deref(), want, "{text}");
        };
        check("10.0.0.1:80", Some("10.0.0.1:80"));
        check("[fd00::1]:443", Some("[fd00::1]:443"));
        check("10.0.0.1", None);
        check("10.0.0.1:0", None);
        check("localhost:80", None);
        check("u@10.0.0.1:80", None);
        assert!(address(None).is_err());
    }

    #[test]
    fn only_running_pods_of_this_node_have_addresses() {
        let sandbox = |state: PodSandboxState, ips: &[&str]| PodSandboxStatus {
            id: String::new(),
            metadata: keelson_cri::PodSandboxMetadata {
                name: "p".into(),
                namespace: "d".into(),
                uid: "u".into(),
                attempt: 0,
            },
            state,
            created_at: std::time::SystemTime::UNIX_EPOCH,
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            labels: Default::default(),
            annotations: Default::default(),
        };
        let all = [
            sandbox(PodSandboxState::Ready, &["10.0.0.1", "fd00::1"]),
            sandbox(PodSandboxState::NotReady, &["10.0.0.2"]),
            // hostNetwork.
            sandbox(PodSandboxState::Ready, &[]),
        ];
        for (ip, want) in [
            ("10.0.0.1", true),
            ("fd00::1", true),
            ("10.0.0.2", false),
            ("10.0.0.3", false),
            ("127.0.0.1", false),
            ("::1", false),
            ("0.0.0.0", false),
            ("::ffff:127.0.0.1", false),
        ] {
            assert_eq!(has(&all, ip.parse().unwrap()), want, "{ip}");
        }
    }

    #[test]
    fn errors_have_their_codes() {
        let to: SocketAddr = "10.0.0.1:80".parse().unwrap();
        assert_eq!(ConnectError::NotAnAddress("x".into()).status(), 400);
        assert_eq!(ConnectError::NotHere(to.ip()).status(), 403);
        assert_eq!(ConnectError::Timeout(to).status(), 504);
        let refused = ConnectError::Dial(to, io::Error::from_raw_os_error(111));
        assert_eq!(refused.status(), 502);
        assert_eq!(refused.to_string(), "dial tcp 10.0.0.1:80: Connection refused (os error 111)");
    }
}
