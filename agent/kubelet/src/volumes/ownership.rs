//! fsGroup: a volume that the pod's group owns and can write.
//!
//! Source: upstream `pkg/volume/volume_linux.go`: group owner, `g+rw` (`g+rwx` and setgid for folders).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::{Gid, fchownat};

use super::VolumeError;

/// Gives a volume to a group. `on_root_mismatch`: nothing is done when the top folder is right already.
pub fn set(root: &Path, group: u32, on_root_mismatch: bool) -> Result<(), VolumeError> {
    if on_root_mismatch && fits(root, group)? {
        return Ok(());
    }
    let mut stack = vec![root.to_owned()];
    let mut folders = Vec::new();
    while let Some(path) = stack.pop() {
        let meta =
            fs::symlink_metadata(&path).map_err(VolumeError::io(format!("looking at {}", path.display())))?;
        if meta.is_dir() {
            for entry in
                fs::read_dir(&path).map_err(VolumeError::io(format!("reading {}", path.display())))?
            {
                stack.push(entry.map_err(VolumeError::io(format!("reading {}", path.display())))?.path());
            }
            folders.push(path);
        } else {
            give(&path, &meta, group)?;
        }
    }
    // The top folder last: it tells whether the work was finished.
    for path in folders.iter().rev() {
        let meta =
            fs::symlink_metadata(path).map_err(VolumeError::io(format!("looking at {}", path.display())))?;
        give(path, &meta, group)?;
    }
    Ok(())
}

fn fits(root: &Path, group: u32) -> Result<bool, VolumeError> {
    let meta = fs::metadata(root).map_err(VolumeError::io(format!("looking at {}", root.display())))?;
    let mode = meta.permissions().mode();
    Ok(meta.gid() == group && mode & 0o2070 == 0o2070)
}

fn give(path: &Path, meta: &fs::Metadata, group: u32) -> Result<(), VolumeError> {
    let what = || format!("changing the group of {}", path.display());
    fchownat(
        nix::fcntl::AT_FDCWD,
        path,
        None,
        Some(Gid::from_raw(group)),
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .map_err(VolumeError::io(what()))?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let add = if meta.is_dir() { 0o2070 } else { 0o060 };
    let mode = (meta.permissions().mode() | add) & 0o7777;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(VolumeError::io(what()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_bits() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "x").unwrap();
        // A group that any user may give files to: its own.
        let group = nix::unistd::getgid().as_raw();
        set(dir.path(), group, false).unwrap();
        let mode = |p: &str| fs::metadata(dir.path().join(p)).unwrap().permissions().mode();
        assert_eq!(mode("d") & 0o2070, 0o2070);
        assert_eq!(mode("d/f") & 0o060, 0o060);
        assert!(fits(dir.path(), group).unwrap());
    }
}
