//! Follows CustomResourceDefinitions: accepts their names, serves their resources, and empties them when they go
//! (`apiextensions-apiserver/pkg/controller/{status,establish,finalizer}` and `pkg/apiserver/customresource_handler.go`
//! in one loop: each step is decided from the whole state, so it does not matter which change woke it).

use std::collections::BTreeMap;
use std::sync::Weak;

use keelson_api::custom::{self, CLEANUP_FINALIZER, names};
use keelson_api::meta::GroupResource;
use keelson_api::resources::ResourceTable;
use keelson_store::{KeyRange, RangeRequest, Store, StoreError};
use serde_json::Value;

use crate::core::Core;
use crate::delete::Delete;
use crate::extension::{HookView, Hooks, UserInfo};
use crate::follow;
use crate::options::{DeleteOptions, WriteOptions};
use crate::status::{Result, StatusError};
use crate::write::{Ownership, SERVER, Write, now};
use crate::{keys, stored};

fn definitions() -> GroupResource {
    GroupResource::new("apiextensions.k8s.io", "customresourcedefinitions")
}

/// The table as a server starts with it: built-in rows and those of the definitions that are stored.
pub(crate) async fn stored_table(store: &dyn Store) -> std::result::Result<ResourceTable, StoreError> {
    let range = KeyRange::prefix(&keys::prefix(&definitions(), None));
    let found = store.range(RangeRequest { range, limit: 0, revision: None }).await?;
    let stored: Vec<Value> =
        found.kvs.iter().filter_map(|kv| stored::decode(&kv.value, kv.mod_revision).ok()).collect();
    Ok(table_of(stored.iter()))
}

/// Built-in rows first, then those of established definitions by group and name.
fn table_of<'d>(stored: impl Iterator<Item = &'d Value>) -> ResourceTable {
    let mut table = ResourceTable::builtin();
    let mut rows: Vec<_> =
        stored.filter(|d| names::is_true(d, "Established")).filter_map(custom::resource).collect();
    rows.sort_by_key(|row| (row.group.clone(), row.plural.clone()));
    for row in rows {
        // What is built in is never replaced.
        if table.get(&row.storage).is_none() {
            table.insert(row);
        }
    }
    table
}

/// Runs until the server is gone.
pub(crate) async fn follow(core: Weak<Core>) {
    follow::follow(core, definitions(), |core| Box::pin(step(core))).await;
}

/// One look at all definitions. False if something is left to do without a change that would tell.
async fn step(core: &Core) -> bool {
    if core.cache.wait_newest().await.is_err() {
        return false;
    }
    let mut finished = true;
    let mut all: BTreeMap<String, Value> = current(core);
    let table = core.table();
    for name in all.keys().cloned().collect::<Vec<_>>() {
        let mut taken = names::Taken::default();
        let group = all[&name]["spec"]["group"].clone();
        for (_, other) in all.iter().filter(|(other, d)| **other != name && d["spec"]["group"] == group) {
            taken.add(&other["status"]["acceptedNames"]);
        }
        for row in table.rows().iter().filter(|row| row.custom.is_none() && group == row.group.as_str()) {
            taken.resources.extend([row.plural.clone(), row.singular.clone()]);
            taken.resources.extend(row.short_names.iter().cloned());
            taken.kinds.insert(row.kind.clone());
        }
        let Some(new) = names::accept(&all[&name], &taken, &now()) else { continue };
        // Served first, told afterwards: who sees the condition finds the resource.
        let before = all.insert(name.clone(), new.clone());
        let result = match serve(core, &all).await {
            Ok(()) => write_status(core, &name, &new).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(definition = %name, %error, "accepting the names of a definition failed");
            finished = false;
            if let Some(before) = before {
                all.insert(name, before);
            }
        }
    }
    if let Err(error) = serve(core, &all).await {
        tracing::warn!(%error, "serving custom resources failed");
        finished = false;
    }
    for (name, definition) in all.iter().filter(|(_, d)| !d["metadata"]["deletionTimestamp"].is_null()) {
        match finalize(core, name, definition).await {
            Ok(done) => finished &= done,
            Err(error) if error.code == 404 => {}
            Err(error) => {
                tracing::warn!(definition = %name, %error, "emptying a definition failed");
                finished = false;
            }
        }
    }
    finished
}

fn current(core: &Core) -> BTreeMap<String, Value> {
    let Some(cache) = core.cache.resource(&definitions()) else { return BTreeMap::new() };
    cache.snapshot(None).iter().map(|object| (object.name.clone(), object.parse())).collect()
}

/// Makes the table that of the definitions, and the caches those of the table.
async fn serve(core: &Core, all: &BTreeMap<String, Value>) -> Result<()> {
    let old = core.table();
    let new = table_of(all.values());
    let epoch = |table: &ResourceTable, resource: &GroupResource| {
        table.get(resource).and_then(|row| row.custom.as_ref().map(|custom| custom.epoch))
    };
    let mut changed = false;
    let mut replaced = Vec::new();
    for row in new.rows().iter().filter(|row| row.custom.is_some()) {
        if epoch(&old, &row.storage) == epoch(&new, &row.storage) {
            continue;
        }
        changed = true;
        if core.cache.resource(&row.storage).is_none() {
            core.cache.add(row.clone()).await.map_err(crate::cache::store_error)?;
        } else {
            replaced.push(row.clone());
        }
    }
    let gone: Vec<GroupResource> = old
        .rows()
        .iter()
        .filter(|row| row.custom.is_some() && new.get(&row.storage).is_none())
        .map(|row| row.storage.clone())
        .collect();
    if changed || !gone.is_empty() {
        core.set_table(new);
    }
    // Watches that end now begin again under the new table.
    for row in replaced {
        core.cache.add(row).await.map_err(crate::cache::store_error)?;
    }
    gone.iter().for_each(|resource| core.cache.remove(resource));
    Ok(())
}

/// Writes a definition whole (`subresource` empty) or its status; a definition that changed meanwhile is looked at
/// again because of that change.
async fn write(core: &Core, name: &str, subresource: &str, new: &Value) -> Result<()> {
    let table = core.table();
    let row = table.get(&definitions()).ok_or_else(StatusError::no_such_path)?;
    let write = Write {
        core,
        row,
        version: "v1",
        namespace: "",
        subresource,
        user: UserInfo::apiserver(),
        manager: SERVER.to_owned(),
        options: WriteOptions::own(),
        view: HookView::Row,
    };
    let make = |_: &Value| Ok((new.clone(), Vec::new()));
    match write.update(name, Ownership::Compare, &make).await {
        Err(error) if matches!(error.code, 404 | 409) => Ok(()),
        other => other.map(|_| ()),
    }
}

async fn write_status(core: &Core, name: &str, new: &Value) -> Result<()> {
    write(core, name, "status", new).await
}

/// Deletes the objects of a definition that goes, and lets it go when they are gone. True if there is nothing left to do.
async fn finalize(core: &Core, name: &str, definition: &Value) -> Result<bool> {
    let finalizers = definition["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !finalizers.iter().any(|f| f == CLEANUP_FINALIZER) {
        return Ok(true);
    }
    let mut current = definition.clone();
    const RUNNING: &str = "InstanceDeletionInProgress";
    if names::condition(definition, "Terminating").is_none_or(|condition| condition["reason"] != RUNNING) {
        let message = "CustomResource deletion is in progress";
        names::set_condition(&mut current, "Terminating", "True", RUNNING, message, &now());
        // The change of the condition brings the next step.
        write_status(core, name, &current).await?;
        return Ok(true);
    }
    let left = empty(core, definition).await?;
    if left > 0 {
        return Ok(false);
    }
    let message = "removed all instances";
    names::set_condition(&mut current, "Terminating", "False", "InstanceDeletionCompleted", message, &now());
    let rest: Vec<Value> = finalizers.into_iter().filter(|f| f != CLEANUP_FINALIZER).collect();
    current["metadata"]["finalizers"] = rest.into();
    write(core, name, "", &current).await?;
    Ok(true)
}

/// Deletes every object; returns how many still wait for something.
async fn empty(core: &Core, definition: &Value) -> Result<usize> {
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let plural = definition["spec"]["names"]["plural"].as_str().unwrap_or_default();
    let resource = GroupResource::new(group, plural);
    let table = core.table();
    let Some(row) = table.get(&resource).filter(|row| {
        row.custom.as_ref().is_some_and(|custom| definition["metadata"]["name"] == custom.definition.as_str())
    }) else {
        return Ok(0);
    };
    core.cache.wait_newest().await?;
    let Some(cache) = core.cache.resource(&resource) else { return Ok(0) };
    for object in cache.snapshot(None) {
        let delete = Delete {
            core,
            row,
            version: &row.storage_version,
            namespace: &object.namespace,
            user: UserInfo::apiserver(),
            options: DeleteOptions::default(),
            // The definition's own deletion has been asked about.
            hooks: Hooks::new(HookView::Hidden),
        };
        match delete.run(&object.name).await {
            Err(error) if error.code != 404 => return Err(error),
            _ => {}
        }
    }
    core.cache.wait_newest().await?;
    Ok(cache.len())
}
