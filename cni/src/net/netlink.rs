//! Route netlink in the terms of this crate: one connection per namespace, errors with their errno.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressScope};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, State,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};

use super::naming::Mac;
use super::netns::NetNs;
use crate::error::{Error, Result};

mod neighbours;

/// A route netlink connection into one namespace.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What is known of a link.
#[derive(Debug, Clone)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether packets flow (operational state up).
    pub operational: bool,
    /// Index of the bridge it is a port of.
    pub controller: Option<u32>,
    /// Kind: veth, bridge and so on.
    pub kind: Option<InfoKind>,
    /// Hairpin mode of a bridge port.
    pub hairpin: bool,
    /// Settings of a VXLAN device.
    pub vxlan: Vec<InfoVxlan>,
}

/// A veth pair to make.
#[derive(Debug)]
pub struct VethSpec<'a> {
    /// Host end's name and hardware address.
    pub host: (&'a str, Mac),
    /// Container end's name and hardware address.
    pub container: (&'a str, Mac),
    /// Namespace of the container end.
    pub netns: &'a NetNs,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// Bridge that the host end becomes a port of.
    pub bridge: Option<u32>,
}

/// A VXLAN device to make or to look for: one that learns nothing from what it receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// Network identifier.
    pub vni: u32,
    /// UDP port, here and at every other end.
    pub port: u16,
    /// Address that wrapped packets are sent from; other ends are of its family.
    pub local: IpAddr,
    /// Hardware address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
}

impl VxlanSpec<'_> {
    /// What can't be changed later.
    fn settings(&self) -> [InfoVxlan; 4] {
        let local = match self.local {
            IpAddr::V4(ip) => InfoVxlan::Local(ip),
            IpAddr::V6(ip) => InfoVxlan::Local6(ip),
        };
        [InfoVxlan::Id(self.vni), InfoVxlan::Port(self.port), InfoVxlan::Learning(false), local]
    }

    /// Whether `link` is that device, whatever its MTU.
    pub fn is(&self, link: &Link) -> bool {
        link.kind == Some(InfoKind::Vxlan)
            && link.mac == Some(self.mac)
            && self.settings().iter().all(|setting| link.vxlan.contains(setting))
    }
}

/// A route to make or to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSpec {
    /// Destination.
    pub dst: IpNet,
    /// Next hop.
    pub via: Option<IpAddr>,
    /// Outgoing link.
    pub link: Option<u32>,
    /// The next hop is on the link though no address says so.
    pub onlink: bool,
    /// Owner tag (`rtm_protocol`).
    pub protocol: u8,
}

impl Netlink {
    /// Opens a connection into the calling thread's namespace. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// I/O errors.
    pub fn open() -> Result<Netlink> {
        // Strict: the kernel applies the filters of a dump itself instead of listing everything there is.
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(|e| Error::io("open netlink socket", e))?;
        Ok(Netlink { handle, connection: tokio::spawn(connection) })
    }

    /// Opens a connection into `netns`: a socket belongs for life to the namespace it was made in, so only
    /// making it happens inside.
    ///
    /// # Errors
    /// I/O errors.
    pub fn open_in(netns: &NetNs) -> Result<Netlink> {
        let (connection, handle, _) = netns.run(|| {
            rtnetlink::new_connection_with_strict_check().map_err(|e| Error::io("open netlink socket", e))
        })?;
        Ok(Netlink { handle, connection: tokio::spawn(connection) })
    }

    /// The link called `name`.
    ///
    /// # Errors
    /// The kernel's, other than that there is none.
    pub async fn link(&self, name: &str) -> Result<Option<Link>> {
        let mut found = Box::pin(self.handle.link().get().match_name(name).execute());
        match found.try_next().await {
            Ok(message) => Ok(message.map(|message| read_link(&message))),
            Err(e) if errno(&e) == libc::ENODEV => Ok(None),
            Err(e) => Err(failed(format!("look up link {name}"), e)),
        }
    }

    /// The link with index `index`.
    ///
    /// # Errors
    /// The kernel's, other than that there is none.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>> {
        let mut found = Box::pin(self.handle.link().get().match_index(index).execute());
        match found.try_next().await {
            Ok(message) => Ok(message.map(|message| read_link(&message))),
            Err(e) if errno(&e) == libc::ENODEV => Ok(None),
            Err(e) => Err(failed(format!("look up link {index}"), e)),
        }
    }

    /// The link called `name`, which must exist.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn require_link(&self, name: &str) -> Result<Link> {
        self.link(name).await?.ok_or_else(|| Error::Netlink {
            what: format!("look up link {name}"),
            reason: "no such device".into(),
            errno: libc::ENODEV,
        })
    }

    /// Makes a bridge that is up.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn add_bridge(&self, name: &str, mac: Mac, mtu: u32) -> Result<()> {
        let message = LinkBridge::new(name).address(mac.0.to_vec()).mtu(mtu).up().build();
        self.handle.link().add(message).execute().await.map_err(|e| failed(format!("add bridge {name}"), e))
    }

    /// Makes a VXLAN device, down yet.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn add_vxlan(&self, spec: &VxlanSpec<'_>) -> Result<()> {
        let mut builder =
            LinkMessageBuilder::<LinkVxlan>::new(spec.name).address(spec.mac.0.to_vec()).mtu(spec.mtu);
        for setting in spec.settings() {
            builder = builder.append_info_data(setting);
        }
        let message = builder.build();
        let added = self.handle.link().add(message).execute().await;
        added.map_err(|e| failed(format!("add VXLAN device {}", spec.name), e))
    }

    /// Makes a veth pair in one request: both names, addresses and the container's namespace at once. Both
    /// ends are down and wait for their settings.
    ///
    /// # Errors
    /// The kernel's; EEXIST when either name is taken.
    pub async fn add_veth(&self, spec: &VethSpec<'_>) -> Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(spec.container.0)
            .address(spec.container.1.0.to_vec())
            .mtu(spec.mtu)
            .setns_by_fd(spec.netns.as_raw_fd())
            .build();
        let mut builder = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(spec.host.0)
            .address(spec.host.1.0.to_vec())
            .mtu(spec.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
        if let Some(bridge) = spec.bridge {
            builder = builder.controller(bridge);
        }
        let what = || format!("add veth pair {} and {}", spec.host.0, spec.container.0);
        self.handle.link().add(builder.build()).execute().await.map_err(|e| failed(what(), e))
    }

    /// Sets a bridge port up, in hairpin mode: it may send frames back where they came from, as when a pod
    /// reaches itself through a Service.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn set_hairpin_up(&self, port: u32) -> Result<()> {
        let message = LinkBridgePort::new(port).hairpin(true).up().build();
        self.handle
            .link()
            .set_port(message)
            .execute()
            .await
            .map_err(|e| failed("set hairpin mode of bridge port".into(), e))
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn set_up(&self, index: u32) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(message).execute().await.map_err(|e| failed("set link up".into(), e))
    }

    /// Sets a link's MTU.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.handle.link().set(message).execute().await.map_err(|e| failed(format!("set MTU {mtu}"), e))
    }

    /// Deletes the link `name` if it exists and is of the kind veth.
    ///
    /// # Errors
    /// The kernel's, other than that there is none.
    pub async fn delete_veth(&self, name: &str) -> Result<()> {
        self.delete_link(name, InfoKind::Veth).await
    }

    /// Deletes the link `name` if it exists and is of the kind bridge.
    ///
    /// # Errors
    /// The kernel's, other than that there is none.
    pub async fn delete_bridge(&self, name: &str) -> Result<()> {
        self.delete_link(name, InfoKind::Bridge).await
    }

    /// Deletes the link `name` if it exists and is of the kind vxlan.
    ///
    /// # Errors
    /// The kernel's, other than that there is none.
    pub async fn delete_vxlan(&self, name: &str) -> Result<()> {
        self.delete_link(name, InfoKind::Vxlan).await
    }

    async fn delete_link(&self, name: &str, kind: InfoKind) -> Result<()> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        if link.kind.as_ref() != Some(&kind) {
            return Err(Error::InvalidConfig(format!("link {name} is not of the kind {kind:?}")));
        }
        match self.handle.link().del(link.index).execute().await {
            Err(e) if errno(&e) != libc::ENODEV => Err(failed(format!("delete link {name}"), e)),
            _ => Ok(()),
        }
    }

    /// Adds an address, without duplicate address detection (the address is known to be unique, and a pod
    /// must not wait a second for it). Adding it again is success.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn add_address(&self, index: u32, address: IpNet, scope: AddressScope) -> Result<()> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        let message = request.message_mut();
        message.header.scope = scope;
        if address.addr().is_ipv6() {
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        match request.execute().await {
            Err(e) if errno(&e) != libc::EEXIST => Err(failed(format!("add address {address}"), e)),
            _ => Ok(()),
        }
    }

    /// Removes an address; one that is gone is success.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn delete_address(&self, index: u32, address: IpNet) -> Result<()> {
        let request = self.handle.address().get().set_link_index_filter(index).execute();
        let messages: Vec<_> = request.try_collect().await.map_err(|e| failed("list addresses".into(), e))?;
        let is = |message: &netlink_packet_route::address::AddressMessage| {
            message.header.index == index
                && message.header.prefix_len == address.prefix_len()
                && message.attributes.contains(&AddressAttribute::Address(address.addr()))
        };
        for message in messages.into_iter().filter(is) {
            match self.handle.address().del(message).execute().await {
                Err(e) if errno(&e) != libc::EADDRNOTAVAIL => {
                    return Err(failed(format!("remove address {address}"), e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Every address of a link.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn addresses(&self, index: u32) -> Result<Vec<IpNet>> {
        let request = self.handle.address().get().set_link_index_filter(index).execute();
        let messages: Vec<_> = request.try_collect().await.map_err(|e| failed("list addresses".into(), e))?;
        let address = |message: &netlink_packet_route::address::AddressMessage| {
            // IFA_LOCAL is the own address of IPv4; IPv6 has IFA_ADDRESS alone.
            let local = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let plain = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            IpNet::new(local.or(plain)?, message.header.prefix_len).ok()
        };
        Ok(messages.iter().filter(|m| m.header.index == index).filter_map(address).collect())
    }

    /// Adds or replaces a route of the main table.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn put_route(&self, spec: &RouteSpec) -> Result<()> {
        let what = || format!("add route to {}", spec.dst);
        self.handle.route().add(route_message(spec)).replace().execute().await.map_err(|e| failed(what(), e))
    }

    /// Deletes a route of the main table; one that is gone is success.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn delete_route(&self, spec: &RouteSpec) -> Result<()> {
        match self.handle.route().del(route_message(spec)).execute().await {
            Err(e) if errno(&e) != libc::ESRCH => Err(failed(format!("delete route to {}", spec.dst), e)),
            _ => Ok(()),
        }
    }

    /// Unicast routes of the main table, IPv4 and IPv6.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn routes(&self) -> Result<Vec<RouteSpec>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            let messages: Vec<_> = self
                .handle
                .route()
                .get(filter)
                .execute()
                .try_collect()
                .await
                .map_err(|e| failed("list routes".into(), e))?;
            routes.extend(messages.iter().filter_map(read_route));
        }
        Ok(routes)
    }

    /// MTU of the link that the default route leaves by; `None` without a default route.
    ///
    /// # Errors
    /// The kernel's, other than that there is no route.
    pub async fn default_route_mtu(&self) -> Result<Option<u32>> {
        for probe in DOCUMENTATION_ADDRESSES {
            if let Some(link) = self.route_to(probe).await?.and_then(|route| route.link) {
                return Ok(self.link_by_index(link).await?.map(|link| link.mtu));
            }
        }
        Ok(None)
    }

    /// The route by which the kernel would send to an address; `None` when there is none, or the address is
    /// not another host's.
    ///
    /// # Errors
    /// The kernel's, other than that there is no route.
    pub async fn route_to(&self, ip: IpAddr) -> Result<Option<RouteSpec>> {
        let mut question = RouteMessage::default();
        question.header.address_family =
            if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        question.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
        question.attributes.push(RouteAttribute::Destination(RouteAddress::from(ip)));
        let mut answers = Box::pin(self.handle.route().get(question).execute());
        match answers.try_next().await {
            Ok(answer) => Ok(answer.as_ref().and_then(read_route)),
            Err(e) if matches!(errno(&e), libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES) => Ok(None),
            Err(e) => Err(failed(format!("look up the route to {ip}"), e)),
        }
    }
}

/// Addresses that are nobody's (TEST-NET-3 of RFC 5737, RFC 3849): only a default route leads to them.
const DOCUMENTATION_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        operational: false,
        controller: None,
        kind: None,
        hairpin: false,
        vxlan: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::OperState(state) => link.operational = *state == State::Up,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.clone()),
                        LinkInfo::Data(InfoData::Vxlan(settings)) => link.vxlan.clone_from(settings),
                        LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                            link.hairpin =
                                port.iter().any(|p| matches!(p, InfoBridgePort::HairpinMode(true)));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn route_message(spec: &RouteSpec) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match spec.dst {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(spec.protocol);
    // The kernel refuses a next hop in a route of link scope, and wants that scope without one.
    message.header.scope =
        if spec.via.is_none() && spec.dst.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    message.header.kind = RouteType::Unicast;
    message.header.destination_prefix_length = spec.dst.prefix_len();
    if spec.onlink {
        message.header.flags |= netlink_packet_route::route::RouteFlags::Onlink;
    }
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(spec.dst.addr())));
    if let Some(via) = spec.via {
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(via)));
    }
    if let Some(link) = spec.link {
        message.attributes.push(RouteAttribute::Oif(link));
    }
    message
}

fn read_route(message: &RouteMessage) -> Option<RouteSpec> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let unspecified: IpAddr = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0u8; 4]),
        AddressFamily::Inet6 => IpAddr::from([0u8; 16]),
        _ => return None,
    };
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let (mut dst, mut via, mut link) = (unspecified, None, None);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address)?,
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Table(id) => table = *id,
            _ => {}
        }
    }
    (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(())?;
    Some(RouteSpec {
        dst: IpNet::new(dst, message.header.destination_prefix_length).ok()?,
        via,
        link,
        onlink: message.header.flags.contains(netlink_packet_route::route::RouteFlags::Onlink),
        protocol: u8::from(message.header.protocol),
    })
}

/// The positive errno of a kernel error, 0 for any other.
fn errno(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code().abs(),
        _ => 0,
    }
}

fn failed(what: String, error: rtnetlink::Error) -> Error {
    let errno = errno(&error);
    let reason = match &error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    };
    Error::Netlink { what, reason, errno }
}
