//! Network namespaces: opened by path, entered by a guard that leaves again.

use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};

use crate::error::{Error, Result};

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// An open network namespace. It stays alive as long as this value, even when its path goes.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

impl NetNs {
    /// Opens the namespace at `path`; `None` when there is none: the path is missing, or is a plain file
    /// from which the namespace was unmounted.
    ///
    /// # Errors
    /// Other I/O errors.
    pub fn open(path: &Path) -> Result<Option<NetNs>> {
        let context = |e| Error::io(format!("open network namespace {}", path.display()), e);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            // /proc/<pid>/ns/net of a process that is gone or a zombie.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(context(e)),
        };
        let stat = fstatfs(file.as_fd()).map_err(|e| context(e.into()))?;
        Ok((stat.filesystem_type() == FsType(NSFS_MAGIC)).then_some(NetNs { file }))
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    /// I/O errors.
    pub fn current() -> Result<NetNs> {
        let file =
            File::open("/proc/thread-self/ns/net").map_err(|e| Error::io("open own network namespace", e))?;
        Ok(NetNs { file })
    }

    /// Whether both are the same namespace.
    ///
    /// # Errors
    /// I/O errors.
    pub fn is(&self, other: &NetNs) -> Result<bool> {
        let id = |ns: &NetNs| {
            let meta = ns.file.metadata().map_err(|e| Error::io("stat network namespace", e))?;
            Ok::<_, Error>((meta.dev(), meta.ino()))
        };
        Ok(id(self)? == id(other)?)
    }

    /// The descriptor, for IFLA_NET_NS_FD.
    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `action` with the calling thread inside this namespace. The action can't be async, so no task of
    /// another pod can be polled on the thread meanwhile.
    ///
    /// # Errors
    /// Failure to enter, or the action's own.
    pub fn run<T>(&self, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let _inside = Inside::enter(self)?;
        action()
    }
}

/// Proof that the thread is inside a foreign namespace; dropping it goes home. Not `Send`: a namespace
/// belongs to a thread.
struct Inside {
    home: NetNs,
    _thread_bound: PhantomData<*const ()>,
}

impl Inside {
    fn enter(target: &NetNs) -> Result<Inside> {
        let home = NetNs::current()?;
        setns(target.file.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::io("enter network namespace", e.into()))?;
        Ok(Inside { home, _thread_bound: PhantomData })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(error) = setns(self.home.file.as_fd(), CloneFlags::CLONE_NEWNET) {
            // Going on would program a pod's namespace as though it were the host's.
            tracing::error!(%error, "cannot return to the host's network namespace");
            std::process::abort();
        }
    }
}
