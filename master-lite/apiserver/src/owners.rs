//! The stage of a write that keeps `metadata.managedFields` true: where the request path meets
//! [`keelson_api::managed_fields`].

use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_api::custom::VersionSchema;
use keelson_api::managed_fields::{ApplyError, FieldManager, SCALE_VERSION, ScaleOwners};
use keelson_api::meta::GroupVersionKind;
use keelson_api::resources::{Resource, ResourceTable, ScalePaths, reset_filter};
use keelson_api::schema::Schema;
use keelson_api::smd::update::Versions;
use keelson_api::smd::{Filter, TypeId, Types, field_path};
use serde_json::{Value, json};

use crate::status::{Result, StatusError};

/// The versions in which the objects of a resource are served, views of other groups among them.
struct ServedVersions<'a> {
    table: Arc<ResourceTable>,
    row: &'a Arc<Resource>,
}

impl ServedVersions<'_> {
    /// The row that serves the objects in a version.
    fn row(&self, version: &str) -> Option<&Resource> {
        let gvk = GroupVersionKind::from_type_meta(version, &self.row.kind);
        let serves = |row: &Resource| row.group == gvk.group && row.versions.contains(&gvk.version);
        // All versions of a definition are in any view of it, and the table may have a newer one.
        if self.row.custom.is_some() && serves(self.row) {
            return Some(self.row);
        }
        let same = |row: &Resource| row.storage == self.row.storage && row.kind == self.row.kind;
        let row = self.table.rows().iter().find(|row| same(row) && serves(row))?;
        Some(row.view(&gvk.version))
    }
}

impl Versions for ServedVersions<'_> {
    fn type_of(&self, version: &str) -> Option<(&Types, TypeId)> {
        let row = self.row(version)?;
        if let Some(custom) = &row.custom {
            let (_, version) = version.rsplit_once('/')?;
            return custom.schemas.get(version).map(VersionSchema::types);
        }
        let id = Types::builtin_kind(&GroupVersionKind::from_type_meta(version, &row.kind))?;
        Some((Types::builtin(), id))
    }

    fn convert(&self, object: &Value, version: &str) -> std::result::Result<Value, String> {
        let from = object["apiVersion"].as_str().unwrap_or_default();
        let (Some(source), Some(target)) = (self.row(from), self.row(version)) else {
            return Err(format!("no conversion from {from} to {version}"));
        };
        let mut object = object.clone();
        if let Some(converter) = source.converter {
            object = (converter.to_storage)(object);
        }
        if let Some(converter) = target.converter {
            object = (converter.from_storage)(object);
        }
        object["apiVersion"] = version.into();
        Ok(object)
    }
}

/// Who writes, as far as owners of fields go.
pub(crate) struct Owners<'a> {
    versions: ServedVersions<'a>,
    gvk: GroupVersionKind,
    subresource: &'a str,
    filters: BTreeMap<String, Filter>,
    empty: Value,
    now: String,
}

impl<'a> Owners<'a> {
    /// For a resource or (with a name) one of its subresources that shows the whole object.
    pub(crate) fn new(
        table: Arc<ResourceTable>,
        row: &'a Arc<Resource>,
        version: &str,
        subresource: &'a str,
        now: String,
    ) -> Self {
        let gvk = row.gvk(version);
        let filter = reset_filter(row, subresource);
        let filters = match filter {
            Some(filter) => BTreeMap::from([(gvk.api_version(), filter)]),
            None => BTreeMap::new(),
        };
        let empty = empty_object(&gvk);
        Self { versions: ServedVersions { table, row }, gvk, subresource, filters, empty, now }
    }

    fn manager(&self) -> FieldManager<'_> {
        FieldManager {
            versions: &self.versions,
            gvk: &self.gvk,
            subresource: self.subresource,
            filters: &self.filters,
            empty: &self.empty,
            now: &self.now,
        }
    }

    /// Sets the owners of `new`, which `manager` made of `live` (`None`: of nothing), both in the request's version.
    pub(crate) fn update(&self, live: Option<&Value>, new: &mut Value, manager: &str) {
        update_or_clear(&self.manager(), live, new, manager);
    }

    /// Server-side apply: the object (neither normalized nor defaulted) with its owners.
    pub(crate) fn apply(
        &self,
        live: Option<&Value>,
        config: &Value,
        manager: &str,
        force: bool,
    ) -> Result<Value> {
        self.manager().apply(live, config, manager, force).map_err(apply_error)
    }
}

/// An object of a kind with nothing set: what creation starts from.
fn empty_object(gvk: &GroupVersionKind) -> Value {
    let schema = Schema::builtin();
    let mut empty = schema.kind(gvk).map_or_else(|| json!({}), |node| schema.zero(node));
    empty["apiVersion"] = gvk.api_version().into();
    empty["kind"] = gvk.kind.as_str().into();
    empty
}

/// Owners are no reason to refuse a write: what can't be told is left out.
fn update_or_clear(owners: &FieldManager<'_>, live: Option<&Value>, new: &mut Value, manager: &str) {
    if let Err(error) = owners.update(live, new, manager) {
        let metadata = &new["metadata"];
        tracing::error!(
            kind = %owners.gvk, namespace = %metadata["namespace"], name = %metadata["name"], %error,
            "owners of fields can't be told; the object has none now"
        );
    }
}

fn apply_error(error: ApplyError) -> StatusError {
    match error {
        ApplyError::BadRequest(message) => StatusError::bad_request(message),
        ApplyError::Conflict(conflict) => StatusError::new(409, "Conflict", conflict.message)
            .with_details(json!({"causes": conflict.causes})),
        ApplyError::Failed(message) => StatusError::new(500, "", message),
    }
}

/// Owners of a scale, which is a part of another object.
pub(crate) struct ScaleManager<'a> {
    row: &'a Arc<Resource>,
    version: String,
    paths: &'a ScalePaths,
    gvk: GroupVersionKind,
    empty: Value,
    now: String,
}

/// The one version of scales.
struct ScaleVersions;

impl Versions for ScaleVersions {
    fn type_of(&self, version: &str) -> Option<(&Types, TypeId)> {
        let id = Types::builtin_kind(&GroupVersionKind::from_type_meta(version, "Scale"))?;
        (version == SCALE_VERSION).then(|| (Types::builtin(), id))
    }

    fn convert(&self, _scale: &Value, version: &str) -> std::result::Result<Value, String> {
        Err(format!("no Scale in version {version}"))
    }
}

impl<'a> ScaleManager<'a> {
    /// For the scale of a resource in the request's version.
    pub(crate) fn new(row: &'a Arc<Resource>, version: &str, paths: &'a ScalePaths, now: String) -> Self {
        let gvk = GroupVersionKind::from_type_meta(SCALE_VERSION, "Scale");
        let empty = empty_object(&gvk);
        Self { row, version: row.gvk(version).api_version(), paths, gvk, empty, now }
    }

    fn owners<'o>(&'o self, parent: &'o Value) -> ScaleOwners<'o> {
        let path = field_path(&self.paths.spec_replicas.split('.').collect::<Vec<_>>());
        let versions = self.row.versions.iter().map(|version| self.row.gvk(version).api_version());
        ScaleOwners {
            parent: parent["metadata"].get("managedFields"),
            version: &self.version,
            paths: versions.map(|version| (version, path.clone())).collect(),
        }
    }

    /// Gives a scale, as it was read from `parent`, the owners of the replicas.
    pub(crate) fn read(&self, parent: &Value, scale: &mut Value) -> Result<()> {
        let owners = self.owners(parent).to_scale().map_err(plain_error)?;
        if let Some(owners) = owners {
            scale["metadata"]["managedFields"] = owners;
        }
        Ok(())
    }

    /// Sets the owners of a changed scale.
    pub(crate) fn update(&self, live: &Value, new: &mut Value, manager: &str) {
        self.with(|owners| update_or_clear(owners, Some(live), new, manager));
    }

    /// Server-side apply of a scale.
    pub(crate) fn apply(&self, live: &Value, config: &Value, manager: &str, force: bool) -> Result<Value> {
        self.with(|owners| owners.apply(Some(live), config, manager, force)).map_err(apply_error)
    }

    /// Puts the owners of a changed scale into its parent.
    pub(crate) fn write(&self, scale: &Value, parent: &mut Value) -> Result<()> {
        let owners =
            self.owners(parent).to_parent(scale["metadata"].get("managedFields")).map_err(plain_error)?;
        if let Some(metadata) = crate::stored::metadata_mut(parent) {
            match owners {
                Some(owners) => metadata.insert("managedFields".to_owned(), owners),
                None => metadata.remove("managedFields"),
            };
        }
        Ok(())
    }

    fn with<T>(&self, run: impl FnOnce(&FieldManager<'_>) -> T) -> T {
        run(&FieldManager {
            versions: &ScaleVersions,
            gvk: &self.gvk,
            subresource: "scale",
            filters: &BTreeMap::new(),
            empty: &self.empty,
            now: &self.now,
        })
    }
}

/// An error without a class of its own: 500 with the bare message.
fn plain_error(error: impl std::fmt::Display) -> StatusError {
    StatusError::new(500, "", error.to_string())
}
