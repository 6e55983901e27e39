//! Sends `pod.status`: the smallest strategic merge patch from what the API has to what is true.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Map, Value, json};

use crate::pods::podext::PodExt;

/// Fields of `pod.status` that the kubelet writes, with lists that are replaced as a whole.
const OWNED: [&str; 15] = [
    "phase",
    "reason",
    "message",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "qosClass",
    "startTime",
    "observedGeneration",
    "allocatedResources",
    "resources",
];
/// Deadline of one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a status could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The pod is gone, or another one has its name: nothing is left to write to.
    #[error("pod is gone")]
    Gone,
    /// Worth another try.
    #[error("patching pod status: {0}")]
    Api(#[source] Box<kube::Error>),
    /// No answer in time.
    #[error("patching pod status: no answer in {TIMEOUT:?}")]
    Timeout,
}

/// The body of the patch's `status`, or none when nothing differs. Conditions merge by type on the server, so only
/// those that changed are sent and those of others can't be overwritten.
pub fn diff(old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let (Ok(Value::Object(old)), Ok(Value::Object(new))) =
        (serde_json::to_value(old), serde_json::to_value(new))
    else {
        return None;
    };
    let mut out = Map::new();
    for key in OWNED {
        let (was, is) = (old.get(key), new.get(key));
        if was == is {
            continue;
        }
        let value = match is {
            None => Value::Null,
            // These lists merge by `ip`: without the directive an address that is gone would stay.
            Some(Value::Array(list)) if key == "podIPs" || key == "hostIPs" => {
                let directive = json!({"$patch": "replace"});
                Value::Array(std::iter::once(directive).chain(list.iter().cloned()).collect())
            }
            Some(value) => value.clone(),
        };
        out.insert(key.to_owned(), value);
    }
    let conditions =
        |m: &Map<String, Value>| m.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let (was, is) = (conditions(&old), conditions(&new));
    // Only conditions of ours ever go.
    let gone = was
        .iter()
        .map(|c| &c["type"])
        .filter(|t| t.as_str().is_some_and(|t| super::conditions::OWNED.contains(&t)))
        .filter(|t| is.iter().all(|c| c["type"] != **t))
        .map(|t| json!({"$patch": "delete", "type": t}));
    let gone: Vec<Value> = gone.collect();
    let changed: Vec<Value> = is
        .into_iter()
        .filter(|c| !was.contains(c))
        .map(|mut c| {
            // A reason or message that is gone must be removed, not merged.
            if let Some(fields) = c.as_object_mut() {
                for key in ["reason", "message"] {
                    fields.entry(key).or_insert(Value::Null);
                }
            }
            c
        })
        .chain(gone)
        .collect();
    if !changed.is_empty() {
        out.insert("conditions".to_owned(), Value::Array(changed));
    }
    (!out.is_empty()).then_some(Value::Object(out))
}

/// Patches the status subresource. The uid in the patch makes the server refuse when another pod took the name.
pub async fn patch(client: &kube::Client, pod: &Pod, body: Value) -> Result<Pod, WriteError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), PodExt::namespace(pod));
    let patch = Patch::Strategic(json!({"metadata": {"uid": PodExt::uid(pod)}, "status": body}));
    let params = PatchParams { field_manager: Some("kubelet".into()), ..PatchParams::default() };
    let request = api.patch_status(PodExt::name(pod), &params, &patch);
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(Ok(pod)) => Ok(pod),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 || status.code == 409 => {
            Err(WriteError::Gone)
        }
        Ok(Err(error)) => Err(WriteError::Api(Box::new(error))),
        Err(_elapsed) => Err(WriteError::Timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(v: Value) -> PodStatus {
        serde_json::from_value(v).unwrap()
    }

    fn check(old: Value, new: Value, want: Option<Value>) {
        assert_eq!(diff(&status(old), &status(new)), want);
    }

    #[test]
    fn only_what_changed() {
        check(json!({"phase": "Running"}), json!({"phase": "Running"}), None);
        check(
            json!({"phase": "Pending", "hostIP": "1"}),
            json!({"phase": "Running", "hostIP": "1"}),
            Some(json!({"phase": "Running"})),
        );
        check(json!({"reason": "X"}), json!({}), Some(json!({"reason": null})));
        check(json!({"nominatedNodeName": "n"}), json!({}), None);
        check(
            json!({"conditions": [{"type": "PodResizePending", "status": "True"}, {"type": "x/y", "status": "True"}]}),
            json!({}),
            Some(json!({"conditions": [{"$patch": "delete", "type": "PodResizePending"}]})),
        );
        check(
            json!({"podIPs": [{"ip": "1"}]}),
            json!({"podIPs": [{"ip": "2"}]}),
            Some(json!({"podIPs": [{"$patch": "replace"}, {"ip": "2"}]})),
        );
    }

    #[test]
    fn conditions_by_type() {
        check(
            json!({"conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "False", "reason": "r"}]}),
            json!({"conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True"}]}),
            Some(json!({"conditions": [{"type": "B", "status": "True", "reason": null, "message": null}]})),
        );
    }
}
