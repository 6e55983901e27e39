//! Routes to the pods of other nodes, from their Node objects.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use keelson_cni::{Netlink, NodeRoute, routes};
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::time::Instant;

use super::pod_range::pod_ranges;

/// How often the kernel's routes are compared though no node changed: somebody may have flushed them.
const RESYNC: Duration = Duration::from_secs(60);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Nodes that change together (a whole cluster at start) are one change.
const SETTLE: Duration = Duration::from_millis(20);

/// What of a node makes its routes.
type Routes = BTreeMap<String, Vec<NodeRoute>>;

/// Keeps the routes for ever.
pub async fn keep_routes(client: Client, own_name: String) {
    let mut events =
        Box::pin(watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff());
    let (mut known, mut listing) = (Routes::new(), Routes::new());
    let mut complete = false;
    let mut due = Instant::now() + RESYNC;
    loop {
        tokio::select! {
            event = events.next() => {
                let changed = match event {
                    Some(Ok(watcher::Event::Init)) => {
                        listing.clear();
                        false
                    }
                    Some(Ok(watcher::Event::InitApply(node))) => {
                        listing.insert(node.name_any(), routes_to(&node, &own_name));
                        false
                    }
                    Some(Ok(watcher::Event::InitDone)) => {
                        known = std::mem::take(&mut listing);
                        complete = true;
                        true
                    }
                    Some(Ok(watcher::Event::Apply(node))) => {
                        let routes = routes_to(&node, &own_name);
                        known.insert(node.name_any(), routes.clone()) != Some(routes)
                    }
                    Some(Ok(watcher::Event::Delete(node))) => known.remove(&node.name_any()).is_some(),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "watch of nodes failed, retrying");
                        false
                    }
                    None => return,
                };
                if changed {
                    due = due.min(Instant::now() + SETTLE);
                }
            }
            // Before the first list is complete nothing is known of what must go.
            () = tokio::time::sleep_until(due), if complete => {
                let desired: Vec<NodeRoute> = known.values().flatten().cloned().collect();
                due = Instant::now() + match sync(&desired).await {
                    Ok(()) => RESYNC,
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "could not set routes to other nodes");
                        RETRY
                    }
                };
            }
        }
    }
}

async fn sync(desired: &[NodeRoute]) -> keelson_cni::Result<()> {
    let netlink = Netlink::open()?;
    routes::sync(&netlink, desired).await
}

/// The routes to one node's pods: each range by the node's address of the same family. None to our own.
fn routes_to(node: &Node, own_name: &str) -> Vec<NodeRoute> {
    if node.name_any() == own_name {
        return Vec::new();
    }
    let ranges = match pod_ranges(&node.spec.clone().unwrap_or_default()) {
        Ok(ranges) => ranges,
        Err(error) => {
            tracing::warn!(
                node = node.name_any(),
                error = format!("{error:#}"),
                "unusable pod ranges of a node"
            );
            return Vec::new();
        }
    };
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let addresses: Vec<std::net::IpAddr> = addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect();
    let route = |dst: ipnet::IpNet| {
        let via = addresses.iter().copied().find(|address| address.is_ipv4() == dst.addr().is_ipv4())?;
        Some(NodeRoute { dst, via })
    };
    ranges.into_iter().filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeAddress, NodeSpec, NodeStatus};

    use super::*;

    fn node(name: &str, ranges: &[&str], addresses: &[&str]) -> Node {
        let address =
            |address: &&str| NodeAddress { address: (*address).to_owned(), type_: "InternalIP".to_owned() };
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        node.spec = Some(NodeSpec {
            pod_cidrs: Some(ranges.iter().map(|range| (*range).to_owned()).collect()),
            ..NodeSpec::default()
        });
        node.status = Some(NodeStatus {
            addresses: Some(addresses.iter().map(address).collect()),
            ..NodeStatus::default()
        });
        node
    }

    fn check(node: &Node, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(dst, via)| NodeRoute { dst: dst.parse().unwrap(), via: via.parse().unwrap() })
            .collect();
        assert_eq!(routes_to(node, "own"), expected);
    }

    #[test]
    fn each_range_by_an_address_of_its_family() {
        check(&node("own", &["10.244.0.0/24"], &["10.0.0.1"]), &[]);
        check(&node("n2", &["10.244.1.0/24"], &["10.0.0.2"]), &[("10.244.1.0/24", "10.0.0.2")]);
        check(
            &node("n2", &["10.244.1.0/24", "fd01::/64"], &["fd00::2", "10.0.0.2"]),
            &[("10.244.1.0/24", "10.0.0.2"), ("fd01::/64", "fd00::2")],
        );
        check(&node("n2", &["fd01::/64"], &["10.0.0.2"]), &[]);
        check(&node("n2", &[], &["10.0.0.2"]), &[]);
        check(&node("n2", &["bad"], &["10.0.0.2"]), &[]);
    }
}
