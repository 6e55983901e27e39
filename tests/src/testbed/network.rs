//! The wire between test hosts: a bridge in the switch's network namespace, a veth pair to each host.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::host::Host;

/// Network of the test hosts; `.2` is the master, `.11` and up are the nodes.
pub const PREFIX: &str = "10.89.0";

/// Runs lines of `ip -batch` inside a host's network namespace.
pub fn ip_batch(host: &Host, lines: &str) -> Result<()> {
    let ns = File::open(format!("/proc/{}/ns/net", host.pid)).context("open the host's network namespace")?;
    let lines = lines.to_owned();
    // A thread of its own: its namespace ends with it.
    let work = std::thread::spawn(move || -> Result<()> {
        setns(ns, CloneFlags::CLONE_NEWNET)?;
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip (Debian's package iproute2)")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip -batch failed on\n{lines}{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    });
    match work.join() {
        Ok(result) => result,
        Err(_panic) => bail!("the thread that ran ip panicked"),
    }
}

/// Makes the bridge.
pub fn setup_switch(switch: &Host) -> Result<()> {
    ip_batch(switch, "link set lo up\nlink add ks0 type bridge\nlink set ks0 up\n")
}

/// Plugs a host into the bridge with an address of [`PREFIX`]; it gets no default route.
pub fn plug(switch: &Host, host: &Host, last_octet: u8) -> Result<()> {
    let (name, pid) = (&host.name, host.pid);
    ip_batch(
        switch,
        &format!(
            "link add name sw-{name} type veth peer name eth0 netns {pid}\nlink set dev sw-{name} master ks0\nlink set dev sw-{name} up\n"
        ),
    )?;
    ip_batch(host, &format!("link set lo up\naddr add {PREFIX}.{last_octet}/24 dev eth0\nlink set eth0 up\n"))
}
