//! Names and hardware addresses derived from an attachment's identity, so that DEL and GC find what ADD made
//! without any memory of it.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::types::invocation::Owner;

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Name of the host's end of the veth pair: `kl` and twelve hex digits, 14 of the 15 bytes the kernel allows.
pub fn host_link(owner: &Owner) -> String {
    let digest = digest(&["link", &owner.container_id, &owner.ifname]);
    let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("kl{hex}")
}

/// Hardware address of a container's interface with these addresses. It is derived from the address, so
/// that neighbour entries of peers stay true when an address is given to another container. For IPv4 it has
/// the form that Docker and kubenet made known: 0a:58 and the address.
pub fn container_mac(ips: &[IpAddr]) -> Mac {
    let v4 = ips.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(ip.octets()),
        IpAddr::V6(_) => None,
    });
    match (v4, ips.first()) {
        (Some([a, b, c, d]), _) => Mac([0x0a, 0x58, a, b, c, d]),
        (None, first) => mac(&["container", &first.map(ToString::to_string).unwrap_or_default()]),
    }
}

/// Hardware address of the host's end of the veth pair.
pub fn host_mac(owner: &Owner) -> Mac {
    mac(&["host", &owner.container_id, &owner.ifname])
}

/// Hardware address of a bridge. It is set explicitly, because a bridge that isn't told takes the lowest
/// address of its ports and changes it as pods come and go, and because udev's MACAddressPolicy leaves an
/// explicit address alone.
pub fn bridge_mac(bridge: &str, gateways: &str) -> Mac {
    mac(&["bridge", bridge, gateways])
}

/// Hardware address that every node knows of a node's end of the tunnel between nodes: it follows from the node's address.
pub fn tunnel_mac(node: IpAddr) -> Mac {
    match node {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            Mac([0x02, 0x4b, a, b, c, d])
        }
        IpAddr::V6(ip) => mac(&["tunnel", &ip.to_string()]),
    }
}

/// A unicast, locally administered address.
fn mac(parts: &[&str]) -> Mac {
    let d = digest(parts);
    Mac([d[0] & 0xfc | 0x02, d[1], d[2], d[3], d[4], d[5]])
}

fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_short_and_distinct() {
        let one = Owner::new("aaaa", "eth0").unwrap();
        let two = Owner::new("aaaa", "eth1").unwrap();
        assert_eq!(host_link(&one), host_link(&one));
        assert_ne!(host_link(&one), host_link(&two));
        assert!(host_link(&one).len() <= 15 && host_link(&one).starts_with("kl"));
        assert_ne!(host_mac(&one), host_mac(&two));
        let ips = ["fd00::5".parse().unwrap(), "10.244.1.5".parse().unwrap()];
        assert_eq!(container_mac(&ips).to_string(), "0a:58:0a:f4:01:05");
        assert_eq!(container_mac(&ips[..1]).0[0] & 3, 2);
    }

    #[test]
    fn ends_of_tunnels_are_local_unicast_and_differ() {
        let [one, two, six, other] =
            ["10.1.2.3", "10.1.2.4", "fd00::1", "fd00::2"].map(|ip| tunnel_mac(ip.parse().unwrap()));
        assert_eq!(one.to_string(), "02:4b:0a:01:02:03");
        assert!([one, two, six, other].iter().all(|mac| mac.0[0] & 3 == 2));
        assert!(one != two && six != other);
    }
}
