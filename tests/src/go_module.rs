//! Programs of other projects out of the Go module proxy: a module of our own that pins them, built once.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::images::builder::digest;
use crate::{cmd, paths};

/// What is built.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// The program's name.
    pub name: &'static str,
    /// The module's `go.mod`; what it does not name is filled in by the go command.
    pub go_mod: &'static str,
    /// The module's one Go file. One that only imports the package pins its version.
    pub main: &'static str,
    /// The package that is built, `.` for the file above.
    pub package: &'static str,
}

/// Builds it, once, as a static program; `go` gives the go command with what it needs in its environment.
pub fn build(module: &Module, go: impl Fn() -> Command) -> Result<PathBuf> {
    let key = digest(format!("{}{}{}", module.go_mod, module.main, module.package).as_bytes());
    let dir = paths::cache().join(module.name).join(&key["sha256:".len()..][..16]);
    let program = dir.join(module.name);
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("go.mod"), module.go_mod)?;
    fs::write(dir.join("main.go"), module.main)?;
    let mut build = go();
    build.current_dir(&dir).env("GOFLAGS", "-mod=mod").env("CGO_ENABLED", "0");
    build.args([
        "build",
        "-trimpath",
        "-buildvcs=false",
        "-ldflags",
        "-s -w",
        "-o",
        "partial",
        module.package,
    ]);
    cmd::fetch(&mut build).with_context(|| format!("build {} from its Go module", module.name))?;
    fs::rename(dir.join("partial"), &program)?;
    Ok(program)
}
