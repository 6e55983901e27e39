//! Routes to the pods of other nodes, from their Node objects.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use keelson_cni::Netlink;
use keelson_cni::vxlan::{self, Overlay, VxlanMode};
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::time::Instant;

use super::ranges::{ClusterRanges, NodeRanges, Plan, plan};

/// How often the kernel's routes are compared though no node changed: somebody may have flushed them.
const RESYNC: Duration = Duration::from_secs(60);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Nodes that change together (a whole cluster at start) are one change.
const SETTLE: Duration = Duration::from_millis(20);

/// What routes are made of, beside Node objects.
#[derive(Debug, Clone)]
pub struct RouteConfig {
    /// This node.
    pub node_name: String,
    /// What no node's range may go beyond, and not touch.
    pub cluster: ClusterRanges,
    /// When packets to other nodes' pods are wrapped.
    pub vxlan: VxlanMode,
}

/// Keeps the routes for ever.
pub async fn keep_routes(client: Client, config: RouteConfig) {
    let mut events =
        Box::pin(watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff());
    let (mut known, mut listing) = (BTreeMap::new(), BTreeMap::new());
    let mut refused = Vec::new();
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
                        listing.insert(node.name_any(), NodeRanges::of(&node));
                        false
                    }
                    Some(Ok(watcher::Event::InitDone)) => {
                        known = std::mem::take(&mut listing);
                        complete = true;
                        true
                    }
                    Some(Ok(watcher::Event::Apply(node))) => {
                        let ranges = NodeRanges::of(&node);
                        known.insert(node.name_any(), ranges.clone()) != Some(ranges)
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
                let plan = plan(&known, &config.node_name, &config.cluster);
                if plan.refused != refused {
                    for what in &plan.refused {
                        tracing::warn!("no route: {what}");
                    }
                    refused.clone_from(&plan.refused);
                }
                due = Instant::now() + match sync(config.vxlan, plan).await {
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

async fn sync(mode: VxlanMode, plan: Plan) -> keelson_cni::Result<()> {
    let netlink = Netlink::open()?;
    let overlay = Overlay { mode, addresses: plan.addresses, pod_cidrs: plan.own };
    vxlan::sync(&netlink, &overlay, &plan.routes).await
}
