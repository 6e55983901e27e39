//! Who owns whom, as far as the watches have told.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::meta;

/// The finalizer of an object whose dependents shall live on.
pub const ORPHAN: &str = "orphan";
/// The finalizer of an object that goes after its dependents.
pub const FOREGROUND: &str = "foregroundDeletion";

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Group and version by which it is known.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace, or nothing.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// An object of the graph.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it is.
    pub identity: Identity,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// The uids of those that it owns.
    pub dependents: HashSet<String>,
    /// Seen by a watch; else it is known from references only.
    pub observed: bool,
    /// Its deletion has begun.
    pub deleting: bool,
    /// It is being deleted and goes after its dependents.
    pub deleting_dependents: bool,
    /// It is being deleted and its dependents shall live on.
    pub orphaning: bool,
}

/// Something to look into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Whether the object with this uid must be deleted.
    Delete(String),
    /// The dependents of the object with this uid must be let go.
    Orphan(String),
}

/// The graph.
#[derive(Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
}

fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

impl Graph {
    /// One object.
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The dependents of an object.
    pub fn dependents(&self, uid: &str) -> Vec<Node> {
        let dependents = self.nodes.get(uid).map(|node| &node.dependents);
        dependents.into_iter().flatten().filter_map(|uid| self.nodes.get(uid)).cloned().collect()
    }

    /// A watch has brought an object or its new version.
    pub fn observe(&mut self, api_version: &str, kind: &str, meta: &ObjectMeta) -> Vec<Work> {
        let uid = meta::uid(meta).to_owned();
        let identity = Identity {
            api_version: api_version.into(),
            kind: kind.into(),
            namespace: meta::namespace(meta).into(),
            name: meta::name(meta).into(),
            uid: uid.clone(),
        };
        let owners = meta.owner_references.clone().unwrap_or_default();
        let deleting = meta.deletion_timestamp.is_some();
        let before = self.nodes.remove(&uid);
        let node = Node {
            identity,
            owners: owners.clone(),
            dependents: before.as_ref().map(|n| n.dependents.clone()).unwrap_or_default(),
            observed: true,
            deleting,
            deleting_dependents: deleting && has_finalizer(meta, FOREGROUND),
            orphaning: deleting && has_finalizer(meta, ORPHAN),
        };
        let mut work = Vec::new();
        let old_owners = before.as_ref().map(|n| n.owners.clone()).unwrap_or_default();
        if node.orphaning && !before.as_ref().is_some_and(|n| n.orphaning) {
            work.push(Work::Orphan(uid.clone()));
        }
        if node.deleting_dependents && !before.as_ref().is_some_and(|n| n.deleting_dependents) {
            work.extend(node.dependents.iter().cloned().map(Work::Delete));
            work.push(Work::Delete(uid.clone()));
        }
        let namespace = node.identity.namespace.clone();
        self.nodes.insert(uid.clone(), node);
        self.link(&uid, &namespace, &old_owners, &owners, &mut work);
        work
    }

    fn link(
        &mut self,
        uid: &str,
        namespace: &str,
        before: &[OwnerReference],
        now: &[OwnerReference],
        work: &mut Vec<Work>,
    ) {
        for gone in before.iter().filter(|old| !now.iter().any(|new| new.uid == old.uid)) {
            if let Some(owner) = self.nodes.get_mut(&gone.uid) {
                owner.dependents.remove(uid);
                if owner.deleting_dependents {
                    work.push(Work::Delete(gone.uid.clone()));
                }
            }
        }
        for reference in now {
            let blocked = |refs: &[OwnerReference]| {
                refs.iter().any(|r| r.uid == reference.uid && r.block_owner_deletion == Some(true))
            };
            let unblocked = blocked(before) && !blocked(now);
            let owner = self.nodes.entry(reference.uid.clone()).or_insert_with(|| {
                // Not seen yet, perhaps not there: whether it is must be asked.
                work.push(Work::Delete(reference.uid.clone()));
                Node {
                    identity: Identity {
                        api_version: reference.api_version.clone(),
                        kind: reference.kind.clone(),
                        namespace: namespace.into(),
                        name: reference.name.clone(),
                        uid: reference.uid.clone(),
                    },
                    owners: Vec::new(),
                    dependents: HashSet::new(),
                    observed: false,
                    deleting: false,
                    deleting_dependents: false,
                    orphaning: false,
                }
            });
            let is_new = owner.dependents.insert(uid.into());
            if owner.deleting_dependents {
                if is_new {
                    work.push(Work::Delete(uid.into()));
                }
                if unblocked {
                    work.push(Work::Delete(reference.uid.clone()));
                }
            }
        }
    }

    /// An object is gone: its dependents may have to go too, and owners that waited for it may go on.
    pub fn remove(&mut self, uid: &str) -> Vec<Work> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut work: Vec<Work> = node.dependents.iter().cloned().map(Work::Delete).collect();
        for reference in &node.owners {
            let Some(owner) = self.nodes.get_mut(&reference.uid) else { continue };
            owner.dependents.remove(uid);
            if owner.deleting_dependents {
                work.push(Work::Delete(reference.uid.clone()));
            } else if !owner.observed && owner.dependents.is_empty() {
                // Known from this reference only.
                self.nodes.remove(&reference.uid);
            }
        }
        work
    }

    /// An object that no watch has seen was asked for and is not there.
    pub fn remove_unobserved(&mut self, uid: &str) -> Vec<Work> {
        if self.nodes.get(uid).is_some_and(|node| !node.observed) { self.remove(uid) } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn meta(uid: &str, with: Value) -> ObjectMeta {
        let mut meta = json!({"name": uid, "uid": uid, "namespace": "ns"});
        for (key, value) in with.as_object().unwrap() {
            meta[key] = value.clone();
        }
        serde_json::from_value(meta).unwrap()
    }

    fn owned_by(owner: &str, blocking: bool) -> Value {
        json!({"ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": owner, "uid": owner,
                                    "blockOwnerDeletion": blocking}]})
    }

    fn delete(uid: &str) -> Work {
        Work::Delete(uid.into())
    }

    #[test]
    fn an_unknown_owner_is_asked_for_and_its_absence_dooms_the_dependents() {
        let mut graph = Graph::default();
        assert_eq!(graph.observe("v1", "K", &meta("b", owned_by("a", false))), [delete("a")]);
        assert_eq!(graph.remove_unobserved("a"), [delete("b")]);
        assert!(graph.remove_unobserved("b").is_empty());
    }

    #[test]
    fn a_known_owner_dooms_its_dependents_when_it_goes() {
        let mut graph = Graph::default();
        graph.observe("v1", "K", &meta("a", json!({})));
        assert!(graph.observe("v1", "K", &meta("b", owned_by("a", false))).is_empty());
        assert_eq!(graph.remove("a"), [delete("b")]);
    }

    #[test]
    fn foreground_deletion_starts_with_the_dependents_and_ends_with_the_owner() {
        let mut graph = Graph::default();
        graph.observe("v1", "K", &meta("a", json!({})));
        graph.observe("v1", "K", &meta("b", owned_by("a", true)));
        let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]});
        assert_eq!(graph.observe("v1", "K", &meta("a", going.clone())), [delete("b"), delete("a")]);
        assert!(graph.observe("v1", "K", &meta("a", going)).is_empty());
        assert_eq!(graph.remove("b"), [delete("a")]);
    }

    #[test]
    fn orphaning_and_released_dependents() {
        let mut graph = Graph::default();
        graph.observe("v1", "K", &meta("a", json!({})));
        graph.observe("v1", "K", &meta("b", owned_by("a", true)));
        let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [ORPHAN]});
        assert_eq!(graph.observe("v1", "K", &meta("a", going)), [Work::Orphan("a".into())]);
        graph.observe("v1", "K", &meta("b", json!({})));
        assert!(graph.remove("a").is_empty());
    }
}
