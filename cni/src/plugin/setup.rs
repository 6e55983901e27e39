//! Wiring a pod in both modes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::InfoKind;

use super::{Sandbox, range_of, ranges};
use crate::error::{Error, Result};
use crate::net::naming;
use crate::net::netlink::{Link, Netlink, RouteSpec, VethSpec};
use crate::net::sysctl;
use crate::nft::{hostport, masquerade};
use crate::routes::{PROTOCOL_POD, PROTOCOL_STATIC};
use crate::types::config::{Config, Mode};
use crate::types::invocation::Owner;
use crate::types::result::{AddResult, Interface, IpConfig, Route};

/// The pod's next hop in routed mode. Nobody holds it: a permanent neighbour entry leads to the host's end
/// of the pair, which takes whatever comes and routes it.
pub(super) const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
pub(super) const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// MTU when neither the configuration nor a default route says anything, in bytes.
const ETHERNET_MTU: u32 = 1500;

/// The least that IPv6 works with (RFC 8200, section 5).
const LEAST_IPV6_MTU: u32 = 1280;

/// How many times a host link left by an interrupted ADD is cleared away before giving up.
const ATTEMPTS: usize = 2;

pub(super) async fn setup(
    config: &Config,
    owner: &Owner,
    sandbox: &Sandbox,
    host: &Netlink,
    pod: &Netlink,
    ips: &[IpAddr],
) -> Result<AddResult> {
    crate::host::ensure_forwarding()?;
    if config.ip_masq {
        masquerade::ensure(&config.ranges, &config.cluster_cidrs)?;
    }
    let mtu = match config.mtu {
        0 => derived_mtu(config, host.default_route_mtu().await?.unwrap_or(ETHERNET_MTU)),
        mtu => mtu,
    };
    let bridge = match config.mode {
        Mode::Bridge => Some(ensure_bridge(config, host, mtu).await?),
        Mode::Routed => None,
    };
    let host_name = naming::host_link(owner);
    let spec = VethSpec {
        host: (&host_name, naming::host_mac(owner)),
        container: (&owner.ifname, naming::container_mac(ips)),
        netns: &sandbox.netns,
        mtu,
        bridge: bridge.as_ref().map(|link| link.index),
    };
    add_veth(host, &spec).await?;
    let host_link = host.require_link(&host_name).await?;
    let pod_link = pod.require_link(&owner.ifname).await?;
    let lo = pod.require_link("lo").await?;
    if !lo.up {
        pod.set_up(lo.index).await?;
    }
    let has_v6 = ips.iter().any(IpAddr::is_ipv6);
    if has_v6 {
        sandbox.netns.run(|| quieten_ipv6(&owner.ifname))?;
    }
    let routed = config.mode == Mode::Routed;
    let mut result = AddResult { dns: config.dns.clone(), ..AddResult::default() };
    for ip in ips {
        result.ips.push(pod_address(config, *ip)?);
        result.routes.extend(pod_routes(config, *ip)?);
    }
    for ip in &result.ips {
        pod.add_address(pod_link.index, ip.address, AddressScope::Universe).await?;
    }
    pod.set_up(pod_link.index).await?;
    if routed {
        wire_routed(owner, host, pod, &host_link, &pod_link, ips, has_v6).await?;
    } else {
        // A bridge port needs no addresses of its own, and hundreds of them would each join groups and
        // send advertisements.
        sysctl::set(&format!("ipv6/conf/{}/disable_ipv6", host_link.name), "1")?;
        host.set_hairpin_up(host_link.index).await?;
    }
    wait_for_carrier(pod, &owner.ifname).await?;
    for route in &result.routes {
        let spec = RouteSpec {
            dst: route.dst,
            via: route.gw,
            link: Some(pod_link.index),
            onlink: false,
            protocol: PROTOCOL_STATIC,
        };
        pod.put_route(&spec).await?;
    }
    if !config.port_mappings.is_empty() {
        hostport::add(&host_name, ips, &config.port_mappings)?;
        // Lets 127.0.0.1:hostPort leave towards the pod; what comes back is masqueraded.
        let towards_pod = if routed { host_name.as_str() } else { config.bridge.as_str() };
        sysctl::set(&format!("ipv4/conf/{towards_pod}/route_localnet"), "1")?;
    }
    if let Some(bridge) = bridge {
        result.interfaces.push(shown(&bridge, mtu, ""));
    }
    result.interfaces.push(shown(&host_link, mtu, ""));
    result.interfaces.push(shown(&pod_link, mtu, &sandbox.path));
    let last = u32::try_from(result.interfaces.len() - 1).unwrap_or(0);
    for ip in &mut result.ips {
        ip.interface = Some(last);
    }
    Ok(result)
}

/// What is left of the host's MTU, so that a pod's packet can be wrapped on its way to another node.
fn derived_mtu(config: &Config, host: u32) -> u32 {
    let ipv6 = config.ranges.iter().any(|range| range.addr().is_ipv6());
    host.saturating_sub(config.overhead).max(if ipv6 { LEAST_IPV6_MTU.min(host) } else { 0 })
}

/// Of the two ends, the one that was set up first learns from a kernel worker that its peer is there, and
/// until then it drops what is sent. A pod must not start with a lost packet: a lost SYN or DNS query costs
/// it a second or more.
async fn wait_for_carrier(pod: &Netlink, ifname: &str) -> Result<()> {
    let mut pause = Duration::from_micros(100);
    while pause < Duration::from_secs(2) {
        if pod.require_link(ifname).await?.operational {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Err(Error::TryAgain(format!("interface {ifname} has no carrier")))
}

fn shown(link: &Link, mtu: u32, sandbox: &str) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(mtu),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    }
}

/// The address as it stands on the pod's interface.
pub(super) fn pod_address(config: &Config, ip: IpAddr) -> Result<IpConfig> {
    let range = range_of(config, ip)?;
    let (prefix, gateway) = match config.mode {
        Mode::Bridge => (range.net().prefix_len(), range.gateway()),
        Mode::Routed => (range.net().max_prefix_len(), next_hop(ip)),
    };
    let address = IpNet::new(ip, prefix)
        .map_err(|e| Error::InvalidConfig(format!("address {ip} with prefix length {prefix}: {e}")))?;
    Ok(IpConfig { address, gateway: Some(gateway), interface: None })
}

/// The pod's routes for the family of `ip`, in the order they can be added in.
pub(super) fn pod_routes(config: &Config, ip: IpAddr) -> Result<Vec<Route>> {
    let everything = match ip {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    };
    Ok(match config.mode {
        Mode::Bridge => vec![Route::new(everything, Some(range_of(config, ip)?.gateway()))],
        Mode::Routed => {
            let hop = next_hop(ip);
            let mut to_hop = Route::new(IpNet::from(hop), None);
            to_hop.scope = Some(253);
            vec![to_hop, Route::new(everything, Some(hop))]
        }
    })
}

pub(super) fn next_hop(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(NEXT_HOP_V4),
        IpAddr::V6(_) => IpAddr::V6(NEXT_HOP_V6),
    }
}

/// Makes the pair. A host link of the same name can only be what an interrupted ADD of the same attachment
/// left (the name is derived from it, and its container end was just seen to be absent), so it goes.
async fn add_veth(host: &Netlink, spec: &VethSpec<'_>) -> Result<()> {
    for _ in 1..ATTEMPTS {
        match host.add_veth(spec).await {
            Err(Error::Netlink { errno: libc::EEXIST, .. }) => host.delete_veth(spec.host.0).await?,
            Err(Error::Netlink { errno: libc::EXFULL, .. }) => {
                return Err(Error::Unavailable(
                    "the bridge has no free port (the kernel allows 1023)".into(),
                ));
            }
            other => return other,
        }
    }
    host.add_veth(spec).await
}

async fn ensure_bridge(config: &Config, host: &Netlink, mtu: u32) -> Result<Link> {
    let gateways: Vec<IpNet> = ranges(config)
        .iter()
        .filter_map(|range| IpNet::new(range.gateway(), range.net().prefix_len()).ok())
        .collect();
    let bridge = match host.link(&config.bridge).await? {
        Some(link) => link,
        None => {
            let seed = gateways.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            match host.add_bridge(&config.bridge, naming::bridge_mac(&config.bridge, &seed), mtu).await {
                // Another ADD was quicker.
                Err(Error::Netlink { errno: libc::EEXIST, .. }) | Ok(()) => {}
                Err(error) => return Err(error),
            }
            host.require_link(&config.bridge).await?
        }
    };
    if bridge.kind != Some(InfoKind::Bridge) {
        return Err(Error::InvalidConfig(format!("link {} exists and is not a bridge", config.bridge)));
    }
    if gateways.iter().any(|gateway| gateway.addr().is_ipv6()) {
        quieten_ipv6(&config.bridge)?;
    }
    let present = host.addresses(bridge.index).await?;
    for gateway in gateways.iter().filter(|gateway| !present.contains(gateway)) {
        host.add_address(bridge.index, *gateway, AddressScope::Universe).await?;
    }
    if !bridge.up {
        host.set_up(bridge.index).await?;
    }
    Ok(bridge)
}

/// No duplicate address detection (it takes a second and the addresses are known to be unique), no address
/// or route from router advertisements (any pod could send them).
fn quieten_ipv6(ifname: &str) -> Result<()> {
    for (key, value) in [("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0")] {
        if !sysctl::set(&format!("ipv6/conf/{ifname}/{key}"), value)? {
            return Err(Error::Unavailable("the kernel has no IPv6, but a range is IPv6".into()));
        }
    }
    Ok(())
}

async fn wire_routed(
    owner: &Owner,
    host: &Netlink,
    pod: &Netlink,
    host_link: &Link,
    pod_link: &Link,
    ips: &[IpAddr],
    has_v6: bool,
) -> Result<()> {
    if has_v6 {
        quieten_ipv6(&host_link.name)?;
    } else {
        sysctl::set(&format!("ipv6/conf/{}/disable_ipv6", host_link.name), "1")?;
    }
    host.set_up(host_link.index).await?;
    for ip in ips {
        pod.put_neighbour(pod_link.index, next_hop(*ip), naming::host_mac(owner)).await?;
        host.put_neighbour(host_link.index, *ip, naming::container_mac(ips)).await?;
        host.put_route(&host_route(host_link.index, *ip)).await?;
    }
    Ok(())
}

/// The host's route to a pod in routed mode.
pub(super) fn host_route(link: u32, ip: IpAddr) -> RouteSpec {
    RouteSpec { dst: IpNet::from(ip), via: None, link: Some(link), onlink: false, protocol: PROTOCOL_POD }
}
