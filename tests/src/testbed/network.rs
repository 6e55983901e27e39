//! The wire between test hosts: a bridge in the switch's network namespace, a veth pair to each host.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::bpf::{divert_packets, drop_packets};
use super::host::Host;

/// Network of the test hosts; `.2` is the master, `.11` and up are the nodes.
pub const PREFIX: &str = "10.89.0";

/// Does work inside a host's network namespace.
pub fn inside<T: Send + 'static>(
    host: &Host,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let ns = File::open(format!("/proc/{}/ns/net", host.pid)).context("open the host's network namespace")?;
    // A thread of its own: its namespace ends with it.
    let thread = std::thread::spawn(move || -> Result<T> {
        setns(ns, CloneFlags::CLONE_NEWNET)?;
        work()
    });
    thread.join().map_err(|_panic| anyhow::anyhow!("a thread inside a host's network panicked"))?
}

/// Runs lines of `ip -batch` inside a host's network namespace.
pub fn ip_batch(host: &Host, lines: &str) -> Result<()> {
    batch(host, "ip", lines)
}

/// Runs lines of `ip -batch` or `tc -batch` inside a host's network namespace.
fn batch(host: &Host, program: &'static str, lines: &str) -> Result<()> {
    let lines = lines.to_owned();
    inside(host, move || {
        let mut child = Command::new(program)
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {program} (Debian's package iproute2)"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{program} -batch failed on\n{lines}{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    })
}

/// Makes the bridge.
pub fn setup_switch(switch: &Host) -> Result<()> {
    ip_batch(switch, "link set lo up\nlink add ks0 type bridge\nlink set ks0 up\n")
}

/// Plugs a host into the bridge with an address of [`PREFIX`]; it gets no default route.
pub fn plug(switch: &Host, host: &Host, last_octet: u8) -> Result<()> {
    let (port, pid) = (port(&host.name), host.pid);
    ip_batch(
        switch,
        &format!(
            "link add name {port} type veth peer name eth0 netns {pid}\nlink set dev {port} master ks0\nlink set dev {port} up\n"
        ),
    )?;
    ip_batch(host, &format!("link set lo up\naddr add {PREFIX}.{last_octet}/24 dev eth0\nlink set eth0 up\n"))
}

/// Name of a host's port of the bridge.
fn port(host: &str) -> String {
    format!("sw-{host}")
}

/// Pulls a host's cable out, or plugs it in again.
pub fn connect(switch: &Host, host: &str, connected: bool) -> Result<()> {
    let state = if connected { "up" } else { "down" };
    ip_batch(switch, &format!("link set dev {} {state}\n", port(host)))
}

/// Keeps hosts from each other, but from no other host, or joins them again.
pub fn isolate(switch: &Host, hosts: &[String], isolated: bool) -> Result<()> {
    let state = if isolated { "on" } else { "off" };
    let line = |host: &String| format!("link set dev {} type bridge_slave isolated {state}\n", port(host));
    ip_batch(switch, &hosts.iter().map(line).collect::<String>())
}

/// Makes a host's cable slow: packets to it wait up to so many milliseconds for their turn at so many kilobits a second, and
/// are dropped beyond that. Without a rate the cable is as it was.
pub fn slow_down(switch: &Host, host: &str, rate: Option<(u32, u32)>) -> Result<()> {
    let port = port(host);
    let line = match rate {
        Some((kilobits, latency)) => {
            format!("qdisc add dev {port} root tbf rate {kilobits}kbit burst 6kb latency {latency}ms\n")
        }
        None => format!("qdisc del dev {port} root\n"),
    };
    batch(switch, "tc", &line)
}

/// A cable that is bad until this is dropped.
#[derive(Debug)]
pub struct BadCable {
    _attached: [OwnedFd; 2],
}

fn link_index(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("no link {name}"))
}

/// Has a host's cable lose so many of a hundred packets, in both directions.
pub fn lose_packets(switch: &Host, host: &str, percent: u8) -> Result<BadCable> {
    let port = port(host);
    inside(switch, move || Ok(BadCable { _attached: drop_packets(link_index(&port)?, percent)? }))
}

/// Ends of the detour of a host's packets.
fn detour(host: &str) -> (String, String) {
    (format!("da-{host}"), format!("db-{host}"))
}

/// Has so many of a hundred packets from a host take a detour, on which they wait, and are overtaken. End it with
/// [`straighten`].
pub fn reorder_packets(switch: &Host, host: &str, percent: u8) -> Result<BadCable> {
    let (port, (there, back)) = (port(host), detour(host));
    ip_batch(
        switch,
        &format!(
            "link add name {there} type veth peer name {back}\nlink set dev {there} up\nlink set dev {back} up\n"
        ),
    )?;
    batch(switch, "tc", &format!("qdisc add dev {there} root tbf rate 512kbit burst 2kb latency 200ms\n"))?;
    inside(switch, move || {
        let (port, there, back) = (link_index(&port)?, link_index(&there)?, link_index(&back)?);
        // What comes back may be sent around once more.
        let back = divert_packets(back, 100, port, true)?;
        Ok(BadCable { _attached: [back, divert_packets(port, percent, there, false)?] })
    })
}

/// Ends the detour that [`reorder_packets`] made.
pub fn straighten(switch: &Host, host: &str, bent: BadCable) -> Result<()> {
    drop(bent);
    ip_batch(switch, &format!("link del dev {}\n", detour(host).0))
}
