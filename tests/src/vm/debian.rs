//! The root disk of a bare Debian with systemd: what debootstrap would make, of the same release as this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::disk;
use crate::{cmd, debian, paths};

/// The program that makes it, of Debian's package of the same name.
pub const PROGRAM: &str = "mmdebstrap";

/// What is on the disk beside the essential packages.
const PACKAGES: &[&str] = &["systemd-sysv", "udev", "kmod", "iproute2", "nftables"];

/// Marks the packages and the layout: an image made of others is made anew.
const VERSION: u32 = 1;

/// Makes the disk, unless an earlier run did.
pub(super) fn ensure() -> Result<PathBuf> {
    let parent = paths::cache().join("vm");
    let dir = parent.join(format!("root-debian-{VERSION}"));
    if !dir.exists() {
        fs::create_dir_all(&parent)?;
        let work = tempfile::tempdir_in(&parent)?;
        prepare(work.path()).context("make the root disk of a bare Debian")?;
        fs::rename(work.keep(), &dir)?;
    }
    Ok(dir.join("root.ext4"))
}

fn prepare(dir: &Path) -> Result<()> {
    if !cmd::have(PROGRAM) {
        bail!("{PROGRAM} is missing: 'cargo xtask vm' installs it from Debian's package of that name");
    }
    let root = dir.join("root");
    let mut make = Command::new(PROGRAM);
    make.args(["--quiet", "--mode=root", "--variant=essential"]);
    make.arg(format!("--include={}", PACKAGES.join(",")));
    // Large, and no package under test has any.
    make.arg("--dpkgopt=path-exclude=/usr/share/locale/*");
    cmd::run(make.arg(debian::codename()?).arg(&root))?;
    for folder in ["job", "usr/lib/modules"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("etc/hostname"), "guest\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n127.0.1.1 guest\n")?;
    fs::write(root.join("etc/resolv.conf"), "# a guest asks nobody\n")?;
    for (verb, unit) in [
        ("enable", "systemd-networkd.service"),
        // Nobody sits there, and there is no network to be waited for or asked.
        ("mask", "serial-getty@ttyS0.service"),
        ("mask", "getty@tty1.service"),
        ("mask", "apt-daily.timer"),
        ("mask", "apt-daily-upgrade.timer"),
    ] {
        cmd::run(Command::new("chroot").arg(&root).args(["systemctl", verb, unit]))?;
    }
    disk::ext4(&root, &dir.join("root.ext4"), disk::Spare(4 << 30))?;
    fs::remove_dir_all(&root)?;
    Ok(())
}
