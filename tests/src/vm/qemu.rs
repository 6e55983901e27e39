//! One run of QEMU: its command line, its life bound to ours, its output.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cmd;

/// The program, of Debian's package [`PACKAGE`].
pub const PROGRAM: &str = "qemu-system-x86_64";
/// The package that has [`PROGRAM`].
pub const PACKAGE: &str = "qemu-system-x86";

/// Names the accelerator, where the machine has a usable one: `kvm`. Without it guests are emulated.
const ACCELERATOR: &str = "KEELSON_VM_ACCEL";

/// A link to another guest: both name the two sockets, the other way round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Datagram socket that this guest's frames arrive at.
    pub here: PathBuf,
    /// The other guest's.
    pub there: PathBuf,
    /// The last byte of its hardware address.
    pub number: u8,
}

/// What a guest is made of.
#[derive(Clone, Debug)]
pub(super) struct Machine<'a> {
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    pub disks: &'a [PathBuf],
    /// The one disk whose content is kept, after the others.
    pub result_disk: &'a Path,
    pub nics: &'a [Nic],
    pub cpus: u8,
    pub memory_mib: u32,
    /// The kernel's messages go here.
    pub console: &'a Path,
    /// Standard input and output are the guest's terminal, not the job's output.
    pub interactive: bool,
    /// A machine of its own: it has a network device with nobody at its other end, and a reboot is one, and not the end.
    pub whole: bool,
}

/// QEMU's arguments.
fn arguments(machine: &Machine<'_>, accelerator: Option<&str>) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |name: &str, value: String| args.extend([name.to_owned(), value]);
    // Plain `-cpu max` makes an emulated 6.12 panic now and then.
    add("-accel", accelerator.unwrap_or("tcg,thread=multi").to_owned());
    add("-cpu", if accelerator.is_some() { "host" } else { "max,-cx16" }.to_owned());
    add("-smp", machine.cpus.to_string());
    add("-m", machine.memory_mib.to_string());
    add("-display", "none".to_owned());
    add("-monitor", "none".to_owned());
    add("-kernel", machine.kernel.display().to_string());
    add("-initrd", machine.initramfs.display().to_string());
    add("-append", "console=ttyS0 panic=-1 loglevel=5 random.trust_cpu=on psi=1 mitigations=off".to_owned());
    add("-serial", format!("file:{}", machine.console.display()));
    for disk in machine.disks {
        add("-drive", format!("if=virtio,format=raw,cache=unsafe,snapshot=on,file={}", disk.display()));
    }
    add("-drive", format!("if=virtio,format=raw,cache=unsafe,file={}", machine.result_disk.display()));
    for (index, nic) in machine.nics.iter().enumerate() {
        add(
            "-netdev",
            format!(
                "dgram,id=n{index},local.type=unix,local.path={},remote.type=unix,remote.path={}",
                nic.here.display(),
                nic.there.display()
            ),
        );
        add("-device", format!("virtio-net-pci,netdev=n{index},mac=52:54:00:00:00:{:02x}", nic.number));
    }
    add("-device", "virtio-serial-pci".to_owned());
    add("-chardev", "stdio,id=job,signal=off".to_owned());
    let port = if machine.interactive { "virtconsole" } else { "virtserialport" };
    add("-device", format!("{port},chardev=job,nr=1,name=job"));
    args.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
    if machine.whole {
        args.extend(
            ["-netdev", "hubport,id=alone,hubid=0", "-device", "virtio-net-pci,netdev=alone"]
                .map(str::to_owned),
        );
    } else {
        args.push("-no-reboot".to_owned());
    }
    args
}

/// Runs a guest until it powers off or the limit passes; hands each piece of the job's output to `sink`. Gives false when
/// the limit passed.
pub(super) fn run(
    machine: &Machine<'_>,
    work: &Path,
    limit: Duration,
    sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<bool> {
    let accelerator = std::env::var(ACCELERATOR).ok();
    let errors = work.join("qemu.log");
    let mut command = Command::new(PROGRAM);
    command.args(arguments(machine, accelerator.as_deref()));
    // Temporary overlays of the disks.
    command.env("TMPDIR", work);
    command.stderr(File::create(&errors)?);
    if machine.interactive {
        command.stdin(Stdio::inherit()).stdout(Stdio::inherit());
    } else {
        // A pipe that is never written: at the end of its input QEMU would close the job's port.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
    }
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only prctl and getppid are called, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                return Err(io::Error::from(io::ErrorKind::NotFound));
            }
            Ok(())
        });
    }
    let mut child =
        command.spawn().with_context(|| format!("start {PROGRAM}: it is in Debian's package {PACKAGE}"))?;
    let input = child.stdin.take();
    let (status, in_time) = follow(&mut child, limit, sink)?;
    drop(input);
    // 0 is a guest that powered off, or one that panicked; the result tells which.
    if in_time && !status.success() {
        let said = fs::read_to_string(&errors).unwrap_or_default();
        anyhow::bail!("{PROGRAM} ended with {status}: {said}");
    }
    Ok(in_time)
}

/// Reads the child's output to its end, kills it at the limit, and reaps it.
fn follow(
    child: &mut Child,
    limit: Duration,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<(ExitStatus, bool)> {
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a pid fits")?);
    let (done, ended) = mpsc::channel::<()>();
    let deadline = Instant::now() + limit;
    // The child is reaped only after this thread has ended, so its pid is still its own.
    let watchdog = std::thread::spawn(move || {
        let late = ended.recv_timeout(limit).is_err_and(|error| error == mpsc::RecvTimeoutError::Timeout);
        if late {
            let _ = kill(pid, Signal::SIGKILL);
        }
        late
    });
    let mut result = Ok(());
    if let Some(mut output) = child.stdout.take() {
        let mut buffer = [0; 16384];
        loop {
            match output.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) if result.is_ok() => result = sink(&buffer[..count]),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    result = Err(error.into());
                    break;
                }
            }
        }
    }
    // Output has ended, and so has QEMU, or is about to.
    while Instant::now() < deadline && !super::super::testbed::host::ended(pid.as_raw()) {
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(done);
    let late = watchdog.join().unwrap_or(true);
    if late {
        let _ = child.kill();
    }
    let status = child.wait()?;
    result?;
    Ok((status, !late))
}

/// Says what is missing on this machine to run guests; nothing where all is there.
pub fn missing_programs() -> Vec<&'static str> {
    [PROGRAM, "mke2fs", "depmod"].into_iter().filter(|program| !cmd::have(program)).collect()
}

/// A sink that shows the job's output as it comes.
pub(super) fn show(bytes: &[u8]) -> Result<()> {
    // print! and not the raw descriptor: the output of a passing test is not shown.
    print!("{}", String::from_utf8_lossy(bytes));
    io::stdout().flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine<'a>(disks: &'a [PathBuf], nics: &'a [Nic], interactive: bool) -> Machine<'a> {
        Machine {
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            disks,
            result_disk: Path::new("/r"),
            nics,
            cpus: 2,
            memory_mib: 1024,
            console: Path::new("/c"),
            interactive,
            whole: false,
        }
    }

    #[test]
    fn disks_in_order_and_only_the_last_is_kept() {
        let disks = [PathBuf::from("/a"), PathBuf::from("/b")];
        let args = arguments(&machine(&disks, &[], false), None);
        let drives: Vec<&String> = args.iter().filter(|arg| arg.starts_with("if=virtio")).collect();
        assert_eq!(drives.len(), 3);
        assert!(drives[0].ends_with("file=/a") && drives[0].contains("snapshot=on"));
        assert!(drives[2].ends_with("file=/r") && !drives[2].contains("snapshot"));
        assert!(args.iter().any(|arg| arg == "max,-cx16"));
        assert!(!args.iter().any(|arg| arg == "-netdev"));
        assert!(args.iter().any(|arg| arg == "-no-reboot"));
    }

    #[test]
    fn a_whole_machine_reboots() {
        let args = arguments(&Machine { whole: true, ..machine(&[], &[], false) }, None);
        assert!(!args.iter().any(|arg| arg == "-no-reboot"));
        assert!(args.iter().any(|arg| arg == "virtio-net-pci,netdev=alone"));
    }

    #[test]
    fn two_guests_share_a_wire() {
        let nic = Nic { here: "/s/a".into(), there: "/s/b".into(), number: 1 };
        let args = arguments(&machine(&[], &[nic], true), Some("kvm"));
        assert!(args.iter().any(
            |arg| arg == "dgram,id=n0,local.type=unix,local.path=/s/a,remote.type=unix,remote.path=/s/b"
        ));
        assert!(args.iter().any(|arg| arg == "kvm"));
        assert!(args.iter().any(|arg| arg.starts_with("virtconsole")));
    }

    #[test]
    fn a_guest_that_hangs_is_ended() {
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        let (status, in_time) = follow(&mut child, Duration::from_millis(100), |_| Ok(())).unwrap();
        assert!(!status.success() && !in_time);
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
