//! The agent's side of the podinit protocol.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_podinit::protocol::{
    Event, FromPodinit, MAX_MESSAGE, MIN_VERSION, ProcessState, Reply, ReplyBody, Request, VERSION,
};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::sys;

/// podinit answers at once; one that doesn't is stuck.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection tells the runtime.
#[derive(Debug)]
pub enum Notice {
    /// A process was reaped.
    Exited(ProcessState),
    /// The connection is gone: podinit died, or cut off an agent that did not read.
    Disconnected,
}

/// Notices with the name of the sandbox that they are about.
pub type Notices = mpsc::Sender<(String, Notice)>;

/// A connection to one podinit.
pub struct Podinit {
    socket: Arc<AsyncFd<OwnedFd>>,
    next: AtomicU32,
    waiting: Arc<Mutex<HashMap<u32, mpsc::Sender<Reply>>>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Podinit {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A folder is addressed by descriptor: a socket address holds 108 bytes only.
fn address(dir: &OwnedFd, name: &str) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?)
}

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}

/// Makes the socket that podinit will listen on, mode 0600.
pub fn bind_listener(dir: &Path, name: &str) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let dir = open_dir(dir)?;
    bind(&socket, &address(&dir, name)?)?;
    // The folder is 0700, so nobody was there before the mode is set.
    rustix::fs::chmodat(&dir, name, Mode::from_raw_mode(0o600), rustix::fs::AtFlags::empty())?;
    Ok(socket)
}

impl Podinit {
    /// Connects and says hello. podinit may still be on its way to listen: refusals are tried again for a while.
    pub async fn connect(dir: &Path, name: &str, about: &str, notices: Notices) -> io::Result<Arc<Self>> {
        let dir = open_dir(dir)?;
        let mut pause = Duration::from_micros(200);
        let socket = loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            match connect(&socket, &address(&dir, name)?) {
                Ok(()) => break socket,
                Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::AGAIN) if pause.as_millis() < 800 => {
                    tokio::time::sleep(pause).await;
                    pause = pause * 3 / 2;
                }
                Err(err) => return Err(err.into()),
            }
        };
        let socket = Arc::new(sys::async_fd(socket, false)?);
        let waiting = Arc::new(Mutex::new(HashMap::new()));
        let reader = tokio::spawn(read_loop(socket.clone(), waiting.clone(), about.to_string(), notices));
        let podinit = Arc::new(Self { socket, next: AtomicU32::new(1), waiting, reader });
        let hello = podinit.request(&Request::Hello { min: MIN_VERSION, max: VERSION }, &[]).await?;
        match hello.body {
            ReplyBody::Hello { version } if (MIN_VERSION..=VERSION).contains(&version) => Ok(podinit),
            _ => Err(io::Error::other("podinit speaks another version of its protocol")),
        }
    }

    async fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<mpsc::Receiver<Reply>> {
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = mpsc::channel(64);
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(seq, tx);
        let bytes = request.encode(seq);
        loop {
            let mut guard = self.socket.writable().await?;
            match guard.try_io(|s| sys::send_fds(s.get_ref(), &bytes, fds)) {
                Ok(Ok(())) => return Ok(rx),
                Ok(Err(err)) => {
                    self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&seq);
                    return Err(err);
                }
                Err(_would_block) => {}
            }
        }
    }

    async fn next_reply(rx: &mut mpsc::Receiver<Reply>) -> io::Result<Reply> {
        let reply = tokio::time::timeout(TIMEOUT, rx.recv()).await.or(Err(io::ErrorKind::TimedOut))?;
        let reply = reply.ok_or(io::ErrorKind::ConnectionReset)?;
        if reply.errno != 0 { Err(io::Error::from_raw_os_error(reply.errno)) } else { Ok(reply) }
    }

    /// Asks and waits for the answer.
    pub async fn request(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<Reply> {
        let mut rx = self.send(request, fds).await?;
        Self::next_reply(&mut rx).await
    }

    /// All registered processes.
    pub async fn list(&self) -> io::Result<Vec<ProcessState>> {
        let mut rx = self.send(&Request::List, &[]).await?;
        let mut out = Vec::new();
        while let ReplyBody::Process(state) = Self::next_reply(&mut rx).await?.body {
            out.push(state);
        }
        Ok(out)
    }

    /// Forgets a process. That podinit is gone, and with it what it knew, is no error.
    pub async fn release(&self, id: &str) {
        if let Err(err) = self.request(&Request::Release { id: id.into() }, &[]).await {
            tracing::debug!(%err, id, "podinit could not release a process");
        }
    }

    /// Joins a process's streams: our end of the attach socket.
    pub async fn attach(&self, id: &str, stdin: bool) -> io::Result<OwnedFd> {
        let (ours, theirs) = sys::socketpair()?;
        self.request(&Request::Attach { id: id.into(), stdin }, &[theirs.as_fd()]).await?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok(ours)
    }
}

async fn read_loop(
    socket: Arc<AsyncFd<OwnedFd>>,
    waiting: Arc<Mutex<HashMap<u32, mpsc::Sender<Reply>>>>,
    about: String,
    notices: Notices,
) {
    let mut buf = vec![0; MAX_MESSAGE];
    loop {
        let Ok(mut guard) = socket.readable().await else { break };
        let len = match guard.try_io(|s| sys::recv_fds(s.get_ref(), &mut buf)) {
            Ok(Ok((0, _)) | Err(_)) => break,
            Ok(Ok((len, _))) => len,
            Err(_would_block) => continue,
        };
        match FromPodinit::decode(&buf[..len]) {
            Ok(FromPodinit::Event(Event::Exited(state))) => {
                if notices.send((about.clone(), Notice::Exited(state))).await.is_err() {
                    return;
                }
            }
            Ok(FromPodinit::Reply(reply)) => {
                let more = matches!(reply.body, ReplyBody::Process(_));
                let tx = {
                    let mut waiting = waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if more { waiting.get(&reply.seq).cloned() } else { waiting.remove(&reply.seq) }
                };
                if let Some(tx) = tx {
                    // The one who asked may have given up.
                    let _ = tx.send(reply).await;
                }
            }
            Err(err) => tracing::warn!(%err, sandbox = about, "unreadable message from podinit"),
        }
    }
    waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    // The runtime may be gone too.
    let _ = notices.send((about, Notice::Disconnected)).await;
}
