//! What root file systems are made of: Debian packages, busybox, users.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cmd, debian, paths};

/// Debian's release from which all images are made, whatever the machine's own is: its busybox, unlike the one of the
/// release before, does not crash on `wget -T`.
pub const RELEASE: &str = "trixie";

/// Writes `/etc/passwd` and its like with `root`, `nobody` and these users (name, uid and gid, home).
pub fn passwd(root: &Path, users: &[(&str, u32, &str)]) -> Result<()> {
    fs::create_dir_all(root.join("etc"))?;
    let mut passwd = String::from(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    );
    let mut group = String::from("root:x:0:\nnogroup:x:65534:\n");
    for (name, id, home) in users {
        passwd.push_str(&format!("{name}:x:{id}:{id}::{home}:/usr/sbin/nologin\n"));
        group.push_str(&format!("{name}:x:{id}:\n"));
    }
    fs::write(root.join("etc/passwd"), passwd)?;
    fs::write(root.join("etc/group"), group)?;
    fs::write(root.join("etc/nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
    fs::create_dir_all(root.join("root"))?;
    fs::create_dir_all(root.join("tmp"))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    Ok(())
}

/// Links `/bin`, `/sbin`, `/lib` and `/lib64` to their namesakes in `/usr`, where Debian's packages put everything.
pub fn merge_usr(root: &Path) -> Result<()> {
    for folder in ["bin", "sbin", "lib", "lib64"] {
        let in_usr = Path::new("usr").join(folder);
        fs::create_dir_all(root.join(&in_usr))?;
        if fs::symlink_metadata(root.join(folder)).is_err() {
            symlink(in_usr, root.join(folder))?;
        }
    }
    Ok(())
}

/// Adds Debian's busybox.
pub fn put_busybox(root: &Path) -> Result<()> {
    let unpacked = tempfile::tempdir_in(paths::cache())?;
    debian::unpack(&debian::Apt::suite(RELEASE)?.package("busybox-static")?, unpacked.path())?;
    link_busybox(root, &unpacked.path().join("usr/bin/busybox"))
}

/// Adds a busybox with a link for each of its commands that is not there already.
pub fn link_busybox(root: &Path, program: &Path) -> Result<()> {
    merge_usr(root)?;
    let bin = root.join("usr/bin");
    fs::copy(program, bin.join("busybox")).with_context(|| format!("copy {}", program.display()))?;
    let applets = cmd::text(Command::new(program).arg("--list"))?;
    for applet in applets.lines() {
        if fs::symlink_metadata(bin.join(applet)).is_err()
            && fs::symlink_metadata(root.join("usr/sbin").join(applet)).is_err()
        {
            symlink("busybox", bin.join(applet))?;
        }
    }
    Ok(())
}

/// Removes what no program reads: documentation, translations, and the Perl that only packages' own scripts need.
pub fn prune(root: &Path, keep_perl: bool) {
    let always = ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/bash-completion"];
    let perl = ["usr/share/perl", "usr/lib/x86_64-linux-gnu/perl-base"];
    for folder in always.iter().chain(if keep_perl { &[][..] } else { &perl }) {
        let _ = fs::remove_dir_all(root.join(folder));
    }
}
