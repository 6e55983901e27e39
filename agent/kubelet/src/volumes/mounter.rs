//! Mounting, behind a trait so that everything else is testable without root.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What the kubelet mounts itself.
pub trait Mounter: Send + Sync {
    /// A tmpfs at an existing folder; `size` in bytes, none for half the memory.
    fn tmpfs(&self, target: &Path, size: Option<u64>) -> std::io::Result<()>;
    /// Binds what `source` is open on to an existing `target`.
    fn bind_fd(&self, source: BorrowedFd<'_>, target: &Path) -> std::io::Result<()>;
    /// Unmounts; succeeds when nothing is mounted there.
    fn unmount(&self, target: &Path) -> std::io::Result<()>;
    /// Mount points at or below `root`, deepest first.
    fn mounts_below(&self, root: &Path) -> std::io::Result<Vec<PathBuf>>;
}

/// The kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostMounter;

impl Mounter for HostMounter {
    fn tmpfs(&self, target: &Path, size: Option<u64>) -> std::io::Result<()> {
        let options = size.map_or_else(|| "mode=0755".to_owned(), |s| format!("mode=0755,size={s}"));
        mount(
            Some("tmpfs"),
            target,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some(options.as_str()),
        )
        .map_err(std::io::Error::from)
    }

    fn bind_fd(&self, source: BorrowedFd<'_>, target: &Path) -> std::io::Result<()> {
        // The descriptor, not a path, so that nobody can swap what was checked.
        let path = format!("/proc/thread-self/fd/{}", source.as_raw_fd());
        mount(Some(path.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .map_err(std::io::Error::from)
    }

    fn unmount(&self, target: &Path) -> std::io::Result<()> {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
            // Still open somewhere: detach it, the kernel frees it with its last user.
            Err(nix::Error::EBUSY) => umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                .map_err(std::io::Error::from),
            Err(e) => Err(e.into()),
        }
    }

    fn mounts_below(&self, root: &Path) -> std::io::Result<Vec<PathBuf>> {
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
        Ok(parse_mounts(&table, root))
    }
}

/// Fifth field of mountinfo, where ` `, tab, newline and `\` are octal escapes (proc_pid_mountinfo(5)).
fn parse_mounts(table: &str, root: &Path) -> Vec<PathBuf> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut found: Vec<PathBuf> = points.filter(|p| p.starts_with(root)).collect();
    found.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    found
}

fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\');
        let code =
            octal.and_then(|o| std::str::from_utf8(o).ok()).and_then(|o| u8::from_str_radix(o, 8).ok());
        match code {
            Some(b) => {
                out.push(b);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// A mounter for tests: a tmpfs is a plain folder, a bind is a symlink or a copy.
#[cfg(test)]
#[derive(Default)]
pub struct FakeMounter {
    /// Targets that are "mounted".
    pub mounted: parking_lot::Mutex<Vec<PathBuf>>,
}

#[cfg(test)]
impl Mounter for FakeMounter {
    fn tmpfs(&self, target: &Path, _size: Option<u64>) -> std::io::Result<()> {
        self.mounted.lock().push(target.to_owned());
        Ok(())
    }
    fn bind_fd(&self, _source: BorrowedFd<'_>, target: &Path) -> std::io::Result<()> {
        self.mounted.lock().push(target.to_owned());
        Ok(())
    }
    fn unmount(&self, target: &Path) -> std::io::Result<()> {
        self.mounted.lock().retain(|m| m != target);
        Ok(())
    }
    fn mounts_below(&self, root: &Path) -> std::io::Result<Vec<PathBuf>> {
        Ok(self.mounted.lock().iter().filter(|m| m.starts_with(root)).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo() {
        let table = "36 35 98:0 / /a/b rw - ext4 x rw\n37 35 98:0 / /a/b/c\\040d rw - tmpfs x rw\n38 35 0:1 / /other rw - x x x\n";
        assert_eq!(parse_mounts(table, Path::new("/a")), [PathBuf::from("/a/b/c d"), PathBuf::from("/a/b")]);
    }
}
