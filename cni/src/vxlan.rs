//! Routes to the pods of other nodes where those may be on another network: over VXLAN (RFC 7348).
//!
//! A device of our own carries it, one for each family of nodes' addresses; IPv4 pods go by the nodes' IPv4 addresses and
//! IPv6 pods by their IPv6 addresses, as on direct routes. Nothing is announced or learnt: a node's hardware address on
//! the device follows from its address, so its Node object says all that is needed.
//!
//! A device has the network address of this node's own pod range (which no pod gets). What the node itself sends to pods
//! of others carries that as its source, so the answer comes back the same way: an answer by another way would meet
//! strict reverse path filters and routers that know no pods.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::address::AddressScope;

use crate::error::{Error, Result};
use crate::net::naming::{Mac, tunnel_mac};
use crate::net::netlink::{Link, Netlink, VxlanSpec};
use crate::net::sysctl;
use crate::routes::{self, NodeRoute};

/// The devices, over IPv4 and over IPv6.
pub const DEVICES: [&str; 2] = ["vxlan.keelson", "vxlan6.keelson"];
/// UDP port: what Linux has used since before IANA gave out 4789, and with it flannel and Cilium. Hypervisors and other
/// overlays (NSX, Docker's swarm) take 4789 for themselves.
pub const PORT: u16 = 8472;
/// Network identifier.
const VNI: u32 = 75;
/// MTU of a host without a default route.
const USUAL_MTU: u32 = 1500;
/// The least that IPv6 works with (RFC 8200, section 5).
const LEAST_IPV6_MTU: u32 = 1280;

/// When packets to other nodes' pods are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VxlanMode {
    /// Every other node is on a network of this host.
    Never,
    /// Where the way to the node leads over a router.
    CrossSubnet,
    /// Whoever lies between two nodes never sees a pod's address.
    Always,
}

impl VxlanMode {
    /// How much shorter than the nodes' network's packets those of pods with these ranges must be.
    pub fn overhead(self, pod_cidrs: &[IpNet]) -> u32 {
        match self {
            VxlanMode::Never => 0,
            VxlanMode::CrossSubnet | VxlanMode::Always => {
                pod_cidrs.iter().map(|range| overhead(range.addr().is_ipv4())).max().unwrap_or(0)
            }
        }
    }
}

/// What wrapping takes of each packet: IP, UDP, VXLAN, and the inner Ethernet header.
fn overhead(ipv4: bool) -> u32 {
    (if ipv4 { 20 } else { 40 }) + 8 + 8 + 14
}

/// This node's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// When packets are wrapped.
    pub mode: VxlanMode,
    /// This node's own addresses, as others know them; the first of a family counts.
    pub addresses: Vec<IpAddr>,
    /// This node's own pod ranges.
    pub pod_cidrs: Vec<IpNet>,
}

/// Makes our routes those in `desired`, wrapped as `overlay` says. Every step is tried, and calling again goes on from
/// there. Works in the calling thread's network namespace, which `netlink` must have been opened in.
///
/// # Errors
/// The kernel's, gathered; [`Error::InvalidConfig`] when packets are to be wrapped and this node has no address of the
/// family.
pub async fn sync(netlink: &Netlink, overlay: &Overlay, desired: &[NodeRoute]) -> Result<()> {
    let mut errors = Vec::new();
    let mut placed = Vec::new();
    let mut wrapped = [Vec::new(), Vec::new()];
    for route in desired {
        match is_wrapped(netlink, overlay.mode, route.via).await {
            Ok(true) => wrapped[usize::from(route.via.is_ipv6())].push(route),
            Ok(false) => placed.push(NodeRoute { link: None, ..route.clone() }),
            Err(error) => errors.push(error),
        }
    }
    let mut kept = Vec::new();
    for (name, routes) in DEVICES.into_iter().zip(&wrapped) {
        let Some(first) = routes.first() else { continue };
        let device = match ensure_device(netlink, overlay, name, first.via.is_ipv4()).await {
            Ok(device) => device,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let mut peers = BTreeMap::new();
        for route in routes {
            let mac = tunnel_mac(route.via);
            let hop = next_hop(route.via, mac);
            peers.insert(hop, (mac, route.via));
            placed.push(NodeRoute { dst: route.dst, via: hop, link: Some(device) });
        }
        for (hop, (mac, node)) in &peers {
            errors.extend(know(netlink, device, *hop, *mac, *node).await.err());
        }
        kept.push((device, peers));
    }
    errors.extend(routes::sync(netlink, &placed).await.err());
    // What no route uses any more.
    for (device, peers) in &kept {
        errors.extend(forget(netlink, *device, peers).await.err());
    }
    for (name, routes) in DEVICES.into_iter().zip(&wrapped) {
        if routes.is_empty() {
            errors.extend(netlink.delete_vxlan(name).await.err());
        }
    }
    Error::collect(errors)
}

/// Removes the devices, with all that leads over them.
///
/// # Errors
/// The kernel's, gathered.
pub async fn remove(netlink: &Netlink) -> Result<()> {
    let mut errors = Vec::new();
    for name in DEVICES {
        errors.extend(netlink.delete_vxlan(name).await.err());
    }
    Error::collect(errors)
}

async fn is_wrapped(netlink: &Netlink, mode: VxlanMode, node: IpAddr) -> Result<bool> {
    Ok(match mode {
        VxlanMode::Never => false,
        VxlanMode::Always => true,
        VxlanMode::CrossSubnet => netlink.route_to(node).await?.is_some_and(|way| way.via.is_some()),
    })
}

/// The next hop that stands for a node on the device. The kernel takes an IPv6 address that another link leads to for
/// none, so there it is the link-local address that belongs to the hardware address (RFC 4291, appendix A).
fn next_hop(node: IpAddr, mac: Mac) -> IpAddr {
    match node {
        IpAddr::V4(_) => node,
        IpAddr::V6(_) => {
            let [a, b, c, d, e, f] = mac.0.map(u16::from);
            let words = [0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f];
            Ipv6Addr::from(words).into()
        }
    }
}

/// Makes the device, or makes it anew where it has to be another by now (this node's address or range has changed), and
/// sets it up; gives its index.
async fn ensure_device(netlink: &Netlink, overlay: &Overlay, name: &str, ipv4: bool) -> Result<u32> {
    let local = overlay.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4);
    let local = local.ok_or_else(|| {
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        Error::InvalidConfig(format!("the node has no {family} address to send VXLAN from"))
    })?;
    let base = netlink.default_route_mtu().await?.unwrap_or(USUAL_MTU);
    let least = if ipv4 { 0 } else { LEAST_IPV6_MTU };
    let mtu = base.saturating_sub(overhead(ipv4)).max(least);
    let spec = VxlanSpec { name, vni: VNI, port: PORT, local, mac: tunnel_mac(local), mtu };
    let address = overlay.pod_cidrs.iter().find(|range| range.addr().is_ipv4() == ipv4);
    let address = address.map(|range| IpNet::from(range.network()));

    let (mut usable, mut present) = (None, Vec::new());
    if let Some(link) = netlink.link(name).await?.filter(|link| spec.is(link)) {
        present = own_addresses(netlink, &link).await?;
        usable = Some(link).filter(|_| present.iter().all(|have| Some(*have) == address));
    }
    let link = match usable {
        Some(link) => link,
        None => {
            netlink.delete_vxlan(name).await?;
            netlink.add_vxlan(&spec).await?;
            present.clear();
            netlink.require_link(name).await?
        }
    };
    if link.mtu != mtu {
        netlink.set_mtu(link.index, mtu).await?;
    }
    quieten(name, ipv4)?;
    if let Some(address) = address.filter(|address| !present.contains(address)) {
        netlink.add_address(link.index, address, AddressScope::Universe).await?;
    }
    if !link.up {
        netlink.set_up(link.index).await?;
    }
    Ok(link.index)
}

/// The addresses of a device but for those that IPv6 gives to each.
async fn own_addresses(netlink: &Netlink, link: &Link) -> Result<Vec<IpNet>> {
    let mut addresses = netlink.addresses(link.index).await?;
    addresses.retain(|address| match address.addr() {
        IpAddr::V4(_) => true,
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    });
    Ok(addresses)
}

/// The device speaks its own family alone, takes no configuration from what others send, and never waits for a sign of
/// another holder of its address.
fn quieten(name: &str, ipv4: bool) -> Result<()> {
    let settings: &[(&str, &str)] = if ipv4 {
        &[("disable_ipv6", "1")]
    } else {
        &[("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0")]
    };
    for (key, value) in settings {
        let there = sysctl::set(&format!("ipv6/conf/{name}/{key}"), value)?;
        if !there && !ipv4 {
            return Err(Error::Unavailable("the kernel has no IPv6, but a node is reached by it".into()));
        }
    }
    Ok(())
}

/// Tells the device where a node is. The forwarding entry first: where there is a neighbour, there is one.
async fn know(netlink: &Netlink, device: u32, hop: IpAddr, mac: Mac, node: IpAddr) -> Result<()> {
    netlink.put_forwarding(device, mac, node).await?;
    netlink.put_neighbour(device, hop, mac).await
}

/// Removes the entries of nodes that are no peers any more.
async fn forget(netlink: &Netlink, device: u32, peers: &BTreeMap<IpAddr, (Mac, IpAddr)>) -> Result<()> {
    for (hop, mac) in netlink.permanent_neighbours(device).await? {
        if !peers.contains_key(&hop) {
            netlink.delete_forwarding(device, &mac).await?;
            netlink.delete_neighbour(device, hop).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_leave_room_for_the_outer_headers() {
        let ranges = |list: &[&str]| list.iter().map(|range| range.parse().unwrap()).collect::<Vec<IpNet>>();
        let (four, both) = (ranges(&["10.244.1.0/24"]), ranges(&["10.244.1.0/24", "fd00::/64"]));
        assert_eq!(VxlanMode::Never.overhead(&both), 0);
        assert_eq!(VxlanMode::Always.overhead(&four), 50);
        assert_eq!(VxlanMode::CrossSubnet.overhead(&both), 70);
    }

    #[test]
    fn next_hops() {
        let hop = |node: &str| next_hop(node.parse().unwrap(), Mac([0x02, 0x4b, 1, 2, 3, 4])).to_string();
        assert_eq!(hop("10.1.2.3"), "10.1.2.3");
        assert_eq!(hop("fd00::7"), "fe80::4b:1ff:fe02:304");
    }
}
