//! Updates a folder of files so that a reader sees all old or all new content.
//!
//! Source: upstream `pkg/volume/util/atomic_writer.go`. Files live in a time-stamped folder; `..data` is a symlink to
//! it, replaced by rename(2); each visible name is a symlink through `..data`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, chown};

use super::VolumeError;
use crate::pods::security::stays_below;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
const MAX_PATH: usize = 4096;
const MAX_FILE_NAME: usize = 255;

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProjection {
    /// Content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, when it is not the kubelet's user.
    pub owner: Option<u32>,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, FileProjection>;

/// Upstream's `validatePath`.
fn validate(path: &str) -> Result<(), VolumeError> {
    let bad = |why: &str| Err(VolumeError::Unsupported(format!("invalid path {path:?}: {why}")));
    if path.is_empty() {
        return bad("must not be empty");
    }
    if path.starts_with('/') {
        return bad("must not be absolute");
    }
    if path.len() > MAX_PATH {
        return bad("must be less than or equal to 4096 characters");
    }
    if !stays_below(path) {
        return bad("must not contain '..'");
    }
    if path.starts_with("..") {
        return bad("must not start with '..'");
    }
    if path.split('/').any(|part| part.len() > MAX_FILE_NAME) {
        return bad("file names must be less than or equal to 255 characters");
    }
    Ok(())
}

/// Makes `target` hold exactly `payload`. True when something was written. `group` owns the files when given.
pub fn write(target: &Path, payload: &Payload, group: Option<u32>) -> Result<bool, VolumeError> {
    for path in payload.keys() {
        validate(path)?;
    }
    let old = fs::read_link(target.join(DATA)).ok();
    if let Some(old) = &old
        && matches(&target.join(old), payload)
    {
        // A crash after the rename leaves links to make; they are idempotent.
        link_names(target, payload)?;
        return Ok(false);
    }
    let fresh = timestamped_dir(target)?;
    let fresh_name = fresh.file_name().map(PathBuf::from).unwrap_or_default();
    if let Err(error) = write_files(&fresh, payload, group) {
        // What is half written is not visible to anyone.
        let _ = fs::remove_dir_all(&fresh);
        return Err(error);
    }
    let new_link = target.join(NEW_DATA);
    let _ = fs::remove_file(&new_link);
    symlink(&fresh_name, &new_link).map_err(VolumeError::io(format!("linking {}", new_link.display())))?;
    fs::rename(&new_link, target.join(DATA)).map_err(VolumeError::io("renaming ..data"))?;
    link_names(target, payload)?;
    remove_stale_names(target, payload)?;
    remove_old_folders(target, &fresh_name)?;
    Ok(true)
}

fn timestamped_dir(target: &Path) -> Result<PathBuf, VolumeError> {
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.").to_string();
    for _ in 0..100 {
        let path = target.join(format!("{stamp}{:010}", rand::random::<u32>()));
        match fs::DirBuilder::new().mode(0o755).create(&path) {
            Ok(()) => {
                // The umask must not hide the files from the container's user.
                set_mode(&path, 0o755)?;
                return Ok(path);
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(VolumeError::io(format!("creating {}", path.display()))(e)),
        }
    }
    Err(VolumeError::Retry(format!("no free name below {}", target.display())))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), VolumeError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(VolumeError::io(format!("setting the mode of {}", path.display())))
}

fn write_files(dir: &Path, payload: &Payload, group: Option<u32>) -> Result<(), VolumeError> {
    for (name, file) in payload {
        let path = dir.join(name);
        let mut parent = dir.to_owned();
        for part in Path::new(name).parent().iter().flat_map(|p| p.components()) {
            parent.push(part);
            if !parent.is_dir() {
                fs::create_dir(&parent).map_err(VolumeError::io(format!("creating {}", parent.display())))?;
                set_mode(&parent, 0o755)?;
            }
        }
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(VolumeError::io(format!("creating {}", path.display())))?;
        out.write_all(&file.data).map_err(VolumeError::io(format!("writing {}", path.display())))?;
        if file.owner.is_some() || group.is_some() {
            chown(&path, file.owner.map(Uid::from_raw), group.map(Gid::from_raw))
                .map_err(VolumeError::io(format!("changing the owner of {}", path.display())))?;
        }
        // With an fsGroup the group may read what the owner may, as upstream's SetVolumeOwnership leaves it.
        let mode = if group.is_some() { file.mode | ((file.mode & 0o400) >> 3) } else { file.mode };
        // After chown, which clears setuid and setgid bits.
        set_mode(&path, mode & 0o7777)?;
    }
    Ok(())
}

/// Whether a folder holds exactly this payload.
fn matches(dir: &Path, payload: &Payload) -> bool {
    let mut found = 0;
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { return false };
        for entry in entries {
            let Ok(entry) = entry else { return false };
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                folders.push(entry.path());
                continue;
            }
            let path = entry.path();
            let name = path.strip_prefix(dir).ok().and_then(Path::to_str);
            let Some(file) = name.and_then(|n| payload.get(n)) else { return false };
            let same_mode = entry.metadata().is_ok_and(|m| m.permissions().mode() & file.mode == file.mode);
            if !same_mode || fs::read(&path).ok().as_deref() != Some(file.data.as_slice()) {
                return false;
            }
            found += 1;
        }
    }
    found == payload.len()
}

/// First parts of the payload's paths: the names that are seen in the volume.
fn visible(payload: &Payload) -> std::collections::BTreeSet<&str> {
    payload
        .keys()
        .filter_map(|p| p.trim_start_matches("./").split('/').next())
        .filter(|p| !p.is_empty())
        .collect()
}

fn link_names(target: &Path, payload: &Payload) -> Result<(), VolumeError> {
    for name in visible(payload) {
        let link = target.join(name);
        if fs::read_link(&link).is_ok() {
            continue;
        }
        match symlink(Path::new(DATA).join(name), &link) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(VolumeError::io(format!("linking {}", link.display()))(e)),
        }
    }
    Ok(())
}

fn remove_stale_names(target: &Path, payload: &Payload) -> Result<(), VolumeError> {
    let keep = visible(payload);
    for (name, path) in names(target)? {
        if !name.starts_with("..") && !keep.contains(name.as_str()) && fs::read_link(&path).is_ok() {
            fs::remove_file(&path).map_err(VolumeError::io(format!("removing {}", path.display())))?;
        }
    }
    Ok(())
}

fn remove_old_folders(target: &Path, keep: &Path) -> Result<(), VolumeError> {
    for (name, path) in names(target)? {
        let is_folder = fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir());
        if name.starts_with("..") && is_folder && Path::new(&name) != keep {
            fs::remove_dir_all(&path).map_err(VolumeError::io(format!("removing {}", path.display())))?;
        }
    }
    Ok(())
}

fn names(target: &Path) -> Result<Vec<(String, PathBuf)>, VolumeError> {
    let entries = fs::read_dir(target).map_err(VolumeError::io(format!("reading {}", target.display())))?;
    Ok(entries.flatten().map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(n, d)| {
                ((*n).to_owned(), FileProjection { data: d.as_bytes().to_vec(), mode: 0o644, owner: None })
            })
            .collect()
    }

    fn seen(dir: &Path) -> Vec<String> {
        let mut out: Vec<String> =
            names(dir).unwrap().into_iter().map(|(n, _)| n).filter(|n| !n.starts_with("..")).collect();
        out.sort();
        out
    }

    #[test]
    fn writes_updates_and_removes() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        assert!(write(d, &payload(&[("a", "1"), ("sub/b", "2"), ("sub/deep/c", "3")]), None).unwrap());
        assert_eq!(fs::read_to_string(d.join("sub/deep/c")).unwrap(), "3");
        assert_eq!(fs::read_link(d.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(seen(d), ["a", "sub"]);
        let first = fs::read_link(d.join(DATA)).unwrap();
        assert!(!write(d, &payload(&[("a", "1"), ("sub/b", "2"), ("sub/deep/c", "3")]), None).unwrap());
        assert_eq!(fs::read_link(d.join(DATA)).unwrap(), first);

        assert!(write(d, &payload(&[("a", "new"), ("z", "9")]), None).unwrap());
        assert_eq!(fs::read_to_string(d.join("a")).unwrap(), "new");
        assert_eq!(seen(d), ["a", "z"]);
        assert!(!d.join(first).exists());
    }

    #[test]
    fn an_open_file_keeps_its_old_content() {
        use std::io::Read;
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "old")]), None).unwrap();
        let mut open = fs::File::open(dir.path().join("a")).unwrap();
        write(dir.path(), &payload(&[("a", "new")]), None).unwrap();
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "old");
    }

    #[test]
    fn an_empty_payload_is_a_volume_too() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &Payload::new(), None).unwrap());
        assert!(!write(dir.path(), &Payload::new(), None).unwrap());
        assert!(dir.path().join(DATA).is_dir());
    }

    #[test]
    fn modes() {
        let dir = tempfile::tempdir().unwrap();
        let mut p = payload(&[("a", "1")]);
        p.get_mut("a").unwrap().mode = 0o400;
        write(dir.path(), &p, None).unwrap();
        let mode = fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o400);
    }

    #[test]
    fn hostile_paths() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["", "/a", "../a", "a/../../b", "..data", "..x/y", &"x".repeat(256)] {
            assert!(write(dir.path(), &payload(&[(path, "1")]), None).is_err(), "{path:?}");
        }
    }
}
