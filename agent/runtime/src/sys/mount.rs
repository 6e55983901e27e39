//! mount_setattr(2), which rustix does not have.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// What to change of a mount. Attributes are only ever added here.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, or 0 to leave it.
    pub propagation: u64,
    /// The whole tree below, not this mount alone.
    pub recursive: bool,
}

/// Changes a mount given by a descriptor of its root.
pub fn mount_setattr(mount: impl AsFd, attr: MountAttr) -> io::Result<()> {
    let kernel =
        libc::mount_attr { attr_set: attr.set, attr_clr: 0, propagation: attr.propagation, userns_fd: 0 };
    let mut flags = libc::AT_EMPTY_PATH;
    if attr.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a static empty C string, `kernel` lives across the call and its true size is given.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const kernel,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}
