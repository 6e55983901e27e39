//! Changes of Services and EndpointSlices into the zone.

use futures::{Stream, StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::SharedZone;
use crate::zone::{ObjectKey, ServiceEntry, SliceEntry};

/// Keeps `zone` like the API until `shutdown`. Failures are logged and tried again with back-off; meanwhile
/// the zone stays as it was.
pub async fn run(client: Client, zone: SharedZone, shutdown: CancellationToken) {
    let services = watcher(Api::<Service>::all(client.clone()), watcher::Config::default()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client), watcher::Config::default()).default_backoff();
    let both = futures::future::join(
        feed(services, |change| service_change(&zone, change)),
        feed(slices, |change| slice_change(&zone, change)),
    );
    tokio::select! {
        _ = both => {}
        () = shutdown.cancelled() => {}
    }
}

/// A step of a watch, without the watcher's bookkeeping.
enum Change<K> {
    Apply(K),
    Delete(K),
    Replace(Vec<K>),
}

async fn feed<K>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    mut change: impl FnMut(Change<K>),
) where
    K: 'static,
{
    pin_mut!(events);
    let mut listed = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(object)) => change(Change::Apply(object)),
            Ok(Event::Delete(object)) => change(Change::Delete(object)),
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => listed.push(object),
            Ok(Event::InitDone) => change(Change::Replace(std::mem::take(&mut listed))),
            Err(error) => {
                tracing::warn!(kind = std::any::type_name::<K>(), %error, "watch failed, trying again");
            }
        }
    }
}

fn service_change(zone: &SharedZone, change: Change<Service>) {
    match change {
        Change::Apply(service) => {
            let key = ObjectKey::of(&service.metadata);
            match ServiceEntry::from_object(&service) {
                Some(entry) => zone.write().apply_service(key, entry),
                None => zone.write().delete_service(&key),
            }
        }
        Change::Delete(service) => zone.write().delete_service(&ObjectKey::of(&service.metadata)),
        Change::Replace(all) => {
            let entry = |s: &Service| Some((ObjectKey::of(&s.metadata), ServiceEntry::from_object(s)?));
            zone.write().replace_services(all.iter().filter_map(entry).collect());
        }
    }
}

fn slice_change(zone: &SharedZone, change: Change<EndpointSlice>) {
    match change {
        Change::Apply(slice) => {
            let key = ObjectKey::of(&slice.metadata);
            match SliceEntry::from_object(&slice) {
                Some(entry) => zone.write().apply_slice(key, entry),
                None => zone.write().delete_slice(&key),
            }
        }
        Change::Delete(slice) => zone.write().delete_slice(&ObjectKey::of(&slice.metadata)),
        Change::Replace(all) => {
            let entry = |s: &EndpointSlice| Some((ObjectKey::of(&s.metadata), SliceEntry::from_object(s)?));
            zone.write().replace_slices(all.iter().filter_map(entry).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hickory_proto::rr::RecordType;
    use parking_lot::RwLock;
    use serde_json::json;

    use super::*;
    use crate::zone::{Area, Found};
    use crate::{DnsConfig, Zone};

    fn service(name: &str, spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec}))
            .unwrap()
    }

    async fn after(zone: &SharedZone, events: Vec<Event<Service>>) {
        let stream = futures::stream::iter(events.into_iter().map(Ok));
        feed(stream, |change| service_change(zone, change)).await;
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
