//! Images that are on the node already.

use crate::framework::{MAX_SCORE, Score};
use crate::node_info::{NodeInfo, PodInfo, Snapshot};

const MEGABYTE: i64 = 1024 * 1024;
/// Below this sum a node gains nothing.
const LEAST: i64 = 23 * MEGABYTE;
/// Above this much for each container it gains no more.
const MOST_EACH: i64 = 1000 * MEGABYTE;

/// Nodes that have the pod's images are better, by size; images that few nodes have count less, so that pods
/// don't all go where the first went.
pub struct ImageLocality;

impl Score for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Option<Vec<i64>> {
        let spec = pod.pod.spec.as_ref()?;
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let wanted: Vec<String> = containers.filter_map(|c| c.image.as_deref()).map(normalized).collect();
        if !wanted.iter().any(|name| snapshot.image_spread.contains_key(name)) {
            return None;
        }
        let most = MOST_EACH * i64::try_from(wanted.len().max(1)).unwrap_or(1);
        let score = |node: &&NodeInfo| {
            let images = node.node.status.as_ref().and_then(|s| s.images.as_ref());
            let sum: i64 = images
                .into_iter()
                .flatten()
                .map(|image| {
                    let names = image.names.as_deref().unwrap_or_default();
                    let uses = wanted.iter().filter(|w| names.contains(w)).count();
                    let nodes_with = names.iter().filter_map(|n| snapshot.image_spread.get(n)).max();
                    let spread = *nodes_with.unwrap_or(&0) as f64 / snapshot.nodes.len().max(1) as f64;
                    uses as i64 * (image.size_bytes.unwrap_or(0) as f64 * spread) as i64
                })
                .sum();
            MAX_SCORE * (sum.clamp(LEAST, most) - LEAST) / (most - LEAST)
        };
        Some(nodes.iter().map(score).collect())
    }
}

/// An image's name with its tag: nodes report it so.
fn normalized(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || last.contains('@') { name.to_owned() } else { format!("{name}:latest") }
}
