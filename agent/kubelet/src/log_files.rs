//! The files of one container's log: `0.log`, and what rotation moved aside (`0.log.20261121-040000`, later `.gz`).

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What rotation made of a log, oldest first.
fn aside(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    if let (Some(dir), Some(name)) = (path.parent(), path.file_name().map(|name| name.to_string_lossy())) {
        let prefix = format!("{name}.2");
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        files.extend(
            entries.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)).map(|e| e.path()),
        );
    }
    // The time in the name sorts as text.
    files.sort();
    files
}

/// Whether a file says what another one says too: a compression under way, or done but for the removal of its original.
fn is_useless(file: &Path, files: &[PathBuf]) -> bool {
    let packed = PathBuf::from(format!("{}.gz", file.display()));
    file.extension().is_some_and(|extension| extension == "tmp") || files.contains(&packed)
}

/// The log's files, oldest first; the last is `path` itself, there or not.
pub(crate) fn all(path: &Path) -> Vec<PathBuf> {
    let found = aside(path);
    let mut files: Vec<_> = found.iter().filter(|file| !is_useless(file, &found)).cloned().collect();
    files.push(path.to_owned());
    files
}

/// Files that may be removed without a loss, while nothing is being compressed.
pub(crate) fn useless(path: &Path) -> Vec<PathBuf> {
    let found = aside(path);
    found.iter().filter(|file| is_useless(file, &found)).cloned().collect()
}

/// The file that follows the one with this inode; `path` itself when that one is gone or the last.
pub(crate) fn successor(path: &Path, inode: u64) -> PathBuf {
    let files = all(path);
    let ours = files.iter().position(|file| std::fs::metadata(file).is_ok_and(|meta| meta.ino() == inode));
    ours.and_then(|index| files.get(index + 1)).unwrap_or(&files[files.len() - 1]).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_files_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for name in [
            "0.log",
            "0.log.20260102-000000",
            "10.log",
            "0.log.20260101-000000",
            "0.log.20260101-000000.gz",
            "0.log.20260102-000000.tmp",
        ] {
            std::fs::write(dir.path().join(name), "x\n").unwrap();
        }
        let names = |files: Vec<PathBuf>| -> Vec<String> {
            files.iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(all(&path)), ["0.log.20260101-000000.gz", "0.log.20260102-000000", "0.log"]);
        assert_eq!(names(useless(&path)), ["0.log.20260101-000000", "0.log.20260102-000000.tmp"]);
        let inode = std::fs::metadata(dir.path().join("0.log.20260101-000000.gz")).unwrap().ino();
        assert_eq!(successor(&path, inode), dir.path().join("0.log.20260102-000000"));
    }
}
