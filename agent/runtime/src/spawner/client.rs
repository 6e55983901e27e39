//! The agent's side of the spawner.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use tokio::io::unix::AsyncFd;

use super::protocol::{ChildMessage, Failure, FailureKind, MAX_PACKET, Reply, Request, SOCKET};
use crate::sys;

/// How long the spawner may take for one birth; it takes a millisecond.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// A spawner that is started when needed and started again when it died.
pub struct Spawner {
    program: PathBuf,
    live: Mutex<Option<Live>>,
}

struct Live {
    socket: OwnedFd,
    child: Child,
}

impl Drop for Live {
    fn drop(&mut self) {
        // It ends at the end of file on its socket; waiting for it would wait for that, so it is killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Something was born.
pub struct Spawned {
    /// Pid, see [`Reply::pid`].
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

impl Spawner {
    /// `program` is a program whose `main` calls [`super::main_if_requested`] first.
    pub fn new(program: PathBuf) -> Self {
        Self { program, live: Mutex::new(None) }
    }

    fn start(&self) -> io::Result<Live> {
        let (ours, theirs) = sys::socketpair()?;
        rustix::net::sockopt::set_socket_timeout(
            &ours,
            rustix::net::sockopt::Timeout::Recv,
            Some(REPLY_TIMEOUT),
        )?;
        let binary = readonly_clone(&self.program)?;
        // The child finds the program by descriptor, which is closed on exec, and its socket at a fixed number.
        let program = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&binary));
        let mut command = Command::new(program);
        command.arg0(super::ARGV0).stdin(Stdio::null()).env_clear();
        sys::inherit_at(&mut command, theirs, SOCKET);
        let child = command.spawn()?;
        Ok(Live { socket: ours, child })
    }

    /// Pid of the spawner, when one runs.
    pub fn pid(&self) -> Option<u32> {
        self.live.lock().ok()?.as_ref().map(|l| l.child.id())
    }

    /// Has something born. Blocks for about a millisecond.
    pub fn spawn(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<Spawned> {
        let payload = memfd(request)?;
        let mut all = vec![payload.as_fd()];
        all.extend_from_slice(fds);
        let mut live = self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for attempt in 0.. {
            if live.is_none() {
                *live = Some(self.start()?);
            }
            let Some(spawner) = live.as_ref() else { continue };
            match sys::send_fds(&spawner.socket, b"spawn", &all) {
                Ok(()) => {}
                // It died since the last request; this one has not reached it.
                Err(_) if attempt == 0 => {
                    *live = None;
                    continue;
                }
                Err(err) => return Err(err),
            }
            let mut buf = vec![0; MAX_PACKET];
            // The acknowledgement comes before anything is done: without it the request may be made again, and with
            // it must not be, as something may have been born.
            let mut receive = |socket: &OwnedFd| match sys::recv_fds(socket, &mut buf) {
                Ok((0, _)) => Err(io::Error::other("the spawner died")),
                Ok((len, fds)) => Ok((buf[..len].to_vec(), fds)),
                Err(err) => Err(err),
            };
            if let Err(err) = receive(&spawner.socket) {
                *live = None;
                if attempt == 0 && err.kind() != io::ErrorKind::WouldBlock {
                    continue;
                }
                return Err(err);
            }
            let (bytes, mut fds) = receive(&spawner.socket).inspect_err(|_| *live = None)?;
            let reply: Reply = serde_json::from_slice(&bytes)?;
            if let Some(error) = reply.error {
                return Err(io::Error::other(error));
            }
            let pidfd = fds.pop().ok_or_else(|| io::Error::other("the spawner sent no pidfd"))?;
            return Ok(Spawned { pid: reply.pid, pidfd });
        }
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

/// A program that can't be written through: /proc/<pid>/exe of what is started from it can be opened by a container, but
/// not for writing. It is a read-only clone of the file's mount, which costs nothing.
///
/// A file that was reached through another mount namespace, as when the agent was started by one process and moved by
/// another, can't be cloned (EINVAL); it is copied to sealed memory instead.
pub fn readonly_clone(path: &std::path::Path) -> io::Result<OwnedFd> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match open_tree(rustix::fs::CWD, path, flags) {
        Ok(clone) => {
            let attr = sys::MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..sys::MountAttr::default() };
            sys::mount_setattr(&clone, attr)?;
            Ok(clone)
        }
        Err(rustix::io::Errno::INVAL) => sealed_copy(path),
        Err(err) => Err(err.into()),
    }
}

fn sealed_copy(path: &std::path::Path) -> io::Result<OwnedFd> {
    use rustix::fs::SealFlags;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = std::fs::File::from(rustix::fs::memfd_create("keelson-program", flags)?);
    io::copy(&mut std::fs::File::open(path)?, &mut copy)?;
    rustix::fs::fcntl_add_seals(
        &copy,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    tracing::info!(path = %path.display(), "program copied to memory: its mount can't be cloned from here");
    // Opened again for reading: a file open for writing can't be executed.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
    Ok(std::fs::File::open(path)?.into())
}

fn memfd(request: &Request) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(rustix::fs::memfd_create("keelson-plan", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(request)?)?;
    Ok(file.into())
}

/// The agent's end of a child's sync socket.
pub struct ChildSync(AsyncFd<OwnedFd>);

/// What a child said: itself and the descriptor that came with it.
type Heard = Option<(ChildMessage, Option<OwnedFd>)>;

impl ChildSync {
    /// A pair: this end, and the child's.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = sys::socketpair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Self(sys::async_fd(ours, true)?), theirs))
    }

    /// Next packet; none at the end of file, which after "go" means that exec succeeded.
    pub async fn receive(&self) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
        let mut buf = vec![0; MAX_PACKET];
        loop {
            let mut guard = self.0.readable().await?;
            match guard.try_io(|fd| sys::recv_fds(fd.get_ref(), &mut buf)) {
                Ok(Ok((0, _))) => return Ok(None),
                Ok(Ok((len, mut fds))) => return Ok(Some((buf[..len].to_vec(), fds.pop()))),
                // A peer that died with our byte unread resets the socket: it is gone all the same.
                Ok(Err(err)) if err.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Ok(Err(err)) => return Err(err),
                Err(_would_block) => {}
            }
        }
    }

    /// Next message.
    pub async fn message(&self) -> Result<Heard, Failure> {
        match self.receive().await.map_err(|e| Failure::setup("sync socket", e))? {
            None => Ok(None),
            Some((bytes, fd)) => {
                let message =
                    serde_json::from_slice(&bytes).map_err(|e| Failure::setup("sync message", e))?;
                Ok(Some((message, fd)))
            }
        }
    }

    /// Waits until the child is set up.
    pub async fn ready(&self) -> Result<(crate::plan::ResolvedUser, Vec<String>, Option<OwnedFd>), Failure> {
        match self.message().await? {
            Some((ChildMessage::Ready { user, warnings }, fd)) => Ok((user, warnings, fd)),
            Some((ChildMessage::Failed(failure), _)) => Err(failure),
            None => Err(Failure {
                kind: FailureKind::Setup,
                message: "the process died while it was set up".into(),
            }),
        }
    }

    /// Lets it call exec, and waits for the outcome.
    pub async fn go(&self) -> Result<(), Failure> {
        sys::send_fds(self.0.get_ref(), b"g", &[]).map_err(|e| Failure::setup("starting the process", e))?;
        self.executed().await
    }

    /// Waits for exec.
    pub async fn executed(&self) -> Result<(), Failure> {
        match self.message().await? {
            Some((ChildMessage::Failed(failure), _)) => Err(failure),
            Some((ChildMessage::Ready { .. }, _)) => Err(Failure::setup("sync message", "out of order")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_copy_runs_and_stays_as_it_is() {
        let copy = sealed_copy(std::path::Path::new("/bin/true")).unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
        assert!(Command::new(&path).status().unwrap().success());
        let mut writable = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        assert!(writable.write_all(b"x").is_err());
    }
}
