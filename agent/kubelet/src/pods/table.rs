//! What readers outside the workers see of the pods of this node.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use keelson_cri::ContainerStatus;
use parking_lot::RwLock;

use super::observed::ObservedPod;
use super::podext::PodExt;

/// One pod of this node, as readers see it.
#[derive(Clone)]
pub struct PodEntry {
    /// The pod as the API last sent it, with the resources that are allocated to it.
    pub pod: Arc<Pod>,
    /// The runtime's view.
    pub observed: Arc<ObservedPod>,
    /// The API has it no more: who deletes a pod by force has its resources given to others at once, as upstream.
    gone: bool,
}

/// All pods of this node by uid.
#[derive(Default)]
pub struct PodTable {
    entries: RwLock<HashMap<String, PodEntry>>,
}

impl PodTable {
    /// Adds a pod or replaces what is known of it.
    pub fn set(&self, pod: Arc<Pod>, observed: Arc<ObservedPod>) {
        let mut entries = self.entries.write();
        let gone = entries.get(PodExt::uid(&*pod)).is_some_and(|entry| entry.gone);
        entries.insert(PodExt::uid(&*pod).to_owned(), PodEntry { pod, observed, gone });
    }

    /// The API has the pod no more. What it holds is not counted from now on.
    pub fn gone(&self, uid: &str) {
        if let Some(entry) = self.entries.write().get_mut(uid) {
            entry.gone = true;
        }
    }

    /// The pod is allocated other resources: from now on they count.
    pub fn allocate(&self, pod: Arc<Pod>) {
        if let Some(entry) = self.entries.write().get_mut(PodExt::uid(&*pod)) {
            entry.pod = pod;
        }
    }

    /// Removes a pod.
    pub fn remove(&self, uid: &str) {
        self.entries.write().remove(uid);
    }

    /// The pod of that name. When an old pod of the same name is still ending, the newer one.
    pub fn by_name(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let entries = self.entries.read();
        let same = entries
            .values()
            .map(|e| &e.pod)
            .filter(|p| PodExt::namespace(&***p) == namespace && PodExt::name(&***p) == name);
        same.max_by_key(|p| p.metadata.creation_timestamp.clone()).cloned()
    }

    /// All pods.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.entries.read().values().map(|e| e.pod.clone()).collect()
    }

    /// The pods whose resources count.
    pub fn counted(&self) -> Vec<Arc<Pod>> {
        self.entries.read().values().filter(|e| !e.gone).map(|e| e.pod.clone()).collect()
    }

    /// The pods whose resources are taken before this one's: those that have a sandbox, and those made earlier. Two
    /// pods that arrive together must not each count the other, or neither would be admitted.
    pub fn ahead_of(&self, pod: &Pod) -> Vec<Arc<Pod>> {
        let age = |p: &Pod| (p.metadata.creation_timestamp.clone(), PodExt::uid(p).to_owned());
        let own = age(pod);
        let entries = self.entries.read();
        let ahead = entries.values().filter(|e| !e.observed.sandboxes.is_empty() || age(&e.pod) < own);
        ahead.filter(|e| !e.gone).map(|e| e.pod.clone()).collect()
    }

    /// Reads something of a container: the newest, or the one before it.
    pub fn container<T>(
        &self,
        uid: &str,
        name: &str,
        previous: bool,
        read: impl FnOnce(&ContainerStatus) -> T,
    ) -> Option<T> {
        let observed = self.entries.read().get(uid)?.observed.clone();
        if previous { observed.previous(name) } else { observed.container(name) }.map(read)
    }

    /// Id of the ready sandbox.
    pub fn sandbox_id(&self, uid: &str) -> Option<String> {
        let observed = self.entries.read().get(uid)?.observed.clone();
        observed.ready_sandbox().map(|s| s.id.clone())
    }

    /// Log file of a container.
    pub fn log_path(&self, uid: &str, name: &str, previous: bool) -> Option<PathBuf> {
        self.container(uid, name, previous, |c| c.log_path.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{cri_sandbox, pod_json};

    #[test]
    fn one_of_two_is_ahead() {
        let pod = |uid: &str| {
            let mut p = pod_json(serde_json::json!({"containers": []}));
            p.metadata.uid = Some(uid.into());
            Arc::new(p)
        };
        let table = PodTable::default();
        let (a, b) = (pod("a"), pod("b"));
        table.set(a.clone(), Arc::default());
        table.set(b.clone(), Arc::default());
        assert_eq!((table.ahead_of(&a).len(), table.ahead_of(&b).len()), (0, 1));
        table.set(b.clone(), Arc::new(ObservedPod::new(vec![cri_sandbox(0, true)], vec![])));
        assert_eq!(table.ahead_of(&a).len(), 1);
    }

    #[test]
    fn a_pod_that_the_api_has_no_more_does_not_count() {
        let pod = |uid: &str| {
            let mut p = pod_json(serde_json::json!({"containers": []}));
            p.metadata.uid = Some(uid.into());
            Arc::new(p)
        };
        let table = PodTable::default();
        let (old, new) = (pod("a"), pod("b"));
        table.set(old.clone(), Arc::default());
        table.set(new.clone(), Arc::default());
        table.gone("a");
        // Its worker still has to end it.
        table.set(old, Arc::new(ObservedPod::new(vec![cri_sandbox(0, true)], vec![])));
        assert_eq!((table.ahead_of(&new).len(), table.counted().len(), table.pods().len()), (0, 1, 2));
    }
}
