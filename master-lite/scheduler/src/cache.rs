//! Nodes with their pods, always ready for a snapshot.
//!
//! A pod counts as placed from the decision on ([`Cache::assume`]), not from when the API says so: otherwise the
//! next pod would be given the same room. The list of nodes and each of them are shared by reference count, so that a
//! snapshot costs nothing, and only what changes while a snapshot lives is copied.
//!
//! A pod for which others were evicted is *nominated* to their node until it is placed: the room is kept for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use keelson_client::selector::Labels;
use keelson_client::{meta, pods};

use crate::node_info::{NodeInfo, Nomination, PodInfo, Snapshot, position};

/// What the scheduler knows of the cluster.
#[derive(Default)]
pub struct Cache {
    /// By name.
    nodes: Arc<Vec<Arc<NodeInfo>>>,
    /// Where each counted pod is, by uid.
    placed: HashMap<String, String>,
    /// Pods on nodes that are not known (yet).
    homeless: HashMap<String, BTreeMap<String, Arc<PodInfo>>>,
    namespaces: Arc<BTreeMap<String, Labels>>,
    image_spread: Arc<HashMap<String, usize>>,
    nominated: Arc<BTreeMap<String, Nomination>>,
    turn: usize,
}

impl Cache {
    /// The cluster as it is now.
    pub fn snapshot(&mut self) -> Snapshot {
        self.turn = self.turn.wrapping_add(1);
        Snapshot {
            nodes: self.nodes.clone(),
            namespaces: self.namespaces.clone(),
            image_spread: self.image_spread.clone(),
            nominated: self.nominated.clone(),
            turn: self.turn,
        }
    }

    /// The state of one node, to be changed; a snapshot that has it too keeps it as it is.
    fn node_mut(&mut self, at: usize) -> &mut NodeInfo {
        Arc::make_mut(&mut Arc::make_mut(&mut self.nodes)[at])
    }

    /// Takes a new or changed node.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = meta::name(&node.metadata).to_owned();
        match position(&self.nodes, &name) {
            Ok(at) => {
                let images_changed = images(&self.nodes[at].node) != images(&node);
                self.node_mut(at).set_node(node);
                if images_changed {
                    self.count_images();
                }
            }
            Err(at) => {
                let mut info = NodeInfo::new(node);
                for pod in self.homeless.remove(&name).into_iter().flatten().map(|(_, pod)| pod) {
                    info.add_pod(pod);
                }
                Arc::make_mut(&mut self.nodes).insert(at, Arc::new(info));
                self.count_images();
            }
        }
    }

    /// Forgets a node. Its pods are kept apart until they are gone or the node is back.
    pub fn remove_node(&mut self, name: &str) {
        if let Ok(at) = position(&self.nodes, name) {
            let info = Arc::make_mut(&mut self.nodes).remove(at);
            let pods = info.pods.iter().map(|p| (p.uid().to_owned(), p.clone())).collect::<BTreeMap<_, _>>();
            if !pods.is_empty() {
                self.homeless.insert(name.to_owned(), pods);
            }
            self.count_images();
        }
    }

    fn count_images(&mut self) {
        let mut spread = HashMap::new();
        for info in self.nodes.iter() {
            for image in images(&info.node) {
                *spread.entry(image.to_owned()).or_insert(0) += 1;
            }
        }
        self.image_spread = Arc::new(spread);
    }

    /// Takes a new or changed namespace.
    pub fn set_namespace(&mut self, namespace: &Namespace) {
        let labels = namespace.metadata.labels.clone().unwrap_or_default();
        Arc::make_mut(&mut self.namespaces).insert(meta::name(&namespace.metadata).to_owned(), labels);
    }

    /// Forgets a namespace.
    pub fn remove_namespace(&mut self, name: &str) {
        Arc::make_mut(&mut self.namespaces).remove(name);
    }

    /// Takes the API's word on a pod: it is counted where it is bound, unless it has ended.
    pub fn set_pod(&mut self, pod: &Arc<Pod>) {
        match pods::node_name(pod) {
            Some(node) if !pods::is_terminal(pod) => {
                self.place(Arc::new(PodInfo::new(pod.clone())), node.to_owned());
            }
            Some(_) => {
                self.remove_pod(meta::uid(&pod.metadata));
            }
            // Not bound as far as the API knows, but perhaps we have just decided: the decision stays counted.
            None => {}
        }
    }

    /// Counts a pod as placed by decision. [`Cache::remove_pod`] takes that back when binding fails.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node.to_owned());
    }

    /// Keeps room on `node` for the pod.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        let nomination = Nomination { node: node.to_owned(), pod: pod.clone() };
        Arc::make_mut(&mut self.nominated).insert(pod.uid().to_owned(), nomination);
    }

    /// Keeps no room for the pod any more; where it was kept.
    pub fn withdraw(&mut self, uid: &str) -> Option<String> {
        if !self.nominated.contains_key(uid) {
            return None;
        }
        Arc::make_mut(&mut self.nominated).remove(uid).map(|nomination| nomination.node)
    }

    /// Takes the API's word on the nomination of a pod that waits, where it is news: our own word may not have got
    /// there yet. Whether room is free now that was kept.
    pub fn follow_nomination(&mut self, old: Option<&Pod>, new: &Arc<Pod>) -> bool {
        let (uid, wanted) = (meta::uid(&new.metadata), pods::nominated_node(new));
        let is_news = old.is_none_or(|old| pods::nominated_node(old) != wanted);
        let before = self.withdraw(uid);
        let node = if is_news { wanted } else { before.as_deref() };
        if let Some(node) = node {
            self.nominate(Arc::new(PodInfo::new(new.clone())), node);
        }
        before.is_some() && before.as_deref() != node
    }

    /// Withdraws the nominations to `node` of pods of lower priority, for they may not fit there any more. The pods.
    pub fn withdraw_lower(&mut self, node: &str, priority: i32) -> Vec<Arc<Pod>> {
        let lower = |n: &&Nomination| n.node == node && n.pod.priority() < priority;
        let lower: Vec<Arc<Pod>> = self.nominated.values().filter(lower).map(|n| n.pod.pod.clone()).collect();
        for pod in &lower {
            self.withdraw(meta::uid(&pod.metadata));
        }
        lower
    }

    /// Whether the pod is counted on some node.
    pub fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: String) {
        self.remove_pod(pod.uid());
        self.placed.insert(pod.uid().to_owned(), node.clone());
        match position(&self.nodes, &node) {
            Ok(at) => self.node_mut(at).add_pod(pod),
            Err(_) => {
                self.homeless.entry(node).or_default().insert(pod.uid().to_owned(), pod);
            }
        }
    }

    /// Counts a pod no more; whether it was counted.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(node) = self.placed.remove(uid) else { return false };
        if let Ok(at) = position(&self.nodes, &node) {
            self.node_mut(at).remove_pod(uid);
        } else if let Some(pods) = self.homeless.get_mut(&node) {
            pods.remove(uid);
            if pods.is_empty() {
                self.homeless.remove(&node);
            }
        }
        true
    }
}

fn images(node: &Node) -> Vec<&str> {
    let images = node.status.as_ref().and_then(|s| s.images.as_ref());
    images.into_iter().flatten().flat_map(|i| i.names.iter().flatten()).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str) -> Arc<Node> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}})).unwrap())
    }

    fn pod(uid: &str, node: Option<&str>, phase: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": uid, "uid": uid},
                "spec": {"nodeName": node, "containers": [
                    {"name": "c", "resources": {"requests": {"cpu": "1"}}},
                ]},
                "status": {"phase": phase},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn nominations_follow_the_api_and_our_own_word() {
        let nominated = |node: Option<&str>| {
            let mut pod = (*pod("p", None, "Pending")).clone();
            pod.status.get_or_insert_default().nominated_node_name = node.map(str::to_owned);
            Arc::new(pod)
        };
        let node = |cache: &mut Cache| cache.snapshot().nominated.get("p").map(|n| n.node.clone());
        let mut cache = Cache::default();
        assert!(!cache.follow_nomination(None, &nominated(Some("a"))));
        assert_eq!(node(&mut cache).as_deref(), Some("a"));
        // What is written but not seen yet is not undone by an echo of what was before.
        cache.nominate(Arc::new(PodInfo::new(nominated(Some("a")))), "b");
        assert!(!cache.follow_nomination(Some(&nominated(Some("a"))), &nominated(Some("a"))));
        assert_eq!(node(&mut cache).as_deref(), Some("b"));
        assert!(cache.follow_nomination(Some(&nominated(Some("b"))), &nominated(None)));
        assert_eq!(node(&mut cache), None);
        // Only lower priorities yield.
        cache.nominate(Arc::new(PodInfo::new(nominated(None))), "a");
        assert!(cache.withdraw_lower("a", 0).is_empty());
        assert!(cache.withdraw_lower("b", 1).is_empty());
        assert_eq!(cache.withdraw_lower("a", 1).len(), 1);
        assert_eq!(cache.withdraw("p"), None);
    }

    fn check(cache: &mut Cache, cpu: i64) {
        assert_eq!(cache.snapshot().nodes[0].requested("cpu").value(), cpu);
    }

    #[test]
    fn a_pod_counts_once_from_decision_to_end() {
        let mut cache = Cache::default();
        cache.set_node(node("n"));
        cache.assume(Arc::new(PodInfo::new(pod("p", None, "Pending"))), "n");
        check(&mut cache, 1);
        cache.set_pod(&pod("p", None, "Pending"));
        check(&mut cache, 1);
        cache.set_pod(&pod("p", Some("n"), "Running"));
        check(&mut cache, 1);
        cache.set_pod(&pod("p", Some("n"), "Succeeded"));
        check(&mut cache, 0);
    }

    #[test]
    fn pods_wait_for_their_node_and_snapshots_stay_as_they_were() {
        let mut cache = Cache::default();
        cache.set_pod(&pod("p", Some("n"), "Running"));
        cache.set_node(node("n"));
        let before = cache.snapshot();
        cache.remove_pod("p");
        check(&mut cache, 0);
        assert_eq!(before.nodes[0].requested("cpu").value(), 1);
        cache.set_pod(&pod("p", Some("n"), "Running"));
        cache.remove_node("n");
        cache.set_node(node("n"));
        check(&mut cache, 1);
    }
}
