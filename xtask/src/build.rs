//! Building what runs in a test cluster, and installing what building needs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use keelson_tests::progress::Steps;
use keelson_tests::{cmd, images, paths, vm};

/// Programs that tests and `up` call, and the Debian package of each.
const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
    ("busybox", "busybox-static"),
    ("script", "bsdutils"),
    ("make", "make"),
    ("bzip2", "bzip2"),
];

/// Installs missing tools with apt-get; says so clearly where that can't be done.
pub fn ensure_tools(tools: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        tools.iter().filter(|(program, _)| !cmd::have(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !cmd::have("apt-get") {
        bail!(
            "these Debian packages (or their like) are needed and there is no apt-get to install them: {missing:?}"
        );
    }
    let retries = ["-o", "Acquire::Retries=3"];
    cmd::run(Command::new("apt-get").args(retries).args(["update", "-q"]))?;
    let mut install = Command::new("apt-get");
    install.args(retries).args(["install", "-y", "-q", "--no-install-recommends"]).args(&missing);
    cmd::run(install.env("DEBIAN_FRONTEND", "noninteractive")).context("install tools")?;
    Ok(())
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root());
    // What cargo set for xtask itself would make it rebuild.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "RUSTUP_TOOLCHAIN_SOURCE"] {
        command.env_remove(name);
    }
    command
}

/// A cargo command whose output goes to the screen.
pub fn cargo_visible(args: &[&str]) -> Result<()> {
    let status = cargo().args(args).status().context("start cargo")?;
    if !status.success() {
        bail!("cargo {} ended with {status}", args.join(" "));
    }
    Ok(())
}

/// Programs that run on hosts, or beside them.
const PROGRAMS: [&str; 10] = [
    "-p",
    "keelson-agent",
    "-p",
    "keelson-master",
    "-p",
    "keelson-cni",
    "-p",
    "keelson-tests",
    "-p",
    "keelson-bench",
];

/// Builds the daemons, podinit (static, see `[profile.podinit]`), the test programs, and the one that measures and loads.
pub fn programs() -> Result<()> {
    cargo_visible(&[&["build", "--quiet", "--bins"][..], &PROGRAMS].concat())?;
    static_programs()
}

/// Builds the same optimised.
pub fn release_programs() -> Result<()> {
    cargo_visible(&[&["build", "--quiet", "--bins", "--release"][..], &PROGRAMS].concat())?;
    static_programs()
}

/// Builds what runs inside pods: fully static programs for the host's own target.
pub fn static_programs() -> Result<()> {
    let status = cargo()
        .args(["build", "--quiet", "--profile", "podinit", "--target", "x86_64-unknown-linux-gnu"])
        .args([
            "-p",
            "keelson-podinit",
            "-p",
            "keelson-tests",
            "--bin",
            "keelson-podinit",
            "--bin",
            "keelson-testapp",
        ])
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static",
        )
        .status()
        .context("start cargo")?;
    if !status.success() {
        bail!("the static programs did not build: {status}");
    }
    Ok(())
}

/// Builds a daemon that needs nothing but the kernel. Only its own crate is built anew for that: which C library is linked
/// is settled last, so the crates below it are those of every other build.
pub fn static_daemon(name: &str, release: bool) -> Result<()> {
    let mut args = vec!["rustc", "--quiet", "-p", name, "--bin", name];
    // Names in backtraces are worth their room where something is given away, not where it is unpacked slowly in a test.
    let strip = if release { "strip=debuginfo" } else { "strip=symbols" };
    if release {
        args.push("--release");
    }
    args.extend(["--", "-C", "target-feature=+crt-static", "-C", strip]);
    cargo_visible(&args)
}

/// A program of a published crate, built into the folder of downloads if it is not there.
pub fn cargo_program(name: &str, version: &str) -> Result<PathBuf> {
    let root = paths::cache().join("tools");
    let program = root.join("bin").join(name);
    if !program.exists() {
        let scratch = paths::cache().join("tools-target");
        let mut install = Command::new("cargo");
        install.args(["install", name, "--quiet", "--locked", "--version", version, "--root"]).arg(&root);
        cmd::fetch(install.env("CARGO_TARGET_DIR", &scratch))?;
        // Only to save room.
        let _ = std::fs::remove_dir_all(scratch);
    }
    Ok(program)
}

/// Installs the tools that `up` and the tests call.
pub fn tools() -> Result<()> {
    ensure_tools(TOOLS)
}

/// Installs what QEMU guests need.
pub fn vm_tools() -> Result<()> {
    ensure_tools(&[
        (vm::PROGRAM, vm::PACKAGE),
        ("mke2fs", "e2fsprogs"),
        ("depmod", "kmod"),
        ("mmdebstrap", "mmdebstrap"),
    ])
}

/// `cargo xtask images`.
pub fn images() -> Result<()> {
    let mut steps = Steps::new();
    steps.step("tools", tools)?;
    steps.step("static programs", static_programs)?;
    for name in images::ALL {
        let path = steps.step(&format!("image {name}"), || images::ensure(name))?;
        println!("{} {}", images::reference(name), path.display());
    }
    Ok(())
}
