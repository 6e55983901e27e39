//! Where things are in the checkout.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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

/// Folder below [`target`] of the programs that clusters are made of.
static PROFILE: OnceLock<&str> = OnceLock::new();

/// From here on, clusters are made of optimised programs. Only the first call of a process counts, and it must come before
/// the first [`bin`].
pub fn use_release_programs() {
    // Set already: by an earlier call.
    let _ = PROFILE.set("release");
}

/// Which programs clusters are made of: those of the development profile, unless [`use_release_programs`] was called.
pub fn profile() -> &'static str {
    PROFILE.get_or_init(|| "debug")
}

/// Where cargo puts the programs.
pub fn bin(name: &str) -> PathBuf {
    target().join(profile()).join(name)
}

/// Downloads and assembled images, kept between runs.
pub fn cache() -> PathBuf {
    target().join("testdata")
}
