//! fsGroup: a volume that the pod's group owns and can write.
//!
//! Containers may run in it meanwhile: an agent that was restarted does this again for pods that live. So everything
//! is done by descriptor ([`keelson_tree`]).
//!
//! Source: upstream `pkg/volume/volume_linux.go`: group owner, `g+rw` (`g+rwx` and setgid for folders).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use keelson_tree::{Entry, walk};

use super::VolumeError;

/// Gives a volume to a group. `on_root_mismatch`: nothing is done when the top folder is right already.
pub fn set(root: &Path, group: u32, on_root_mismatch: bool) -> Result<(), VolumeError> {
    if on_root_mismatch && fits(root, group)? {
        return Ok(());
    }
    // The top folder comes last: it tells whether the work was finished.
    walk(root, &mut |entry| give(entry, group))
        .map_err(VolumeError::io(format!("changing the group of {}", root.display())))
}

fn fits(root: &Path, group: u32) -> Result<bool, VolumeError> {
    let meta =
        fs::symlink_metadata(root).map_err(VolumeError::io(format!("looking at {}", root.display())))?;
    let mode = meta.permissions().mode();
    Ok(meta.gid() == group && mode & 0o2070 == 0o2070)
}

fn give(entry: &Entry<'_>, group: u32) -> io::Result<()> {
    entry.set_group(group)?;
    let add = if entry.is_dir() { 0o2070 } else { 0o060 };
    // Also when the bits are there: a change of the group takes setuid and setgid away.
    entry.set_mode(entry.mode() | add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::time::{Duration, Instant};

    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

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

    /// A container swaps a folder for a symlink to the host while the volume is given to its group.
    #[test]
    fn a_swapped_folder_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, host) = (dir.path().join("v"), dir.path().join("host"));
        fs::create_dir_all(volume.join("d/e")).unwrap();
        fs::create_dir_all(host.join("e")).unwrap();
        let names = (0..50).map(|n| format!("e/f{n}"));
        for name in names.clone() {
            fs::write(volume.join("d").join(&name), "x").unwrap();
            fs::write(host.join(&name), "x").unwrap();
            fs::set_permissions(host.join(&name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        for folder in [host.join("e"), host.clone()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        }
        symlink(&host, volume.join("link")).unwrap();
        let stop = AtomicBool::new(false);
        let group = nix::unistd::getgid().as_raw();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let (a, b) = (volume.join("d"), volume.join("link"));
                    renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE).unwrap();
                }
            });
            let end = Instant::now() + Duration::from_secs(1);
            while Instant::now() < end {
                // What it finds changes all the time, so it may well fail.
                let _ = set(&volume, group, false);
            }
            stop.store(true, Relaxed);
        });
        for name in names.map(|n| host.join(n)).chain([host.join("e"), host.clone()]) {
            let mode = fs::metadata(&name).unwrap().permissions().mode();
            assert_eq!(mode & 0o2070, 0, "{} was changed", name.display());
        }
    }
}
