//! One exec or attach session: bytes between a client and a container, and how it ended.

use axum::body::Body;
use http::{Request, Response, StatusCode};
use keelson_cri::{CriError, ExecRequest, RuntimeService, StreamSession};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::status::Ending;
use super::{StreamOptions, Streams, spdy_transport, upgrade, websocket};
use crate::server::answer::text;

/// exec or attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A new process.
    Exec,
    /// The container's own.
    Attach,
}

/// Upgrades the connection to what the client asks for and runs the session in a task of its own.
pub(crate) async fn serve_session(
    request: Request<Body>,
    kind: Kind,
    runtime: Arc<dyn RuntimeService>,
    container_id: String,
    idle: Duration,
) -> Response<Body> {
    let options = match StreamOptions::from_uri(request.uri()) {
        Ok(options) => options,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    if kind == Kind::Exec && options.command.is_empty() {
        return text(StatusCode::BAD_REQUEST, "you must specify a command");
    }
    let run = {
        let options = options.clone();
        move |streams: Streams| async move { run(kind, &*runtime, &container_id, options, streams).await }
    };
    if upgrade::is_websocket(&request) {
        return websocket::upgrade(request, options, idle, run).await;
    }
    if upgrade::is_spdy(&request) {
        return spdy_transport::upgrade(request, options, idle, run);
    }
    text(
        StatusCode::BAD_REQUEST,
        "unable to upgrade: missing upgrade headers in request: need WebSocket or SPDY/3.1",
    )
}

async fn run(
    kind: Kind,
    runtime: &dyn RuntimeService,
    container_id: &str,
    options: StreamOptions,
    mut streams: Streams,
) {
    let session = match kind {
        Kind::Exec => {
            let request = ExecRequest { command: options.command, tty: options.tty, stdin: options.stdin };
            runtime.exec(container_id, request).await
        }
        Kind::Attach => runtime.attach(container_id, options.stdin).await,
    };
    let ending = match session {
        Ok(session) => relay(kind, session, &mut streams).await,
        Err(error) => Some(Ending::Failed(describe(kind, &error))),
    };
    // None: the client is gone, and nobody is there to tell.
    if let Some(ending) = ending {
        let message = ending.encode(streams.json_status);
        let said = async {
            for output in [streams.stdout.as_mut(), streams.stderr.as_mut()].into_iter().flatten() {
                output.shutdown().await?;
            }
            if !message.is_empty() {
                streams.error.write_all(&message).await?;
            }
            streams.error.shutdown().await
        };
        if let Err(error) = said.await {
            tracing::debug!(%error, "could not tell the client how its session ended");
        }
    }
    (streams.finish)().await;
}

fn describe(kind: Kind, error: &CriError) -> String {
    match kind {
        Kind::Exec => format!("error executing command in container: {error}"),
        Kind::Attach => format!("error attaching to container: {error}"),
    }
}

/// Copies until the process has ended and all its output is with the client; none when the client went first.
async fn relay(kind: Kind, session: StreamSession, streams: &mut Streams) -> Option<Ending> {
    let StreamSession { stdin, stdout, stderr, resize, exit } = session;
    let mut background = Background::default();
    if let (Some(from), Some(to)) = (streams.stdin.take(), stdin) {
        background.0.push(tokio::spawn(copy_stdin(from, to)));
    }
    if let (Some(mut sizes), Some(to)) = (streams.resize.take(), resize) {
        background.0.push(tokio::spawn(async move {
            while let Some(size) = sizes.recv().await {
                if to.send(size).await.is_err() {
                    return;
                }
            }
        }));
    }
    let output = async {
        let out = copy_output(stdout, streams.stdout.as_mut());
        let err = copy_output(stderr, streams.stderr.as_mut());
        tokio::join!(out, err);
        exit.await
    };
    let exit = tokio::select! {
        exit = output => exit,
        () = streams.closed.cancelled() => return None,
    };
    Some(match exit {
        Ok(Ok(0)) => Ending::Success,
        // Attaching went well whatever the container's own process came to: that is in the pod's status.
        Ok(Ok(_)) if kind == Kind::Attach => Ending::Success,
        Ok(Ok(code)) => Ending::ExitCode(code),
        Ok(Err(error)) => Ending::Failed(describe(kind, &error)),
        Err(_dropped) => Ending::Failed(describe(kind, &CriError::Internal("session ended".to_owned()))),
    })
}

/// Tasks that end with the session.
#[derive(Default)]
struct Background(Vec<JoinHandle<()>>);

impl Drop for Background {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// The client's end of input becomes the process's.
async fn copy_stdin(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    // An error means that the process closed its input; its output may still go on.
    if tokio::io::copy(&mut from, &mut to).await.is_ok() {
        let _ = to.shutdown().await;
    }
}

/// Output that nobody asked for is read too: the process must not block on it.
async fn copy_output(from: Option<impl AsyncRead + Unpin>, to: Option<&mut keelson_cri::BoxWrite>) {
    let Some(mut from) = from else { return };
    let copied = match to {
        Some(to) => tokio::io::copy(&mut from, to).await,
        None => tokio::io::copy(&mut from, &mut tokio::io::sink()).await,
    };
    if let Err(error) = copied {
        tracing::debug!(%error, "output of a session could not be copied");
    }
}
