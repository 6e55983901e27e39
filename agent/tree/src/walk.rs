//! The walk itself.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Folders held open below the top one, whatever the depth of the tree: the deeper ones. Those above are found again
/// through `..`.
const OPEN: usize = 32;

/// Why a walk did not see the whole tree.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// A folder was moved while the walk was below it. The rest of the tree was walked, but for what stands beside
    /// the moved one on the way to it.
    #[error("a folder was moved during the walk")]
    Moved,
    /// A system call or the visitor failed. The walk ended there.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for WalkError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// One file, folder, link or device of a tree. It stays the same object whatever happens to its name.
pub struct Entry<'a> {
    /// `O_PATH`: names the object, opens nothing. A FIFO does not block and a device does nothing.
    fd: BorrowedFd<'a>,
    stat: &'a Stat,
}

impl Entry<'_> {
    fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether it is a folder.
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Its group.
    pub fn group(&self) -> u32 {
        self.stat.st_gid
    }

    /// Its permission bits, with setuid, setgid and sticky.
    pub fn mode(&self) -> u32 {
        self.stat.st_mode & 0o7777
    }

    /// Bytes of the blocks that it takes on the disk.
    pub fn allocated(&self) -> u64 {
        // POSIX leaves the unit open; on Linux it is 512 bytes on every filesystem.
        u64::try_from(self.stat.st_blocks).unwrap_or(0).saturating_mul(512)
    }

    /// Device and inode, when it has more names than this one.
    pub(crate) fn hard_linked(&self) -> Option<(u64, u64)> {
        (!self.is_dir() && self.stat.st_nlink > 1).then_some(identity(self.stat))
    }

    /// Gives it to a group.
    pub fn set_group(&self, group: u32) -> io::Result<()> {
        let group = rustix::fs::Gid::from_raw(group);
        Ok(rustix::fs::chownat(self.fd, c"", None, Some(group), AtFlags::EMPTY_PATH)?)
    }

    /// Sets its permission bits; nothing for a symlink, which has none.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        if self.file_type() == FileType::Symlink {
            return Ok(());
        }
        // fchmod(2) refuses O_PATH, and fchmodat2(2) needs Linux 6.6. This link leads to the object, not to its name.
        let link = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        fs::set_permissions(link, fs::Permissions::from_mode(mode & 0o7777))
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// A folder whose content is being walked.
struct Level {
    /// None for a folder that is too far up to be held open.
    fd: Option<OwnedFd>,
    identity: (u64, u64),
    /// Folders in it that have not been walked.
    folders: Vec<CString>,
}

/// Shows `visit` everything in the tree at `root`, `root` too. A folder comes after all that is in it. What vanishes
/// meanwhile is left out, and so is what another mount covers.
///
/// `root` must be a name that nobody hostile can change; a symlink there is shown as one.
pub fn walk(root: &Path, visit: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>) -> Result<(), WalkError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    let mut walker = Walker { visit, stack: Vec::new() };
    let mut moved = false;
    walker.enter(fd, &stat)?;
    while let Some(level) = walker.stack.last_mut() {
        if let Some(name) = level.folders.pop() {
            walker.descend(&name)?;
        } else {
            moved |= !walker.leave()?;
        }
    }
    if moved { Err(WalkError::Moved) } else { Ok(()) }
}

struct Walker<'a> {
    visit: &'a mut dyn FnMut(&Entry<'_>) -> io::Result<()>,
    stack: Vec<Level>,
}

impl Walker<'_> {
    /// Shows what is no folder; shows the content of what is one, but for the folders in it.
    fn enter(&mut self, fd: OwnedFd, stat: &Stat) -> Result<(), WalkError> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok((self.visit)(&Entry { fd: fd.as_fd(), stat })?);
        }
        let mut folders = Vec::new();
        let list = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for entry in Dir::new(rustix::fs::openat(&fd, c".", list, Mode::empty())?)? {
            let entry = match entry {
                // The folder itself has been removed.
                Err(Errno::NOENT) => break,
                entry => entry?,
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                folders.push(name.to_owned());
                continue;
            }
            let Some((file, stat)) = look_up(fd.as_fd(), name)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                folders.push(name.to_owned());
            } else {
                (self.visit)(&Entry { fd: file.as_fd(), stat: &stat })?;
            }
        }
        self.stack.push(Level { fd: Some(fd), identity: identity(stat), folders });
        // The top one stays open: there the walk goes on after it lost its way.
        if let Some(far) = self.stack.len().checked_sub(OPEN + 1).filter(|n| *n > 0) {
            self.stack[far].fd = None;
        }
        Ok(())
    }

    fn descend(&mut self, name: &CStr) -> Result<(), WalkError> {
        let Some(fd) = self.stack.last().and_then(|level| level.fd.as_ref()) else { return Ok(()) };
        match look_up(fd.as_fd(), name)? {
            Some((fd, stat)) => self.enter(fd, &stat),
            None => Ok(()),
        }
    }

    /// Shows the folder whose content is done, and goes up. False when the way up was lost.
    fn leave(&mut self) -> Result<bool, WalkError> {
        let Some(Level { fd: Some(fd), .. }) = self.stack.pop() else { return Ok(true) };
        let stat = rustix::fs::fstat(&fd)?;
        (self.visit)(&Entry { fd: fd.as_fd(), stat: &stat })?;
        let Some(parent) = self.stack.last_mut().filter(|level| level.fd.is_none()) else { return Ok(true) };
        // A plain `..`: whatever it leads to is taken only if it is the very folder that was walked on the way down.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let up = rustix::fs::openat(&fd, c"..", flags, Mode::empty())?;
        if identity(&rustix::fs::fstat(&up)?) == parent.identity {
            parent.fd = Some(up);
            return Ok(true);
        }
        self.stack.truncate(1);
        Ok(false)
    }
}

/// Looks a name up in a folder. None when it is gone, or another mount is there.
fn look_up(folder: BorrowedFd<'_>, name: &CStr) -> Result<Option<(OwnedFd, Stat)>, WalkError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve) {
        Ok(fd) => {
            let stat = rustix::fs::fstat(&fd)?;
            Ok(Some((fd, stat)))
        }
        Err(Errno::NOENT | Errno::XDEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::PathBuf;

    fn inode(path: &Path) -> u64 {
        fs::symlink_metadata(path).unwrap().ino()
    }

    fn open_descriptors() -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    fn check(root: &Path, want: &[&Path]) {
        let mut seen = Vec::new();
        walk(root, &mut |entry| {
            seen.push(entry.stat.st_ino);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen.last(), want.last().map(|p| inode(p)).as_ref(), "the top folder comes last");
        seen.sort_unstable();
        let mut want: Vec<u64> = want.iter().map(|p| inode(p)).collect();
        want.sort_unstable();
        assert_eq!(seen, want);
    }

    #[test]
    fn everything_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/f"), "x").unwrap();
        fs::write(at("g"), "x").unwrap();
        symlink("/etc", at("a/link")).unwrap();
        check(dir.path(), &[&at("a"), &at("a/b"), &at("a/f"), &at("g"), &at("a/link"), dir.path()]);
        check(&at("g"), &[&at("g")]);
        check(&at("a/link"), &[&at("a/link")]);
        assert!(matches!(walk(&at("none"), &mut |_| Ok(())), Err(WalkError::Io(_))));
    }

    fn deep(root: &Path, depth: usize) -> PathBuf {
        let path = (0..depth).fold(root.to_owned(), |p, _| p.join("d"));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn deep_trees_need_few_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let last = deep(dir.path(), 400);
        fs::write(last.join("f"), "x").unwrap();
        fs::write(dir.path().join("d/d/g"), "x").unwrap();
        let before = open_descriptors();
        let (mut count, mut most) = (0, 0);
        walk(dir.path(), &mut |_| {
            count += 1;
            most = most.max(open_descriptors());
            Ok(())
        })
        .unwrap();
        assert_eq!(count, 403);
        // Other tests of this process have a few open too.
        assert!(most < before + OPEN + 60, "{before} to {most}");
    }

    #[test]
    fn a_folder_that_was_moved_is_not_climbed_out_of() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
        let last = deep(&volume, 100);
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("secret"), "x").unwrap();
        fs::write(last.join("f"), "x").unwrap();
        let secret = inode(&outside.join("secret"));
        let mut first = true;
        let result = walk(&volume, &mut |entry| {
            assert_ne!(entry.stat.st_ino, secret);
            assert_ne!(entry.stat.st_ino, inode(&outside));
            if std::mem::take(&mut first) {
                let half = (0..50).fold(volume.clone(), |p, _| p.join("d"));
                fs::rename(half, outside.join("moved")).unwrap();
            }
            Ok(())
        });
        assert!(matches!(result, Err(WalkError::Moved)), "{result:?}");
    }

    #[test]
    fn a_folder_swapped_for_a_link_is_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("d")).unwrap();
        fs::write(volume.join("d/f"), "x").unwrap();
        fs::write(volume.join("first"), "x").unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("f"), "x").unwrap();
        let mut seen = Vec::new();
        walk(&volume, &mut |entry| {
            // `first` is shown after `d` was listed as a folder and before it is walked.
            if seen.is_empty() {
                fs::rename(volume.join("d"), volume.join("away")).unwrap();
                symlink(&outside, volume.join("d")).unwrap();
            }
            seen.push(entry.stat.st_ino);
            Ok(())
        })
        .unwrap();
        assert!(seen.contains(&inode(&volume.join("d"))));
        assert!(!seen.contains(&inode(&outside)) && !seen.contains(&inode(&outside.join("f"))));
    }
}
