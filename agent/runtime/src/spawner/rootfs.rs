//! Mounts a container's root and all below it, then makes it `/`. Runs in the child, in its own mount namespace.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use keelson_cri::MountPropagation;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    mount, mount_change, move_mount, open_tree, unmount,
};

use super::image_volume;
use super::in_root::{self, Make};
use super::protocol::Failure;
use crate::plan::{BindPlan, ContainerPlan, DeviceNode, MountKind, MountStep, RootfsPlan};
use crate::sys::{self, MountAttr};

/// `f_type` of procfs.
const PROC_SUPER_MAGIC: rustix::fs::FsWord = libc::PROC_SUPER_MAGIC;
const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const HARDENED: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Builds the container's tree; gives its root, which is not `/` yet.
pub fn build(plan: &ContainerPlan) -> Result<OwnedFd, Failure> {
    // Sources are cloned while the mounts of the node are still shared with it: a clone made now stays a peer of its
    // source, which Bidirectional needs; afterwards everything is cut off from the node.
    let mut sources = Vec::new();
    for step in &plan.mounts.steps {
        sources.push(match &step.kind {
            MountKind::Bind(bind) => Some(clone_source(bind).map_err(|e| {
                Failure::setup(format!("mount of {} at {}", bind.source.display(), step.target.display()), e)
            })?),
            _ => None,
        });
    }
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|e| Failure::setup("making mounts private", e))?;
    // Before the root covers the folder that serves as their place.
    for (step, source) in plan.mounts.steps.iter().zip(&mut sources) {
        if let MountKind::Image(image) = &step.kind {
            let tree = image_volume::tree(image, &plan.rootfs.target).map_err(|e| {
                Failure::setup(format!("mount of an image volume at {}", step.target.display()), e)
            })?;
            *source = Some(tree);
        }
    }
    let root = mount_root(&plan.rootfs).map_err(|e| Failure::setup("mount of the root filesystem", e))?;
    let root_fd = root.as_fd();
    let mut proc_fd = None;
    for (step, source) in plan.mounts.steps.iter().zip(sources) {
        let mounted = apply(root_fd, step, source, &plan.mounts.devices)
            .map_err(|e| Failure::setup(format!("mount of {}", step.target.display()), e))?;
        if step.kind == MountKind::Proc {
            proc_fd = Some(mounted);
        }
    }
    protect(root_fd, proc_fd.as_ref(), plan)?;
    if plan.rootfs.readonly {
        // The root mount alone: what is mounted below keeps its own mode.
        sys::mount_setattr(root_fd, MountAttr { set: RDONLY, ..MountAttr::default() })
            .map_err(|e| Failure::setup("making the root filesystem read-only", e))?;
    }
    Ok(root)
}

/// Makes the tree `/` and lets go of the node's.
pub fn enter(root: &OwnedFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // pivot_root(".", ".") stacks the old root on the new one, so no folder for it is needed inside (pivot_root(2)).
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

fn mount_root(plan: &RootfsPlan) -> io::Result<OwnedFd> {
    overlay(&plan.lowerdirs, Some((&plan.upper, &plan.work)), &plan.target)
}

/// Opens (O_PATH) a folder.
pub(super) fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Mounts an overlay at an existing folder and gives its root. `writable`: upper and work folder; without them there
/// must be two lower folders at least.
pub(super) fn overlay(
    lowerdirs: &[PathBuf],
    writable: Option<(&Path, &Path)>,
    target: &Path,
) -> io::Result<OwnedFd> {
    let lower = lowerdirs.iter().map(|p| open_dir(p)).collect::<Result<Vec<_>, _>>()?;
    let writable = match writable {
        Some((upper, work)) => Some((open_dir(upper)?, open_dir(work)?)),
        None => None,
    };
    // fsconfig refuses values of 256 bytes and mount(2) takes one page for all: paths by descriptor are always short,
    // and the container's mountinfo does not tell where the node keeps its images.
    let by_fd = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    match overlay_new_api(&lower, writable.as_ref(), &by_fd) {
        Ok(tree) => {
            attach(&tree, open_dir(target)?.as_fd())?;
            Ok(tree)
        }
        // Before 6.7 overlayfs has no `lowerdir+`.
        Err(rustix::io::Errno::INVAL) => {
            let lower: Vec<String> = lower.iter().map(by_fd).collect();
            let mut options = format!("lowerdir={}", lower.join(":"));
            if let Some((upper, work)) = &writable {
                options.push_str(&format!(",upperdir={},workdir={}", by_fd(upper), by_fd(work)));
            }
            let options = std::ffi::CString::new(options)?;
            mount("overlay", target, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
            Ok(open_dir(target)?)
        }
        Err(err) => Err(err.into()),
    }
}

fn overlay_new_api(
    lower: &[OwnedFd],
    writable: Option<&(OwnedFd, OwnedFd)>,
    by_fd: &dyn Fn(&OwnedFd) -> String,
) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in lower {
        fsconfig_set_string(fs.as_fd(), "lowerdir+", by_fd(layer))?;
    }
    if let Some((upper, work)) = writable {
        fsconfig_set_string(fs.as_fd(), "upperdir", by_fd(upper))?;
        fsconfig_set_string(fs.as_fd(), "workdir", by_fd(work))?;
    }
    fsconfig_create(fs.as_fd())?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Mounts a detached tree on an open folder or file.
pub(super) fn attach(tree: &OwnedFd, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree.as_fd(), c"", target, c"", flags)?)
}

fn clone_source(bind: &BindPlan) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, &bind.source, flags)?)
}

fn filesystem(kind: &CStr, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(fs.as_fd(), *key)?;
        } else {
            fsconfig_set_string(fs.as_fd(), *key, *value)?;
        }
    }
    fsconfig_create(fs.as_fd())?;
    Ok(fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn apply(
    root: BorrowedFd<'_>,
    step: &MountStep,
    source: Option<OwnedFd>,
    devices: &[DeviceNode],
) -> io::Result<OwnedFd> {
    let readonly = |on: bool| if on { HARDENED | MountAttrFlags::MOUNT_ATTR_RDONLY } else { HARDENED };
    let no_suid_exec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let tree = match &step.kind {
        MountKind::Proc => filesystem(c"proc", &[], HARDENED)?,
        MountKind::Dev => {
            let options = [("mode", "755"), ("size", "65536k")];
            filesystem(c"tmpfs", &options, MountAttrFlags::MOUNT_ATTR_NOSUID)?
        }
        MountKind::Devpts => {
            let options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
            filesystem(c"devpts", &options, no_suid_exec)?
        }
        MountKind::Mqueue => filesystem(c"mqueue", &[], HARDENED)?,
        MountKind::Sysfs { readonly: ro } => filesystem(c"sysfs", &[], readonly(*ro))?,
        MountKind::Cgroup { readonly: ro } => filesystem(c"cgroup2", &[], readonly(*ro))?,
        MountKind::Image(_) => source.ok_or(io::ErrorKind::InvalidInput)?,
        MountKind::Bind(bind) => {
            let tree = source.ok_or(io::ErrorKind::InvalidInput)?;
            let propagation = match bind.propagation {
                MountPropagation::Private => libc::MS_PRIVATE,
                MountPropagation::HostToContainer => libc::MS_SLAVE,
                // It is a peer of the node's mount already; MS_SHARED on a private one would only look like it.
                MountPropagation::Bidirectional => 0,
            };
            let all = MountAttr { set: 0, propagation, recursive: true };
            if propagation != 0 {
                sys::mount_setattr(&tree, all)?;
            }
            if bind.readonly {
                let recursive = bind.recursive_readonly;
                sys::mount_setattr(&tree, MountAttr { set: RDONLY, propagation: 0, recursive })?;
            }
            tree
        }
    };
    let last = if FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode) == FileType::Directory {
        Make::Dir
    } else {
        Make::File
    };
    let target = in_root::open_or_make(root, &step.target, last)?;
    // runc's rule: over parts of /proc nothing may be mounted, be it through a link of the image.
    let of_pod = matches!(step.kind, MountKind::Bind(_) | MountKind::Image(_));
    if of_pod && rustix::fs::fstatfs(&target)?.f_type == PROC_SUPER_MAGIC {
        return Err(io::Error::other("cannot be mounted because it is inside /proc"));
    }
    attach(&tree, target.as_fd())?;
    if step.kind == MountKind::Dev {
        fill_dev(&tree, devices)?;
    }
    Ok(tree)
}

fn fill_dev(dev: &OwnedFd, devices: &[DeviceNode]) -> io::Result<()> {
    for device in devices {
        if let Some(parent) = device.path.parent().filter(|p| !p.as_os_str().is_empty()) {
            in_root::open_or_make(dev.as_fd(), parent, Make::Dir)?;
        }
        let kind = if device.block { FileType::BlockDevice } else { FileType::CharacterDevice };
        let number = rustix::fs::makedev(device.major, device.minor);
        rustix::fs::mknodat(dev, &device.path, kind, Mode::from_raw_mode(device.mode), number)?;
    }
    let links = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("/proc/kcore", "core"),
        ("pts/ptmx", "ptmx"),
    ];
    for (target, name) in links {
        rustix::fs::symlinkat(target, dev, name)?;
    }
    for dir in ["pts", "mqueue", "shm"] {
        rustix::fs::mkdirat(dev, dir, Mode::from_raw_mode(0o755))?;
    }
    Ok(())
}

/// Makes /dev/console of a container with a tty its pty. Runs with the container's root as `/`.
pub fn mount_console(slave: &OwnedFd) -> io::Result<()> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let target = in_root::open_or_make(root.as_fd(), Path::new("/dev/console"), Make::File)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(slave.as_fd(), c"", flags)?;
    attach(&tree, target.as_fd())
}

/// Hides and write-protects what /proc and /sys show of the node. Paths below /proc are opened through the descriptor
/// of the procfs just mounted, so an image can't put something else in their place.
fn protect(root: BorrowedFd<'_>, proc_fd: Option<&OwnedFd>, plan: &ContainerPlan) -> Result<(), Failure> {
    let open = |path: &Path| -> io::Result<Option<OwnedFd>> {
        let result = match (path.strip_prefix("/proc"), proc_fd) {
            (Ok(rest), Some(proc_fd)) => in_root::open(proc_fd, rest, OFlags::PATH),
            _ => in_root::open(root, path, OFlags::PATH),
        };
        match result {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    };
    let clone_of = |fd: &OwnedFd| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        open_tree(fd.as_fd(), c"", flags)
    };
    let readonly = |path: &Path| -> io::Result<()> {
        if let Some(fd) = open(path)? {
            let tree = clone_of(&fd)?;
            sys::mount_setattr(&tree, MountAttr { set: RDONLY, propagation: 0, recursive: true })?;
            attach(&tree, fd.as_fd())?;
        }
        Ok(())
    };
    let mask = |path: &Path| -> io::Result<()> {
        let Some(fd) = open(path)? else { return Ok(()) };
        let tree = if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) == FileType::Directory {
            let attributes = HARDENED | MountAttrFlags::MOUNT_ATTR_RDONLY;
            filesystem(c"tmpfs", &[("size", "0k"), ("nr_inodes", "1")], attributes)?
        } else {
            // The node's own null device, not whatever the container's /dev holds.
            let null = rustix::fs::openat(CWD, "/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            let stat = rustix::fs::statat(&null, c"", AtFlags::EMPTY_PATH)?;
            if stat.st_rdev != rustix::fs::makedev(1, 3) {
                return Err(io::Error::other("/dev/null of the node is not the null device"));
            }
            clone_of(&null)?
        };
        attach(&tree, fd.as_fd())
    };
    for path in &plan.mounts.readonly {
        readonly(path).map_err(|e| Failure::setup(format!("write protection of {}", path.display()), e))?;
    }
    for path in &plan.mounts.masked {
        mask(path).map_err(|e| Failure::setup(format!("masking of {}", path.display()), e))?;
    }
    Ok(())
}
