//! Reading and writing of key files: never half-written, never readable by others.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::{KeyPairPem, PkiError};

/// The cluster CA.
pub(super) const CA: &str = "ca";
/// The CA of front proxies.
pub(super) const FRONT_PROXY_CA: &str = "front-proxy-ca";

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::Io { action, path, source }
}

pub(super) fn make_directory(path: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("making", path))
}

/// The file's text, or `None` if it isn't there.
pub(super) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("reading", path)(error)),
    }
}

/// Writes beside the file, then renames, so that a crash leaves the old file or the new one.
pub(super) fn write(path: &Path, content: &str, mode: u32) -> Result<(), PkiError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    // A leftover of a crash may have another mode.
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io("removing", temporary)(error)),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(temporary)
        .map_err(io("creating", temporary))?;
    file.write_all(content.as_bytes()).map_err(io("writing", temporary))?;
    file.sync_all().map_err(io("syncing", temporary))?;
    fs::rename(temporary, path).map_err(io("renaming to", path))?;
    // A bare name is in the working directory.
    if let Some(parent) = path.parent() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        fs::File::open(parent).and_then(|d| d.sync_all()).map_err(io("syncing", parent))?;
    }
    Ok(())
}

/// A pair `NAME.crt`, `NAME.key`, or `None` if neither is there.
pub(super) fn read_pair(dir: &Path, name: &str) -> Result<Option<KeyPairPem>, PkiError> {
    let (certificate_path, key_path) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    match (read(&certificate_path)?, read(&key_path)?) {
        (Some(certificate), Some(key)) => Ok(Some(KeyPairPem { certificate, key })),
        // The key is written first, so a key alone is a crash between the two writes: make the pair anew, except
        // for a CA, whose key may have signed things already.
        (None, Some(_)) if !matches!(name, CA | FRONT_PROXY_CA) => Ok(None),
        (None, None) => Ok(None),
        (Some(_), None) => Err(PkiError::HalfPair(certificate_path)),
        (None, Some(_)) => Err(PkiError::HalfPair(key_path)),
    }
}

pub(super) fn write_pair(dir: &Path, name: &str, pair: &KeyPairPem) -> Result<(), PkiError> {
    // A certificate left from before must not stay beside a new key.
    let certificate_path = dir.join(format!("{name}.crt"));
    match fs::remove_file(&certificate_path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(io("removing", &certificate_path)(error));
        }
        _ => {}
    }
    write(&dir.join(format!("{name}.key")), &pair.key, 0o600)?;
    write(&certificate_path, &pair.certificate, 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_written_to_the_working_directory() {
        let name = format!("keelson-pki-files-{}", std::process::id());
        let written = write(Path::new(&name), "text", 0o600);
        let text = read(Path::new(&name)).unwrap();
        fs::remove_file(&name).unwrap();
        assert!(written.is_ok(), "{written:?}");
        assert_eq!(text.as_deref(), Some("text"));
    }
}
