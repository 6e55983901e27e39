//! hostPath volumes: the path is the node's own, its type is checked first.
//!
//! Source: upstream `pkg/volume/hostpath/host_path.go`.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::VolumeError;

/// Checks the type, or makes what `DirectoryOrCreate` and `FileOrCreate` ask for.
pub fn check(path: &str, kind: &str) -> Result<(), VolumeError> {
    let target = Path::new(path);
    let fail = |text: String| Err(VolumeError::Retry(text));
    match kind {
        "" => return Ok(()),
        "DirectoryOrCreate" if fs::metadata(target).is_err() => {
            return fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(target)
                .map_err(VolumeError::io(format!("creating {path}")));
        }
        "FileOrCreate" if fs::metadata(target).is_err() => {
            let open =
                fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(target);
            return open.map(drop).map_err(VolumeError::io(format!("creating {path}")));
        }
        _ => {}
    }
    let Ok(meta) = fs::metadata(target) else {
        return fail(format!("hostPath type check failed: {path} is not {}", words(kind)));
    };
    let file_type = meta.file_type();
    let holds = match kind {
        "DirectoryOrCreate" | "Directory" => file_type.is_dir(),
        "FileOrCreate" | "File" => file_type.is_file(),
        "Socket" => file_type.is_socket(),
        "CharDevice" => file_type.is_char_device(),
        "BlockDevice" => file_type.is_block_device(),
        other => return Err(VolumeError::Unsupported(format!("{other} is an invalid volume type"))),
    };
    if holds { Ok(()) } else { fail(format!("hostPath type check failed: {path} is not {}", words(kind))) }
}

fn words(kind: &str) -> &'static str {
    match kind {
        "Directory" | "DirectoryOrCreate" => "a directory",
        "File" | "FileOrCreate" => "a file",
        "Socket" => "a socket file",
        "CharDevice" => "a character device",
        _ => "a block device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        assert!(check(&path("none"), "").is_ok());
        assert_eq!(
            check(&path("none"), "Directory").unwrap_err().to_string(),
            format!("hostPath type check failed: {} is not a directory", path("none"))
        );
        check(&path("a/b"), "DirectoryOrCreate").unwrap();
        check(&path("a/b"), "Directory").unwrap();
        check(&path("f"), "FileOrCreate").unwrap();
        check(&path("f"), "File").unwrap();
        assert!(check(&path("f"), "Directory").is_err());
        assert!(check(&path("f"), "Socket").is_err());
        check("/dev/null", "CharDevice").unwrap();
        assert!(check("/dev/null", "BlockDevice").is_err());
        assert!(matches!(check(&path("f"), "Odd"), Err(VolumeError::Unsupported(_))));
    }
}
