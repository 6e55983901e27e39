//! APIServices of what this server itself serves: those of built-in versions are made at start, those of custom
//! resources come and go with these (`pkg/controllers/autoregister`, `pkg/controlplane/controller/crdregistration`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use keelson_api::resources::{CUSTOM_PRIORITY, REGISTRATION_GROUP, ResourceTable, priority};
use serde_json::{Value, json};

use super::{VERSION, api_services, write_of};
use crate::core::Core;
use crate::delete::Delete;
use crate::extension::{HookView, Hooks, UserInfo};
use crate::filter::Filter;
use crate::options::DeleteOptions;
use crate::status::{Result, StatusError};
use crate::write::Ownership;

/// The label by which an APIService of ours is known, and what it says.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
const ON_START: &str = "onstart";
const ALWAYS: &str = "true";
/// Time until a step that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What is to be done about one.
#[derive(Debug, PartialEq)]
enum Action {
    Nothing,
    Create,
    Update,
    Delete,
}

/// The APIServices that should be there, by name.
fn wanted(table: &ResourceTable) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for (group, versions) in table.groups() {
        // The group of APIServices is there without one.
        if group == REGISTRATION_GROUP {
            continue;
        }
        for version in versions {
            let built_in = priority(&group, &version);
            let place = built_in.unwrap_or(CUSTOM_PRIORITY);
            let managed = if built_in.is_some() { ON_START } else { ALWAYS };
            let mut spec = json!({
                "version": version, "groupPriorityMinimum": place.group, "versionPriority": place.version,
            });
            if !group.is_empty() {
                spec["group"] = group.as_str().into();
            }
            let name = format!("{version}.{group}");
            let object = json!({
                "apiVersion": format!("{REGISTRATION_GROUP}/{VERSION}"), "kind": "APIService",
                "metadata": {"name": name, "labels": {MANAGED: managed}}, "spec": spec,
            });
            all.insert(name, object);
        }
    }
    all
}

fn managed(object: &Value) -> &str {
    object["metadata"]["labels"][MANAGED].as_str().unwrap_or_default()
}

/// The table of `checkAPIService`. `synced`: this was right once since the start; `old`: it was there before the start.
fn decide(wanted: Option<&Value>, current: Option<&Value>, synced: bool, old: bool) -> Action {
    let once = |object: &Value| managed(object) == ON_START;
    let Some(current) = current else {
        return match wanted {
            Some(wanted) if !(once(wanted) && synced) => Action::Create,
            _ => Action::Nothing,
        };
    };
    let ours = matches!(managed(current), ON_START | ALWAYS);
    let done = wanted.is_some_and(once) && synced;
    if done || !ours || (once(current) && (!old || synced)) {
        return Action::Nothing;
    }
    match wanted {
        None => Action::Delete,
        Some(wanted) if wanted["spec"] == current["spec"] => Action::Nothing,
        Some(_) => Action::Update,
    }
}

/// Keeps them until the server is gone.
pub(crate) async fn keep(core: Weak<Core>) {
    let everything = Arc::new(Filter::default());
    let mut synced = BTreeSet::new();
    let mut old: Option<BTreeSet<String>> = None;
    loop {
        let Some(strong) = core.upgrade() else { return };
        let Some(cache) = strong.cache.resource(&api_services()) else { return };
        let (objects, _, mut changes) = cache.watch_with_state(everything.clone(), strong.cache.applied());
        let old = old.get_or_insert_with(|| objects.iter().map(|object| object.name.clone()).collect());
        drop((cache, strong));
        loop {
            let Some(strong) = core.upgrade() else { return };
            let finished = step(&strong, &mut synced, old).await;
            // The server must be able to go while this waits.
            let table_changed = strong.aggregator.table_changed.clone();
            drop(strong);
            let again = async {
                if finished {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(AGAIN).await;
            };
            tokio::select! {
                change = changes.recv() => if change.is_none() {
                    break;
                },
                () = table_changed.notified() => {}
                () = again => {}
            }
            while changes.try_recv().is_ok() {}
        }
    }
}

/// One look at all of them. False if something is left to do.
async fn step(core: &Core, synced: &mut BTreeSet<String>, old: &BTreeSet<String>) -> bool {
    let Some(cache) = core.cache.resource(&api_services()) else { return true };
    if core.cache.wait_newest().await.is_err() {
        return false;
    }
    let current: BTreeMap<String, Arc<Value>> =
        cache.snapshot(None).iter().map(|object| (object.name.clone(), object.value())).collect();
    let wanted = wanted(&core.table());
    let names: BTreeSet<&String> = wanted.keys().chain(current.keys()).collect();
    let mut finished = true;
    for name in names {
        let (new, now) = (wanted.get(name), current.get(name).map(|object| &**object));
        let action = decide(new, now, synced.contains(name), old.contains(name));
        match act(core, name, action, new, now).await {
            Ok(()) => {
                synced.insert(name.clone());
            }
            Err(error) => {
                tracing::warn!(service = %name, %error, "keeping an APIService failed");
                finished = false;
            }
        }
    }
    finished
}

async fn act(
    core: &Core,
    name: &str,
    action: Action,
    wanted: Option<&Value>,
    current: Option<&Value>,
) -> Result<()> {
    let table = core.table();
    let row = table.get(&api_services()).ok_or_else(StatusError::no_such_path)?;
    let write = write_of(core, row, "");
    let spec = wanted.map(|wanted| &wanted["spec"]);
    let outcome = match (action, wanted, spec) {
        (Action::Create, Some(wanted), _) => {
            write.create(wanted.clone(), Ownership::Compare, Vec::new()).await.map(|_| ())
        }
        (Action::Update, _, Some(spec)) => {
            let make = |current: &Value| {
                let mut new = current.clone();
                new["spec"] = spec.clone();
                Ok((new, Vec::new()))
            };
            write.update(name, Ownership::Compare, &make).await.map(|_| ())
        }
        (Action::Delete, ..) => {
            let uid = current.and_then(|current| current["metadata"]["uid"].as_str()).map(str::to_owned);
            let delete = Delete {
                core,
                row,
                version: VERSION,
                namespace: "",
                user: UserInfo::apiserver(),
                options: DeleteOptions { uid, ..DeleteOptions::default() },
                hooks: Hooks::new(HookView::Row),
            };
            delete.run(name).await.map(|_| ())
        }
        _ => Ok(()),
    };
    match outcome {
        // Made, changed or deleted meanwhile: that change brings the next look.
        Err(error) if matches!(error.code, 404 | 409) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_upstream() {
        let object = |label: &str, priority: i64| json!({"metadata": {"labels": {MANAGED: label}}, "spec": {"versionPriority": priority}});
        let (once, always) = (object(ON_START, 1), object(ALWAYS, 1));
        let check = |wanted: Option<&Value>, current: Option<&Value>, synced, old, expected| {
            assert_eq!(
                decide(wanted, current, synced, old),
                expected,
                "{wanted:?} {current:?} {synced} {old}"
            );
        };
        // Not there.
        check(None, None, false, false, Action::Nothing);
        check(Some(&once), None, false, false, Action::Create);
        check(Some(&once), None, true, true, Action::Nothing);
        check(Some(&always), None, true, true, Action::Create);
        // Somebody else's.
        let other = object("", 5);
        for wanted in [None, Some(&once), Some(&always)] {
            check(wanted, Some(&other), false, true, Action::Nothing);
        }
        // Made at a start: only what an earlier one left is changed, and only once.
        let left = object(ON_START, 5);
        for wanted in [None, Some(&once), Some(&always)] {
            check(wanted, Some(&left), false, false, Action::Nothing);
            check(wanted, Some(&left), true, true, Action::Nothing);
        }
        check(None, Some(&left), false, true, Action::Delete);
        check(Some(&once), Some(&left), false, true, Action::Update);
        check(Some(&once), Some(&once), false, true, Action::Nothing);
        // Always kept.
        let drifted = object(ALWAYS, 5);
        check(None, Some(&drifted), true, false, Action::Delete);
        check(Some(&always), Some(&drifted), true, true, Action::Update);
        check(Some(&always), Some(&always), false, true, Action::Nothing);
        check(Some(&once), Some(&drifted), true, true, Action::Nothing);
    }

    #[test]
    fn every_version_but_that_of_api_services_wants_one() {
        let all = wanted(&ResourceTable::builtin());
        assert!(all.contains_key("v1.") && all.contains_key("v2.autoscaling") && all.contains_key("v1.apps"));
        assert!(!all.keys().any(|name| name.ends_with(REGISTRATION_GROUP)));
        assert_eq!(
            all["v1.apps"]["spec"],
            json!({"group": "apps", "version": "v1", "groupPriorityMinimum": 17800, "versionPriority": 15})
        );
        assert_eq!(all["v1."]["spec"]["group"], Value::Null);
        assert!(all.values().all(|object| managed(object) == ON_START));
    }
}
