//! POST to `pods/eviction`: a delete that a PodDisruptionBudget may forbid
//! (`pkg/registry/core/pod/storage/eviction.go`).

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use keelson_api::meta::{GroupResource, GroupVersionKind};
use keelson_api::resources::Resource;
use keelson_api::resources::selector::LabelSelector;
use serde_json::{Value, json};

use super::special::{selector_text, success};
use super::{Call, add_warnings};
use crate::cache::{CachedObject, store_error};
use crate::extension::{Body, HookView, Hooks};
use crate::keys;
use crate::options::{DeleteOptions, OptionsKind, WriteOptions};
use crate::status::{Result, StatusError};
use crate::stored;
use crate::wire;
use crate::write::{Ownership, Write, now};

/// Evictions that are allowed and not yet seen by the disruption controller; with more something is wrong.
const MOST_DISRUPTED: usize = 2000;
/// How often an eviction starts again when its pod changes meanwhile.
const RETRIES: usize = 20;
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

pub(super) async fn evict(call: &Call, row: &Arc<Resource>, body: Bytes) -> Result<Response<Body>> {
    let kind = GroupVersionKind::new("policy", "v1", "Eviction");
    let options = WriteOptions::parse(&call.query, OptionsKind::Create)?;
    let (mut eviction, _) = wire::decode(call.content_type(), &body, &kind, options.validation)?;
    let warnings = call.ask_dynamic(row, &kind, &mut eviction, &options).await?;
    if eviction["metadata"]["name"].as_str().is_some_and(|name| !name.is_empty() && name != call.info.name) {
        return Err(StatusError::bad_request("name in URL does not match name in Eviction object"));
    }
    let wanted = eviction.get("deleteOptions").filter(|o| !o.is_null());
    let mut delete = DeleteOptions::parse(&call.query, wanted)?;
    delete.dry_run |= options.dry_run;
    let eviction = Eviction { call, row, name: &call.info.name, delete };
    eviction.run().await?;
    let mut response = call.respond(StatusCode::CREATED, &success(201))?;
    add_warnings(&mut response, &warnings);
    Ok(response)
}

struct Eviction<'a> {
    call: &'a Call,
    row: &'a Arc<Resource>,
    name: &'a str,
    delete: DeleteOptions,
}

impl Eviction<'_> {
    async fn run(&self) -> Result<()> {
        for _ in 0..RETRIES {
            let pod = self.pod().await?;
            if !ignores_budgets(&pod) {
                return self.within_budget(&pod).await;
            }
            // A pod that has not begun must not become ready meanwhile.
            let guarded =
                pod["status"]["phase"] == "Pending" && pod["metadata"]["deletionTimestamp"].is_null();
            match self.remove(guarded.then_some(&pod)).await {
                Err(error) if error.code == 409 && self.delete.resource_version.is_none() => {}
                outcome => return outcome,
            }
        }
        Err(StatusError::modified(&self.row.group_resource(), self.name))
    }

    /// The pod as the store has it.
    async fn pod(&self) -> Result<Value> {
        let key = keys::object(&self.row.storage, Some(self.call.namespace(self.row)), self.name);
        let found = self.call.core.store().get(&key, None).await.map_err(store_error)?;
        let found = found.ok_or_else(|| StatusError::not_found(&self.row.group_resource(), self.name))?;
        stored::decode(&found.value, found.mod_revision).map_err(StatusError::internal)
    }

    async fn budgets(&self, pod: &Value) -> Result<Vec<Arc<CachedObject>>> {
        self.call.core.cache.wait_newest().await?;
        let cache = self.call.core.cache.resource(&GroupResource::new("policy", "poddisruptionbudgets"));
        let mut budgets =
            cache.map(|cache| cache.snapshot(Some(self.call.namespace(self.row)))).unwrap_or_default();
        budgets.retain(|budget| selects(&budget.value()["spec"]["selector"], pod));
        Ok(budgets)
    }

    async fn within_budget(&self, pod: &Value) -> Result<()> {
        let budgets = self.budgets(pod).await?;
        let budget = match budgets.as_slice() {
            [] => return self.remove(None).await,
            [only] => only,
            _ => {
                let words = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
                return Err(StatusError::new(500, "InternalError", words));
            }
        };
        if is_free(pod, &budget.value()) {
            let outcome = self.remove(Some(pod)).await;
            return match outcome {
                // It may be ready by now: the client shall ask again.
                Err(error) if error.code == 409 && self.delete.resource_version.is_none() => {
                    Err(still_processing(&budget.name))
                }
                outcome => outcome,
            };
        }
        self.take_off(&budget.name).await?;
        self.remove(None).await
    }

    /// Takes one disruption off the budget.
    async fn take_off(&self, budget: &str) -> Result<()> {
        let of = GroupResource::new("policy", "poddisruptionbudgets");
        let row = self.call.core.table().get(&of).ok_or_else(StatusError::no_such_path)?.clone();
        let (version, write) = (row.storage_version.clone(), self.call.write(self.row, OptionsKind::Create)?);
        let write = Write { row: &row, version: &version, subresource: "status", ..write };
        let write = Write {
            options: WriteOptions { dry_run: self.delete.dry_run, ..write.options },
            view: HookView::Hidden,
            ..write
        };
        // What the server does itself comes to be owned by nobody, as upstream.
        let make = |current: &Value| Ok((decrement(current, self.name, &now())?, Vec::new()));
        match write.update(budget, Ownership::Given, &make).await {
            Ok(_) => Ok(()),
            Err(error) if error.code == 409 => {
                let words = format!("couldn't update PodDisruptionBudget {budget:?} due to conflicts");
                Err(StatusError::timeout(words))
            }
            Err(error) => Err(error),
        }
    }

    /// Announces the pod's end in its status and deletes it. If `unchanged` is given, only that version of it.
    async fn remove(&self, unchanged: Option<&Value>) -> Result<()> {
        let version = |pod: &Value| pod["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let mut deletion = self.call.deletion(self.row, &Bytes::new())?;
        deletion.options = self.delete.clone();
        deletion.hooks = Hooks::new(HookView::Hidden);
        if deletion.options.resource_version.is_none() {
            deletion.options.resource_version = unchanged.and_then(version);
        }
        if !self.delete.dry_run {
            let (uid, wanted) = (&self.delete.uid, &deletion.options.resource_version);
            let write = self.call.write(self.row, OptionsKind::Create)?;
            let write = Write { subresource: "status", view: HookView::Hidden, ..write };
            let make = |current: &Value| {
                self.check("UID", uid.as_deref(), &current["metadata"]["uid"])?;
                self.check("ResourceVersion", wanted.as_deref(), &current["metadata"]["resourceVersion"])?;
                Ok((announced(current, &now()), Vec::new()))
            };
            let written = write.update(self.name, Ownership::Given, &make).await?;
            if wanted.is_some() {
                // The announcement itself has changed the pod.
                deletion.options.resource_version = version(&written.object);
            }
        }
        deletion.run(self.name).await?;
        Ok(())
    }

    fn check(&self, what: &str, wanted: Option<&str>, have: &Value) -> Result<()> {
        let have = have.as_str().unwrap_or_default();
        match wanted {
            Some(wanted) if wanted != have => {
                let rest = match what {
                    "UID" => "The object might have been deleted and then recreated",
                    _ => "The object might have been modified",
                };
                let why = format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({have}). {rest}"
                );
                Err(StatusError::conflict(&GroupResource::new("", "Pod"), self.name, why))
            }
            _ => Ok(()),
        }
    }
}

/// Whether no budget need be asked: the pod has ended, or not begun, or is about to go anyway.
fn ignores_budgets(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
        || !pod["metadata"]["deletionTimestamp"].is_null()
}

fn selects(selector: &Value, pod: &Value) -> bool {
    // An absent selector selects nothing, an empty one everything.
    let labels = pod["metadata"]["labels"].as_object();
    let labels = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect();
    !selector.is_null()
        && LabelSelector::parse(&selector_text(selector)).is_ok_and(|selector| selector.matches(&labels))
}

/// Whether the pod's loss costs the budget nothing: it is not ready, and either that is enough, or the others are.
fn is_free(pod: &Value, budget: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let (healthy, desired) = (number("currentHealthy"), number("desiredHealthy"));
    !ready
        && (budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
            || (healthy >= desired && desired > 0))
}

fn refused(retry_after_seconds: u32, why: String) -> StatusError {
    let mut details = json!({"causes": [{"reason": "DisruptionBudget", "message": why}]});
    if retry_after_seconds > 0 {
        details["retryAfterSeconds"] = retry_after_seconds.into();
    }
    StatusError::too_many_requests(REFUSED, retry_after_seconds).with_details(details)
}

fn still_processing(budget: &str) -> StatusError {
    refused(10, format!("The disruption budget {budget} is still being processed by the server."))
}

/// The budget with one disruption fewer, and the pod on its list (`checkAndDecrement`).
fn decrement(budget: &Value, pod: &str, now: &str) -> Result<Value> {
    let (meta, status) = (&budget["metadata"], &budget["status"]);
    let name = meta["name"].as_str().unwrap_or_default();
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    if number(&status["observedGeneration"]) < number(&meta["generation"]) {
        return Err(still_processing(name));
    }
    let forbidden = |why: &str| {
        Err(StatusError::forbidden(&GroupResource::new("policy", "poddisruptionbudget"), name, why))
    };
    let allowed = number(&status["disruptionsAllowed"]);
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if status["disruptedPods"].as_object().is_some_and(|pods| pods.len() > MOST_DISRUPTED) {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        return Err(refused(0, why_none(name, status)));
    }
    let mut budget = budget.clone();
    let status = &mut budget["status"];
    status["disruptionsAllowed"] = (allowed - 1).into();
    if allowed == 1 {
        set_insufficient(status, now);
    }
    status["disruptedPods"][pod] = now.into();
    Ok(budget)
}

fn why_none(name: &str, status: &Value) -> String {
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    let (healthy, desired) = (number("currentHealthy"), number("desiredHealthy"));
    let conditions = status["conditions"].as_array();
    let denied = conditions
        .into_iter()
        .flatten()
        .find(|c| c["type"] == "DisruptionAllowed")
        .filter(|c| c["status"] == "False" && c["message"].as_str().is_some_and(|text| !text.is_empty()));
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    match denied {
        Some(c) if c["reason"] == "SyncFailed" => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            text(c, "message")
        ),
        _ if healthy <= desired => {
            format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently")
        }
        Some(c) => format!(
            "The disruption budget {name} does not allow evicting pods currently ({}): {}",
            text(c, "reason"),
            text(c, "message")
        ),
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
}

fn set_insufficient(status: &mut Value, now: &str) {
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let mut condition = json!({
        "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
        "lastTransitionTime": now,
    });
    if let Some(generation) = status["observedGeneration"].as_i64() {
        condition["observedGeneration"] = generation.into();
    }
    match conditions.iter_mut().find(|c| c["type"] == "DisruptionAllowed") {
        Some(present) => {
            if present["status"] == "False" {
                condition["lastTransitionTime"] = present["lastTransitionTime"].clone();
            }
            *present = condition;
        }
        None => conditions.push(condition),
    }
    status["conditions"] = conditions.into();
}

/// The pod with the condition that says that it is about to be evicted.
fn announced(pod: &Value, now: &str) -> Value {
    let mut pod = pod.clone();
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let since = conditions
        .iter()
        .find(|c| c["type"] == "DisruptionTarget" && c["status"] == "True")
        .map_or_else(|| now.into(), |c| c["lastTransitionTime"].clone());
    conditions.retain(|c| c["type"] != "DisruptionTarget");
    conditions.push(json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": since,
    }));
    pod["status"]["conditions"] = conditions.into();
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(status: Value) -> Value {
        json!({"metadata": {"name": "b", "generation": 2}, "spec": {}, "status": status})
    }

    #[track_caller]
    fn check_refused(status: Value, code: u16, cause: &str) {
        let error = decrement(&budget(status), "p", "now").unwrap_err();
        let found = error.details.as_ref().map(|d| d["causes"][0]["message"].clone()).unwrap_or_default();
        let shown = found.as_str().map_or(error.message.clone(), str::to_owned);
        assert_eq!((error.code, shown.as_str()), (code, cause));
    }

    #[test]
    fn budgets_are_counted_down() {
        let status = json!({"observedGeneration": 2, "disruptionsAllowed": 2});
        let once = decrement(&budget(status), "p", "t1").unwrap();
        assert_eq!(once["status"]["disruptionsAllowed"], 1);
        assert_eq!(once["status"]["disruptedPods"], json!({"p": "t1"}));
        assert!(once["status"]["conditions"].is_null());
        let twice = decrement(&once, "q", "t2").unwrap();
        assert_eq!(twice["status"]["conditions"][0]["reason"], "InsufficientPods");
        assert_eq!(decrement(&twice, "r", "t3").unwrap_err().code, 429);
    }

    #[test]
    fn refusals_say_why() {
        let of = |extra: Value| {
            let mut status = json!({"observedGeneration": 2, "disruptionsAllowed": 0});
            for (key, value) in extra.as_object().unwrap() {
                status[key] = value.clone();
            }
            status
        };
        check_refused(
            of(json!({"observedGeneration": 1})),
            429,
            "The disruption budget b is still being processed by the server.",
        );
        check_refused(
            of(json!({"currentHealthy": 2, "desiredHealthy": 3})),
            429,
            "The disruption budget b needs 3 healthy pods and has 2 currently",
        );
        let failed = json!([{"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "oops"}]);
        check_refused(
            of(json!({"conditions": failed, "currentHealthy": 5})),
            429,
            "The disruption budget b does not allow evicting pods currently because it failed sync: oops",
        );
        check_refused(
            of(json!({"currentHealthy": 5, "desiredHealthy": 3})),
            429,
            "The disruption budget b does not allow evicting pods currently",
        );
        check_refused(
            of(json!({"disruptionsAllowed": -1})),
            403,
            "poddisruptionbudget.policy \"b\" is forbidden: pdb disruptions allowed is negative",
        );
    }

    #[test]
    fn unhealthy_pods() {
        let pod = |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let of = |policy: Value, healthy: i64, desired: i64| {
            json!({"spec": {"unhealthyPodEvictionPolicy": policy},
                   "status": {"currentHealthy": healthy, "desiredHealthy": desired}})
        };
        assert!(!is_free(&pod("True"), &of(json!("AlwaysAllow"), 3, 1)));
        assert!(is_free(&pod("False"), &of(json!("AlwaysAllow"), 0, 1)));
        assert!(!is_free(&pod("False"), &of(json!("IfHealthyBudget"), 0, 1)));
        assert!(is_free(&pod("False"), &of(Value::Null, 1, 1)));
        assert!(!is_free(&pod("False"), &of(Value::Null, 0, 0)));
    }

    #[test]
    fn who_is_selected() {
        let pod = json!({"metadata": {"labels": {"app": "web"}}});
        assert!(selects(&json!({}), &pod) && !selects(&Value::Null, &pod));
        assert!(selects(&json!({"matchLabels": {"app": "web"}}), &pod));
        assert!(!selects(&json!({"matchLabels": {"app": "db"}}), &pod));
    }

    #[test]
    fn announcements() {
        let pod =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        let once = announced(&pod, "t1");
        assert_eq!(once["status"]["conditions"][1]["reason"], "EvictionByEvictionAPI");
        assert_eq!(announced(&once, "t2"), once);
    }
}
