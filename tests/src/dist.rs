//! Packages of the development build, made by `cargo xtask dist --for-tests`, for guests that install them.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::paths;

/// The versions that are made: one to install and one to upgrade to.
pub const VERSIONS: [&str; 2] = ["0.1.0~test1", "0.1.0~test2"];

/// The packages.
pub const PACKAGES: [&str; 2] = ["keelson-master", "keelson-agent"];

/// Where they are.
pub fn dir() -> PathBuf {
    paths::target().join("dist/debug")
}

/// One of them.
pub fn package(name: &str, version: &str) -> Result<PathBuf> {
    let path = dir().join(format!("{name}_{version}_amd64.deb"));
    ensure!(path.exists(), "{} is missing: 'cargo xtask dist --for-tests' makes it", path.display());
    Ok(path)
}
