//! Metrics under upstream's names.

use std::time::Duration;

use bytes::Bytes;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::core::Core;
use crate::request_info::RequestInfo;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    verb: String,
    group: String,
    resource: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

/// All of the API server's metrics.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
    objects: Family<ResourceLabels, Gauge>,
    pub(crate) watches: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        // The encoder adds `_total`.
        registry.register("apiserver_request", "Counter of apiserver requests", requests.clone());
        let durations = Family::new_with_constructor(
            (|| {
                Histogram::new([
                    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0,
                    8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
                ])
            }) as fn() -> Histogram,
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Response latency distribution",
            durations.clone(),
        );
        let objects = Family::default();
        registry.register("apiserver_storage_objects", "Number of stored objects", objects.clone());
        let watches = Gauge::default();
        registry.register("apiserver_longrunning_requests", "Watches that are open", watches.clone());
        Self { registry, requests, durations, objects, watches }
    }
}

impl Metrics {
    /// Counts a request that was answered. Only resources that exist become labels, so that clients can't make
    /// labels up.
    pub(crate) fn observe(&self, info: &RequestInfo, known: bool, code: u16, took: Duration) {
        let text = |s: &str| if known { s.to_owned() } else { String::new() };
        let verb = info.verb.to_ascii_uppercase();
        let labels = RequestLabels {
            verb: verb.clone(),
            group: text(&info.group),
            version: text(&info.version),
            resource: text(&info.resource),
            subresource: text(&info.subresource),
            code: code.into(),
        };
        self.requests.get_or_create(&labels).inc();
        if verb != "WATCH" {
            let labels = DurationLabels { verb, group: text(&info.group), resource: text(&info.resource) };
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    /// The exposition text.
    pub(crate) fn render(&self, core: &Core) -> Bytes {
        for (resource, count) in core.object_counts() {
            let labels = ResourceLabels { resource: resource.to_string() };
            self.objects.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        // Writing into a String cannot fail.
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        text.into()
    }
}
