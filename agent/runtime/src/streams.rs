//! Exec, attach and port-forward.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use keelson_cri::{
    BoxRead, BoxWrite, ContainerState, CriError, ExecRequest, NamespaceMode, Result, StreamSession,
    TerminalSize,
};
use keelson_podinit::protocol::{self, MAX_ATTACH_PACKET, Request as PodinitRequest, attach};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::container::Stdio;
use crate::plan::ExecPlan;
use crate::runtime::{Container, Runtime, internal, lock, new_id};
use crate::spawner::{ChildSync, Request};
use crate::sys;

/// After the command's end a process that it left behind may hold its output open; then no more is waited for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Connecting to a port of a pod.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A pty's master as a stream.
struct Pty(Arc<AsyncFd<OwnedFd>>);

impl AsyncRead for Pty {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), unfilled)?)) {
                Ok(Ok(len)) => {
                    buf.advance(len);
                    return Poll::Ready(Ok(()));
                }
                // The last user of the terminal is gone: its end of file.
                Ok(Err(err)) if err.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(err)) => return Poll::Ready(Err(err)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Pty {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), buf)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// An output that remembers that it was read to its end, or dropped.
struct Tracked<R> {
    inner: R,
    done: Arc<Done>,
}

#[derive(Default)]
struct Done {
    flag: AtomicBool,
    notify: Notify,
}

impl Done {
    fn set(&self) {
        self.flag.store(true, Ordering::Release);
        self.notify.notify_one();
    }
    async fn wait(&self) {
        while !self.flag.load(Ordering::Acquire) {
            self.notify.notified().await;
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Tracked<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = (buf.filled().len(), buf.remaining());
        let result = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        if result.is_err() || (before.1 > 0 && buf.filled().len() == before.0) {
            self.done.set();
        }
        Poll::Ready(result)
    }
}

impl<R> Drop for Tracked<R> {
    fn drop(&mut self) {
        self.done.set();
    }
}

fn tracked<R: AsyncRead + Unpin + Send + 'static>(inner: R, dones: &mut Vec<Arc<Done>>) -> BoxRead {
    let done = Arc::new(Done::default());
    dones.push(done.clone());
    Box::new(Tracked { inner, done })
}

impl Runtime {
    fn running(&self, id: &str) -> Result<Arc<Container>> {
        let container = self.container(id)?;
        if container.state() == ContainerState::Running {
            Ok(container)
        } else {
            Err(CriError::FailedPrecondition(format!("container {id} is not running")))
        }
    }

    /// CRI Exec.
    pub(crate) async fn run_exec(&self, id: &str, request: ExecRequest) -> Result<StreamSession> {
        let container = self.running(id)?;
        if request.command.is_empty() {
            return Err(CriError::Invalid("no command to run".into()));
        }
        let (_, podinit_pidfd) = container.sandbox.live()?;
        let gone = || CriError::FailedPrecondition(format!("container {id} is not running"));
        let target = lock(&container.pidfd).clone().ok_or_else(gone)?;
        let pod_pid = lock(&container.sandbox.record).config.namespaces.pid != NamespaceMode::Node;
        let mut process = lock(&container.record).process_plan.clone();
        process.args = request.command;
        process.tty = request.tty;
        if request.tty && !process.env.iter().any(|e| e.starts_with("TERM=")) {
            process.env.push("TERM=xterm".into());
        }
        let exec_id = new_id();
        let mut stdio = Stdio::new(request.tty, request.stdin)?;
        let cgroup = self.cgroups.open_dir(&container.cgroup())?;
        let birth = Request::Exec(ExecPlan { pod_pid, process });
        let fds = [cgroup.as_fd(), podinit_pidfd.as_fd(), target.as_fd()];
        let (sync, spawned, own) =
            self.give_birth(&container.sandbox, &birth, &fds, &stdio.child, pod_pid, &exec_id).await?;
        stdio.child.clear();

        // podinit wants a file for the record; nobody will look for it once this agent is gone.
        let record =
            std::fs::OpenOptions::new().write(true).open("/dev/null").map_err(internal("/dev/null"))?;
        let (exit_tx, exited) = oneshot::channel();
        lock(&self.execs).insert(exec_id.clone(), exit_tx);
        let prepared = self
            .prepare(&container.sandbox, sync, spawned, own, &exec_id, protocol::FLAG_EXEC, |_| {
                vec![record.into()]
            })
            .await
            .inspect_err(|_| drop(lock(&self.execs).remove(&exec_id)))?;
        let go = prepared.sync.go().await;
        if let Err(failure) = go {
            lock(&self.execs).remove(&exec_id);
            prepared.podinit.release(&exec_id).await;
            return Err(CriError::Internal(format!(
                "failed to exec in container: unable to start container process: {failure}"
            )));
        }

        let mut dones = Vec::new();
        let mut session = StreamSession {
            stdin: None,
            stdout: None,
            stderr: None,
            resize: None,
            exit: oneshot::channel().1,
        };
        if let Some(console) = prepared.console {
            rustix::io::ioctl_fionbio(&console, true).map_err(internal("console"))?;
            let console = Arc::new(sys::async_fd(console, false).map_err(internal("console"))?);
            session.stdout = Some(tracked(Pty(console.clone()), &mut dones));
            if request.stdin {
                session.stdin = Some(Box::new(Pty(console.clone())));
            }
            let (tx, mut sizes) = mpsc::channel::<TerminalSize>(8);
            session.resize = Some(tx);
            // Only a weak hold: the terminal hangs up when the session's own ends are dropped.
            let console = Arc::downgrade(&console);
            tokio::spawn(async move {
                while let Some(size) = sizes.recv().await {
                    let Some(console) = console.upgrade() else { return };
                    let size = rustix::termios::Winsize {
                        ws_row: size.height,
                        ws_col: size.width,
                        ws_xpixel: 0,
                        ws_ypixel: 0,
                    };
                    if let Err(err) = rustix::termios::tcsetwinsize(console.get_ref(), size) {
                        tracing::debug!(%err, "resize");
                    }
                }
            });
        } else {
            let receiver = |fd: Option<OwnedFd>| {
                fd.map(pipe::Receiver::from_owned_fd).transpose().map_err(internal("pipe"))
            };
            session.stdout = receiver(stdio.stdout)?.map(|r| tracked(r, &mut dones));
            session.stderr = receiver(stdio.stderr)?.map(|r| tracked(r, &mut dones));
            let sender =
                stdio.stdin.map(pipe::Sender::from_owned_fd).transpose().map_err(internal("pipe"))?;
            session.stdin = sender.map(|s| Box::new(s) as BoxWrite);
        }
        let (tx, rx) = oneshot::channel();
        session.exit = rx;
        tokio::spawn(follow_exec(exec_id, prepared.podinit, prepared.own, prepared.pidfd, exited, dones, tx));
        Ok(session)
    }

    /// CRI Attach.
    pub(crate) async fn join_streams(&self, id: &str, stdin: bool) -> Result<StreamSession> {
        let container = self.running(id)?;
        let (tty, has_stdin) = {
            let record = lock(&container.record);
            (record.config.tty, record.config.stdin)
        };
        let stdin = stdin && has_stdin;
        let podinit = container.podinit()?;
        let socket = podinit.attach(id, stdin).await.map_err(internal("attaching"))?;
        let socket = Arc::new(sys::async_fd(socket, false).map_err(internal("attaching"))?);
        let (out, out_end) = tokio::io::duplex(MAX_ATTACH_PACKET);
        let (err, err_end) = tokio::io::duplex(MAX_ATTACH_PACKET);
        let (in_end, input) = tokio::io::duplex(MAX_ATTACH_PACKET);
        let (exit_tx, exit) = oneshot::channel();
        if stdin {
            tokio::spawn(forward_input(socket.clone(), input));
        }
        let resize = tty.then(|| {
            let (tx, mut sizes) = mpsc::channel::<TerminalSize>(8);
            let id = id.to_string();
            tokio::spawn(async move {
                while let Some(size) = sizes.recv().await {
                    let request =
                        PodinitRequest::Resize { id: id.clone(), rows: size.height, cols: size.width };
                    if let Err(err) = podinit.request(&request, &[]).await {
                        tracing::debug!(%err, "resize");
                    }
                }
            });
            tx
        });
        tokio::spawn(async move {
            let ended = forward_output(&socket, out_end, err_end);
            let mut exit_tx = exit_tx;
            tokio::select! {
                () = ended => {}
                () = exit_tx.closed() => return,
            }
            // The streams ended: with the container, or cut off because nobody read them.
            let code = if container.wait_exited(DRAIN_TIMEOUT).await {
                Ok(lock(&container.record).exit_code.unwrap_or(255))
            } else {
                Err(CriError::Internal("the attach session was closed".into()))
            };
            let _ = exit_tx.send(code);
        });
        Ok(StreamSession {
            stdin: stdin.then(|| Box::new(in_end) as BoxWrite),
            stdout: Some(Box::new(out)),
            stderr: (!tty).then(|| Box::new(err) as BoxRead),
            resize,
            exit,
        })
    }

    /// CRI PortForward: IPv4 loopback, then IPv6.
    pub(crate) async fn connect_port(&self, sandbox_id: &str, port: u16) -> Result<tokio::net::TcpStream> {
        let sandbox = self.sandbox(sandbox_id)?;
        let (_, podinit) = sandbox.live()?;
        let mut last = None;
        for v6 in [false, true] {
            let (sync, theirs) = ChildSync::pair().map_err(internal("sync socket"))?;
            self.spawn(&Request::Socket { v6 }, &[theirs.as_fd(), podinit.as_fd()]).await?;
            drop(theirs);
            let received = sync.receive().await.map_err(internal("socket from the pod"))?;
            let Some((_, Some(fd))) = received else {
                let text = received.map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned());
                return Err(CriError::Internal(text.unwrap_or_else(|| "no socket from the pod".into())));
            };
            let socket = tokio::net::TcpSocket::from_std_stream(fd.into());
            let address = if v6 { format!("[::1]:{port}") } else { format!("127.0.0.1:{port}") };
            let address = address.parse().map_err(internal("address"))?;
            match tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(err)) => last = last.or(Some(err)),
                Err(_elapsed) => last = Some(io::ErrorKind::TimedOut.into()),
            }
        }
        let err = last.map_or_else(String::new, |e| e.to_string());
        Err(CriError::Internal(format!(
            "failed to connect to localhost:{port} inside namespace {sandbox_id}: {err}"
        )))
    }
}

/// Waits for an exec's end; kills it when its session is dropped.
async fn follow_exec(
    id: String,
    podinit: Arc<crate::podinit::Podinit>,
    own: bool,
    pidfd: OwnedFd,
    exited: oneshot::Receiver<i32>,
    dones: Vec<Arc<Done>>,
    mut tx: oneshot::Sender<Result<i32>>,
) {
    let mut exited = std::pin::pin!(exited);
    let code = tokio::select! {
        code = &mut exited => code,
        () = tx.closed() => {
            if let Err(err) = sys::pidfd_signal(&pidfd, libc::SIGKILL) {
                tracing::debug!(%err, "killing an abandoned exec");
            }
            exited.await
        }
    };
    if own {
        // Its answer is its end.
        let _ = podinit.request(&PodinitRequest::Shutdown, &[]).await;
    } else {
        podinit.release(&id).await;
    }
    let read_out = async {
        for done in &dones {
            done.wait().await;
        }
    };
    // A timeout is fine: see DRAIN_TIMEOUT.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, read_out).await;
    let _ =
        tx.send(code.map_err(|_closed| CriError::Internal("the sandbox died while the command ran".into())));
}

async fn forward_output(
    socket: &AsyncFd<OwnedFd>,
    mut out: tokio::io::DuplexStream,
    mut err: tokio::io::DuplexStream,
) {
    let mut buf = vec![0; MAX_ATTACH_PACKET];
    loop {
        let Ok(mut guard) = socket.readable().await else { return };
        let len = match guard.try_io(|fd| sys::recv_fds(fd.get_ref(), &mut buf)) {
            Ok(Ok((0, _)) | Err(_)) => return,
            Ok(Ok((len, _))) => len,
            Err(_would_block) => continue,
        };
        let target = if buf[0] == attach::STDERR { &mut err } else { &mut out };
        // A client that closed one of its streams may still read the other.
        let _ = target.write_all(&buf[1..len]).await;
    }
}

async fn forward_input(socket: Arc<AsyncFd<OwnedFd>>, mut input: tokio::io::DuplexStream) {
    use tokio::io::AsyncReadExt;
    let mut buf = vec![0; MAX_ATTACH_PACKET];
    loop {
        let len = input.read(&mut buf[1..]).await.unwrap_or(0);
        buf[0] = if len == 0 { attach::STDIN_EOF } else { attach::STDIN };
        loop {
            let Ok(mut guard) = socket.writable().await else { return };
            match guard.try_io(|fd| sys::send_fds(fd.get_ref(), &buf[..=len], &[])) {
                Ok(Ok(())) => break,
                Ok(Err(_)) => return,
                Err(_would_block) => {}
            }
        }
        if len == 0 {
            return;
        }
    }
}
