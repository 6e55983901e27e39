//! What the host calls itself, and where it is.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The host's name in lower case, as kubelet names its node.
pub fn name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?;
    node_name(&name)
}

/// A node name: trimmed, in lower case, a DNS subdomain.
pub fn node_name(text: &str) -> anyhow::Result<String> {
    let name = text.trim().to_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    anyhow::ensure!(
        name.len() <= 253 && name.split('.').all(label),
        "{name:?} can't be a node name: give another by --hostname-override"
    );
    Ok(name)
}

/// Where cgroup v2 is mounted: at /sys/fs/cgroup, or beside version 1's controllers.
pub fn cgroup2_mount() -> anyhow::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    find_cgroup2(&mounts).context("no cgroup v2 filesystem is mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// The mount point of the first cgroup2 in a mountinfo, /sys/fs/cgroup before all others. See proc_pid_mountinfo(5).
fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    let mount_point = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    };
    let mut found: Vec<PathBuf> = mountinfo.lines().filter_map(mount_point).collect();
    let preferred = found.iter().position(|path| path == Path::new("/sys/fs/cgroup")).unwrap_or(0);
    (!found.is_empty()).then(|| found.swap_remove(preferred))
}

/// The address from which this host reaches the API server. No packet is sent.
pub fn address_towards(server: &http::Uri) -> anyhow::Result<IpAddr> {
    let host = server.host().context("the API server's URL has no host")?.trim_matches(['[', ']']);
    let port = server.port_u16().unwrap_or(443);
    let target = (host, port).to_socket_addrs().with_context(|| format!("resolve {host}"))?.next();
    let target = target.with_context(|| format!("{host} has no address"))?;
    let any = if target.is_ipv4() { IpAddr::from([0, 0, 0, 0]) } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).context("open a socket")?;
    socket.connect(target).with_context(|| format!("no route to {target}: give --node-ip"))?;
    let address = socket.local_addr().context("read the socket's address")?.ip();
    anyhow::ensure!(!address.is_loopback(), "the API server is on the loopback: give --node-ip");
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names() {
        assert_eq!(node_name("Node-1.Example\n").unwrap(), "node-1.example");
        assert!(node_name("").is_err());
        assert!(node_name("a_b").is_err());
        assert!(node_name("-a").is_err());
    }

    fn check_cgroup2(mountinfo: &str, expected: Option<&str>) {
        assert_eq!(find_cgroup2(mountinfo), expected.map(PathBuf::from), "{mountinfo}");
    }

    #[test]
    fn cgroup2_is_found() {
        let unified = "31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        let pure = "32 30 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let v1 = "33 30 0:29 / /sys/fs/cgroup/cpu rw shared:10 - cgroup cgroup rw,cpu\n";
        check_cgroup2(&format!("{v1}{unified}"), Some("/sys/fs/cgroup/unified"));
        check_cgroup2(&format!("{unified}{pure}"), Some("/sys/fs/cgroup"));
        check_cgroup2(v1, None);
        check_cgroup2("", None);
    }

    #[test]
    fn a_loopback_server_says_nothing_of_the_node() {
        assert!(address_towards(&"https://127.0.0.1:6443".parse().unwrap()).is_err());
    }
}
