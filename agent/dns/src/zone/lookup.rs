//! Finding what a name under the cluster domain holds.
//!
//! The names form a tree. A node that holds records of another type than asked for, or nothing but nodes
//! below it, exists: the answer is empty (NODATA). Where there is no node, there is nothing below either
//! (NXDOMAIN, RFC 8020).

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, NS, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::entry::{Port, ServiceEntry, ServiceKind, undashed};
use super::{EndpointEntry, ObjectKey, TTL, Zone};

/// The version of the specification that is answered by (`dns-version.<domain>`).
const SCHEMA_VERSION: &str = "1.1.0";

/// Which part of the name space a name is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Area {
    /// Under the cluster domain: the labels before it, lower case, in reverse order.
    Cluster(Vec<String>),
    /// The reverse name of an address that is a service's, an endpoint's, or within the cluster's ranges;
    /// `None` for a name between such a range and its addresses.
    Reverse(Option<IpAddr>),
    /// Someone else's.
    Outside,
}

/// What a name holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Records of the type asked for, and addresses that save a further query.
    Records {
        /// Data of the answer; every owner is the name asked for.
        answers: Vec<RData>,
        /// Records for the additional section.
        additionals: Vec<Record>,
    },
    /// The name is an alias.
    Alias(Name),
    /// The name exists without records of the type.
    NoData,
    /// The name does not exist.
    NoName,
}

impl Zone {
    /// The part of the name space that `name` is in.
    pub fn area(&self, name: &Name) -> Area {
        let labels: Vec<Vec<u8>> = name.iter().map(<[u8]>::to_ascii_lowercase).collect();
        if let Some(own) = labels.strip_suffix(self.domain_labels.as_slice()) {
            // A label that isn't text can't be that of a Kubernetes object.
            let text = |label: &Vec<u8>| String::from_utf8_lossy(label).into_owned();
            return Area::Cluster(own.iter().rev().map(text).collect());
        }
        self.reverse_area(name, &labels)
    }

    /// What the name with these labels (from [`Area::Cluster`]) holds of type `kind`.
    pub fn lookup(&self, labels: &[String], kind: RecordType) -> Found {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] => self.apex(kind),
            ["dns-version"] => {
                let text = TXT::new(vec![SCHEMA_VERSION.to_owned()]);
                records(vec![RData::TXT(text)], kind)
            }
            ["dns"] | ["svc"] | ["pod"] => Found::NoData,
            ["dns", "ns"] => addresses(self.servers.iter().copied(), kind),
            ["svc", namespace] if self.services.contains_key(*namespace) => Found::NoData,
            ["svc", namespace, name, below @ ..] => match self.service(namespace, name) {
                Some(service) => self.in_service(namespace, name, service, below, kind),
                None => Found::NoName,
            },
            // Every namespace may have pods: their names are not checked ("pods insecure" of CoreDNS).
            ["pod", _] => Found::NoData,
            ["pod", _, ip] => undashed(ip).map_or(Found::NoName, |ip| addresses([ip], kind)),
            _ => Found::NoName,
        }
    }

    fn apex(&self, kind: RecordType) -> Found {
        let server = self.name_of(&["ns", "dns"]);
        let soa = self.soa(self.domain.clone()).data;
        records(vec![soa, RData::NS(NS(server))], kind)
    }

    fn in_service(
        &self,
        namespace: &str,
        name: &str,
        service: &ServiceEntry,
        below: &[&str],
        kind: RecordType,
    ) -> Found {
        match &service.kind {
            ServiceKind::ExternalName(target) if below.is_empty() => Found::Alias(target.clone()),
            ServiceKind::ExternalName(_) => Found::NoName,
            ServiceKind::ClusterIps(ips) => {
                let own = self.name_of(&[name, namespace, "svc"]);
                let targets = [(own, ips.clone())];
                match below {
                    [] if kind == RecordType::SRV => srv(&targets, &service.ports),
                    [] => addresses(ips.iter().copied(), kind),
                    [protocol] => below_protocol(&service.ports, protocol),
                    [protocol, port] => match named(&service.ports, protocol, port) {
                        ports if ports.is_empty() => Found::NoName,
                        ports => only(srv(&targets, &ports), kind),
                    },
                    _ => Found::NoName,
                }
            }
            ServiceKind::Headless => self.in_headless(namespace, name, service, below, kind),
        }
    }

    /// A headless service is its endpoints: without one that counts it has no name (specification 2.4.1).
    fn in_headless(
        &self,
        namespace: &str,
        name: &str,
        service: &ServiceEntry,
        below: &[&str],
        kind: RecordType,
    ) -> Found {
        let members = self.members(namespace, name, service);
        if members.is_empty() {
            return Found::NoName;
        }
        match below {
            [] if kind != RecordType::SRV => addresses(members.iter().map(|m| m.ip), kind),
            [] => self.srv_of_members(namespace, name, &members, |_| true),
            [protocol] if protocol.starts_with('_') => {
                let ports: Vec<Port> = members.iter().flat_map(|m| m.ports).cloned().collect();
                below_protocol(&ports, protocol)
            }
            [host] => {
                let of_host: Vec<IpAddr> =
                    members.iter().filter(|m| m.label == *host).map(|m| m.ip).collect();
                if of_host.is_empty() { Found::NoName } else { addresses(of_host, kind) }
            }
            [protocol, port] => {
                let (protocol, port) = (*protocol, *port);
                let found =
                    self.srv_of_members(namespace, name, &members, |p: &Port| matches(p, protocol, port));
                only(found, kind)
            }
            _ => Found::NoName,
        }
    }

    /// Endpoints of a service that count: ready ones, or all where the service says so.
    fn members<'a>(&'a self, namespace: &str, name: &str, service: &ServiceEntry) -> Vec<Member<'a>> {
        let key = ObjectKey { namespace: namespace.to_owned(), name: name.to_owned() };
        let slices = self.slices.get(&key).into_iter().flat_map(|slices| slices.values());
        let mut members = Vec::new();
        for slice in slices {
            for endpoint in slice.endpoints.iter().filter(|e| counts(e, service)) {
                members.extend(endpoint.ips.iter().map(|ip| Member {
                    label: endpoint.label(*ip),
                    ip: *ip,
                    ports: &slice.ports,
                }));
            }
        }
        members
    }

    fn srv_of_members(
        &self,
        namespace: &str,
        name: &str,
        members: &[Member<'_>],
        wanted: impl Fn(&Port) -> bool,
    ) -> Found {
        // An endpoint may be in several slices: one for each family, and during moves between slices.
        let mut seen = BTreeSet::new();
        let mut answers = Vec::new();
        let mut additionals = BTreeSet::new();
        for member in members {
            for port in member.ports.iter().filter(|port| wanted(port)) {
                additionals.insert((member.label.as_str(), member.ip));
                if seen.insert((member.label.as_str(), port.number, port.protocol.as_str())) {
                    let target = self.name_of(&[&member.label, name, namespace, "svc"]);
                    answers.push(RData::SRV(SRV::new(0, WEIGHT, port.number, target)));
                }
            }
        }
        if answers.is_empty() {
            return Found::NoName;
        }
        let additionals = additionals.into_iter().map(|(label, ip)| {
            Record::from_rdata(self.name_of(&[label, name, namespace, "svc"]), TTL, address(ip))
        });
        Found::Records { answers, additionals: additionals.collect() }
    }
}

struct Member<'a> {
    label: String,
    ip: IpAddr,
    ports: &'a [Port],
}

/// Weight of SRV records: all alike.
const WEIGHT: u16 = 100;

pub(super) fn counts(endpoint: &EndpointEntry, service: &ServiceEntry) -> bool {
    endpoint.ready || service.publish_not_ready
}

pub(super) fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// The addresses of the family that is asked for, each once.
fn addresses(ips: impl IntoIterator<Item = IpAddr>, kind: RecordType) -> Found {
    let unique: BTreeSet<IpAddr> = ips.into_iter().collect();
    records(unique.into_iter().map(address).collect(), kind)
}

/// Those of `all` that are of type `kind`, of a name that exists.
fn records(mut all: Vec<RData>, kind: RecordType) -> Found {
    all.retain(|data| kind == RecordType::ANY || data.record_type() == kind);
    if all.is_empty() { Found::NoData } else { Found::Records { answers: all, additionals: Vec::new() } }
}

/// SRV records when they, or anything, is asked for; the name exists in any case.
fn only(found: Found, kind: RecordType) -> Found {
    match found {
        Found::Records { .. } if !matches!(kind, RecordType::SRV | RecordType::ANY) => Found::NoData,
        other => other,
    }
}

fn srv(targets: &[(Name, Vec<IpAddr>)], ports: &[Port]) -> Found {
    let mut answers = Vec::new();
    let mut additionals = Vec::new();
    for (target, ips) in targets {
        for port in ports {
            answers.push(RData::SRV(SRV::new(0, WEIGHT, port.number, target.clone())));
        }
        additionals.extend(ips.iter().map(|ip| Record::from_rdata(target.clone(), TTL, address(*ip))));
    }
    if answers.is_empty() { Found::NoData } else { Found::Records { answers, additionals } }
}

/// `_tcp.<service>` exists when a named port is below it.
fn below_protocol(ports: &[Port], label: &str) -> Found {
    let exists = ports.iter().any(|p| !p.name.is_empty() && label.strip_prefix('_') == Some(&p.protocol));
    if exists { Found::NoData } else { Found::NoName }
}

fn named(ports: &[Port], protocol: &str, port: &str) -> Vec<Port> {
    ports.iter().filter(|p| matches(p, protocol, port)).cloned().collect()
}

/// Whether a port is what the labels `_protocol` and `_port` say. A port without a name has no SRV record.
fn matches(port: &Port, protocol: &str, name: &str) -> bool {
    !port.name.is_empty()
        && protocol.strip_prefix('_') == Some(&port.protocol)
        && name.strip_prefix('_') == Some(&port.name)
}
