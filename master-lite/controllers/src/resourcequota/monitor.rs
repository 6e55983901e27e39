//! Watches the resources that quotas limit, and no other. Nothing of their objects is kept.

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;

use futures::StreamExt as _;
use keelson_api::meta::GroupResource;
use keelson_client::meta;
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::discovery::discover;
use crate::error::Result;

/// Those whose every change may cost or give back something, where others only count.
const CHANGEABLE: &[&str] = &["persistentvolumeclaims", "resourceclaims"];
/// Pods and Services are known from the caches that all controllers share.
const SHARED: &[&str] = &["pods", "services"];
/// How long a resource that is not served is waited for before the next look.
const REDISCOVER: std::time::Duration = std::time::Duration::from_secs(30);

/// The watches.
pub(super) struct Monitor {
    client: Client,
    wanted: watch::Sender<BTreeSet<GroupResource>>,
    /// What the server serves, as far as it was asked for.
    served: Mutex<HashMap<GroupResource, ApiResource>>,
}

impl Monitor {
    pub(super) fn new(client: Client) -> Self {
        Self { client, wanted: watch::Sender::default(), served: Mutex::default() }
    }

    /// These resources shall be watched from now on.
    pub(super) fn watch_only(&self, resources: impl Iterator<Item = GroupResource>) {
        let wanted: BTreeSet<GroupResource> = resources
            .filter(|resource| !resource.group.is_empty() || !SHARED.contains(&resource.resource.as_str()))
            .collect();
        self.wanted.send_if_modified(|current| {
            let changed = *current != wanted;
            *current = wanted;
            changed
        });
    }

    /// How a resource is reached; `None` if it is not served.
    pub(super) async fn find(&self, resource: &GroupResource) -> Result<Option<ApiResource>> {
        if let Some(found) = self.served.lock().get(resource) {
            return Ok(Some(found.clone()));
        }
        let (all, _failures) = discover(&self.client).await?;
        let mut served = self.served.lock();
        *served = all
            .into_iter()
            .filter(|one| one.namespaced)
            .map(|one| {
                let name = GroupResource::new(&one.resource.group, &one.resource.plural);
                (name, one.resource)
            })
            .collect();
        Ok(served.get(resource).cloned())
    }

    /// Watches what is wanted until `shutdown`; `changed` hears of namespaces where objects went (or, where that
    /// matters, changed).
    pub(super) async fn run(
        &self,
        shutdown: CancellationToken,
        changed: impl Fn(&GroupResource, &str) + Clone + Send + Sync + 'static,
    ) {
        let mut wanted = self.wanted.subscribe();
        let mut watched: HashMap<GroupResource, CancellationToken> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let want = wanted.borrow_and_update().clone();
            watched.retain(|resource, token| {
                let keep = want.contains(resource);
                if !keep {
                    token.cancel();
                }
                keep
            });
            let mut missing = false;
            for resource in want {
                if watched.contains_key(&resource) {
                    continue;
                }
                match self.find(&resource).await {
                    Ok(Some(served)) => {
                        let token = shutdown.child_token();
                        let watch = follow(self.client.clone(), resource.clone(), served, changed.clone());
                        let stop = token.clone();
                        tasks.spawn(async move {
                            tokio::select! { () = stop.cancelled() => {}, () = watch => {} }
                        });
                        watched.insert(resource, token);
                    }
                    Ok(None) => missing = true,
                    Err(error) => {
                        tracing::debug!(%error, "discovery failed, will retry");
                        missing = true;
                    }
                }
            }
            let again = async {
                if missing {
                    tokio::time::sleep(REDISCOVER).await;
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                // The sender lives as long as self.
                _ = wanted.changed() => {}
                () = again => {}
                Some(_ended) = tasks.join_next(), if !tasks.is_empty() => {}
            }
        }
    }
}

async fn follow(
    client: Client,
    resource: GroupResource,
    served: ApiResource,
    changed: impl Fn(&GroupResource, &str) + Send,
) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &served);
    let every_change = CHANGEABLE.contains(&resource.resource.as_str());
    let mut events = pin!(watcher(api, watcher::Config::default().any_semantic()).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Delete(object)) => changed(&resource, meta::namespace(&object.metadata)),
            Ok(watcher::Event::Apply(object)) if every_change => {
                changed(&resource, meta::namespace(&object.metadata));
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, %resource, "watch failed, will retry"),
        }
    }
}
