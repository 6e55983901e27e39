//! Network namespaces inside of a test host, each joined to the host by a veth pair, as a pod's is in routed mode: for what is
//! to be alike on hosts with and without an agent.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::host::Host;
use super::network::{inside, ip_batch};

/// The host's end of every pair: what places send to goes there.
const GATEWAY: &str = "169.254.1.1";

/// Makes one with these addresses; gives it as a host whose commands run in it, and are otherwise those of the host that it is in.
/// It ends with that host.
pub fn make(host: &Host, name: &str, addresses: &[Ipv4Addr]) -> Result<Host> {
    let args = ["--net", "sleep", "infinity"].map(str::to_owned);
    let pid = host.spawn_daemon(name, Path::new("/usr/bin/unshare"), &args, None)?;
    wait_unshared(host, pid)?;
    let place = Host { pid, ..host.clone() };
    let each = |line: fn(&str, &Ipv4Addr) -> String| -> String {
        addresses.iter().map(|address| line(name, address)).collect()
    };
    let routes = each(|name, address| format!("route add {address}/32 dev {name}\n"));
    ip_batch(
        host,
        &format!(
            "link add name {name} type veth peer name eth0 netns {pid}\naddr add {GATEWAY}/32 dev {name}\n\
             link set dev {name} up\n{routes}"
        ),
    )?;
    let own = each(|_, address| format!("addr add {address}/32 dev eth0\n"));
    ip_batch(
        &place,
        &format!(
            "link set lo up\n{own}link set eth0 up\nroute add {GATEWAY} dev eth0 scope link\n\
             route add default via {GATEWAY} dev eth0\n"
        ),
    )?;
    inside(host, || {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("have the host forward packets")
    })?;
    Ok(place)
}

/// Waits until a process that was just started has left the host's network namespace.
fn wait_unshared(host: &Host, pid: i32) -> Result<()> {
    let namespace = |pid| {
        let path = format!("/proc/{pid}/ns/net");
        fs::read_link(&path).with_context(|| format!("read {path}"))
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while namespace(pid)? == namespace(host.pid)? {
        if Instant::now() > deadline {
            bail!("a process does not leave the network namespace of {}", host.name);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
