//! ADD: reserve addresses, wire the pod, and leave nothing behind on failure.

use super::{Sandbox, del, describe, open_ipam, setup};
use crate::error::{Error, Result};
use crate::net::netlink::Netlink;
use crate::types::config::Config;
use crate::types::invocation::Owner;
use crate::types::result::AddResult;

pub(super) async fn add(config: &Config, owner: &Owner, sandbox: &Sandbox) -> Result<AddResult> {
    let host = Netlink::open()?;
    let pod = Netlink::open_in(&sandbox.netns)?;
    if pod.link(&owner.ifname).await?.is_some() {
        return Err(Error::InterfaceExists { ifname: owner.ifname.clone(), netns: sandbox.path.clone() });
    }
    // The lock is held for the choice alone: pods are wired in parallel.
    let ips = open_ipam(config)?.allocate(owner)?;
    match setup::setup(config, owner, sandbox, &host, &pod, &ips).await {
        Ok(own) => Ok(merge(config.prev_result.clone(), own)),
        Err(error) => {
            if let Err(left) = del::del(config, owner).await {
                tracing::warn!(attachment = describe(owner), error = %left, "rollback is incomplete");
            }
            Err(error)
        }
    }
}

/// What an earlier plugin of the chain did is passed through; our own comes behind it.
fn merge(previous: Option<AddResult>, mut own: AddResult) -> AddResult {
    let Some(mut result) = previous else { return own };
    let shift = u32::try_from(result.interfaces.len()).unwrap_or(u32::MAX);
    for ip in &mut own.ips {
        ip.interface = ip.interface.map(|index| index.saturating_add(shift));
    }
    result.interfaces.append(&mut own.interfaces);
    result.ips.append(&mut own.ips);
    result.routes.append(&mut own.routes);
    if result.dns.is_empty() {
        result.dns = own.dns;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::result::{Interface, IpConfig};

    #[test]
    fn earlier_results_are_passed_through() {
        let one = |name: &str, ip: &str| AddResult {
            interfaces: vec![Interface { name: name.into(), ..Interface::default() }],
            ips: vec![IpConfig { address: ip.parse().unwrap(), gateway: None, interface: Some(0) }],
            ..AddResult::default()
        };
        let merged = merge(Some(one("a", "10.0.0.2/24")), one("b", "10.1.0.2/24"));
        assert_eq!(merged.interfaces[1].name, "b");
        assert_eq!(merged.ips[1].interface, Some(1));
    }
}
