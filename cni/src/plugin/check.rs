//! CHECK: compare what is there with the result of ADD.
//!
//! A later plugin of the chain may have changed what its result says (a hardware address, a route), so the
//! result is the measure for everything it mentions; what it cannot mention is derived again.

use std::net::IpAddr;

use ipnet::IpNet;

use super::setup::{host_route, next_hop};
use super::{Sandbox, describe, open_ipam};
use crate::error::{Error, Result};
use crate::net::naming;
use crate::net::netlink::{Link, Netlink, RouteSpec};
use crate::nft::{hostport, masquerade};
use crate::types::config::{Config, Mode};
use crate::types::invocation::Owner;
use crate::types::result::AddResult;

pub(super) async fn check(config: &Config, owner: &Owner, sandbox: &Sandbox) -> Result<()> {
    let Some(result) = &config.prev_result else {
        return Err(Error::InvalidConfig("required prevResult missing".into()));
    };
    let host = Netlink::open()?;
    let pod = Netlink::open_in(&sandbox.netns)?;
    let ips = check_ipam(config, owner, result)?;
    let host_link = check_host_link(config, owner, &host).await?;
    let pod_link = check_pod_link(owner, result, &pod).await?;
    check_addresses(&pod, &pod_link, result, &ips).await?;
    check_routes(&pod, &pod_link, result, config).await?;
    if config.mode == Mode::Routed {
        check_routed(owner, &host, &pod, &host_link, &pod_link, &ips).await?;
    }
    if config.ip_masq && !masquerade::is_in_place(&config.ranges, &config.cluster_cidrs)? {
        return damaged("the masquerade rules are missing");
    }
    if !hostport::is_in_place(&host_link.name, &ips, &config.port_mappings)? {
        return damaged("a host port is not forwarded");
    }
    Ok(())
}

fn damaged<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::CheckFailed(what.into()))
}

/// The reserved addresses, which must be among those of the result.
fn check_ipam(config: &Config, owner: &Owner, result: &AddResult) -> Result<Vec<IpAddr>> {
    let held = open_ipam(config)?.held_by(owner)?;
    if held.len() != config.ranges.len() {
        return damaged(format!(
            "{} holds {} addresses of {}",
            describe(owner),
            held.len(),
            config.ranges.len()
        ));
    }
    match held.iter().find(|ip| !result.ips.iter().any(|listed| listed.address.addr() == **ip)) {
        Some(ip) => damaged(format!("address {ip} is reserved but not in prevResult")),
        None => Ok(held),
    }
}

async fn check_host_link(config: &Config, owner: &Owner, host: &Netlink) -> Result<Link> {
    let name = naming::host_link(owner);
    let Some(link) = host.link(&name).await? else {
        return damaged(format!("host link {name} is missing"));
    };
    if !link.up {
        return damaged(format!("host link {name} is down"));
    }
    if config.mode == Mode::Bridge {
        let Some(bridge) = host.link(&config.bridge).await? else {
            return damaged(format!("bridge {} is missing", config.bridge));
        };
        if !bridge.up {
            return damaged(format!("bridge {} is down", config.bridge));
        }
        if link.controller != Some(bridge.index) {
            return damaged(format!("host link {name} is not a port of bridge {}", config.bridge));
        }
        let present = host.addresses(bridge.index).await?;
        for range in super::ranges(config) {
            let gateway = IpNet::new(range.gateway(), range.net().prefix_len()).ok();
            if gateway.is_some_and(|gateway| !present.contains(&gateway)) {
                return damaged(format!(
                    "bridge {} lacks the gateway address {}",
                    config.bridge,
                    range.gateway()
                ));
            }
        }
    }
    Ok(link)
}

async fn check_pod_link(owner: &Owner, result: &AddResult, pod: &Netlink) -> Result<Link> {
    let listed = result.interfaces.iter().find(|i| i.name == owner.ifname && !i.sandbox.is_empty());
    let Some(listed) = listed else {
        return damaged(format!("interface {} is not in prevResult", owner.ifname));
    };
    let Some(link) = pod.link(&owner.ifname).await? else {
        return damaged(format!("interface {} is missing in the container", owner.ifname));
    };
    if !link.up {
        return damaged(format!("interface {} is down", owner.ifname));
    }
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !listed.mac.is_empty() && !listed.mac.eq_ignore_ascii_case(&mac) {
        return damaged(format!("interface {} has address {mac}, not {}", owner.ifname, listed.mac));
    }
    Ok(link)
}

async fn check_addresses(pod: &Netlink, link: &Link, result: &AddResult, ips: &[IpAddr]) -> Result<()> {
    let present = pod.addresses(link.index).await?;
    let own = result.ips.iter().filter(|ip| ips.contains(&ip.address.addr()));
    match own.into_iter().find(|ip| !present.contains(&ip.address)) {
        Some(ip) => damaged(format!("address {} is missing in the container", ip.address)),
        None => Ok(()),
    }
}

async fn check_routes(pod: &Netlink, link: &Link, result: &AddResult, config: &Config) -> Result<()> {
    let present = pod.routes().await?;
    for route in &result.routes {
        // Another plugin's route may well be in another table or on another link: only those that this
        // plugin makes are looked for.
        let ours =
            result.ips.iter().filter(|ip| config.ranges.iter().any(|r| r.contains(&ip.address.addr())));
        let ours =
            ours.flat_map(|ip| super::setup::pod_routes(config, ip.address.addr()).unwrap_or_default());
        if !ours.into_iter().any(|own| own.dst == route.dst && own.gw == route.gw) {
            continue;
        }
        let found = |r: &&RouteSpec| r.dst == route.dst && r.via == route.gw && r.link == Some(link.index);
        if !present.iter().any(|r| found(&r)) {
            return damaged(format!("route to {} is missing in the container", route.dst));
        }
    }
    Ok(())
}

async fn check_routed(
    owner: &Owner,
    host: &Netlink,
    pod: &Netlink,
    host_link: &Link,
    pod_link: &Link,
    ips: &[IpAddr],
) -> Result<()> {
    let host_routes = host.routes().await?;
    let host_neighbours = host.permanent_neighbours(host_link.index).await?;
    let pod_neighbours = pod.permanent_neighbours(pod_link.index).await?;
    let pod_mac = pod_link.mac.map(|mac| mac.0.to_vec()).unwrap_or_default();
    let host_mac = naming::host_mac(owner).0.to_vec();
    for ip in ips {
        let wanted = host_route(host_link.index, *ip);
        if !host_routes.iter().any(|route| route.dst == wanted.dst && route.link == wanted.link) {
            return damaged(format!("host route to {ip} is missing"));
        }
        if !host_neighbours.contains(&(*ip, pod_mac.clone())) {
            return damaged(format!("host neighbour entry of {ip} is missing"));
        }
        if !pod_neighbours.contains(&(next_hop(*ip), host_mac.clone())) {
            return damaged(format!("neighbour entry of {} is missing in the container", next_hop(*ip)));
        }
    }
    Ok(())
}
