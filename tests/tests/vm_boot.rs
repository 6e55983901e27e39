//! Guests themselves: each kernel boots, has the whole of cgroup v2, runs a job with its files, and gives back its
//! status, output and what it printed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::Duration;

use anyhow::Result;
use keelson_tests::vm::{Kernel, Nic, Vm};

fn boots(kernel: Kernel, release: &str) -> Result<()> {
    let files = tempfile::tempdir()?;
    fs::write(files.path().join("input"), "from the host\n")?;
    let script = "uname -r; cat input /sys/fs/cgroup/cgroup.controllers; echo $GREETING; \
                  echo from the guest >/output/file; modprobe overlay || exit 1; exit 7";
    let outcome = Vm::new(kernel)
        .memory_mib(512)
        .disk_from_dir(files.path())
        .env("GREETING", "it's me")
        .run(&["sh", "-c", script], Duration::from_secs(60))?;
    let log = outcome.log()?;
    assert_eq!(outcome.status, 7, "{log}");
    assert!(log.starts_with(release), "{log}");
    assert!(log.contains("from the host\n") && log.contains("it's me\n"), "{log}");
    for controller in ["cpuset", "cpu", "io", "memory", "pids"] {
        assert!(log.split_whitespace().any(|word| word == controller), "no {controller}: {log}");
    }
    assert_eq!(fs::read_to_string(outcome.output_dir().join("file"))?, "from the guest\n");
    Ok(())
}

#[test]
fn kernel_6_1() -> Result<()> {
    boots(Kernel::V6_1, "6.1.")
}

#[test]
fn kernel_6_12() -> Result<()> {
    boots(Kernel::V6_12, "6.12.")
}

#[test]
fn kernel_newest() -> Result<()> {
    boots(Kernel::Newest, "")
}

#[test]
fn a_late_job_is_ended_and_its_output_kept() -> Result<()> {
    let outcome = Vm::new(Kernel::V6_12)
        .memory_mib(512)
        .run(&["sh", "-c", "echo begun | tee /output/file; sleep 600"], Duration::from_secs(3))?;
    assert_eq!(outcome.status, 124);
    assert_eq!(outcome.log()?, "begun\n");
    assert_eq!(fs::read_to_string(outcome.output_dir().join("file"))?, "begun\n");
    Ok(())
}

#[test]
fn a_guest_that_dies_is_an_error_with_its_console() {
    let crash = "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger";
    let error = Vm::new(Kernel::V6_12)
        .memory_mib(512)
        .run(&["sh", "-c", crash], Duration::from_secs(60))
        .map(drop)
        .unwrap_err();
    // How much of the kernel's last words comes through differs from run to run; the cause is among them.
    assert!(format!("{error:#}").contains("sysrq"), "{error:#}");
}

#[test]
fn two_guests_on_one_wire() -> Result<()> {
    let sockets = tempfile::tempdir()?;
    let (left, right) = (sockets.path().join("left"), sockets.path().join("right"));
    let run = |nic: Nic, own: &'static str, other: &'static str| {
        std::thread::spawn(move || {
            // The one that is done first still answers the other.
            let script = format!(
                "ip addr add {own}/24 dev eth0; ip link set eth0 up; \
                 until ping -c 1 -W 1 {other} >/dev/null; do sleep 0.2; done; sleep 10"
            );
            Vm::new(Kernel::V6_12)
                .memory_mib(512)
                .nic(nic)
                .run(&["sh", "-c", script.as_str()], Duration::from_secs(60))
        })
    };
    let one = run(Nic { here: left.clone(), there: right.clone(), number: 1 }, "10.1.1.1", "10.1.1.2");
    let two = run(Nic { here: right, there: left, number: 2 }, "10.1.1.2", "10.1.1.1");
    assert_eq!(one.join().unwrap()?.status, 0);
    assert_eq!(two.join().unwrap()?.status, 0);
    Ok(())
}
