//! The initial RAM file system of a guest: busybox, the modules that reach the root disk, and scripts. It is made for
//! each run, which takes milliseconds, so the job travels in it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A cpio archive in the `newc` format, as the kernel reads it. See cpio(5).
#[derive(Default)]
pub(super) struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    /// Adds a folder; its parents must be there.
    pub fn dir(&mut self, path: &str) {
        self.entry(path, 0o040_755, &[]);
    }

    /// Adds a file that anybody may run.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, 0o100_755, content);
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let name = path.trim_start_matches('/');
        let fields = [
            self.inode,
            mode,
            0,                    // uid
            0,                    // gid
            1,                    // links
            0,                    // mtime
            content.len() as u32, // a few megabytes at most
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// Puts one together. `settings` is what `guest.sh` reads, `job` the script that it runs.
pub(super) fn build(busybox: &Path, boot_modules: &Path, settings: &str, job: &str) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    let mut cpio = Cpio::default();
    for dir in ["bin", "dev", "modules", "root"] {
        cpio.dir(dir);
    }
    cpio.file("bin/busybox", &read(busybox)?);
    for entry in fs::read_dir(boot_modules).with_context(|| format!("list {}", boot_modules.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        cpio.file(&format!("modules/{name}"), &read(&path)?);
    }
    cpio.file("init", include_bytes!("initramfs.sh"));
    cpio.file("guest", include_bytes!("guest.sh"));
    cpio.file("debian", include_bytes!("debian.sh"));
    cpio.file("settings", settings.as_bytes());
    cpio.file("job", job.as_bytes());
    Ok(cpio.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newc() {
        let mut cpio = Cpio::default();
        cpio.dir("a");
        cpio.file("a/b", b"hello");
        let bytes = cpio.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..14], b"07070100000001");
        // The second header begins after 110 bytes of the first and its name.
        assert_eq!(&bytes[112..118], b"070701");
        let content = bytes.windows(5).position(|window| window == b"hello").unwrap();
        assert_eq!(content % 4, 0);
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }
}
