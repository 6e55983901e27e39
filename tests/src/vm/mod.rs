//! Guests in QEMU: machines of their own, with a kernel of choice and the whole of cgroup v2, for what this machine's
//! kernel can't show.
//!
//! A guest boots [`Kernel`] with a bare root disk (busybox and a few Debian programs), finds a copy of a folder of this
//! machine at `/job`, runs one command, and powers off. What the command prints is streamed; what it writes to `/output`
//! comes back. It has no network but its own loopback and wires to other guests.
//!
//! [`Vm::debian`] is a bare Debian instead, run by systemd: the command is a unit of it, `/job` and `/output` are as above,
//! and instead of wires to other guests it has one with nobody at its other end, with the address 10.1.1.1/24 and a default
//! route. A command that makes the file `/run/keelson-vm/reboot` and ends has the guest rebooted, and is run again;
//! `KEELSON_BOOT` counts, from 1.
//!
//! - `kernel`: Debian's kernels, unpacked.
//! - `root`: the root disk; `debian`: that of a bare Debian.
//! - `initramfs`: what boots it, with the scripts `initramfs.sh`, and `guest.sh` or `debian.sh`.
//! - `disk`: disks from folders.
//! - `qemu`: the command line and the process.
//! - [`programs`]: what was built here, laid out for a guest; test executables that run in one.
//!
//! ```no_run
//! use keelson_tests::vm::{Kernel, Vm};
//! use std::{path::Path, time::Duration};
//! let outcome = Vm::new(Kernel::V6_12)?
//!     .memory_mib(1024)
//!     .disk_from_dir(Path::new("/some/folder"))
//!     .run(&["./run.sh"], Duration::from_secs(60))?;
//! println!("{} {}", outcome.status, outcome.output_dir().display());
//! # anyhow::Ok(())
//! ```

mod debian;
mod disk;
mod initramfs;
mod kernel;
pub mod programs;
mod qemu;
mod root;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::paths;

pub use kernel::Kernel;
pub use qemu::{Nic, PACKAGE, PROGRAM};

/// Bytes that a job may write to `/output`, in all.
const RESULT_SIZE: u64 = 4 << 30;
/// Most boots of a guest that its emulator lets down.
const BOOTS: usize = 3;
/// How long a guest may take to boot, and to hand over its result, beside the job's own time.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// What a guest runs beside its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    /// The job alone, beside a few programs.
    Bare,
    /// Debian's systemd.
    Debian,
}

/// A guest to be.
#[derive(Clone, Debug)]
pub struct Vm {
    system: System,
    kernel: Kernel,
    cpus: u8,
    memory_mib: u32,
    files: Option<PathBuf>,
    env: Vec<(String, String)>,
    nics: Vec<Nic>,
    quiet: bool,
}

/// What a guest left.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status of the job; 128 and the signal's number for one that was killed, 124 (as of timeout(1)) for one that did
    /// not end in time.
    pub status: i32,
    work: TempDir,
}

impl Outcome {
    /// What the job wrote to `/output`. It goes with this value.
    pub fn output_dir(&self) -> PathBuf {
        self.work.path().join("result/output")
    }

    /// What the job printed.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.work.path().join("job.log"))?).into_owned())
    }

    /// What the kernel printed.
    pub fn console(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.work.path().join("console.log"))?).into_owned())
    }

    /// Moves `/output`, the log and the console to a folder, which is emptied first.
    pub fn keep(self, dir: &Path) -> Result<()> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir_all(dir)?;
        for (from, to) in
            [("result/output", "output"), ("job.log", "job.log"), ("console.log", "console.log")]
        {
            fs::rename(self.work.path().join(from), dir.join(to))
                .with_context(|| format!("keep {from} in {}", dir.display()))?;
        }
        Ok(())
    }
}

impl Vm {
    /// A guest of two CPUs and 2 GiB.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            system: System::Bare,
            kernel,
            cpus: 2,
            memory_mib: 2048,
            files: None,
            env: Vec::new(),
            nics: Vec::new(),
            quiet: false,
        }
    }

    /// As [`Vm::new`], with a bare Debian that systemd runs.
    pub fn debian(kernel: Kernel) -> Self {
        Self { system: System::Debian, ..Self::new(kernel) }
    }

    /// How many CPUs it has.
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.cpus = cpus;
        self
    }

    /// How much memory it has.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The folder that the guest gets a copy of, at `/job`; links in it are not followed. It may write there, to no effect
    /// here.
    pub fn disk_from_dir(mut self, dir: &Path) -> Self {
        self.files = Some(dir.to_owned());
        self
    }

    /// A variable of the job's environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A network device, wired to another guest's.
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// Keeps the job's output from the screen; it is still in [`Outcome::log`].
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Boots, runs the command (by `PATH`, or relative to `/job`) and powers off. A job that takes longer than `limit` is
    /// killed. A guest that dies is an error, but for one whose death is the emulator's doing ([`StaleBreakpoint`]): that
    /// one is booted again, unless it has a peer.
    pub fn run<S: AsRef<str>>(&self, job: &[S], limit: Duration) -> Result<Outcome> {
        for _ in 1..BOOTS {
            match self.boot(job, limit, false) {
                Err(error) if self.nics.is_empty() && error.is::<StaleBreakpoint>() => eprintln!("{error:#}"),
                result => return result,
            }
        }
        self.boot(job, limit, false)
    }

    /// As [`Vm::run`] without a limit, with this process's terminal as the job's.
    pub fn run_on_terminal<S: AsRef<str>>(&self, job: &[S]) -> Result<Outcome> {
        self.boot(job, Duration::from_secs(7 * 24 * 3600), true)
    }

    fn boot<S: AsRef<str>>(&self, job: &[S], limit: Duration, interactive: bool) -> Result<Outcome> {
        let missing = qemu::missing_programs();
        if !missing.is_empty() {
            bail!(
                "guests need {missing:?}: 'cargo xtask vm' installs them from Debian's {PACKAGE}, e2fsprogs and kmod"
            );
        }
        let kernel = self.kernel.fetch()?;
        let root = root::ensure()?;
        let debian = self.system == System::Debian;
        ensure!(self.nics.is_empty() || !debian, "a bare Debian has no wires to other guests");
        let root_image = if debian { debian::ensure()? } else { root.image };
        let runs = paths::target().join("vm");
        fs::create_dir_all(&runs)?;
        let work = tempfile::Builder::new().prefix("run-").tempdir_in(&runs)?;
        let at = |name: &str| work.path().join(name);

        let settings = format!(
            "limit={}\nsystem={}\ninteractive={}\nnetwork={}\n",
            limit.as_secs().max(1),
            if debian { "debian" } else { "bare" },
            if interactive { "yes" } else { "" },
            if self.nics.is_empty() { "" } else { "yes" }
        );
        let job = script(&self.env, job);
        let initramfs = initramfs::build(&root.busybox, &kernel.boot_modules, &settings, &job)?;
        fs::write(at("initramfs"), initramfs)?;
        let empty = at("empty");
        fs::create_dir(&empty)?;
        disk::ext4(self.files.as_deref().unwrap_or(&empty), &at("job.ext4"), disk::Spare(8 << 30))?;
        disk::empty(&at("result.tar"), RESULT_SIZE)?;

        let machine = qemu::Machine {
            kernel: &kernel.image,
            initramfs: &at("initramfs"),
            disks: &[root_image, kernel.modules, at("job.ext4")],
            result_disk: &at("result.tar"),
            nics: &self.nics,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            console: &at("console.log"),
            interactive,
            whole: debian,
        };
        let mut log = File::create(at("job.log"))?;
        let in_time = qemu::run(&machine, work.path(), limit + BOOT_LIMIT, |bytes| {
            std::io::Write::write_all(&mut log, bytes)?;
            if self.quiet { Ok(()) } else { qemu::show(bytes) }
        })?;
        let console = || {
            let text = fs::read(at("console.log")).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(40)..].join("\n")
        };
        let _ = fs::remove_file(at("job.ext4"));
        if !in_time {
            bail!(
                "the guest (kernel {}) did not power off in time; its console:\n{}",
                self.kernel,
                console()
            );
        }
        let result = at("result");
        tar::Archive::new(File::open(at("result.tar"))?)
            .unpack(&result)
            .context("unpack the guest's result")?;
        let status = fs::read_to_string(result.join("status")).ok();
        // One that reboots when it dies says something in the end.
        if status.is_none() || (debian && status.as_deref() != Some("0\n")) {
            let all = fs::read(at("console.log")).unwrap_or_default();
            if StaleBreakpoint::is_in(&String::from_utf8_lossy(&all)) {
                return Err(StaleBreakpoint.into());
            }
        }
        let Some(status) = status else {
            bail!("the guest (kernel {}) died; its console:\n{}", self.kernel, console());
        };
        let _ = fs::remove_file(at("result.tar"));
        let status = status.trim().parse().with_context(|| format!("the job's status {status:?}"))?;
        Ok(Outcome { status, work })
    }
}

/// A guest's kernel met a breakpoint that nobody had set.
///
/// A kernel that changes its own code (static keys) puts a breakpoint over the instruction, changes what follows, and
/// takes the breakpoint away when no processor can meet it any more. QEMU, translating for several processors at once
/// without KVM, now and then executes the breakpoint later still, out of a translation that is stale; the kernel then
/// knows nothing of it and dies. No program in the guest can cause that.
#[derive(Debug)]
struct StaleBreakpoint;

impl StaleBreakpoint {
    /// Whether a console shows it (`die()` of arch/x86/kernel/dumpstack.c, in the words of 6.1 and of 6.12).
    fn is_in(console: &str) -> bool {
        console.contains("int3: 0000 [#1]")
    }
}

impl std::fmt::Display for StaleBreakpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the emulator executed a breakpoint that the guest's kernel had removed")
    }
}

impl std::error::Error for StaleBreakpoint {}

/// The shell script that becomes the job.
fn script<S: AsRef<str>>(env: &[(String, String)], words: &[S]) -> String {
    let mut text = String::from("#!/bin/sh\nexport KEELSON_GUEST=1\n");
    for (name, value) in env {
        text.push_str(&format!("export {name}={}\n", quote(value)));
    }
    let words: Vec<String> = words.iter().map(|word| quote(word.as_ref())).collect();
    text.push_str(&format!("exec {}\n", words.join(" ")));
    text
}

/// A word that the shell takes as it is.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Whether this process runs in a guest.
pub fn in_guest() -> bool {
    std::env::var_os("KEELSON_GUEST").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        let text = script(&[("A".to_owned(), "x y".to_owned())], &["printf", "%s|", "it's", "$HOME", ""]);
        let output = std::process::Command::new("sh").arg("-c").arg(&text).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "it's|$HOME||");
        assert!(text.contains("export A='x y'\n"));
    }

    #[test]
    fn only_a_stale_breakpoint_is_the_emulators_fault() {
        assert!(StaleBreakpoint::is_in("[   23.2] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI"));
        assert!(StaleBreakpoint::is_in("[   23.2] int3: 0000 [#1] PREEMPT SMP NOPTI"));
        assert!(!StaleBreakpoint::is_in("[   23.2] Oops: general protection fault: 0000 [#1] PREEMPT SMP"));
    }
}
