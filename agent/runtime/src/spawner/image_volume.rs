//! Images as volumes: their layers are put together as those of a container's root, but without a writable one. Such a
//! mount lives in the container's mount namespace alone, so nothing of it is left on the node when the container ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, OFlags};
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, open_tree, unmount};

use super::{in_root, rootfs};
use crate::plan::ImagePlan;
use crate::sys::{self, MountAttr};

/// Gives what a container sees of the volume, read-only, as a tree that is mounted nowhere. `at` is an empty folder over
/// which it is mounted for a moment: only below a mounted root may a part be cloned (open_tree(2), before Linux 6.15).
pub fn tree(plan: &ImagePlan, at: &Path) -> io::Result<OwnedFd> {
    let whole = match plan.lowerdirs.as_slice() {
        [only] => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = open_tree(CWD, only, flags)?;
            rootfs::attach(&tree, rootfs::open_dir(at)?.as_fd())?;
            tree
        }
        lowerdirs => rootfs::overlay(lowerdirs, None, at)?,
    };
    let part = part(&whole, &plan.sub_path);
    drop(whole);
    unmount(at, UnmountFlags::DETACH)?;
    let part = part?;
    let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, propagation: libc::MS_PRIVATE, recursive: true };
    sys::mount_setattr(&part, attr)?;
    Ok(part)
}

/// Links are followed as the image means them: within it.
fn part(whole: &OwnedFd, sub_path: &Path) -> io::Result<OwnedFd> {
    let found = in_root::open(whole, sub_path, OFlags::PATH)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(found.as_fd(), c"", flags)?)
}

/// Whether the volume can be mounted and has the sub path, found out by doing it, in a mount namespace of a thread that
/// ends with it. Takes as long as a mount.
pub fn check(plan: &ImagePlan, at: &Path) -> io::Result<()> {
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
            tree(plan, at).map(drop)
        });
        work.join().unwrap_or_else(|_| Err(io::Error::other("the thread of the mount panicked")))
    })
}
