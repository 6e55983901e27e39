//! What the API changed since the maps were last brought up to date: endpoints of some Services, or more than that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;
use tokio::sync::Notify;

use crate::compile::SERVICE_NAME;

/// Namespace and name.
pub(crate) type Name = (String, String);

/// Notes changes as they are seen, for one who takes them.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    state: Mutex<State>,
    noted: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Something other than endpoints changed.
    more: bool,
    /// The list of EndpointSlices is being read anew: until all are there, what is known of them is not enough.
    listing: bool,
    /// Services of which EndpointSlices changed.
    touched: BTreeSet<Name>,
    /// The Service of each EndpointSlice, and the other way round.
    service_of: HashMap<Name, Name>,
    slices_of: BTreeMap<Name, BTreeSet<String>>,
}

/// What changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// EndpointSlices of these Services, each with the names of all that it has now.
    Endpoints(Vec<(Name, Vec<String>)>),
    /// Anything.
    Anything,
}

impl Changes {
    /// Notes that anything may have changed.
    pub(crate) fn anything(&self) {
        self.lock().more = true;
        self.noted.notify_one();
    }

    /// Notes what happened to EndpointSlices.
    pub(crate) fn endpoints(&self, event: &Event<EndpointSlice>) {
        if self.lock().see(event) {
            self.noted.notify_one();
        }
    }

    /// Waits until something is noted.
    pub(crate) async fn noted(&self) {
        self.noted.notified().await;
    }

    /// Takes what was noted since the last time.
    pub(crate) fn take(&self) -> Change {
        let mut state = self.lock();
        let touched = std::mem::take(&mut state.touched);
        if std::mem::take(&mut state.more) || state.listing {
            return Change::Anything;
        }
        let slices = |service: &Name| state.slices_of.get(service).into_iter().flatten().cloned().collect();
        Change::Endpoints(
            touched
                .into_iter()
                .map(|service| {
                    let slices = slices(&service);
                    (service, slices)
                })
                .collect(),
        )
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change of the state is whole before anything could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether it is time to act.
    fn see(&mut self, event: &Event<EndpointSlice>) -> bool {
        match event {
            Event::Init => {
                (self.service_of, self.slices_of) = (HashMap::new(), BTreeMap::new());
                (self.listing, self.more) = (true, true);
                false
            }
            Event::InitApply(slice) => {
                self.set(slice, true);
                false
            }
            Event::InitDone => {
                (self.listing, self.more) = (false, true);
                true
            }
            Event::Apply(slice) => {
                self.set(slice, true);
                true
            }
            Event::Delete(slice) => {
                self.set(slice, false);
                true
            }
        }
    }

    /// Ties an EndpointSlice to its Service, or lets it go; touches the one that it was tied to as well.
    fn set(&mut self, slice: &EndpointSlice, there: bool) {
        let meta = &slice.metadata;
        let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else { return };
        let own = (namespace.clone(), name.clone());
        let label = meta.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)).filter(|_| there);
        let service = label.map(|service| (namespace.clone(), service.clone()));
        if let Some(before) = self.service_of.remove(&own) {
            if let Some(slices) = self.slices_of.get_mut(&before) {
                slices.remove(name);
                if slices.is_empty() {
                    self.slices_of.remove(&before);
                }
            }
            self.touched.insert(before);
        }
        if let Some(service) = service {
            self.slices_of.entry(service.clone()).or_default().insert(name.clone());
            self.service_of.insert(own, service.clone());
            self.touched.insert(service);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{from_value, json};

    use super::*;

    fn slice(name: &str, service: &str) -> EndpointSlice {
        let labels = json!({SERVICE_NAME: service});
        from_value(json!({
            "metadata": {"name": name, "namespace": "d", "labels": labels},
            "addressType": "IPv4", "endpoints": [],
        }))
        .unwrap()
    }

    fn endpoints(expected: &[(&str, &[&str])]) -> Change {
        let name = |service: &str| ("d".to_owned(), service.to_owned());
        let owned = |slices: &[&str]| slices.iter().map(|slice| (*slice).to_owned()).collect();
        Change::Endpoints(expected.iter().map(|(service, slices)| (name(service), owned(slices))).collect())
    }

    #[test]
    fn only_touched_services_are_told_with_all_they_have() {
        let changes = Changes::default();
        for event in [
            Event::Init,
            Event::InitApply(slice("a-1", "a")),
            Event::InitApply(slice("b-1", "b")),
            Event::InitDone,
        ] {
            changes.endpoints(&event);
        }
        assert_eq!(changes.take(), Change::Anything);
        assert_eq!(changes.take(), endpoints(&[]));
        changes.endpoints(&Event::Apply(slice("a-2", "a")));
        assert_eq!(changes.take(), endpoints(&[("a", &["a-1", "a-2"])]));
        // An EndpointSlice that moves touches both.
        changes.endpoints(&Event::Apply(slice("a-2", "b")));
        assert_eq!(changes.take(), endpoints(&[("a", &["a-1"]), ("b", &["a-2", "b-1"])]));
        changes.endpoints(&Event::Delete(slice("a-1", "a")));
        assert_eq!(changes.take(), endpoints(&[("a", &[])]));
        changes.endpoints(&Event::Apply(slice("a-1", "a")));
        changes.anything();
        assert_eq!(changes.take(), Change::Anything);
        assert_eq!(changes.take(), endpoints(&[]));
    }

    #[test]
    fn while_a_list_is_read_nothing_is_known_well_enough() {
        let changes = Changes::default();
        changes.endpoints(&Event::Init);
        assert_eq!(changes.take(), Change::Anything);
        changes.endpoints(&Event::InitApply(slice("a-1", "a")));
        assert_eq!(changes.take(), Change::Anything);
        changes.endpoints(&Event::InitDone);
        assert_eq!(changes.take(), Change::Anything);
        changes.endpoints(&Event::Apply(slice("a-1", "a")));
        assert_eq!(changes.take(), endpoints(&[("a", &["a-1"])]));
    }
}
