//! Tasks that look at a resource's objects after each change of them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use keelson_api::meta::GroupResource;

use crate::core::Core;
use crate::filter::Filter;

/// After how long a look that left something to do is repeated, without a change that would tell.
const AGAIN: Duration = Duration::from_secs(1);

/// Calls `step` at once and after every change of `resource`, several changes at once being one, until the server is
/// gone; and again soon if `step` says that something is left to do (false).
pub(crate) async fn follow(
    core: Weak<Core>,
    resource: GroupResource,
    step: for<'a> fn(&'a Arc<Core>) -> BoxFuture<'a, bool>,
) {
    let everything = Arc::new(Filter::default());
    loop {
        let Some(strong) = core.upgrade() else { return };
        let Some(cache) = strong.cache.resource(&resource) else { return };
        let (_, _, mut changes) = cache.watch_with_state(everything.clone(), strong.cache.applied());
        drop(cache);
        drop(strong);
        loop {
            let Some(strong) = core.upgrade() else { return };
            let finished = step(&strong).await;
            drop(strong);
            let changed = if finished {
                changes.recv().await.is_some()
            } else {
                tokio::time::timeout(AGAIN, changes.recv()).await.is_ok_and(|change| change.is_some())
                    || !changes.is_closed()
            };
            if !changed {
                break;
            }
            while changes.try_recv().is_ok() {}
        }
    }
}
