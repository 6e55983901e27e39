//! Whether the server of an APIService answers (`pkg/controllers/status/remote`).

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use keelson_api::meta::GroupResource;
use serde_json::Value;
use tokio::sync::mpsc;

use super::document::{self, Document};
use super::remote::{Remote, Spec};
use super::{Condition, api_services};
use crate::cache::WatchMessage;
use crate::core::Core;
use crate::extension::ObjectReader as _;
use crate::filter::Filter;
use crate::kubelet_proxy::service::{port_name, slices};

/// How often one looks without being told of a change: nobody tells of a server that hangs.
const INTERVAL: Duration = Duration::from_secs(30);
/// First pause after a failure; each further one doubles it, up to the interval.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Requests at a time, of which one must succeed: they go to any of the service's pods.
const ATTEMPTS: usize = 5;
/// Time for the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks after one APIService until it is told to end or the server is gone.
pub(super) async fn attend(core: Weak<Core>, remote: Arc<Remote>) {
    let mut failures = 0;
    loop {
        let Some(strong) = core.upgrade() else { return };
        // Before the look, so that no change goes unseen.
        let mut service = changes(&strong, &GroupResource::new("", "services"), &remote.spec);
        let slices = GroupResource::new("discovery.k8s.io", "endpointslices");
        let mut endpoints = changes(&strong, &slices, &remote.spec);
        let good = look(&strong, &remote).await;
        drop(strong);
        failures = if good { 0 } else { failures + 1 };
        tokio::select! {
            () = remote.changed.notified() => {}
            () = next(&mut service) => {}
            () = next(&mut endpoints) => {}
            () = tokio::time::sleep(pause(failures)) => {}
        }
    }
}

fn pause(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => INTERVAL,
        Some(doublings) => FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(doublings.min(16))).min(INTERVAL),
    }
}

/// Ends with the next change; never, if nobody tells.
async fn next(changes: &mut Option<mpsc::Receiver<WatchMessage>>) {
    match changes {
        Some(changes) => drop(changes.recv().await),
        None => std::future::pending().await,
    }
}

/// Changes of the service, or of what belongs to it by its label.
fn changes(core: &Core, resource: &GroupResource, spec: &Spec) -> Option<mpsc::Receiver<WatchMessage>> {
    let cache = core.cache.resource(resource)?;
    let row = cache.row();
    let namespace = Some(spec.namespace.clone());
    let filter = if resource.resource == "services" {
        Filter::new(row, row, namespace, "", "").map(|filter| filter.with_name(&spec.service))
    } else {
        let selector = format!("kubernetes.io/service-name={}", spec.service);
        Filter::new(row, row, namespace, &selector, "")
    };
    // A name that is no label's value is no service's either.
    let (_, _, changes) = cache.watch_with_state(Arc::new(filter.ok()?), core.cache.applied());
    Some(changes)
}

/// One look. False if another should follow soon.
async fn look(core: &Core, remote: &Remote) -> bool {
    let condition = check(core, remote).await;
    let Some(object) = core.cache.get(&api_services(), None, &remote.spec.name) else { return true };
    if let Err(error) = condition.write(core, &object).await {
        tracing::warn!(service = %remote.spec.name, %error, "writing the availability of an APIService failed");
        return false;
    }
    if !condition.is_available() {
        *remote.document.write() = Document::default();
        return false;
    }
    match document::fetch(core, remote).await {
        Ok(document) => {
            *remote.document.write() = document;
            true
        }
        Err(error) => {
            tracing::debug!(service = %remote.spec.name, error, "discovery of an APIService failed");
            *remote.document.write() = Document::default();
            false
        }
    }
}

async fn check(core: &Core, remote: &Remote) -> Condition {
    let Spec { namespace, service, .. } = &remote.spec;
    let object = core.cache.get(&GroupResource::new("", "services"), Some(namespace), service);
    let slices = slices(&*core.cache, namespace, service);
    if let Some(missing) = missing(&remote.spec, object.as_deref(), &slices) {
        return missing;
    }
    match answers(core, remote).await {
        Ok(()) => Condition { status: "True", reason: "Passed", message: "all checks passed".to_owned() },
        Err(message) => Condition { status: "False", reason: "FailedDiscoveryCheck", message },
    }
}

/// What is missing before the server can even be asked.
fn missing(spec: &Spec, service: Option<&Value>, slices: &[Arc<Value>]) -> Option<Condition> {
    let Spec { namespace, service: name, port, .. } = spec;
    let failed = |reason, message| Some(Condition { status: "False", reason, message });
    let Some(service) = service else {
        return failed("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
    };
    if !matches!(service["spec"]["type"].as_str(), Some("ClusterIP" | "") | None) {
        return None;
    }
    let Some(port_name) = port_name(service, u64::from(*port)) else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return failed("ServicePortError", message);
    };
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return failed("EndpointsNotFound", message);
    }
    if !slices.iter().any(|slice| has_ready_endpoint(slice, port_name)) {
        let message = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        return failed("MissingEndpoints", message);
    }
    None
}

fn has_ready_endpoint(slice: &Value, port_name: &str) -> bool {
    let mut endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let mut ports = slice["ports"].as_array().into_iter().flatten();
    endpoints.any(|endpoint| endpoint["conditions"]["ready"] != false)
        && ports.any(|port| port["name"].as_str().unwrap_or_default() == port_name && !port["port"].is_null())
}

/// Asks for the document that every server has of a version.
async fn answers(core: &Core, remote: &Remote) -> Result<(), String> {
    let url = format!("https://{}{}", remote.spec.authority(), remote.spec.path());
    let ask = || async {
        let path = remote.spec.path();
        match tokio::time::timeout(PATIENCE, remote.get(core, &path, "application/json")).await {
            Ok(Ok((status, ..))) if status.is_success() => Ok(()),
            Ok(Ok((status, ..))) => {
                let code = status.as_u16();
                Err(format!("failing or missing response from {url}: bad status from {url}: {code}"))
            }
            Ok(Err(error)) => Err(format!("failing or missing response from {url}: {error}")),
            Err(_elapsed) => Err(format!("timed out waiting for {url}")),
        }
    };
    let mut asked: FuturesUnordered<_> = (0..ATTEMPTS).map(|_| ask()).collect();
    let mut last = Ok(());
    while let Some(outcome) = asked.next().await {
        last = outcome;
        if last.is_ok() {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reasons_are_upstreams() {
        let object = json!({"spec": {"group": "g", "version": "v1", "service": {"namespace": "n", "name": "s", "port": 7443}}});
        let spec = Spec::read(&object).unwrap();
        let service = |ports: Value| json!({"spec": {"type": "ClusterIP", "ports": ports}});
        let right = service(json!([{"name": "web", "port": 7443}]));
        let slice = |ready: Value, name: &str| {
            Arc::new(json!({"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}],
                            "ports": [{"name": name, "port": 443}]}))
        };
        let told = |service: Option<&Value>, slices: &[Arc<Value>]| {
            missing(&spec, service, slices).map(|condition| (condition.reason, condition.message))
        };
        let said = |reason, message: &str| Some((reason, message.to_owned()));
        assert_eq!(told(None, &[]), said("ServiceNotFound", "service/s in \"n\" is not present"));
        assert_eq!(
            told(Some(&service(json!([{"port": 443}]))), &[]),
            said("ServicePortError", "service/s in \"n\" is not listening on port 7443")
        );
        assert_eq!(
            told(Some(&right), &[]),
            said("EndpointsNotFound", "cannot find endpointslices for service/s in \"n\"")
        );
        for wrong in [slice(json!(false), "web"), slice(json!(true), "other")] {
            assert_eq!(
                told(Some(&right), &[wrong]),
                said(
                    "MissingEndpoints",
                    "endpointslices for service/s in \"n\" have no addresses with port name \"web\""
                )
            );
        }
        assert_eq!(told(Some(&right), &[slice(Value::Null, "web")]), None);
        assert_eq!(told(Some(&json!({"spec": {"type": "ExternalName"}})), &[]), None);
    }

    #[test]
    fn pauses_grow() {
        assert_eq!(pause(0), INTERVAL);
        assert_eq!(pause(1), Duration::from_millis(50));
        assert_eq!(pause(4), Duration::from_millis(400));
        assert_eq!(pause(u32::MAX), INTERVAL);
    }
}
