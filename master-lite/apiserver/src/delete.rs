//! Deletion: preconditions, grace, finalizers (`k8s.io/apiserver/pkg/registry/{generic/registry/store,rest/delete}.go`).

use std::sync::Arc;

use keelson_api::resources::{Deletion, DeletionRequest, Resource};
use keelson_store::Txn;
use serde_json::{Value, json};

use crate::admission;
use crate::cache::store_error;
use crate::core::Core;
use crate::extension::{Attributes, Hooks, Operation, UserInfo};
use crate::keys;
use crate::options::{DeleteOptions, Propagation};
use crate::status::{Result, StatusError};
use crate::stored;

const RETRIES: usize = 16;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// One delete.
pub struct Delete<'a> {
    /// The server.
    pub core: &'a Core,
    /// The view.
    pub row: &'a Arc<Resource>,
    /// Version in the request.
    pub version: &'a str,
    /// Namespace or empty.
    pub namespace: &'a str,
    /// Who deletes.
    pub user: UserInfo,
    /// How.
    pub options: DeleteOptions,
    /// What webhooks see, and what they warn of.
    pub hooks: Hooks,
}

/// How it went.
#[derive(Debug)]
pub enum Deleted {
    /// It is gone; the last state.
    Gone(Value),
    /// It is marked and will go when its grace period or finalizers are over; the new state.
    Pending(Value),
}

/// What to do with an object.
#[derive(Debug, PartialEq)]
enum Plan {
    Remove,
    Update(Value),
    /// Already on its way.
    Nothing,
}

impl Delete<'_> {
    /// Deletes one object.
    pub async fn run(&self, name: &str) -> Result<Deleted> {
        let resource = self.row.group_resource();
        let key = keys::object(&self.row.storage, self.row.namespaced.then_some(self.namespace), name);
        for _ in 0..RETRIES {
            let Some(current) = self.core.store().get(&key, None).await.map_err(store_error)? else {
                return Err(StatusError::not_found(&resource, name));
            };
            let mut old =
                stored::decode(&current.value, current.mod_revision).map_err(StatusError::internal)?;
            self.check_preconditions(&old, name)?;
            self.admit(name, &old).await?;
            let plan = plan(&old, self.row, &self.options, chrono::Utc::now());
            if self.options.dry_run {
                return Ok(match plan {
                    Plan::Update(object) => Deleted::Pending(object),
                    Plan::Nothing => Deleted::Pending(old),
                    Plan::Remove => Deleted::Gone(old),
                });
            }
            match plan {
                Plan::Nothing => return Ok(Deleted::Pending(old)),
                Plan::Remove => {
                    let txn = Txn::delete_if(&key, current.mod_revision);
                    let response = self.core.store().txn(txn).await.map_err(store_error)?;
                    if response.succeeded {
                        self.core.allocators().release(&self.row.storage, &old);
                        stored::set_revision(&mut old, response.revision);
                        return Ok(Deleted::Gone(old));
                    }
                }
                Plan::Update(mut new) => {
                    let bytes = stored::encode(&new).map_err(StatusError::internal)?;
                    let txn = Txn::put_if(&key, current.mod_revision, bytes, self.row.ttl);
                    let response = self.core.store().txn(txn).await.map_err(store_error)?;
                    if response.succeeded {
                        stored::set_revision(&mut new, response.revision);
                        return Ok(Deleted::Pending(new));
                    }
                }
            }
        }
        Err(StatusError::modified(&resource, name))
    }

    fn check_preconditions(&self, old: &Value, name: &str) -> Result<()> {
        let resource = self.row.group_resource();
        let meta = &old["metadata"];
        for (label, wanted, have) in [
            ("UID", &self.options.uid, &meta["uid"]),
            ("ResourceVersion", &self.options.resource_version, &meta["resourceVersion"]),
        ] {
            if let Some(wanted) = wanted
                && have != wanted
            {
                return Err(StatusError::conflict(
                    &resource,
                    name,
                    format!(
                        "Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {}",
                        have.as_str().unwrap_or_default()
                    ),
                ));
            }
        }
        Ok(())
    }

    async fn admit(&self, name: &str, old: &Value) -> Result<()> {
        let mut attributes = Attributes {
            operation: Operation::Delete,
            kind: self.row.gvk(self.version),
            resource: self.row.group_resource(),
            version: self.version.to_owned(),
            subresource: String::new(),
            namespace: self.namespace.to_owned(),
            name: name.to_owned(),
            user: self.user.clone(),
            object: None,
            old_object: Some(Arc::new(old.clone())),
            dry_run: self.options.dry_run,
            options: self.options.to_value(),
            hooks: self.hooks.clone(),
        };
        let extensions = self.core.extensions();
        admission::mutate(&extensions.mutating, &mut attributes).await?;
        for plugin in &extensions.validating {
            plugin.validate(&attributes).await?;
        }
        Ok(())
    }
}

fn plan(old: &Value, row: &Resource, options: &DeleteOptions, now: chrono::DateTime<chrono::Utc>) -> Plan {
    let format =
        |time: chrono::DateTime<chrono::Utc>| time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let is_namespace = row.storage.group.is_empty() && row.plural == "namespaces";
    let mut new = old.clone();
    let meta = &old["metadata"];
    if meta["deletionTimestamp"].is_null() {
        row.strategy.prepare_for_delete(&mut new, &format(now));
    }
    let finalizers = wanted_finalizers(&new, options.propagation, row.strategy.orphans_dependents());
    let finalizers_changed =
        json!(finalizers) != meta.get("finalizers").cloned().unwrap_or_else(|| json!([]));
    if finalizers_changed {
        new["metadata"]["finalizers"] = json!(finalizers);
    }
    let request = DeletionRequest { grace_period_seconds: options.grace_period_seconds };
    let deletion = row.strategy.deletion(old, &request);
    let marked = meta["deletionTimestamp"].as_str();
    let grace_now = meta["deletionGracePeriodSeconds"].as_i64();
    let held = !finalizers.is_empty()
        || (is_namespace && old["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()));

    // A second delete may only shorten the grace period.
    if let (Some(marked), Some(grace)) = (marked, grace_now.filter(|grace| *grace > 0)) {
        let asked = options.grace_period_seconds;
        if asked.is_none_or(|asked| asked.max(0) >= grace) && deletion != Deletion::Immediate {
            return if finalizers_changed { Plan::Update(new) } else { Plan::Nothing };
        }
        let seconds = match deletion {
            Deletion::Immediate => 0,
            Deletion::Graceful { seconds } => seconds,
        };
        if seconds > 0 || held {
            if let Ok(time) = chrono::DateTime::parse_from_rfc3339(marked) {
                let moved = time.to_utc() - chrono::Duration::seconds(grace - seconds);
                new["metadata"]["deletionTimestamp"] = format(moved).into();
            }
            new["metadata"]["deletionGracePeriodSeconds"] = seconds.into();
            return Plan::Update(new);
        }
        return Plan::Remove;
    }
    match deletion {
        Deletion::Graceful { seconds } if marked.is_none() => {
            mark(&mut new, &format(now + chrono::Duration::seconds(seconds)), seconds);
            Plan::Update(new)
        }
        _ if held => {
            if marked.is_some() {
                return if finalizers_changed { Plan::Update(new) } else { Plan::Nothing };
            }
            mark(&mut new, &format(now), 0);
            if is_namespace {
                new["status"]["phase"] = "Terminating".into();
            }
            Plan::Update(new)
        }
        _ => Plan::Remove,
    }
}

fn mark(object: &mut Value, time: &str, seconds: i64) {
    let meta = &mut object["metadata"];
    meta["deletionTimestamp"] = time.into();
    meta["deletionGracePeriodSeconds"] = seconds.into();
    if let Some(generation) = meta["generation"].as_i64().filter(|g| *g > 0) {
        meta["generation"] = (generation + 1).into();
    }
}

/// The finalizers an object has once the propagation policy is written into them. Where the request has none, those
/// that are there speak, and then the kind.
fn wanted_finalizers(old: &Value, propagation: Option<Propagation>, orphans: bool) -> Vec<String> {
    let mut list: Vec<String> = old["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|f| f.as_str().map(str::to_owned))
        .collect();
    let decided = list.iter().any(|f| f == ORPHAN || f == FOREGROUND);
    let of_kind = (orphans && !decided).then_some(Propagation::Orphan);
    if let Some(propagation) = propagation.or(of_kind) {
        let wanted = match propagation {
            Propagation::Orphan => Some(ORPHAN),
            Propagation::Foreground => Some(FOREGROUND),
            Propagation::Background => None,
        };
        list.retain(|f| (f != ORPHAN && f != FOREGROUND) || Some(f.as_str()) == wanted);
        if let Some(wanted) = wanted
            && !list.iter().any(|f| f == wanted)
        {
            list.push(wanted.to_owned());
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::resources::ResourceTable;

    fn check(plural: &str, object: Value, options: DeleteOptions, expected: fn(&Plan) -> bool) {
        let table = ResourceTable::builtin();
        let row = table.rows().iter().find(|row| row.plural == plural).unwrap();
        let now = chrono::DateTime::parse_from_rfc3339("2026-01-01T00:00:00Z").unwrap().to_utc();
        let plan = plan(&object, row, &options, now);
        assert!(expected(&plan), "{object} {options:?} gave {plan:?}");
    }

    fn pod(meta: Value) -> Value {
        json!({"metadata": meta, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}})
    }

    #[test]
    fn plans() {
        let none = DeleteOptions::default;
        let grace = |s| DeleteOptions { grace_period_seconds: Some(s), ..none() };
        check("configmaps", json!({"metadata": {"name": "a"}}), none(), |p| *p == Plan::Remove);
        check(
            "configmaps",
            json!({"metadata": {"finalizers": ["a/b"]}}),
            none(),
            |p| matches!(p, Plan::Update(o) if o["metadata"]["deletionGracePeriodSeconds"] == 0),
        );
        check(
            "configmaps",
            json!({"metadata": {}}),
            DeleteOptions { propagation: Some(Propagation::Foreground), ..none() },
            |p| matches!(p, Plan::Update(o) if o["metadata"]["finalizers"] == json!([FOREGROUND])),
        );
        // Kinds older than the garbage collector leave their pods behind, unless told otherwise.
        check(
            "jobs",
            json!({"metadata": {}}),
            none(),
            |p| matches!(p, Plan::Update(o) if o["metadata"]["finalizers"] == json!([ORPHAN])),
        );
        let background = DeleteOptions { propagation: Some(Propagation::Background), ..none() };
        check("replicationcontrollers", json!({"metadata": {}}), background, |p| *p == Plan::Remove);
        let foreground = json!({"metadata": {"finalizers": [FOREGROUND]}});
        check(
            "jobs",
            foreground,
            none(),
            |p| matches!(p, Plan::Update(o) if o["metadata"]["finalizers"] == json!([FOREGROUND])),
        );
        check("customresourcedefinitions", json!({"metadata": {}, "spec": {}, "status": {}}), none(), |p| {
            matches!(p, Plan::Update(o) if o["metadata"]["finalizers"].as_array().is_some_and(|f| f.len() == 1)
                && o["status"]["conditions"][0]["reason"] == "InstanceDeletionPending")
        });
        check("pods", pod(json!({"generation": 1})), none(), |p| {
            matches!(p, Plan::Update(o) if o["metadata"]["deletionTimestamp"] == "2026-01-01T00:00:30Z"
                && o["metadata"]["generation"] == 2)
        });
        let marked =
            || pod(json!({"deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30}));
        check("pods", marked(), none(), |p| *p == Plan::Nothing);
        check("pods", marked(), grace(60), |p| *p == Plan::Nothing);
        check(
            "pods",
            marked(),
            grace(5),
            |p| matches!(p, Plan::Update(o) if o["metadata"]["deletionTimestamp"] == "2026-01-01T00:00:05Z"),
        );
        check("pods", marked(), grace(0), |p| *p == Plan::Remove);
        check("pods", pod(json!({})), grace(0), |p| *p == Plan::Remove);
        check(
            "namespaces",
            json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}}),
            none(),
            |p| matches!(p, Plan::Update(o) if o["status"]["phase"] == "Terminating"),
        );
    }
}
