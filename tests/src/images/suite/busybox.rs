//! busybox as upstream's image has it: the project's own source, out of Debian's package, in its default configuration.
//! Debian's build changes what the shell does (it keeps variables whose names are no identifiers from its children, and
//! prefers its own commands to programs), and tests look at that.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::images::builder::digest;
use crate::images::rootfs::RELEASE;
use crate::{cmd, debian, paths};

/// What differs from the default configuration: `tc` does not compile with the headers of Linux 6.8 and newer.
pub const CHANGES: &[(&str, &str)] =
    &[("# CONFIG_STATIC is not set", "CONFIG_STATIC=y"), ("CONFIG_TC=y", "# CONFIG_TC is not set")];

/// Builds it, once; it is a static program.
pub fn build() -> Result<PathBuf> {
    let source = debian::Apt::sources(RELEASE)?.original("busybox")?;
    let key = digest(format!("{source:?}{CHANGES:?}").as_bytes());
    let dir = paths::cache().join("busybox").join(&key["sha256:".len()..][..16]);
    let program = dir.join("busybox");
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&dir)?;
    let tree = tempfile::tempdir_in(&dir)?;
    cmd::run(
        Command::new("tar").args(["--strip-components=1", "-xf"]).arg(&source).arg("-C").arg(tree.path()),
    )?;
    make(tree.path(), &["defconfig"])?;
    let config = tree.path().join(".config");
    let mut text = fs::read_to_string(&config)?;
    for (from, to) in CHANGES {
        text = text.replace(&format!("{from}\n"), &format!("{to}\n"));
    }
    fs::write(&config, text)?;
    make(tree.path(), &["oldconfig"])?;
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    make(tree.path(), &[&format!("-j{jobs}"), "busybox"])?;
    fs::rename(tree.path().join("busybox"), &program)?;
    Ok(program)
}

/// Calls make, which takes the default for whatever it asks.
fn make(tree: &Path, args: &[&str]) -> Result<()> {
    let answers = tree.join("answers");
    File::create(&answers)?.write_all(&[b'\n'; 1000])?;
    let mut command = Command::new("make");
    command.args(args).current_dir(tree).stdin(File::open(&answers)?);
    cmd::run(&mut command).map(drop).with_context(|| format!("build busybox: make {args:?}"))
}
