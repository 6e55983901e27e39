//! Changes of Services and EndpointSlices, as the zone takes them.

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};

use crate::zone::{Change, ObjectKey, ServiceEntry, SliceEntry, ZoneChange};

/// What the API says of Services and EndpointSlices, for ever. Failures are logged and tried again with back-off.
pub fn changes(client: Client) -> impl Stream<Item = ZoneChange> {
    let services = watcher(Api::<Service>::all(client.clone()), watcher::Config::default()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client), watcher::Config::default()).default_backoff();
    futures::stream::select(
        follow(services, |service| (ObjectKey::of(&service.metadata), ServiceEntry::from_object(service)))
            .map(ZoneChange::Services),
        follow(slices, |slice| (ObjectKey::of(&slice.metadata), SliceEntry::from_object(slice)))
            .map(ZoneChange::Slices),
    )
}

/// The steps of a watch without the watcher's bookkeeping. `read` tells what the zone keeps of an object, if anything.
fn follow<K: 'static, E>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    read: impl Fn(&K) -> (ObjectKey, Option<E>),
) -> impl Stream<Item = Change<E>> {
    let mut listed = Vec::new();
    events.filter_map(move |event| {
        let change = match event {
            Ok(Event::Apply(object)) => match read(&object) {
                (key, Some(entry)) => Some(Change::Apply(key, entry)),
                (key, None) => Some(Change::Delete(key)),
            },
            Ok(Event::Delete(object)) => Some(Change::Delete(read(&object).0)),
            Ok(Event::Init) => {
                listed.clear();
                None
            }
            Ok(Event::InitApply(object)) => {
                if let (key, Some(entry)) = read(&object) {
                    listed.push((key, entry));
                }
                None
            }
            Ok(Event::InitDone) => Some(Change::Replace(std::mem::take(&mut listed))),
            Err(error) => {
                tracing::warn!(kind = std::any::type_name::<K>(), %error, "watch failed, trying again");
                None
            }
        };
        futures::future::ready(change)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hickory_proto::rr::RecordType;
    use parking_lot::RwLock;
    use serde_json::json;

    use super::*;
    use crate::zone::{Area, Found};
    use crate::{DnsConfig, SharedZone, Zone};

    fn service(name: &str, spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec}))
            .unwrap()
    }

    async fn after(zone: &SharedZone, events: Vec<Event<Service>>) {
        let stream = futures::stream::iter(events.into_iter().map(Ok));
        let read = |service: &Service| (ObjectKey::of(&service.metadata), ServiceEntry::from_object(service));
        follow(stream, read)
            .for_each(|change| async {
                // As the worker gets it.
                let sent = serde_json::to_vec(&ZoneChange::Services(change)).unwrap();
                zone.write().apply(serde_json::from_slice(&sent).unwrap());
            })
            .await;
    }

    fn exists(zone: &SharedZone, name: &str) -> bool {
        let zone = zone.read();
        let name = hickory_proto::rr::Name::from_ascii(format!("{name}.default.svc.cluster.local.")).unwrap();
        let Area::Cluster(labels) = zone.area(&name) else { panic!("{name}") };
        matches!(zone.lookup(&labels, RecordType::A), Found::Records { .. })
    }

    #[tokio::test]
    async fn the_zone_follows_the_watch() {
        let zone: SharedZone = Arc::new(RwLock::new(Zone::new(&DnsConfig::default()).unwrap()));
        let a = service("a", json!({"clusterIP": "10.96.0.2"}));
        let b = service("b", json!({"clusterIP": "10.96.0.3"}));
        after(&zone, vec![Event::Init, Event::InitApply(a.clone())]).await;
        assert!(!exists(&zone, "a"), "a list that isn't whole must not be taken for one");
        after(&zone, vec![Event::Init, Event::InitApply(a.clone()), Event::InitDone]).await;
        assert!(exists(&zone, "a"));
        after(&zone, vec![Event::Apply(b.clone())]).await;
        assert!(exists(&zone, "b"));
        // A service that loses its address has no name any more.
        after(&zone, vec![Event::Apply(service("b", json!({})))]).await;
        assert!(!exists(&zone, "b"));
        after(&zone, vec![Event::Apply(b.clone()), Event::Delete(a)]).await;
        assert!(!exists(&zone, "a") && exists(&zone, "b"));
        // After a lost watch, what is not listed is gone.
        after(&zone, vec![Event::Init, Event::InitDone]).await;
        assert!(!exists(&zone, "b"));
    }
}
