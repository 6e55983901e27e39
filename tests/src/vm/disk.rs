//! Disks of guests.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cmd;

/// Bytes left free on a disk; the image is sparse, so they cost nothing until the guest writes them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spare(pub u64);

/// Makes an ext4 image that holds a folder's content, owned as there.
pub(super) fn ext4(dir: &Path, image: &Path, spare: Spare) -> Result<()> {
    let (bytes, files) = usage(dir)?;
    // An inode is 256 bytes; a twentieth more for the file system's own blocks.
    let size = (bytes + files * 256) * 21 / 20 + spare.0 + (8 << 20);
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal"]);
    make.args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "-d"]).arg(dir).arg(image);
    cmd::run(make.arg(format!("{}k", size.div_ceil(1024))))
        .with_context(|| format!("make a disk of {}", dir.display()))?;
    Ok(())
}

/// Bytes in whole blocks, and the number of files.
fn usage(dir: &Path) -> Result<(u64, u64)> {
    let (mut bytes, mut files) = (0, 0);
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        files += 1;
        bytes += meta.size().next_multiple_of(4096);
        if meta.is_dir() {
            let inside = usage(&path)?;
            bytes += inside.0;
            files += inside.1;
        }
    }
    Ok((bytes, files))
}

/// Makes an empty disk, to which a guest writes a tar.
pub(super) fn empty(image: &Path, size: u64) -> Result<()> {
    File::create(image)?.set_len(size).with_context(|| format!("make {}", image.display()))
}
