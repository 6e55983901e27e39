//! Egress masquerade: what pods send out of the cluster leaves with the node's address.

use ipnet::IpNet;

use super::message::Expressions;
use super::table::{self, Hook, MASQUERADE, Table};
use crate::error::Result;

/// Priority srcnat.
const SRCNAT: i32 = 100;

/// Destinations that keep the pod's address whatever the cluster's ranges are: link-local and multicast.
const NEVER: [&str; 4] = ["169.254.0.0/16", "224.0.0.0/4", "fe80::/10", "ff00::/8"];

/// Makes sure that packets from `pod_cidrs` (this node's ranges) to anywhere but `cluster_cidrs` (every
/// node's pods, services, and whatever else is routed with pod addresses), link-local and multicast
/// addresses are masqueraded. Rules that are right already are left alone, so calling it again is cheap.
/// It works in the calling thread's network namespace and blocks for as long as the kernel takes.
///
/// With bridge-nf-call-iptables set, frames between two pods of one bridge pass here as well: their
/// destination is within the cluster, so they keep their address.
///
/// # Errors
/// [`crate::Error::Netfilter`].
pub fn ensure(pod_cidrs: &[IpNet], cluster_cidrs: &[IpNet]) -> Result<()> {
    let rules = rules(pod_cidrs, cluster_cidrs);
    let table = Table::open()?;
    let listed = table.list(MASQUERADE)?;
    if listed.iter().map(|rule| &rule.comment).eq(rules.iter().map(|(comment, _)| comment)) {
        return Ok(());
    }
    let mut messages = vec![table::new_table(), table::new_base_chain(MASQUERADE, Hook::Postrouting, SRCNAT)];
    messages.extend(listed.iter().map(|rule| table::delete_rule(MASQUERADE, rule.handle)));
    messages.extend(
        rules.into_iter().map(|(comment, expressions)| table::new_rule(MASQUERADE, &comment, expressions)),
    );
    table.commit("set masquerade rules", messages)
}

/// Whether the rules of [`ensure`] with the same arguments are in place.
///
/// # Errors
/// [`crate::Error::Netfilter`].
pub fn is_in_place(pod_cidrs: &[IpNet], cluster_cidrs: &[IpNet]) -> Result<bool> {
    let rules = rules(pod_cidrs, cluster_cidrs);
    let listed = Table::open()?.list(MASQUERADE)?;
    Ok(listed.iter().map(|rule| &rule.comment).eq(rules.iter().map(|(comment, _)| comment)))
}

/// The rules in order. A comment says all that its rule does, so equal comments mean equal rules.
fn rules(pod_cidrs: &[IpNet], cluster_cidrs: &[IpNet]) -> Vec<(String, Expressions)> {
    let mut rules = Vec::new();
    let never = NEVER.iter().filter_map(|net| net.parse().ok());
    let kept: Vec<IpNet> = cluster_cidrs.iter().copied().chain(never).collect();
    for pods in pod_cidrs {
        let same_family = |net: &&IpNet| net.addr().is_ipv4() == pods.addr().is_ipv4();
        for net in kept.iter().filter(same_family) {
            let comment = format!("keelson: {pods} to {net} keeps its address");
            rules.push((comment, Expressions::default().source(*pods).destination(*net).leave()));
        }
        let comment = format!("keelson: masquerade {pods}");
        rules.push((comment, Expressions::default().source(*pods).masquerade()));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_kept_apart() {
        let nets = |list: &[&str]| list.iter().map(|n| n.parse().unwrap()).collect::<Vec<IpNet>>();
        let rules = rules(&nets(&["10.244.1.0/24", "fd00:1::/64"]), &nets(&["10.244.0.0/16", "fd00::/48"]));
        let comments: Vec<&str> = rules.iter().map(|(comment, _)| comment.as_str()).collect();
        assert_eq!(
            comments,
            [
                "keelson: 10.244.1.0/24 to 10.244.0.0/16 keeps its address",
                "keelson: 10.244.1.0/24 to 169.254.0.0/16 keeps its address",
                "keelson: 10.244.1.0/24 to 224.0.0.0/4 keeps its address",
                "keelson: masquerade 10.244.1.0/24",
                "keelson: fd00:1::/64 to fd00::/48 keeps its address",
                "keelson: fd00:1::/64 to fe80::/10 keeps its address",
                "keelson: fd00:1::/64 to ff00::/8 keeps its address",
                "keelson: masquerade fd00:1::/64",
            ]
        );
    }
}
