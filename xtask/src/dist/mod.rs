//! `cargo xtask dist`: Debian packages and a tarball of static programs, with units, manual pages and completions.
//!
//! - `docs`: manual pages and completions, from the daemons' own flags.
//! - `contents`: what each package holds.
//! - `package`: a tree of files becomes a .deb or a tarball, the same bytes each time.
//! - `elf`: whether a program is static.

mod contents;
mod docs;
mod elf;
mod package;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use keelson_tests::progress::Steps;
use keelson_tests::{cmd, paths};

use crate::build;
use package::Compression;

/// Arguments of `dist`.
#[derive(Args)]
pub struct DistArgs {
    /// Version of the packages.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    version: String,
    /// Packages of the development build that the tests in guests install, and no others.
    #[arg(long, conflicts_with = "version")]
    for_tests: bool,
}

/// `cargo xtask dist`.
pub fn run(args: &DistArgs) -> Result<()> {
    let mut steps = Steps::new();
    steps.step("tools", build::tools)?;
    if args.for_tests {
        return steps.step("packages for guests", for_tests);
    }
    let programs = steps.step("build static programs", || programs(true))?;
    let out = paths::target().join("dist");
    let debs = steps.step("Debian packages", || debs(&programs, &args.version, &out, Compression::Best))?;
    let tarball = steps.step("tarball", || {
        let trees = contents::packages(&programs)?;
        package::tarball(&trees, &args.version, epoch()?, &out)
    })?;
    for path in debs.iter().chain([&tarball]) {
        println!("{} {} bytes", path.display(), path.metadata()?.len());
    }
    Ok(())
}

/// Packages of the development build for the tests in guests: this version, and one to upgrade to.
pub fn for_tests() -> Result<()> {
    let programs = programs(false)?;
    for version in keelson_tests::dist::VERSIONS {
        debs(&programs, version, &keelson_tests::dist::dir(), Compression::None)?;
    }
    Ok(())
}

/// Builds the static programs; gives the folder that holds them.
fn programs(release: bool) -> Result<PathBuf> {
    build::static_programs()?;
    let profile = if release { "release" } else { "debug" };
    let into = paths::target().join("dist").join(profile).join("bin");
    std::fs::create_dir_all(&into)?;
    for name in ["keelson-agent", "keelson-master", "keelson-cni"] {
        build::static_daemon(name, release)?;
        copy(&paths::target().join(profile).join(name), &into)?;
    }
    copy(&paths::target().join("x86_64-unknown-linux-gnu/podinit/keelson-podinit"), &into)?;
    for entry in std::fs::read_dir(&into)? {
        let path = entry?.path();
        elf::ensure_static(&path).with_context(|| path.display().to_string())?;
    }
    Ok(into)
}

/// A copy: what cargo put there is one file under two names, and the next build puts another in its place.
fn copy(from: &Path, into: &Path) -> Result<()> {
    let to = into.join(from.file_name().context("a program has a name")?);
    std::fs::copy(from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn debs(programs: &Path, version: &str, out: &Path, compression: Compression) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(out)?;
    let packages = contents::packages(programs)?;
    let epoch = epoch()?;
    packages.iter().map(|package| package::deb(package, version, epoch, compression, out)).collect()
}

/// The time that all files bear: `SOURCE_DATE_EPOCH`, else that of the commit. See reproducible-builds.org.
fn epoch() -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_unset) => {
            cmd::text(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(paths::root()))
                .context("no SOURCE_DATE_EPOCH is set, and git does not tell the time of the commit")?
        }
    };
    text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH {text:?}"))
}
