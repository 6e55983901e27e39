//! Who is told of a resource's changes.
//!
//! Watchers that select by one value, such as each kubelet of a thousand its own pods by `spec.nodeName`, are kept by
//! that value: a change is shown to those of its object's values, not to all.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::resource::WatchMessage;
use super::{CacheEvent, CachedObject, EventType};
use crate::filter::{Filter, Place};

/// Changes a watcher may be behind before it is dropped.
const QUEUE: usize = 1024;
/// So many may be added before those that have gone are looked for.
const SWEEP: usize = 64;

struct Watcher {
    filter: Arc<Filter>,
    sender: mpsc::Sender<WatchMessage>,
}

/// The running watches of a resource.
#[derive(Default)]
pub struct Watchers {
    /// Those that name no value.
    any: Vec<Watcher>,
    /// The others, by the place and the value that they name.
    keyed: BTreeMap<Place, HashMap<Box<str>, Vec<Watcher>>>,
    /// Added since those that had gone were last looked for, and how many were left then.
    added: usize,
    left: usize,
}

impl Watchers {
    /// One more; its messages, until it no longer keeps up.
    pub fn add(&mut self, filter: Arc<Filter>) -> mpsc::Receiver<WatchMessage> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        // One whose value never changes again is not noticed by a change when it goes.
        self.added += 1;
        if self.added > self.left.max(SWEEP) {
            self.sweep();
        }
        let list = match filter.key() {
            Some((place, value)) => self.keyed.entry(place).or_default().entry(value.into()).or_default(),
            None => &mut self.any,
        };
        list.push(Watcher { filter, sender });
        receiver
    }

    /// Drops those who have gone.
    fn sweep(&mut self) {
        let here = |watcher: &Watcher| !watcher.sender.is_closed();
        self.any.retain(here);
        self.left = self.any.len();
        for lists in self.keyed.values_mut() {
            lists.retain(|_value, list| {
                list.retain(here);
                self.left += list.len();
                !list.is_empty()
            });
        }
        self.added = 0;
    }

    /// Tells those whom a change concerns, and drops those who don't keep up or have gone.
    pub fn tell(&mut self, event: &Arc<CacheEvent>, resource: &str) {
        send(&mut self.any, event, resource);
        for (place, lists) in &mut self.keyed {
            let value = |object: &'_ Option<Arc<CachedObject>>| {
                object.as_deref().map(|object| place.of(object).to_owned())
            };
            let (now, before) = (value(&event.object), value(&event.prev));
            for value in before.iter().chain(now.iter().filter(|now| before.as_ref() != Some(now))) {
                if let Some(list) = lists.get_mut(value.as_str()) {
                    send(list, event, resource);
                    if list.is_empty() {
                        lists.remove(value.as_str());
                    }
                }
            }
        }
    }
}

fn send(watchers: &mut Vec<Watcher>, event: &Arc<CacheEvent>, resource: &str) {
    watchers.retain(|watcher| match classify(&watcher.filter, event) {
        None => !watcher.sender.is_closed(),
        Some(kind) => {
            let sent = watcher.sender.try_send(WatchMessage { kind, event: event.clone() });
            if matches!(sent, Err(mpsc::error::TrySendError::Full(_))) {
                tracing::warn!(resource, "dropping a watcher that does not keep up");
            }
            sent.is_ok()
        }
    });
}

/// What a watcher is told of a change, if anything.
pub fn seen(filter: &Filter, event: Arc<CacheEvent>) -> Option<WatchMessage> {
    Some(WatchMessage { kind: classify(filter, &event)?, event })
}

/// How a watcher sees a change: entering the selection is ADDED, leaving it is DELETED.
fn classify(filter: &Filter, event: &CacheEvent) -> Option<EventType> {
    let now = event.object.as_ref().is_some_and(|object| filter.matches(object));
    let before = event.prev.as_ref().is_some_and(|object| filter.matches(object));
    match (before, now) {
        (false, true) => Some(EventType::Added),
        (true, true) => Some(EventType::Modified),
        (true, false) => Some(EventType::Deleted),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use keelson_api::meta::GroupResource;
    use keelson_api::resources::ResourceTable;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    static TABLE: LazyLock<ResourceTable> = LazyLock::new(ResourceTable::builtin);

    fn filter(selector: &str) -> Arc<Filter> {
        let row = TABLE.get(&GroupResource::new("", "pods")).unwrap();
        Arc::new(Filter::new(row, row, None, "", selector).unwrap())
    }

    fn pod(name: u8, node: u8, revision: u64) -> Arc<CachedObject> {
        let row = TABLE.get(&GroupResource::new("", "pods")).unwrap();
        let json = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{name}"), "namespace": "ns"},
            "spec": {"nodeName": if node == 0 { String::new() } else { format!("n{node}") }},
        });
        let stored = crate::stored::encode(&json).unwrap();
        Arc::new(CachedObject::read(row, &format!("ns/p{name}"), &stored, revision).unwrap())
    }

    const SELECTORS: [&str; 6] = [
        "",
        "spec.nodeName=n1",
        "spec.nodeName=n2",
        "metadata.name=p1",
        "spec.nodeName!=n1",
        "spec.nodeName=n1,metadata.name=p1",
    ];

    proptest! {
        /// Whoever is kept by a value is told what one is told who is asked about every change.
        #[test]
        fn by_value_or_not_is_the_same(
            selectors in prop::collection::vec(0..SELECTORS.len(), 1..8),
            changes in prop::collection::vec((1..3u8, prop::option::of(0..3u8), prop::option::of(0..3u8)), 1..20),
        ) {
            let mut watchers = Watchers::default();
            let filters: Vec<_> = selectors.iter().map(|&selector| filter(SELECTORS[selector])).collect();
            let mut receivers: Vec<_> = filters.iter().map(|filter| watchers.add(filter.clone())).collect();
            for (revision, (name, before, now)) in (1..).zip(changes) {
                let object = |node: Option<u8>| node.map(|node| pod(name, node, revision));
                let event = Arc::new(CacheEvent::new(revision, object(now), object(before)));
                watchers.tell(&event, "pods");
                for (filter, receiver) in filters.iter().zip(&mut receivers) {
                    let told = receiver.try_recv().ok().map(|message| message.kind);
                    prop_assert_eq!(told, classify(filter, &event));
                    prop_assert!(receiver.try_recv().is_err(), "told twice");
                }
            }
        }
    }

    #[test]
    fn those_that_have_gone_are_forgotten() {
        let mut watchers = Watchers::default();
        for number in 0..10_000 {
            drop(watchers.add(filter(&format!("metadata.name=p{number}"))));
        }
        let kept: usize = watchers.keyed.values().map(HashMap::len).sum();
        assert!(kept <= SWEEP + 1, "{kept}");
    }
}
