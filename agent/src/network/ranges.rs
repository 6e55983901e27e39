//! Which pods are behind which node: what Node objects say, as far as it can be believed. Nothing here touches the kernel.
//!
//! A node writes its own status, and may have made its own Node object. A range that it should not have would draw
//! packets away from those they are for: the default route, Services, this node's or other nodes' pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_cni::NodeRoute;
use kube::ResourceExt;

use super::pod_range::pod_ranges;

/// What of a Node object makes routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRanges {
    made: Option<Time>,
    /// Its pod ranges, or why they can't be read.
    ranges: Result<Vec<IpNet>, String>,
    addresses: Vec<IpAddr>,
}

impl NodeRanges {
    /// Reads a Node object.
    pub fn of(node: &Node) -> Self {
        let ranges = pod_ranges(&node.spec.clone().unwrap_or_default());
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        Self {
            made: node.creation_timestamp(),
            ranges: ranges
                .map(|ranges| ranges.iter().map(IpNet::trunc).collect())
                .map_err(|error| format!("{error:#}")),
            addresses: addresses
                .filter(|address| address.type_ == "InternalIP")
                .filter_map(|address| address.address.parse().ok())
                .collect(),
        }
    }
}

/// Ranges of the cluster.
#[derive(Debug, Clone)]
pub struct ClusterRanges {
    /// Of all nodes' pods: every node's range is within one.
    pub pods: Vec<IpNet>,
    /// Of Services.
    pub services: Vec<IpNet>,
}

/// What follows from all Node objects.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Addresses of this node, as other nodes know them.
    pub addresses: Vec<IpAddr>,
    /// Ranges of this node.
    pub own: Vec<IpNet>,
    /// Routes to the others, without a link.
    pub routes: Vec<NodeRoute>,
    /// What is not believed, for the log.
    pub refused: Vec<String>,
}

/// Routes to other nodes' pods: each range by the node's address of the same family. Of ranges that overlap the one of the
/// older Node object counts, so that none takes what another has.
pub fn plan(nodes: &BTreeMap<String, NodeRanges>, own_name: &str, cluster: &ClusterRanges) -> Plan {
    let mut plan = Plan::default();
    if let Some(own) = nodes.get(own_name) {
        plan.addresses.clone_from(&own.addresses);
        plan.own.extend(own.ranges.iter().flatten());
    }
    let mut others: Vec<_> = nodes.iter().filter(|(name, _)| *name != own_name).collect();
    others.sort_by_key(|(name, node)| (node.made.is_none(), node.made.clone(), *name));
    let mut taken: Vec<(IpNet, &str)> = plan.own.iter().map(|range| (*range, own_name)).collect();
    let mut believed = Vec::new();
    for (name, node) in others {
        let ranges = match &node.ranges {
            Ok(ranges) => ranges,
            Err(error) => {
                plan.refused.push(format!("node {name}: {error}"));
                continue;
            }
        };
        for range in ranges {
            match wrong_range(*range, cluster, &taken) {
                Some(why) => plan.refused.push(format!("node {name}: pod range {range} {why}")),
                None => {
                    taken.push((*range, name));
                    believed.push((*range, name, node));
                }
            }
        }
    }
    for (dst, name, node) in believed {
        // A node that has no address of the family yet is nothing to speak of.
        let Some(via) = node.addresses.iter().find(|via| via.is_ipv4() == dst.addr().is_ipv4()) else {
            continue;
        };
        match wrong_address(*via, &plan.addresses, cluster, &taken) {
            Some(why) => plan.refused.push(format!("node {name}: address {via} {why}")),
            None => plan.routes.push(NodeRoute { dst, via: *via, link: None }),
        }
    }
    plan
}

fn wrong_range(range: IpNet, cluster: &ClusterRanges, taken: &[(IpNet, &str)]) -> Option<String> {
    if !cluster.pods.iter().any(|pods| pods.contains(&range)) {
        return Some("is not within --cluster-cidr".into());
    }
    if cluster.services.iter().any(|services| overlap(*services, range)) {
        return Some("overlaps --service-cidr".into());
    }
    let (other, name) = taken.iter().find(|(other, _)| overlap(*other, range))?;
    Some(format!("overlaps {other} of node {name}"))
}

fn wrong_address(
    address: IpAddr,
    own: &[IpAddr],
    cluster: &ClusterRanges,
    taken: &[(IpNet, &str)],
) -> Option<String> {
    let nobody = match address {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    if nobody || address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Some("is none of a node".into());
    }
    if own.contains(&address) {
        return Some("is this node's own".into());
    }
    if cluster.services.iter().any(|services| services.contains(&address)) {
        return Some("is one of a Service".into());
    }
    // It would be reached by the route that it is to be the next hop of, or by another such.
    let (range, name) = taken.iter().find(|(range, _)| range.contains(&address))?;
    Some(format!("is one of a pod, in {range} of node {name}"))
}

/// Two ranges overlap when one holds the other.
fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeAddress, NodeSpec, NodeStatus};
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn node(made: i64, ranges: &[&str], addresses: &[&str]) -> NodeRanges {
        let address =
            |address: &&str| NodeAddress { address: (*address).to_owned(), type_: "InternalIP".to_owned() };
        let mut node = Node::default();
        node.metadata.creation_timestamp = Some(Time(Timestamp::from_second(made).unwrap()));
        node.spec = Some(NodeSpec {
            pod_cidrs: Some(ranges.iter().map(|range| (*range).to_owned()).collect()),
            ..NodeSpec::default()
        });
        node.status = Some(NodeStatus {
            addresses: Some(addresses.iter().map(address).collect()),
            ..NodeStatus::default()
        });
        NodeRanges::of(&node)
    }

    fn plan_of(others: Vec<(&str, NodeRanges)>) -> Plan {
        let own = ("own", node(5, &["10.244.0.0/24"], &["10.0.0.1", "fd00::1"]));
        let nodes = others.into_iter().chain([own]).map(|(name, node)| (name.to_owned(), node)).collect();
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        let cluster = ClusterRanges {
            pods: nets(&["10.244.0.0/16", "fd01::/48"]),
            services: nets(&["10.96.0.0/16", "10.244.96.0/24"]),
        };
        plan(&nodes, "own", &cluster)
    }

    /// Of one other node: its routes, and how many things about it are refused.
    fn check(ranges: &[&str], addresses: &[&str], expected: &[(&str, &str)], refused: usize) {
        let plan = plan_of(vec![("n2", node(6, ranges, addresses))]);
        let expected: Vec<_> = expected
            .iter()
            .map(|(dst, via)| NodeRoute { dst: dst.parse().unwrap(), via: via.parse().unwrap(), link: None })
            .collect();
        assert_eq!(plan.routes, expected, "{ranges:?} {addresses:?}");
        assert_eq!(plan.refused.len(), refused, "{:?}", plan.refused);
    }

    #[test]
    fn each_range_by_an_address_of_its_family() {
        let one = ("10.244.1.0/24", "10.0.0.2");
        check(&["10.244.1.0/24"], &["10.0.0.2"], &[one], 0);
        check(&["10.244.1.0/24", "fd01::/64"], &["fd00::2", "10.0.0.2"], &[one, ("fd01::/64", "fd00::2")], 0);
        check(&["fd01::/64"], &["10.0.0.2"], &[], 0);
        check(&[], &["10.0.0.2"], &[], 0);
        check(&["bad"], &["10.0.0.2"], &[], 1);
    }

    #[test]
    fn ranges_that_no_node_may_have() {
        for range in [
            "0.0.0.0/0",
            "::/0",
            "10.0.0.0/8",
            "10.96.0.0/24",
            "10.96.0.1/32",
            "10.0.0.0/24",
            "192.0.2.0/24",
            // Services within the pods' range.
            "10.244.96.0/24",
            // All nodes', and this node's own: the same, more of it, a part of it.
            "10.244.0.0/16",
            "10.244.0.0/24",
            "10.244.0.0/23",
            "10.244.0.7/32",
        ] {
            check(&[range, "10.244.1.0/24"], &["10.0.0.2"], &[("10.244.1.0/24", "10.0.0.2")], 1);
        }
    }

    #[test]
    fn addresses_that_no_node_has() {
        for address in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "169.254.1.1",
            "10.0.0.1",
            "10.96.0.10",
            "10.244.0.3",
            "10.244.1.3",
        ] {
            check(&["10.244.1.0/24"], &[address], &[], 1);
        }
        for address in ["::", "::1", "ff02::1", "fe80::1", "::ffff:10.0.0.2", "fd01::1"] {
            check(&["fd01::/64"], &[address], &[], 1);
        }
    }

    #[test]
    fn none_takes_what_an_older_node_has() {
        let plan = plan_of(vec![
            ("a-thief", node(9, &["10.244.2.0/28", "10.244.3.0/24"], &["10.0.0.9"])),
            ("victim", node(2, &["10.244.2.0/24"], &["10.0.0.2"])),
        ]);
        let routes: Vec<String> =
            plan.routes.iter().map(|route| format!("{} {}", route.dst, route.via)).collect();
        assert_eq!(routes, ["10.244.2.0/24 10.0.0.2", "10.244.3.0/24 10.0.0.9"]);
        assert_eq!(
            plan.refused,
            ["node a-thief: pod range 10.244.2.0/28 overlaps 10.244.2.0/24 of node victim"]
        );
    }

    #[test]
    fn this_node_is_as_others_see_it() {
        let plan = plan_of(Vec::new());
        assert_eq!(plan.own, ["10.244.0.0/24".parse::<IpNet>().unwrap()]);
        assert_eq!(plan.addresses, ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert!(plan.routes.is_empty() && plan.refused.is_empty());
    }
}
