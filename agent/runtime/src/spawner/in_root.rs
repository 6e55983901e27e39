//! Paths inside a container's root, which the image or a volume's writer may have filled with hostile symlinks.
//!
//! Opening what exists is openat2 with RESOLVE_IN_ROOT. Making what is missing walks by descriptor: each step opens one
//! name without following links, a link is expanded by hand, and `..` goes back along the descriptors walked, so no
//! rename or link can lead out of the root.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Symlinks followed before giving up, as the kernel's limit.
const MAX_LINKS: usize = 40;

/// What to make when the last component is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A folder.
    Dir,
    /// An empty file.
    File,
}

/// Opens a path below `root`, links resolved inside it.
pub fn open(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// Opens (O_PATH) a path below `root`, making what is missing: folders on the way, and `last` at its end.
pub fn open_or_make(root: BorrowedFd<'_>, path: &Path, last: Make) -> io::Result<OwnedFd> {
    match open(root, path, OFlags::PATH) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut todo: VecDeque<OsString> = names(path);
    let mut stack: Vec<OwnedFd> = vec![root.try_clone_to_owned()?];
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let here = stack.last().ok_or(io::ErrorKind::InvalidInput)?;
        let step = || {
            rustix::fs::openat(here, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        };
        let next = match step() {
            Err(Errno::NOENT) => {
                if todo.is_empty() && last == Make::File {
                    let flags =
                        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                    rustix::fs::openat(here, &name, flags, Mode::from_raw_mode(0o644))?;
                } else {
                    match rustix::fs::mkdirat(here, &name, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(err) => return Err(err.into()),
                    }
                }
                step()?
            }
            other => other?,
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode);
        if kind == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            let target = rustix::fs::readlinkat(&next, c"", Vec::new())?.into_bytes();
            let target = PathBuf::from(OsString::from_vec(target));
            if target.is_absolute() {
                stack.truncate(1);
            }
            for name in names(&target).into_iter().rev() {
                todo.push_front(name);
            }
        } else {
            stack.push(next);
        }
    }
    stack.pop().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name.to_os_string()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// Reads a small regular file below `root`; empty when it is not there or is something else.
pub fn read_small(root: impl AsFd, path: &Path, max: usize) -> String {
    use std::io::Read;
    let Ok(fd) = open(root, path, OFlags::RDONLY | OFlags::NONBLOCK) else { return String::new() };
    let file = std::fs::File::from(fd);
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    if file.take(u64::try_from(max).unwrap_or(u64::MAX)).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (PathBuf, OwnedFd) {
        let dir = std::env::temp_dir().join(format!("keelson-in-root-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(dir.join("root")).unwrap();
        let fd = rustix::fs::open(dir.join("root"), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn links_never_lead_out() {
        let (dir, fd) = root();
        let inside = dir.join("root");
        symlink("/../../outside", inside.join("abs")).unwrap();
        symlink("../../../outside", inside.join("rel")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        open_or_make(fd.as_fd(), Path::new("/abs/x"), Make::File).unwrap();
        open_or_make(fd.as_fd(), Path::new("rel/y/z"), Make::Dir).unwrap();
        open_or_make(fd.as_fd(), Path::new("/a/../../b"), Make::Dir).unwrap();
        assert!(inside.join("outside/x").is_file());
        assert!(inside.join("outside/y/z").is_dir());
        assert!(inside.join("b").is_dir());
        assert!(!dir.join("outside").exists());
        assert!(open_or_make(fd.as_fd(), Path::new("/loop/x"), Make::Dir).is_err());
        assert_eq!(read_small(&fd, Path::new("/abs"), 10), "");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
