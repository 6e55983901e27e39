//! `cargo xtask build-ebpf`: compiles `ebpf/programs` with the pinned stable toolchain and bpf-linker.
//!
//! Three things are needed beside cargo: the standard library's source (from rustup, or where no toolchain host is
//! reachable from Debian's `rust-src`), bpf-linker built against rustc's own LLVM, and nothing else: no system LLVM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use keelson_tests::progress::Steps;
use keelson_tests::{cmd, debian, paths};

/// Version of bpf-linker; its LLVM feature must be rustc's LLVM.
const BPF_LINKER: &str = "0.13.0";

/// Arguments of `build-ebpf`.
#[derive(Args)]
pub struct BuildEbpfArgs {
    /// Build, compare with the committed object, and fail on any byte of difference.
    #[arg(long)]
    check: bool,
}

/// `cargo xtask build-ebpf`.
pub fn run(args: &BuildEbpfArgs) -> Result<()> {
    let mut steps = Steps::new();
    build(&mut steps, args.check)
}

/// The committed object.
pub fn prebuilt() -> PathBuf {
    paths::root().join("ebpf/prebuilt/keelson.bpf.o")
}

/// Builds the object; with `check` compares it, else puts it in place.
pub fn build(steps: &mut Steps, check: bool) -> Result<()> {
    let sysroot = PathBuf::from(cmd::text(Command::new("rustc").args(["--print", "sysroot"]))?);
    steps.step("standard library source", || ensure_rust_src(&sysroot))?;
    let linker = steps.step("bpf-linker", || ensure_linker(&sysroot))?;
    let built = steps.step("BPF programs", || compile(&sysroot, &linker))?;
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    if check {
        let committed = fs::read(prebuilt()).context("read the committed BPF object")?;
        if committed != bytes {
            bail!(
                "the committed BPF object is not what its source builds ({} and {} bytes): run 'cargo xtask build-ebpf' and commit ebpf/prebuilt",
                committed.len(),
                bytes.len()
            );
        }
        println!("the committed BPF object is what its source builds ({} bytes)", bytes.len());
    } else {
        fs::create_dir_all(prebuilt().parent().unwrap_or(Path::new(".")))?;
        fs::write(prebuilt(), &bytes)?;
        println!("{} ({} bytes)", prebuilt().display(), bytes.len());
    }
    Ok(())
}

fn ensure_rust_src(sysroot: &Path) -> Result<()> {
    let place = sysroot.join("lib/rustlib/src/rust");
    if place.join("library/core/src/lib.rs").exists() {
        return Ok(());
    }
    if cmd::run(Command::new("rustup").args(["component", "add", "rust-src"])).is_ok() {
        return Ok(());
    }
    eprintln!("       rustup can't fetch rust-src here; taking Debian's, of exactly the compiler's version");
    let version = cmd::text(Command::new("rustc").arg("--version"))?;
    let version = version.split(' ').nth(1).context("rustc --version prints no version")?.to_owned();
    let dir = paths::cache().join("rust-src");
    let source = dir.join(format!("usr/src/rustc-{version}"));
    if !source.exists() {
        let mut found = false;
        for suite in ["trixie-backports", "sid", "trixie"] {
            let Ok(apt) = debian::Apt::suite(suite) else { continue };
            let Ok(deb) = apt.package("rust-src") else { continue };
            let name = deb.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(&format!("rust-src_{version}")) {
                debian::unpack(&deb, &dir)?;
                found = true;
                break;
            }
        }
        if !found {
            bail!(
                "the source of rustc {version}'s standard library can't be had: 'rustup component add rust-src' fails, and no \
                 Debian suite has rust-src {version}. The committed BPF object still works; only rebuilding it needs this"
            );
        }
    }
    fs::create_dir_all(sysroot.join("lib/rustlib/src"))?;
    let _ = fs::remove_file(&place);
    std::os::unix::fs::symlink(&source, &place).with_context(|| format!("link {}", place.display()))?;
    Ok(())
}

fn ensure_linker(sysroot: &Path) -> Result<PathBuf> {
    let root = paths::cache().join("tools");
    let program = root.join("bin/bpf-linker");
    let wanted = format!("bpf-linker {BPF_LINKER}");
    if program.exists() && cmd::text(Command::new(&program).arg("--version")).is_ok_and(|have| have == wanted)
    {
        return Ok(program);
    }
    let lib = sysroot.join("lib");
    let llvm = fs::read_dir(&lib)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with("libLLVM.so."))
        .with_context(|| {
            format!("no libLLVM.so.* in {}: rustc is linked statically to LLVM", lib.display())
        })?;
    let major = llvm.trim_start_matches("libLLVM.so.").split('.').next().unwrap_or_default().to_owned();
    let flags =
        format!("-L native={lib} -C link-arg=-l:{llvm} -C link-arg=-Wl,-rpath,{lib}", lib = lib.display());
    let mut install = Command::new("cargo");
    install.args([
        "install",
        "bpf-linker",
        "--quiet",
        "--locked",
        "--version",
        BPF_LINKER,
        "--no-default-features",
    ]);
    install.args(["--features", &format!("llvm-{major},no-llvm-linking"), "--root"]).arg(&root);
    install.env("RUSTFLAGS", flags).env("CARGO_TARGET_DIR", paths::cache().join("tools-target"));
    cmd::fetch(&mut install).context("build bpf-linker against rustc's LLVM")?;
    let _ = fs::remove_dir_all(paths::cache().join("tools-target"));
    Ok(program)
}

/// Set for the compiler wrapper that [`compile`] makes of this program; holds the remaps.
const WRAPPER: &str = "KEELSON_BPF_REMAPS";

/// When cargo calls this program as its RUSTC_WRAPPER: runs rustc with a crate hash that depends on the crate's name and
/// version alone. cargo's own hash covers the checkout's path, and BTF names carry the hash.
pub fn wrapper_main_if_requested() {
    use std::os::unix::process::CommandExt;
    let Ok(remaps) = std::env::var(WRAPPER) else { return };
    let mut args = std::env::args_os().skip(1);
    let Some(rustc) = args.next() else { return };
    let name = std::env::var("CARGO_CRATE_NAME").unwrap_or_default();
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let mut command = Command::new(rustc);
    for arg in args {
        if arg.to_str().is_some_and(|arg| arg.starts_with("metadata=")) {
            command.arg(format!("metadata={name}-{version}"));
        } else {
            command.arg(arg);
        }
    }
    command.args(remaps.split('\x1f'));
    let error = command.exec();
    eprintln!("start rustc: {error}");
    std::process::exit(1);
}

fn compile(sysroot: &Path, linker: &Path) -> Result<PathBuf> {
    let programs = paths::root().join("ebpf/programs");
    let target = paths::target().join("bpf");
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let cargo_home = cargo_home.context("neither CARGO_HOME nor HOME is set")?;
    let source = fs::canonicalize(sysroot.join("lib/rustlib/src/rust"))?;
    // No path of this machine may reach the object: it must be the same bytes everywhere.
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut remaps = vec![
        remap(&source, "/rust"),
        remap(&sysroot.join("lib/rustlib/src/rust"), "/rust"),
        remap(&cargo_home, "/cargo"),
        remap(paths::root(), "/keelson"),
    ];
    // Later ones win: a registry's folder is named after its address.
    for registry in fs::read_dir(cargo_home.join("registry/src"))?.flatten() {
        remaps.push(remap(&registry.path(), "/cargo"));
    }
    let flags =
        ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Clinker=bpf-linker", r#"--cfg=bpf_target_arch="x86_64""#];
    let mut path = vec![linker.parent().map(Path::to_owned).unwrap_or_default()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    // cargo does not see what the wrapper adds.
    let stamp = target.join("remaps");
    if fs::read_to_string(&stamp).unwrap_or_default() != remaps.join("\n") {
        let _ = fs::remove_dir_all(&target);
        fs::create_dir_all(&target)?;
        fs::write(&stamp, remaps.join("\n"))?;
    }
    let mut build = Command::new("cargo");
    build.current_dir(&programs).args([
        "build",
        "--quiet",
        "--release",
        "--locked",
        "--target",
        "bpfel-unknown-none",
        "-Z",
        "build-std=core",
    ]);
    build
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    build.env_remove("RUSTFLAGS").env("PATH", std::env::join_paths(path)?);
    build.env("RUSTC_WRAPPER", std::env::current_exe()?).env(WRAPPER, remaps.join("\x1f"));
    cmd::run(&mut build)?;
    Ok(target.join("bpfel-unknown-none/release/keelson"))
}
