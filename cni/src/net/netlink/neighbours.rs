//! Neighbour entries, and the forwarding entries of VXLAN devices, which the kernel keeps as such.

use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::{Netlink, errno, failed};
use crate::error::Result;
use crate::net::naming::Mac;

impl Netlink {
    /// Adds or replaces a permanent neighbour entry: no ARP or ND is ever sent for it.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn put_neighbour(&self, index: u32, ip: IpAddr, mac: Mac) -> Result<()> {
        self.handle
            .neighbours()
            .add(index, ip)
            .link_layer_address(&mac.0)
            .replace()
            .execute()
            .await
            .map_err(|e| failed(format!("add neighbour {ip}"), e))
    }

    /// Removes a neighbour entry; one that is gone is success.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn delete_neighbour(&self, index: u32, ip: IpAddr) -> Result<()> {
        let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let mut message = entry(index, family);
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(ip)));
        self.delete_entry(message, format!("delete neighbour {ip}")).await
    }

    /// Adds or replaces the entry of a VXLAN device that has frames to `mac` leave for the host `to`.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn put_forwarding(&self, index: u32, mac: Mac, to: IpAddr) -> Result<()> {
        self.handle
            .neighbours()
            .add_bridge(index, &mac.0)
            .destination(to)
            .flags(NeighbourFlags::Own)
            .replace()
            .execute()
            .await
            .map_err(|e| failed(format!("add forwarding entry {mac} to {to}"), e))
    }

    /// Takes back what [`Netlink::put_forwarding`] did; that it is gone is success.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn delete_forwarding(&self, index: u32, mac: &[u8]) -> Result<()> {
        let mut message = entry(index, AddressFamily::Bridge);
        message.header.flags = NeighbourFlags::Own;
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.delete_entry(message, format!("delete forwarding entry {mac:02x?}")).await
    }

    async fn delete_entry(&self, message: NeighbourMessage, what: String) -> Result<()> {
        match self.handle.neighbours().del(message).execute().await {
            Err(e) if errno(&e) != libc::ENOENT => Err(failed(what, e)),
            _ => Ok(()),
        }
    }

    /// Permanent neighbour entries of a link.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn permanent_neighbours(&self, index: u32) -> Result<Vec<(IpAddr, Vec<u8>)>> {
        let messages: Vec<_> = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("list neighbours".into(), e))?;
        let of_link = messages
            .iter()
            .filter(|m| m.header.ifindex == index && m.header.state == NeighbourState::Permanent);
        Ok(of_link
            .filter_map(|m| {
                let ip = m.attributes.iter().find_map(|a| match a {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
                    _ => None,
                })?;
                let mac = m.attributes.iter().find_map(|a| match a {
                    NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.clone()),
                    _ => None,
                });
                Some((ip, mac.unwrap_or_default()))
            })
            .collect())
    }
}

fn entry(index: u32, family: AddressFamily) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = index;
    message
}
