//! Host ports (capability `portMappings`): destination NAT from a port of the host into a pod.
//!
//! Each mapping is one rule per address family in the chain `hostports`, tagged by the attachment's host
//! link, plus one that masquerades connections which would otherwise be answered past the translation: a
//! pod that reaches itself through the host, and the host's own loopback address.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::message::Expressions;
use super::table::{self, HOSTPORTS, HOSTPORTS_MASQUERADE, Hook, OUTPUT, PREROUTING, Table};
use crate::error::{Error, Result};
use crate::types::config::PortMapping;

/// Priority dstnat.
const DSTNAT: i32 = -100;
/// Just before the egress masquerade.
const BEFORE_SRCNAT: i32 = 99;

/// Forwards `mappings` to `pod_ips`. `tag` names the attachment.
///
/// # Errors
/// [`Error::InvalidConfig`] when another attachment of this node has one of the ports, or the pod has no
/// address of the mapping's family; [`Error::Netfilter`].
pub fn add(tag: &str, pod_ips: &[IpAddr], mappings: &[PortMapping]) -> Result<()> {
    if mappings.is_empty() {
        return Ok(());
    }
    let wanted = rules(tag, pod_ips, mappings)?;
    let table = Table::open()?;
    let listed = table.list(HOSTPORTS)?;
    for rule in &wanted {
        let taken = listed.iter().find(|other| {
            let (owner, key) = split(&other.comment);
            key == rule.key && owner != tag
        });
        if let Some(other) = taken {
            return Err(Error::InvalidConfig(format!(
                "host port {} is taken by attachment {}",
                rule.key,
                split(&other.comment).0
            )));
        }
    }
    let mut messages = vec![
        table::new_table(),
        table::new_chain(HOSTPORTS),
        table::new_base_chain(PREROUTING, Hook::Prerouting, DSTNAT),
        table::new_base_chain(OUTPUT, Hook::Output, DSTNAT),
        table::new_base_chain(HOSTPORTS_MASQUERADE, Hook::Postrouting, BEFORE_SRCNAT),
    ];
    for entry in [PREROUTING, OUTPUT] {
        if table.list(entry)?.is_empty() {
            let jump = Expressions::default().destined_locally().jump(HOSTPORTS);
            messages.push(table::new_rule(entry, "keelson: host ports", jump));
        }
    }
    for chain in [HOSTPORTS, HOSTPORTS_MASQUERADE] {
        messages.extend(own(&table, chain, tag)?.into_iter().map(|handle| table::delete_rule(chain, handle)));
    }
    for rule in wanted {
        let comment = format!("{tag} {}", rule.key);
        messages.push(table::new_rule(HOSTPORTS, &comment, rule.translate));
        for expressions in rule.masquerade {
            messages.push(table::new_rule(HOSTPORTS_MASQUERADE, &comment, expressions));
        }
    }
    table.commit("add host ports", messages)
}

/// Removes every mapping of the attachment `tag`; none is success.
///
/// # Errors
/// [`Error::Netfilter`].
pub fn remove(tag: &str) -> Result<()> {
    let table = Table::open()?;
    let mut messages = Vec::new();
    for chain in [HOSTPORTS, HOSTPORTS_MASQUERADE] {
        messages.extend(own(&table, chain, tag)?.into_iter().map(|handle| table::delete_rule(chain, handle)));
    }
    if messages.is_empty() { Ok(()) } else { table.commit("remove host ports", messages) }
}

/// Whether every mapping is in place.
///
/// # Errors
/// [`Error::Netfilter`].
pub fn is_in_place(tag: &str, pod_ips: &[IpAddr], mappings: &[PortMapping]) -> Result<bool> {
    if mappings.is_empty() {
        return Ok(true);
    }
    let listed = Table::open()?.list(HOSTPORTS)?;
    let wanted = rules(tag, pod_ips, mappings)?;
    Ok(wanted.iter().all(|rule| listed.iter().any(|l| split(&l.comment) == (tag, rule.key.as_str()))))
}

fn own(table: &Table, chain: &str, tag: &str) -> Result<Vec<u64>> {
    let listed = table.list(chain)?;
    Ok(listed.iter().filter(|rule| split(&rule.comment).0 == tag).map(|rule| rule.handle).collect())
}

/// A comment is the tag, a space and the key.
fn split(comment: &str) -> (&str, &str) {
    comment.split_once(' ').unwrap_or((comment, ""))
}

struct Rule {
    /// Protocol, host address and host port: what no two attachments may share.
    key: String,
    translate: Expressions,
    masquerade: Vec<Expressions>,
}

fn rules(tag: &str, pod_ips: &[IpAddr], mappings: &[PortMapping]) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for mapping in mappings {
        let bound = mapping.host_ip.filter(|ip| !ip.is_unspecified());
        let fits = |ip: &&IpAddr| mapping.host_ip.is_none_or(|host| host.is_ipv4() == ip.is_ipv4());
        let targets: Vec<IpAddr> = pod_ips.iter().filter(fits).copied().collect();
        if targets.is_empty() {
            return Err(Error::InvalidConfig(format!(
                "host port {} of {tag} is bound to an address family that the pod does not have",
                mapping.host_port
            )));
        }
        for pod in targets {
            rules.push(rule(mapping, bound, pod));
        }
    }
    Ok(rules)
}

fn rule(mapping: &PortMapping, bound: Option<IpAddr>, pod: IpAddr) -> Rule {
    let protocol = mapping.protocol.number();
    let any = if pod.is_ipv4() { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u8; 16]) };
    let key = format!("{:?} {} {}", mapping.protocol, bound.unwrap_or(any), mapping.host_port).to_lowercase();
    let host = IpNet::from(pod);
    // Every address of the family, or the one that the port is bound to.
    let scope = bound.map_or_else(|| everything(pod), IpNet::from);
    let translate = Expressions::default()
        .destination(scope)
        .port(protocol, mapping.host_port)
        .dnat(pod, mapping.container_port);
    let to_pod = |source: IpNet| {
        Expressions::default()
            .source(source)
            .destination(host)
            .port(protocol, mapping.container_port)
            .masquerade()
    };
    let mut masquerade = vec![to_pod(host)];
    if pod.is_ipv4() {
        let loopback = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
        masquerade.push(to_pod(IpNet::V4(loopback)));
    }
    Rule { key, translate, masquerade }
}

fn everything(family_of: IpAddr) -> IpNet {
    match family_of {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::config::Protocol;

    fn check(host_ip: Option<&str>, pods: &[&str], expected: Result<&[&str], u32>) {
        let mapping = PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        let pods: Vec<IpAddr> = pods.iter().map(|ip| ip.parse().unwrap()).collect();
        let found = rules("kl0", &pods, &[mapping]);
        let keys = found.map(|rules| rules.into_iter().map(|rule| rule.key).collect::<Vec<_>>());
        assert_eq!(
            keys.map_err(|e| e.code()),
            expected.map(|keys| keys.iter().map(ToString::to_string).collect::<Vec<_>>())
        );
    }

    #[test]
    fn keys_by_family() {
        check(None, &["10.0.0.2", "fd00::2"], Ok(&["tcp 0.0.0.0 8080", "tcp :: 8080"]));
        check(Some("0.0.0.0"), &["10.0.0.2", "fd00::2"], Ok(&["tcp 0.0.0.0 8080"]));
        check(Some("127.0.0.1"), &["10.0.0.2"], Ok(&["tcp 127.0.0.1 8080"]));
        check(Some("::1"), &["10.0.0.2"], Err(7));
    }
}
