//! The choice of an address within a range.
//!
//! The search starts behind the address given last and wraps around, so that a freed address rests as long
//! as the range allows: peers may still hold connections, neighbour entries or DNS answers for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A range to allocate from. The network address, the first host address (the gateway) and, for IPv4, the
/// broadcast address are never given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    net: IpNet,
}

impl Range {
    /// A range over `net`, whose host bits are ignored. The prefix must leave at least two host bits, which
    /// the configuration has checked.
    pub fn new(net: IpNet) -> Range {
        Range { net: net.trunc() }
    }

    /// The range in CIDR notation.
    pub fn net(&self) -> IpNet {
        self.net
    }

    /// The gateway: the first host address.
    pub fn gateway(&self) -> IpAddr {
        self.at(1)
    }

    /// Whether `ip` may be given to a pod.
    pub fn is_allocatable(&self, ip: IpAddr) -> bool {
        self.offset(ip).is_some_and(|offset| offset >= FIRST && offset <= self.last())
    }

    /// How many addresses can be given out, at most `u128::MAX`.
    pub fn capacity(&self) -> u128 {
        self.last() - FIRST + 1
    }

    /// The first free address after `previous`, wrapping around; `None` when all are taken.
    pub fn next_free(&self, previous: Option<IpAddr>, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let last = self.last();
        let start = match previous.and_then(|ip| self.offset(ip)) {
            Some(offset) if offset >= FIRST && offset < last => offset + 1,
            _ => FIRST,
        };
        // A range can be far larger than the number of addresses in use, so the walk ends after as many
        // steps as there are taken addresses, one more at the most.
        (start..=last).chain(FIRST..start).map(|offset| self.at(offset)).find(|ip| !taken(*ip))
    }

    fn last(&self) -> u128 {
        let bits = u32::from(self.net.max_prefix_len() - self.net.prefix_len());
        let size = 1u128.checked_shl(bits).map_or(u128::MAX, |size| size - 1);
        match self.net {
            IpNet::V4(_) => size - 1,
            IpNet::V6(_) => size,
        }
    }

    fn base(&self) -> u128 {
        number(self.net.addr())
    }

    fn at(&self, offset: u128) -> IpAddr {
        let value = self.base() + offset;
        match self.net {
            // The offset is below the size of the range, so the sum stays within 32 bits.
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(value as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(value)),
        }
    }

    fn offset(&self, ip: IpAddr) -> Option<u128> {
        self.net.contains(&ip).then(|| number(ip) - self.base())
    }
}

/// Offset of the first address that is given out: behind the network address and the gateway.
const FIRST: u128 = 2;

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(net: &str, previous: Option<&str>, taken: &[&str], expected: Option<&str>) {
        let taken: Vec<IpAddr> = taken.iter().map(|ip| ip.parse().unwrap()).collect();
        let found = Range::new(net.parse().unwrap())
            .next_free(previous.map(|ip| ip.parse().unwrap()), |ip| taken.contains(&ip));
        assert_eq!(found, expected.map(|ip| ip.parse().unwrap()), "{net} after {previous:?}");
    }

    #[test]
    fn choice() {
        check("10.0.0.0/24", None, &[], Some("10.0.0.2"));
        check("10.0.0.0/24", Some("10.0.0.2"), &[], Some("10.0.0.3"));
        check("10.0.0.0/24", Some("10.0.0.254"), &[], Some("10.0.0.2"));
        check("10.0.0.0/24", Some("10.0.0.253"), &["10.0.0.254", "10.0.0.2"], Some("10.0.0.3"));
        check("10.0.0.0/24", Some("192.168.0.1"), &[], Some("10.0.0.2"));
        check("10.0.0.0/30", None, &[], Some("10.0.0.2"));
        check("10.0.0.0/30", None, &["10.0.0.2"], None);
        check("fd00::/64", None, &[], Some("fd00::2"));
        check("fd00::/64", Some("fd00::ffff:ffff:ffff:ffff"), &[], Some("fd00::2"));
        check(
            "::/0",
            Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"),
            &[],
            Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        );
        check("fd00::/126", Some("fd00::3"), &["fd00::2"], Some("fd00::3"));
    }

    #[test]
    fn edges_are_reserved() {
        let range = Range::new("10.0.0.0/29".parse().unwrap());
        assert_eq!(range.gateway(), "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(range.capacity(), 5);
        for (ip, allowed) in [
            ("10.0.0.0", false),
            ("10.0.0.1", false),
            ("10.0.0.2", true),
            ("10.0.0.6", true),
            ("10.0.0.7", false),
            ("10.0.1.2", false),
        ] {
            assert_eq!(range.is_allocatable(ip.parse().unwrap()), allowed, "{ip}");
        }
    }
}
