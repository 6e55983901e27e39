//! Where things are in the checkout.

use std::path::{Path, PathBuf};

/// Root of the checkout.
pub fn root() -> &'static Path {
    static ROOT: &str = env!("CARGO_MANIFEST_DIR");
    Path::new(ROOT).parent().unwrap_or(Path::new("/"))
}

/// cargo's target folder: `CARGO_TARGET_DIR`, or `target/` in the checkout.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(dir).unwrap_or_else(|_| root().join("target")),
        None => root().join("target"),
    }
}

/// Where cargo puts the programs of the development profile.
pub fn bin(name: &str) -> PathBuf {
    target().join("debug").join(name)
}

/// Downloads and assembled images, kept between runs.
pub fn cache() -> PathBuf {
    target().join("testdata")
}
