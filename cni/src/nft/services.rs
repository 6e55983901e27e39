//! Services for clients outside of the cluster: destination NAT from a port of the node, or from an address that the
//! network brings to it, to an endpoint. (Clients on the node never come here: their sockets are translated before there is a
//! packet.)
//!
//! So whatever is still sent to an address of Services has nowhere to go, and is rejected before it can leave by the
//! default route: a UDP socket that was connected to a port that its Service does not have, or a process outside of the
//! cgroup of the programs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use ipnet::{IpNet, Ipv4Net};

use super::message::{Expressions, Message};
use super::table::{
    self, Hook, NODE_PORTS, SERVICE_RANGES_FORWARD, SERVICE_RANGES_OUTPUT, SERVICES, SERVICES_MASQUERADE,
    Table,
};
use crate::error::Result;

/// Just before host ports, as kube-proxy goes before the CNI's port mappings.
const BEFORE_DSTNAT: i32 = -101;
/// Before the egress masquerade and that of host ports.
const BEFORE_SRCNAT: i32 = 98;

/// A port that clients from outside may ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forward {
    /// The address asked for; none for each of the node's own.
    pub address: Option<Ipv4Addr>,
    /// The port asked for.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Where connections go; with none they are left alone, and the node's own stack refuses them.
    pub endpoints: Vec<SocketAddrV4>,
    /// A client always goes to the same endpoint, as long as the endpoints are the same.
    pub sticky: bool,
    /// The only clients that may; with none, all.
    pub sources: Vec<Ipv4Net>,
    /// Endpoints see the client's own address, so all of them must be on this node.
    pub keep_source: bool,
}

/// Makes the rules be those of `forwards` and `ranges` (all addresses that Services may have) and no others, in one
/// transaction. It works in the calling thread's network namespace and blocks for as long as the kernel takes.
///
/// # Errors
/// [`crate::Error::Netfilter`].
pub fn ensure(forwards: &[Forward], ranges: &[IpNet]) -> Result<()> {
    let mut wanted = rules(forwards);
    wanted.extend(range_rules(ranges));
    let table = Table::open()?;
    let mut messages: Vec<Message> = Vec::new();
    for chain in [NODE_PORTS, SERVICES, SERVICES_MASQUERADE, SERVICE_RANGES_FORWARD, SERVICE_RANGES_OUTPUT] {
        let listed = table.list(chain)?;
        let of_chain = || wanted.iter().filter(|rule| rule.chain == chain);
        if listed.iter().map(|rule| &rule.comment).eq(of_chain().map(|rule| &rule.comment)) {
            continue;
        }
        messages.extend(listed.iter().map(|rule| table::delete_rule(chain, rule.handle)));
        let add = |rule: &Rule| table::new_rule(chain, &rule.comment, rule.expressions.clone());
        messages.extend(of_chain().map(add));
    }
    if messages.is_empty() {
        return Ok(());
    }
    let mut all = vec![
        table::new_table(),
        table::new_chain(NODE_PORTS),
        table::new_base_chain(SERVICES, Hook::Prerouting, BEFORE_DSTNAT),
        table::new_base_chain(SERVICES_MASQUERADE, Hook::Postrouting, BEFORE_SRCNAT),
        table::new_filter_chain(SERVICE_RANGES_FORWARD, Hook::Forward),
        table::new_filter_chain(SERVICE_RANGES_OUTPUT, Hook::Output),
    ];
    all.extend(messages);
    table.commit("set the rules of Services", all)
}

struct Rule {
    chain: &'static str,
    /// Says all that the rule does, so equal comments mean equal rules.
    comment: String,
    expressions: Expressions,
}

fn rules(forwards: &[Forward]) -> Vec<Rule> {
    let mut rules = Vec::new();
    let forwards: BTreeSet<&Forward> = forwards.iter().filter(|f| !f.endpoints.is_empty()).collect();
    for forward in &forwards {
        let chain = if forward.address.is_some() { SERVICES } else { NODE_PORTS };
        let count = u32::try_from(forward.endpoints.len()).unwrap_or(u32::MAX);
        let sources: Vec<Option<&Ipv4Net>> = match forward.sources.as_slice() {
            [] => vec![None],
            some => some.iter().map(Some).collect(),
        };
        for source in sources {
            for (number, endpoint) in (0..).zip(&forward.endpoints) {
                let mut asked = Expressions::default();
                let mut from = String::new();
                if let Some(source) = source {
                    asked = asked.source(IpNet::V4(*source));
                    from = format!(" from {source}");
                }
                if let Some(address) = forward.address {
                    asked = asked.destination(IpNet::V4(Ipv4Net::from(address)));
                }
                let asked = asked.port(forward.protocol, forward.port);
                let (chosen, how) = if forward.sticky {
                    (asked.source_share(count, number), "by client")
                } else {
                    // Each rule takes its share of what the rules before it left.
                    (asked.one_of(count - number), "at random")
                };
                rules.push(Rule {
                    chain,
                    comment: format!("{}{from} to {endpoint}, {number} of {count} {how}", name(forward)),
                    expressions: chosen.dnat(IpAddr::V4(*endpoint.ip()), endpoint.port()),
                });
            }
        }
        if !forward.keep_source {
            let translated = Expressions::default().translated_from(forward.protocol, forward.port);
            let translated = match forward.address {
                Some(address) => translated.asked_for(address),
                None => translated,
            };
            rules.push(Rule {
                chain: SERVICES_MASQUERADE,
                comment: format!("masquerade {}", name(forward)),
                expressions: translated.masquerade(),
            });
        }
    }
    if rules.iter().any(|rule| rule.chain == NODE_PORTS) {
        rules.push(Rule {
            chain: SERVICES,
            comment: "keelson: node ports".to_owned(),
            expressions: Expressions::default().destined_locally().jump(NODE_PORTS),
        });
    }
    rules
}

/// What is sent to these ranges is rejected, but for addresses that the host itself has (that of cluster DNS).
fn range_rules(ranges: &[IpNet]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for chain in [SERVICE_RANGES_FORWARD, SERVICE_RANGES_OUTPUT] {
        // What is forwarded has left those behind.
        if chain == SERVICE_RANGES_OUTPUT && !ranges.is_empty() {
            rules.push(Rule {
                chain,
                comment: "keelson: own addresses".to_owned(),
                expressions: Expressions::default().destined_locally().leave(),
            });
        }
        rules.extend(ranges.iter().map(|range| Rule {
            chain,
            comment: format!("keelson: nothing is sent to Services of {range}"),
            expressions: Expressions::default().destination(*range).reject(),
        }));
    }
    rules
}

fn name(forward: &Forward) -> String {
    let address = forward.address.map_or_else(|| "node".to_owned(), |address| address.to_string());
    format!("{} {address}:{}", forward.protocol, forward.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_forward_has_its_rules() {
        let forward = |address: Option<[u8; 4]>, ends: &[&str], sticky: bool, keep_source: bool| Forward {
            address: address.map(Ipv4Addr::from),
            port: 80,
            protocol: 6,
            endpoints: ends.iter().map(|end| end.parse().unwrap()).collect(),
            sticky,
            sources: Vec::new(),
            keep_source,
        };
        let check = |forward: Forward, expected: &[&str]| {
            let lines: Vec<String> =
                rules(&[forward]).iter().map(|rule| format!("{}: {}", rule.chain, rule.comment)).collect();
            assert_eq!(lines, expected);
        };
        check(
            forward(None, &["10.0.0.1:8080", "10.0.1.1:8080"], false, false),
            &[
                "node_ports: 6 node:80 to 10.0.0.1:8080, 0 of 2 at random",
                "node_ports: 6 node:80 to 10.0.1.1:8080, 1 of 2 at random",
                "services_masquerade: masquerade 6 node:80",
                "services: keelson: node ports",
            ],
        );
        check(
            forward(Some([192, 0, 2, 7]), &["10.0.0.1:8080"], true, true),
            &["services: 6 192.0.2.7:80 to 10.0.0.1:8080, 0 of 1 by client"],
        );
        check(forward(None, &[], false, false), &[]);
        let mut some = forward(Some([192, 0, 2, 7]), &["10.0.0.1:8080"], false, true);
        some.sources = vec!["198.51.100.0/24".parse().unwrap()];
        check(some, &["services: 6 192.0.2.7:80 from 198.51.100.0/24 to 10.0.0.1:8080, 0 of 1 at random"]);
    }

    #[test]
    fn ranges_are_rejected_on_both_ways() {
        let ranges = ["10.96.0.0/16".parse().unwrap(), "fd00::/108".parse().unwrap()];
        let lines: Vec<String> =
            range_rules(&ranges).iter().map(|rule| format!("{}: {}", rule.chain, rule.comment)).collect();
        assert_eq!(
            lines,
            [
                "service_ranges_forward: keelson: nothing is sent to Services of 10.96.0.0/16",
                "service_ranges_forward: keelson: nothing is sent to Services of fd00::/108",
                "service_ranges_output: keelson: own addresses",
                "service_ranges_output: keelson: nothing is sent to Services of 10.96.0.0/16",
                "service_ranges_output: keelson: nothing is sent to Services of fd00::/108",
            ]
        );
        assert!(range_rules(&[]).is_empty());
    }
}
