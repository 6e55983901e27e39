//! What was built here, laid out for a guest: `/job/target` is what cargo's target folder is on this machine, so that
//! [`crate::testbed`] works there as it does here; `/job/bin` is on the PATH.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::{BOOTS, Kernel, Nic, StaleBreakpoint, Vm};
use crate::kubectl::Kubectl;
use crate::{images, paths};

/// Programs of the development profile.
const PROGRAMS: &[&str] = &["keelson-agent", "keelson-master", "keelson-cni", "keelson-testhost"];
/// Static programs, for inside pods.
const STATIC: &[&str] = &["keelson-podinit", "keelson-testapp"];

/// Lays out the programs, kubectl and these images in a folder for [`Vm::disk_from_dir`].
pub fn stage(dir: &Path, images: &[&str]) -> Result<()> {
    let target = dir.join("target");
    for program in PROGRAMS {
        put(&paths::bin(program), &target.join("debug").join(program))?;
    }
    let of_pods = "x86_64-unknown-linux-gnu/podinit";
    for program in STATIC {
        put(&paths::target().join(of_pods).join(program), &target.join(of_pods).join(program))?;
    }
    for image in images {
        let archive = images::ensure(image)?;
        // Where the testbed in the guest looks for it.
        put(&archive, &target.join(archive.strip_prefix(paths::target())?))?;
    }
    put_kubectl(&dir.join("bin"))
}

/// Puts the real kubectl into a folder.
pub fn put_kubectl(dir: &Path) -> Result<()> {
    let kubectl = Kubectl::new(Path::new("/"))?;
    put(&on_path(kubectl.program())?, &dir.join("kubectl"))
}

/// A guest with what [`stage`] laid out.
pub fn vm(kernel: Kernel, staged: &Path) -> Vm {
    Vm::new(kernel)
        .disk_from_dir(staged)
        .env("CARGO_TARGET_DIR", "/job/target")
        .env("PATH", "/job/bin:/job/target/debug:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
}

/// Puts a file into a staged folder, without a copy where it can be linked.
pub fn put(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("put {} at {}", from.display(), to.display());
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(context)?;
    }
    let from = fs::canonicalize(from).with_context(context)?;
    if fs::hard_link(&from, to).is_err() {
        fs::copy(&from, to).with_context(context)?;
    }
    Ok(())
}

fn on_path(program: &Path) -> Result<PathBuf> {
    if program.is_absolute() {
        return Ok(program.to_owned());
    }
    std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|dir| dir.join(program)).find(|at| at.is_file()))
        .with_context(|| format!("{} is not on PATH", program.display()))
}

/// Tests of the running test executable that are to run in a guest: those that are ignored and whose names begin with
/// `prefix`. A test on this machine calls [`GuestTests::run`].
#[derive(Clone, Copy, Debug)]
pub struct GuestTests<'a> {
    /// What their names begin with.
    pub prefix: &'a str,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// The guest's memory.
    pub memory_mib: u32,
    /// Images that the tests use.
    pub images: &'a [&'a str],
    /// How long they may take.
    pub limit: Duration,
}

impl GuestTests<'_> {
    /// Boots a guest and runs them there, one after another.
    pub fn run(&self) -> Result<()> {
        self.run_with(|vm| vm)
    }

    /// Boots two guests on one wire and runs the tests of each there, all at once. The wire is `eth0` in both. A guest has
    /// one CPU: a machine that emulates both is no larger than that, and each would wait for its own other one.
    pub fn run_joined(left: &GuestTests<'_>, right: &GuestTests<'_>) -> Result<()> {
        for _ in 1..BOOTS {
            match Self::run_joined_once(left, right) {
                Err(error) if error.is::<StaleBreakpoint>() => eprintln!("{error:#}"),
                result => return result,
            }
        }
        Self::run_joined_once(left, right)
    }

    fn run_joined_once(left: &GuestTests<'_>, right: &GuestTests<'_>) -> Result<()> {
        let sockets = tempfile::tempdir()?;
        let at = |name: &str| sockets.path().join(name);
        let joined = |vm: Vm, here: &str, there: &str, number| {
            vm.cpus(1).nic(Nic { here: at(here), there: at(there), number })
        };
        let (one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(|| left.run_with(|vm| joined(vm, "left", "right", 1)));
            let two = right.run_with(|vm| joined(vm, "right", "left", 2));
            (one.join(), two)
        });
        let one = one.unwrap_or_else(|_panic| Err(anyhow!("the thread of the first guest panicked")));
        // Where one died of the emulator the other has failed for want of it.
        match (one, two) {
            (Err(error), _) | (_, Err(error)) if error.is::<StaleBreakpoint>() => Err(error),
            (Err(one), Err(two)) => Err(one.context(format!("and the other guest: {two:#}"))),
            (one, two) => one.and(two),
        }
    }

    fn run_with(&self, change: impl FnOnce(Vm) -> Vm) -> Result<()> {
        let parent = paths::target().join("vm");
        fs::create_dir_all(&parent)?;
        let staged = tempfile::Builder::new().prefix("stage-").tempdir_in(&parent)?;
        stage(staged.path(), self.images)?;
        put(&std::env::current_exe()?, &staged.path().join("tests"))?;
        let outcome = change(vm(self.kernel, staged.path()).memory_mib(self.memory_mib))
            .run(&["./tests", "--ignored", "--nocapture", "--test-threads=1", self.prefix], self.limit)?;
        let log = outcome.log()?;
        let status = outcome.status;
        // A name that no test begins with would pass.
        let ran = log.lines().any(|line| line.starts_with("test ") && line.ends_with("ok"));
        if status != 0 || !ran {
            let kept = parent.join(format!("failed-{}-{}", self.prefix.trim_end_matches('_'), self.kernel));
            outcome.keep(&kept)?;
            bail!(
                "tests {}* on kernel {} ended with {status}; output is in {}",
                self.prefix,
                self.kernel,
                kept.display()
            );
        }
        Ok(())
    }
}
