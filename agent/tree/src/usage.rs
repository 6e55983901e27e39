//! How much disk a tree takes.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use crate::walk::{WalkError, walk};

/// Bytes of all blocks that the tree at `root` takes on the disk, as `du` counts them: a file with many names once,
/// links for themselves, other mounts not at all. A tree that is not there takes nothing.
///
/// Blocking. Of a tree that changes meanwhile the sum is between what it was and what it is, at best.
pub fn disk_usage(root: &Path) -> io::Result<u64> {
    let mut linked = HashSet::new();
    let mut bytes = 0_u64;
    let result = walk(root, &mut |entry| {
        if entry.hard_linked().is_none_or(|identity| linked.insert(identity)) {
            bytes = bytes.saturating_add(entry.allocated());
        }
        Ok(())
    });
    match result {
        Ok(()) | Err(WalkError::Moved) => Ok(bytes),
        Err(WalkError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(WalkError::Io(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    fn check(root: &Path) {
        let du = Command::new("du").args(["-s", "--block-size=1"]).arg(root).output().unwrap();
        let du = String::from_utf8(du.stdout).unwrap();
        let want: u64 = du.split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(disk_usage(root).unwrap(), want);
    }

    #[test]
    fn as_du() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path());
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/f"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(dir.path().join("a/f"), dir.path().join("a/b/same")).unwrap();
        symlink("/usr", dir.path().join("a/link")).unwrap();
        // A sparse file has a size, and no blocks.
        fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 30).unwrap();
        check(dir.path());
        let all = disk_usage(dir.path()).unwrap();
        assert!((1 << 20..2 << 20).contains(&all), "{all}");
        assert_eq!(disk_usage(&dir.path().join("none")).unwrap(), 0);
    }
}
