//! Takes back what a node has of this crate once its pods are gone, for `keelson-agent reset`.

use std::net::IpAddr;
use std::path::Path;

use crate::error::{Error, Result};
use crate::net::netlink::Netlink;
use crate::{host, netconf, nft, routes, vxlan};

/// Removes routes to other nodes, the VXLAN devices, the default network's bridge and configuration, the nftables table,
/// and `local`, the addresses that [`host::add_local_address`] put on the loopback. Forwarding stays on: others may have
/// come to need it. Every step is tried; each failure is in the error. Must be called within a tokio runtime; works in the
/// calling thread's network namespace.
///
/// # Errors
/// The kernel's and I/O errors, gathered.
pub async fn reset(conf_dir: &Path, local: &[IpAddr]) -> Result<()> {
    let netlink = Netlink::open()?;
    let mut errors = Vec::new();
    errors.extend(routes::sync(&netlink, &[]).await.err());
    errors.extend(vxlan::remove(&netlink).await.err());
    match netconf::default_bridges(conf_dir) {
        Ok(bridges) => {
            for bridge in bridges {
                errors.extend(netlink.delete_bridge(&bridge).await.err());
            }
        }
        Err(error) => errors.push(error),
    }
    for address in local {
        errors.extend(host::remove_local_address(*address).await.err());
    }
    errors.extend(nft::remove_table().err());
    if errors.is_empty() {
        // Last, since it names the bridge.
        errors.extend(netconf::remove_default(conf_dir).err());
    }
    Error::collect(errors)
}
