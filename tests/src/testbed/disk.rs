//! Disks of hosts that can be full: a host's `/var/lib` and the logs of its pods on a small filesystem of their own.

use anyhow::{Result, ensure};

use super::host::Host;

/// Puts them there, before any daemon runs; what is in `/var/lib` already comes along.
pub fn make_small(host: &Host, mebibytes: u32) -> Result<()> {
    let script = format!(
        "set -e; mkdir /run/keep; for f in /var/lib/*; do [ ! -e $f ] || mv $f /run/keep; done
        mount -t tmpfs -o size={mebibytes}m,mode=755 small /var/lib
        for f in /run/keep/*; do [ ! -e $f ] || mv $f /var/lib; done; rmdir /run/keep
        mkdir -p /var/lib/pod-logs /var/log/pods; mount --bind /var/lib/pod-logs /var/log/pods"
    );
    ensure!(run(host, &script)?, "the small disk of {} could not be made", host.name);
    Ok(())
}

/// Takes all the room, to the last block.
pub fn fill(host: &Host) -> Result<()> {
    // dd ends with an error: that is the point.
    let script = "dd if=/dev/zero of=/var/lib/ballast bs=1M 2>/dev/null; dd if=/dev/zero of=/var/lib/rest bs=4k 2>/dev/null";
    run(host, script).map(drop)
}

/// Gives the room back.
pub fn empty(host: &Host) -> Result<()> {
    ensure!(run(host, "rm -f /var/lib/ballast /var/lib/rest")?, "the disk of {} stays full", host.name);
    Ok(())
}

fn run(host: &Host, script: &str) -> Result<bool> {
    Ok(host.command("client", "sh").args(["-c", script]).status()?.success())
}
