//! What every request shares.

use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use keelson_api::meta::GroupResource;
use keelson_api::resources::{Resource, ResourceTable};
use keelson_store::Store;
use parking_lot::RwLock;

use crate::aggregator::Aggregator;
use crate::allocate::Allocators;
use crate::cache::WatchCache;
use crate::extension::Extensions;
use crate::in_flight::InFlight;
use crate::metrics::Metrics;
use crate::negotiate::Form;
use crate::present::{IncludeObject, Presenter};

/// Answers paths that are no resources, after authorization: `None` if the path is not its own.
pub type PathHandler = Arc<dyn Fn(&str) -> Option<http::Response<crate::extension::Body>> + Send + Sync>;

/// The server's state.
pub struct Core {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Arc<WatchCache>,
    pub(crate) table: RwLock<Arc<ResourceTable>>,
    pub(crate) extensions: Extensions,
    pub(crate) allocators: Allocators,
    pub(crate) aggregator: Aggregator,
    pub(crate) metrics: Metrics,
    pub(crate) paths: Vec<PathHandler>,
    pub(crate) in_flight: InFlight,
    pub(crate) cache_task: tokio::task::JoinHandle<()>,
    /// What runs as long as the server does.
    pub(crate) tasks: OnceLock<[tokio::task::JoinHandle<()>; 2]>,
}

/// The server, for plug-ins that are made before it is: empty until it is put together.
#[derive(Clone, Default)]
pub struct LateCore(Arc<OnceLock<Weak<Core>>>);

impl LateCore {
    /// The server, if it is there.
    pub fn get(&self) -> Option<Arc<Core>> {
        self.0.get()?.upgrade()
    }

    pub(crate) fn set(&self, core: &Arc<Core>) {
        // Only the one server that a set of plug-ins was made for calls this, once.
        let _ = self.0.set(Arc::downgrade(core));
    }
}

impl Core {
    /// Where objects rest.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// What reads are served from.
    pub fn cache(&self) -> &WatchCache {
        &self.cache
    }

    /// The table of resources as it is now. Custom resources come and go: a request keeps the table it began with.
    pub fn table(&self) -> Arc<ResourceTable> {
        self.table.read().clone()
    }

    /// Replaces the table.
    pub(crate) fn set_table(&self, table: ResourceTable) {
        *self.table.write() = Arc::new(table);
        self.aggregator.table_changed.notify_one();
    }

    /// What is plugged in.
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// Pools of addresses and ports.
    pub fn allocators(&self) -> &Allocators {
        &self.allocators
    }

    /// Shows objects as they are, in a version.
    pub fn presenter<'a>(&self, row: &'a Resource, version: &'a str) -> Presenter<'a> {
        Presenter { row, version, form: Form::JSON, include: IncludeObject::Metadata }
    }

    /// Row under which the objects of a view rest.
    pub fn storage_row(&self, row: &Arc<Resource>) -> Arc<Resource> {
        self.table().get(&row.storage).unwrap_or(row).clone()
    }

    /// The text of /metrics.
    pub fn render_metrics(&self) -> Bytes {
        self.metrics.render(self)
    }

    /// Number of stored objects by resource.
    pub fn object_counts(&self) -> Vec<(GroupResource, usize)> {
        self.table()
            .rows()
            .iter()
            .filter_map(|row| {
                let resource = row.group_resource();
                self.cache.resource(&resource).map(|cache| (resource, cache.len()))
            })
            .collect()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.cache_task.abort();
        self.tasks.get().into_iter().flatten().for_each(tokio::task::JoinHandle::abort);
        self.aggregator.leave();
    }
}
