//! The bare root disk: busybox and a few of Debian's programs, of the same release as this machine, so that what was
//! built here runs there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::disk;
use crate::{cmd, debian, paths};

/// What is on the disk beside busybox. libgcc is what Rust programs link; nsenter and unshare are in util-linux.
const PACKAGES: &[&str] =
    &["busybox-static", "libc6", "libgcc-s1", "iproute2", "kmod", "util-linux", "nftables", "base-files"];

/// Marks the packages and the layout: an image made of others is made anew.
const VERSION: u32 = 1;

/// The root disk and the busybox that is on it, as host paths.
#[derive(Clone, Debug)]
pub(super) struct RootDisk {
    /// ext4 image.
    pub image: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
}

/// Makes the disk, unless an earlier run did.
pub(super) fn ensure() -> Result<RootDisk> {
    let parent = paths::cache().join("vm");
    let dir = parent.join(format!("root-bare-{VERSION}"));
    let disk = RootDisk { image: dir.join("root.ext4"), busybox: dir.join("busybox") };
    if !dir.exists() {
        fs::create_dir_all(&parent)?;
        let work = tempfile::tempdir_in(&parent)?;
        prepare(work.path()).context("make the guests' root disk")?;
        fs::rename(work.keep(), &dir)?;
    }
    Ok(disk)
}

fn prepare(dir: &Path) -> Result<()> {
    let root = dir.join("root");
    for folder in ["dev", "proc", "sys", "run", "tmp", "job", "etc", "root", "mnt", "home", "opt", "var/log"]
    {
        fs::create_dir_all(root.join(folder))?;
    }
    for deb in debian::Apt::suite(&debian::codename()?)?.closure(PACKAGES)? {
        debian::unpack(&deb, &root)?;
    }
    // As Debian's installer leaves it: programs and libraries are below /usr, and the old folders lead there.
    for folder in ["bin", "sbin", "lib", "lib64"] {
        let (old, new) = (root.join(folder), root.join("usr").join(folder));
        fs::create_dir_all(&new)?;
        if old.exists() {
            cmd::run(Command::new("cp").arg("-a").arg(old.join(".")).arg(&new))?;
            fs::remove_dir_all(&old)?;
        }
        symlink(format!("usr/{folder}"), &old)?;
    }
    for folder in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/bash-completion"] {
        let _ = fs::remove_dir_all(root.join(folder));
    }
    let busybox = root.join("usr/bin/busybox");
    fs::copy(&busybox, dir.join("busybox")).context("busybox-static has no busybox")?;
    // Debian's own programs go before busybox' applets of the same name.
    let have = |name: &str| {
        ["usr/bin", "usr/sbin"].iter().any(|folder| root.join(folder).join(name).symlink_metadata().is_ok())
    };
    for applet in cmd::text(Command::new(&busybox).arg("--list"))?.lines() {
        if !have(applet) {
            symlink("busybox", root.join("usr/bin").join(applet))?;
        }
    }
    fs::create_dir_all(root.join("usr/lib/modules"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\ntty:x:5:\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost guest\n")?;
    fs::write(root.join("etc/resolv.conf"), "# a guest asks nobody\n")?;
    fs::write(root.join("etc/nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    disk::ext4(&root, &dir.join("root.ext4"), disk::Spare(4 << 30))?;
    fs::remove_dir_all(&root)?;
    Ok(())
}
