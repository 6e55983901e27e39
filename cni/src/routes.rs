//! Cross-node routes: the pod ranges of other nodes, straight over the node network.
//!
//! Ours carry a protocol number of our own in the main table. Nothing else is ever replaced or removed.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::{Error, Result};
use crate::net::netlink::{Netlink, RouteSpec};
use crate::vxlan;

/// `rtm_protocol` of routes to other nodes. Not taken in iproute2's rt_protos.
pub const PROTOCOL_NODE: u8 = 75;
/// `rtm_protocol` of the host's routes to its own pods in routed mode.
pub const PROTOCOL_POD: u8 = 76;
/// `RTPROT_STATIC`, used inside pods.
pub(crate) const PROTOCOL_STATIC: u8 = 4;

/// A route to another node's pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeRoute {
    /// The node's pod range.
    pub dst: IpNet,
    /// The node's address, or its link-local one on a VXLAN device for IPv6.
    pub via: IpAddr,
    /// The VXLAN device that leads to the node; without one the node is on a network this host is on.
    pub link: Option<u32>,
}

/// One step towards the desired routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteOp {
    /// Add the route, or replace one of ours to the same destination.
    Put(NodeRoute),
    /// Remove one of ours.
    Delete(NodeRoute),
}

/// What turns `current` (our routes as the kernel lists them) into `desired`. New routes come before
/// removals, so that a range that moves is never without a route. Of several desired routes to one
/// destination the first counts.
pub fn diff(current: &[NodeRoute], desired: &[NodeRoute]) -> Vec<RouteOp> {
    let mut wanted: Vec<NodeRoute> = Vec::new();
    for route in desired {
        let route = NodeRoute { dst: route.dst.trunc(), ..route.clone() };
        if !wanted.iter().any(|other| other.dst == route.dst) {
            wanted.push(route);
        }
    }
    let missing = wanted.iter().filter(|route| !current.contains(route)).cloned().map(RouteOp::Put);
    // A route to a wanted destination by another way is replaced by the Put.
    let extra = current
        .iter()
        .filter(|route| !wanted.iter().any(|other| other.dst == route.dst))
        .cloned()
        .map(RouteOp::Delete);
    missing.chain(extra).collect()
}

/// Makes our routes of the main table those in `desired`. Every operation is tried; each failure is in the
/// error, and calling again goes on from there. Works in the network namespace that `netlink` was opened in.
///
/// # Errors
/// The kernel's, gathered.
pub async fn sync(netlink: &Netlink, desired: &[NodeRoute]) -> Result<()> {
    let mut devices = Vec::new();
    for name in vxlan::DEVICES {
        devices.extend(netlink.link(name).await?.map(|link| link.index));
    }
    let listed = netlink.routes().await?.into_iter();
    let current: Vec<NodeRoute> = listed
        .filter(|route| route.protocol == PROTOCOL_NODE)
        .filter_map(|route| {
            // Every route has a link; it is ours to say only for these devices.
            let link = route.link.filter(|link| devices.contains(link));
            Some(NodeRoute { dst: route.dst, via: route.via?, link })
        })
        .collect();
    let mut errors = Vec::new();
    for op in diff(&current, desired) {
        let done = match &op {
            RouteOp::Put(route) => netlink.put_route(&spec(route)).await,
            RouteOp::Delete(route) => netlink.delete_route(&spec(route)).await,
        };
        errors.extend(done.err());
    }
    Error::collect(errors)
}

fn spec(route: &NodeRoute) -> RouteSpec {
    RouteSpec {
        dst: route.dst,
        via: Some(route.via),
        link: route.link,
        // No address on the device says that the node is there. (IPv6 knows a link-local one without.)
        onlink: route.link.is_some() && route.via.is_ipv4(),
        protocol: PROTOCOL_NODE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(dst: &str, via: &str) -> NodeRoute {
        NodeRoute { dst: dst.parse().unwrap(), via: via.parse().unwrap(), link: None }
    }

    #[test]
    fn only_differences_are_touched() {
        let a = route("10.244.1.0/24", "10.89.0.11");
        let b = route("10.244.2.0/24", "10.89.0.12");
        let moved = route("10.244.2.0/24", "10.89.0.13");
        let check = |current: &[&NodeRoute], desired: &[&NodeRoute], expected: &[RouteOp]| {
            let own = |list: &[&NodeRoute]| list.iter().map(|r| (*r).clone()).collect::<Vec<_>>();
            assert_eq!(diff(&own(current), &own(desired)), expected);
        };
        check(&[], &[], &[]);
        check(&[&a], &[&a], &[]);
        check(&[], &[&a, &b], &[RouteOp::Put(a.clone()), RouteOp::Put(b.clone())]);
        check(&[&a, &b], &[&a], &[RouteOp::Delete(b.clone())]);
        check(&[&b], &[&moved], &[RouteOp::Put(moved.clone())]);
        check(&[&a], &[&b], &[RouteOp::Put(b.clone()), RouteOp::Delete(a.clone())]);
        check(&[], &[&b, &moved], &[RouteOp::Put(b.clone())]);
        let wrapped = NodeRoute { link: Some(7), ..b.clone() };
        check(&[&b], &[&wrapped], &[RouteOp::Put(wrapped.clone())]);
    }

    proptest! {
        #[test]
        fn applying_the_difference_reaches_the_goal(
            current in proptest::collection::btree_map(0u8..12, 0u8..4, 0..8),
            desired in proptest::collection::btree_map(0u8..12, 0u8..4, 0..8),
        ) {
            let routes = |map: &std::collections::BTreeMap<u8, u8>| -> Vec<NodeRoute> {
                map.iter().map(|(n, via)| route(&format!("10.244.{n}.0/24"), &format!("10.0.0.{via}"))).collect()
            };
            let (mut state, goal) = (routes(&current), routes(&desired));
            for op in diff(&state.clone(), &goal) {
                match op {
                    RouteOp::Put(r) => {
                        state.retain(|other| other.dst != r.dst);
                        state.push(r);
                    }
                    RouteOp::Delete(r) => state.retain(|other| *other != r),
                }
            }
            state.sort();
            prop_assert_eq!(&state, &goal);
            prop_assert!(diff(&state, &goal).is_empty());
        }
    }
}
