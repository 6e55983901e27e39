//! Types that BPF programs and the agent share: keys and values of maps, with explicit widths and padding.
//!
//! A change of any layout here needs a new [`PIN_VERSION`]: an upgraded agent then starts with maps of its own instead
//! of misreading those of its predecessor.

#![no_std]

/// Part of the path under which maps and links are pinned.
pub const PIN_VERSION: &str = "v1";

/// A 16-bit number in network byte order, as the kernel hands it over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Be16(pub u16);

impl Be16 {
    /// From the host's order.
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// To the host's order.
    pub const fn host(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// An IPv4 address in network byte order, as the kernel hands it over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Be32(pub u32);

impl Be32 {
    /// From the four bytes as written: `[10, 96, 0, 1]`.
    pub const fn from_octets(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    /// The four bytes as written.
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
}

/// Where a node port was asked for, seen from the node that holds the maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum NodePlace {
    /// At one of this node's own addresses.
    Here = 1,
    /// At another node's.
    Elsewhere = 2,
}

/// Bit of [`FrontendKey::protocol`] that tells entries about nodes from those about Services' own addresses.
const NODE: u8 = 0x80;

/// What clients connect to: address, port and protocol of a Service port.
///
/// An entry with port 0 and protocol 0 says only that the address is a Service's: a port of it without an entry of
/// its own is refused instead of being routed out. Node ports have two kinds of entries: [`FrontendKey::node`] says that an
/// address is a node's, and [`FrontendKey::node_port`] stands for a port of all nodes in a place, so that their number is
/// the sum of both and not the product.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct FrontendKey {
    /// Service address.
    pub address: Be32,
    /// Service port.
    pub port: Be16,
    /// IP protocol number: 6 (TCP), 17 (UDP), or 0; with the highest bit set in entries about nodes.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

impl FrontendKey {
    /// The entry that claims a whole address.
    pub const fn any_port(address: Be32) -> Self {
        Self { address, port: Be16(0), protocol: 0, pad: 0 }
    }

    /// The entry that says that an address is a node's; its [`Frontend::generation`] is the [`NodePlace`].
    pub const fn node(address: Be32) -> Self {
        Self { address, port: Be16(0), protocol: NODE, pad: 0 }
    }

    /// The entry of a port that all nodes in that place have, where none has an entry of its own for its address.
    pub const fn node_port(place: u32, port: Be16, protocol: u8) -> Self {
        Self { address: Be32(place), port, protocol: protocol | NODE, pad: 0 }
    }
}

/// Name of the programs' constant that holds the node's own network namespace (its cookie, SO_NETNS_COOKIE since 5.14):
/// the loopback of no other one is the node's.
pub const HOST_NETNS: &str = "HOST_NETNS";

/// Where a frontend's backends are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct Frontend {
    /// Number that stands for the Service port in [`SlotKey`] and [`AffinityKey`].
    pub service: u32,
    /// Generation of the slots to use: new slots are written under the next one before this value is replaced.
    pub generation: u32,
    /// Number of slots, 0 when there is no endpoint.
    pub slots: u32,
    /// Session affinity in seconds, 0 for none.
    pub affinity_seconds: u32,
}

/// One backend of a Service port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct SlotKey {
    /// [`Frontend::service`].
    pub service: u32,
    /// [`Frontend::generation`].
    pub generation: u32,
    /// 0 to [`Frontend::slots`] - 1.
    pub slot: u32,
}

/// Address and port of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct Backend {
    /// Endpoint address.
    pub address: Be32,
    /// Endpoint port.
    pub port: Be16,
    /// Zero.
    pub pad: u16,
}

/// A socket and the backend it was translated to: finds the frontend for replies and getpeername.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct ReverseKey {
    /// bpf_get_socket_cookie (4.12): never re-used while the machine runs.
    pub cookie: u64,
    /// Backend address.
    pub address: Be32,
    /// Backend port.
    pub port: Be16,
    /// Zero.
    pub pad: u16,
}

/// The frontend that a socket asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct Reverse {
    /// Service address.
    pub address: Be32,
    /// Service port.
    pub port: Be16,
    /// Zero.
    pub pad: u16,
}

/// A client of a Service with session affinity. Clients are told apart by network namespace: a pod is one client,
/// whatever its sockets are bound to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct AffinityKey {
    /// bpf_get_netns_cookie (5.7).
    pub netns: u64,
    /// [`Frontend::service`].
    pub service: u32,
    /// Zero.
    pub pad: u32,
}

/// The backend that a client was given, and when it last used it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct Affinity {
    /// bpf_ktime_get_ns.
    pub last_used_ns: u64,
    /// Its backend.
    pub backend: Backend,
}

const _: () = {
    assert!(size_of::<FrontendKey>() == 8);
    assert!(size_of::<Frontend>() == 16);
    assert!(size_of::<SlotKey>() == 12);
    assert!(size_of::<Backend>() == 8);
    assert!(size_of::<ReverseKey>() == 16);
    assert!(size_of::<Reverse>() == 8);
    assert!(size_of::<AffinityKey>() == 16);
    assert!(size_of::<Affinity>() == 16);
};

#[cfg(feature = "user")]
mod user {
    use super::*;

    macro_rules! pod {
        ($($name:ty),*) => {$(
            // SAFETY: repr(C) of integers, without implicit padding (sizes are asserted above), valid for any bits.
            unsafe impl aya::Pod for $name {}
        )*};
    }
    pod!(FrontendKey, Frontend, SlotKey, Backend, ReverseKey, Reverse, AffinityKey, Affinity);
}
