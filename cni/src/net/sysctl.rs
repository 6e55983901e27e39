//! Network sysctls of the calling thread's network namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `value` to /proc/sys/net/`key` unless it is there already. `false` when the key does not exist
/// (IPv6 may be compiled out or disabled).
///
/// # Errors
/// I/O errors other than a missing key.
pub fn set(key: &str, value: &str) -> Result<bool> {
    let path = path(key);
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == value => return Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        _ => {}
    }
    fs::write(&path, value).map_err(|e| Error::io(format!("write {value} to {}", path.display()), e))?;
    Ok(true)
}

/// Reads /proc/sys/net/`key`; `None` when it does not exist.
pub fn get(key: &str) -> Option<String> {
    fs::read_to_string(path(key)).ok().map(|text| text.trim().to_owned())
}

/// `key` has slashes: an interface name may hold dots.
fn path(key: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(key)
}
