//! `subPath`: a file or folder inside a volume, opened without being led out of it.
//!
//! The volume's content is hostile: another container of the pod may swap folders for symlinks at any time. So the
//! path is resolved once by the kernel with `RESOLVE_BENEATH` (openat2(2), Linux 5.6) and what was opened is what is
//! mounted. Source of the layout: upstream `pkg/volume/util/subpath`.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use super::VolumeError;
use super::mounter::Mounter;
use crate::pods::security::stays_below;

/// Refuses a path that is absolute or has `..`, before anything is opened.
pub fn check(subpath: &str) -> Result<(), VolumeError> {
    if stays_below(subpath) {
        Ok(())
    } else {
        Err(VolumeError::Unsupported(format!("subPath {subpath:?} must be relative and not contain '..'")))
    }
}

/// Opens `subpath` of `volume`; what is missing is made as folders. The descriptor is `O_PATH`.
pub fn open_beneath(volume: &Path, subpath: &str) -> Result<OwnedFd, VolumeError> {
    check(subpath)?;
    let what = || format!("opening subPath {subpath:?} of {}", volume.display());
    let root =
        open(volume, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(VolumeError::io(what()))?;
    // A volume may be one file (hostPath File): then there is nothing beneath it.
    match resolve(&root, subpath) {
        Ok(fd) => Ok(fd),
        Err(nix::Error::ENOENT) => {
            make_folders(&root, subpath).map_err(VolumeError::io(what()))?;
            resolve(&root, subpath).map_err(VolumeError::io(what()))
        }
        Err(nix::Error::EXDEV | nix::Error::ELOOP) => {
            Err(VolumeError::Unsupported(format!("subPath {subpath:?} leads out of its volume")))
        }
        Err(e) => Err(VolumeError::io(what())(e)),
    }
}

fn resolve(root: &OwnedFd, subpath: &str) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // EAGAIN: a rename raced with the walk; the kernel asks for another try.
    for _ in 0..16 {
        match openat2(root, subpath, how) {
            Err(nix::Error::EAGAIN) => {}
            other => return other,
        }
    }
    Err(nix::Error::EAGAIN)
}

/// Makes missing folders one by one, never through a symlink.
fn make_folders(root: &OwnedFd, subpath: &str) -> nix::Result<()> {
    let mut at = openat(root, ".", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mode = Mode::from_bits_truncate(fstat(root)?.st_mode & 0o7777);
    for part in Path::new(subpath).components() {
        let name = Path::new(part.as_os_str());
        if name == Path::new(".") {
            continue;
        }
        match mkdirat(&at, name, Mode::from_bits_truncate(0o750)) {
            Ok(()) => {
                // The umask does not apply to what upstream makes: the volume's own mode.
                nix::sys::stat::fchmodat(&at, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)?;
            }
            Err(nix::Error::EEXIST) => {}
            Err(e) => return Err(e),
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        at = openat(&at, name, flags, Mode::empty())?;
    }
    Ok(())
}

/// Where the bind of a subPath lives: `volume-subpaths/<volume>/<container>/<index>` of the pod's folder.
pub fn target(pod_dir: &Path, volume: &str, container: &str, index: usize) -> PathBuf {
    pod_dir.join("volume-subpaths").join(volume).join(container).join(index.to_string())
}

/// Binds what was opened to its place in the pod's folder and gives that path: a name for the runtime that nobody
/// in the pod can move.
pub fn bind(mounter: &dyn Mounter, fd: &OwnedFd, target: &Path) -> Result<PathBuf, VolumeError> {
    let what = || format!("binding {}", target.display());
    // Left over from an earlier start of the container, which may have opened something else.
    mounter.unmount(target).map_err(VolumeError::io(what()))?;
    let stat = fstat(fd).map_err(VolumeError::io(what()))?;
    let is_dir = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(VolumeError::io(what()))?;
    }
    if is_dir {
        if target.is_file() {
            fs::remove_file(target).map_err(VolumeError::io(what()))?;
        }
        fs::create_dir_all(target).map_err(VolumeError::io(what()))?;
    } else {
        if target.is_dir() {
            fs::remove_dir(target).map_err(VolumeError::io(what()))?;
        }
        fs::OpenOptions::new().create(true).append(true).open(target).map_err(VolumeError::io(what()))?;
    }
    mounter.bind_fd(fd.as_fd(), target).map_err(VolumeError::io(what()))?;
    Ok(target.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    fn real(fd: &OwnedFd) -> PathBuf {
        fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn beneath() {
        let dir = tempfile::tempdir().unwrap();
        let v = dir.path().join("v");
        fs::create_dir_all(v.join("a/b")).unwrap();
        fs::write(v.join("file"), "x").unwrap();
        symlink("a/b", v.join("inside")).unwrap();
        assert_eq!(real(&open_beneath(&v, "a/b").unwrap()), v.join("a/b"));
        assert_eq!(real(&open_beneath(&v, "inside").unwrap()), v.join("a/b"));
        assert_eq!(real(&open_beneath(&v, "file").unwrap()), v.join("file"));
        assert_eq!(real(&open_beneath(&v, "new/deep").unwrap()), v.join("new/deep"));
    }

    #[test]
    fn escapes() {
        let dir = tempfile::tempdir().unwrap();
        let v = dir.path().join("v");
        fs::create_dir_all(&v).unwrap();
        fs::create_dir_all(dir.path().join("secret")).unwrap();
        symlink("/etc", v.join("abs")).unwrap();
        symlink("../secret", v.join("rel")).unwrap();
        symlink("nowhere", v.join("dangling")).unwrap();
        for path in ["abs", "abs/passwd", "rel", "../secret", "/etc", "", "a/../../secret", "rel/made"] {
            assert!(open_beneath(&v, path).is_err(), "{path:?}");
        }
        // A dangling link is not followed to make something where it points.
        assert!(open_beneath(&v, "dangling/x").is_err());
        assert!(!v.join("nowhere").exists());
        assert!(!dir.path().join("secret/made").exists());
    }
}
