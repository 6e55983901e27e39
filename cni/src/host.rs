//! Settings of the host that pods' networking stands on.

use std::fs;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::AddressScope;

use crate::error::Result;
use crate::net::netlink::Netlink;
use crate::net::sysctl;

/// Switches forwarding on for IPv4 and IPv6 in the calling thread's network namespace.
///
/// IPv6 forwarding makes the kernel ignore router advertisements, from which a host may have its own
/// address and default route: interfaces that listen to them are first told to go on doing so.
///
/// # Errors
/// I/O errors; a kernel without IPv6 is none.
pub fn ensure_forwarding() -> Result<()> {
    sysctl::set("ipv4/ip_forward", "1")?;
    if sysctl::get("ipv6/conf/all/forwarding").is_some_and(|value| value != "1") {
        keep_router_advertisements()?;
        sysctl::set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

fn keep_router_advertisements() -> Result<()> {
    let Ok(entries) = fs::read_dir("/proc/sys/net/ipv6/conf") else { return Ok(()) };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let key = format!("ipv6/conf/{name}/accept_ra");
        if !matches!(name.as_str(), "all" | "default" | "lo") && sysctl::get(&key).as_deref() == Some("1") {
            sysctl::set(&key, "2")?;
        }
    }
    Ok(())
}

/// Puts `ip` on the host's lo, so that sockets here can be bound to it (the cluster's DNS address). It has
/// host scope: the kernel never picks it as the source of anything by itself. Repeating it is success.
/// Must be called within a tokio runtime; works in the calling thread's network namespace.
///
/// # Errors
/// The kernel's.
pub async fn add_local_address(ip: IpAddr) -> Result<()> {
    let netlink = Netlink::open()?;
    let lo = netlink.require_link("lo").await?;
    if !lo.up {
        netlink.set_up(lo.index).await?;
    }
    netlink.add_address(lo.index, IpNet::from(ip), AddressScope::Host).await
}

/// Takes back what [`add_local_address`] did; that the address is gone is success.
///
/// # Errors
/// The kernel's.
pub async fn remove_local_address(ip: IpAddr) -> Result<()> {
    let netlink = Netlink::open()?;
    let lo = netlink.require_link("lo").await?;
    netlink.delete_address(lo.index, IpNet::from(ip)).await
}
