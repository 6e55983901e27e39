//! Reverse names: PTR records of cluster IPs and of headless services' endpoints.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{Name, RData, RecordType};

use super::lookup::{Area, Found, counts};
use super::{ServiceKind, Zone};

impl Zone {
    pub(super) fn reverse_area(&self, name: &Name, labels: &[Vec<u8>]) -> Area {
        let Some((ip, prefix)) = parse(labels) else { return Area::Outside };
        let within = self.cluster_cidrs.iter().any(|cidr| cidr.contains(&ip) && prefix >= cidr.prefix_len());
        let full = prefix == if ip.is_ipv4() { 32 } else { 128 };
        if full && (within || !self.pointers(ip).is_empty()) {
            return Area::Reverse(Some(ip));
        }
        tracing::trace!(%name, "reverse name outside of the cluster's ranges");
        if within { Area::Reverse(None) } else { Area::Outside }
    }

    /// What the reverse name from [`Area::Reverse`] holds of type `kind`.
    pub fn lookup_reverse(&self, ip: Option<IpAddr>, kind: RecordType) -> Found {
        let Some(ip) = ip else { return Found::NoData };
        let pointers = self.pointers(ip);
        if pointers.is_empty() {
            Found::NoName
        } else if matches!(kind, RecordType::PTR | RecordType::ANY) {
            let answers = pointers.into_iter().map(|name| RData::PTR(PTR(name))).collect();
            Found::Records { answers, additionals: Vec::new() }
        } else {
            Found::NoData
        }
    }

    fn pointers(&self, ip: IpAddr) -> BTreeSet<Name> {
        let mut names = BTreeSet::new();
        for key in self.service_ips.get(&ip).into_iter().flatten() {
            names.insert(self.name_of(&[&key.name, &key.namespace, "svc"]));
        }
        for slice_key in self.endpoint_ips.get(&ip).into_iter().flatten() {
            let Some(service_key) = self.slice_services.get(slice_key) else { continue };
            let Some(service) = self.service(&service_key.namespace, &service_key.name) else { continue };
            if service.kind != ServiceKind::Headless {
                continue;
            }
            let slice = self.slices.get(service_key).and_then(|slices| slices.get(&slice_key.name));
            for endpoint in slice.into_iter().flat_map(|slice| &slice.endpoints) {
                if endpoint.ips.contains(&ip) && counts(endpoint, service) {
                    let label = endpoint.label(ip);
                    names.insert(self.name_of(&[&label, &service_key.name, &service_key.namespace, "svc"]));
                }
            }
        }
        names
    }
}

/// The address and prefix length that a name under in-addr.arpa or ip6.arpa stands for.
fn parse(labels: &[Vec<u8>]) -> Option<(IpAddr, u8)> {
    let text: Vec<&str> =
        labels.iter().map(|label| std::str::from_utf8(label)).collect::<Result<_, _>>().ok()?;
    match text.as_slice() {
        [parts @ .., "in-addr", "arpa"] if !parts.is_empty() && parts.len() <= 4 => {
            let mut octets = [0u8; 4];
            for (octet, part) in octets.iter_mut().zip(parts.iter().rev()) {
                // The canonical form only: no sign, no leading zero.
                *octet = part.parse().ok().filter(|n: &u8| n.to_string() == **part)?;
            }
            Some((IpAddr::V4(Ipv4Addr::from(octets)), u8::try_from(parts.len() * 8).ok()?))
        }
        [parts @ .., "ip6", "arpa"] if !parts.is_empty() && parts.len() <= 32 => {
            let mut value = 0u128;
            for (n, part) in parts.iter().rev().enumerate() {
                let nibble = u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 1)?;
                value |= u128::from(nibble) << (124 - 4 * n);
            }
            Some((IpAddr::V6(Ipv6Addr::from(value)), u8::try_from(parts.len() * 4).ok()?))
        }
        _ => None,
    }
}

/// The zone that a negative answer for a reverse name is from: the part of it that covers the cluster's
/// usual ranges (/16 and /48).
pub(crate) fn zone_of(name: &Name) -> Name {
    let v6 = name.num_labels() > 6;
    name.trim_to(if v6 { 14 } else { 4 }).to_lowercase()
}
