//! DEL: take back everything an attachment may have, whatever of it exists.
//!
//! Nothing is looked up in the container's namespace: the pair goes by its host end, whose name is derived
//! from the attachment. The order keeps a freed address from ever being reachable: translation first, then
//! the link (its routes and neighbours go with it), and the address last.

use super::open_ipam;
use crate::error::{Error, Result};
use crate::net::naming;
use crate::net::netlink::Netlink;
use crate::nft::hostport;
use crate::types::config::Config;
use crate::types::invocation::Owner;

pub(super) async fn del(config: &Config, owner: &Owner) -> Result<()> {
    let mut errors = detach(owner).await;
    // An address whose link could not be removed stays reserved: the next DEL or GC tries again.
    if errors.is_empty()
        && let Err(error) = open_ipam(config).and_then(|ipam| ipam.release(owner))
    {
        errors.push(error);
    }
    Error::collect(errors)
}

/// Removes translation and link, and goes on past failures.
pub(super) async fn detach(owner: &Owner) -> Vec<Error> {
    let mut errors = Vec::new();
    let link = naming::host_link(owner);
    if let Err(error) = hostport::remove(&link) {
        errors.push(error);
    }
    let deleted = match Netlink::open() {
        Ok(host) => host.delete_veth(&link).await,
        Err(error) => Err(error),
    };
    errors.extend(deleted.err());
    errors
}
