//! Custom resources: from a CustomResourceDefinition to a row of the table, and what takes the place of the built-in
//! schema for the objects of such a row.

mod columns;
pub mod definition;
mod format;
mod json_path;
pub mod names;
mod rules;
mod shape;
mod strategy;
mod structural;
mod validate;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

pub use json_path::{JsonPath, JsonPathError};
pub use rules::Rule;
pub(crate) use rules::convert;
pub use shape::{coerce_metadata, prune};
pub use structural::{Additional, Checks, ListType, Structural};
pub use validate::{validate, validate_lists};

use crate::codec::{self, CodecError, Decoded, FieldValidation, MediaType};
use crate::meta::{GroupResource, GroupVersionKind};
use crate::resources::{Resource, ScalePaths, SelectableField, Subresource};
use crate::smd::{TypeId, Types};
use strategy::CustomStrategy;

/// The finalizer by which a definition waits until its objects are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The schema of one version of a custom resource.
#[derive(Debug)]
pub struct VersionSchema {
    /// `openAPIV3Schema` as it was written.
    pub openapi: Value,
    /// The same as a tree.
    pub structural: Structural,
    /// The same as types of a merge, made at first use.
    types: OnceLock<(Types, TypeId)>,
}

impl VersionSchema {
    /// The type of the version's objects as a merge sees them.
    pub fn types(&self) -> (&Types, TypeId) {
        let (types, id) = self.types.get_or_init(|| Types::custom(&self.structural));
        (types, *id)
    }
}

/// What a row knows of the definition behind it.
#[derive(Debug, Clone)]
pub struct Custom {
    /// Name of the definition: `plural.group`.
    pub definition: String,
    /// Kind of lists.
    pub list_kind: String,
    /// Version that this view of the row is for.
    pub version: String,
    /// All versions, served or not.
    pub schemas: Arc<BTreeMap<String, VersionSchema>>,
    /// Changes with everything that shows in answers: uid and generation of the definition.
    pub epoch: u64,
    /// The definition is being deleted: no new objects.
    pub terminating: bool,
    /// For requests to a deprecated version.
    pub warning: Option<String>,
}

impl Custom {
    /// The schema of the version of this view.
    pub fn schema(&self) -> Option<&VersionSchema> {
        self.schemas.get(&self.version)
    }

    /// The same as a tree, for whoever walks objects (a typed merge, say).
    pub fn structural(&self) -> Option<&Structural> {
        self.schema().map(|schema| &schema.structural)
    }

    /// Decodes a body; see [`codec::decode`].
    pub fn decode(
        &self,
        media: MediaType,
        body: &[u8],
        expect: &GroupVersionKind,
        validation: FieldValidation,
    ) -> Result<Decoded, CodecError> {
        let (mut object, duplicates) = codec::parse(media, body)?;
        let gvk = codec::type_meta(&object)?;
        if gvk.kind.is_empty() {
            return Err(CodecError::NoKind(String::from_utf8_lossy(body).into_owned()));
        }
        if gvk.kind != expect.kind {
            return Err(CodecError::WrongKind { got: gvk, expected: expect.kind.clone() });
        }
        if gvk != *expect {
            return Err(CodecError::WrongVersion { got: gvk.api_version(), expected: expect.api_version() });
        }
        let warnings = self.normalize(&mut object, duplicates, validation)?;
        Ok(Decoded { object, gvk, warnings })
    }

    /// Prunes an object of the version of this view; see [`codec::normalize_object`].
    pub fn normalize(
        &self,
        object: &mut Value,
        duplicates: Vec<String>,
        validation: FieldValidation,
    ) -> Result<Vec<String>, CodecError> {
        codec::check_depth(object)?;
        codec::keep_reset(object);
        let Some(schema) = self.structural() else { return Ok(Vec::new()) };
        let mut unknown = coerce_metadata(object, schema, false).map_err(CodecError::Metadata)?;
        unknown.extend(prune(object, schema));
        if validation == FieldValidation::Ignore {
            return Ok(Vec::new());
        }
        let mut complaints = duplicates;
        complaints.extend(unknown.iter().map(|path| format!("unknown field {path:?}")));
        codec::complain(complaints, validation)
    }

    /// Fills in the defaults of the version of this view.
    pub fn default(&self, object: &mut Value) {
        if let Some(schema) = self.structural() {
            shape::drop_nulls(object, Some(schema));
            shape::default(object, schema);
        }
    }

    /// Brings an object out of the store into the version of this view: pruned by the schema it was stored under and
    /// by that of the view, then defaulted. The definition may have changed since it was stored.
    pub fn read(&self, group: &str, object: &mut Value) {
        let stored = object["apiVersion"].as_str().and_then(|v| v.rsplit('/').next()).map(str::to_owned);
        if let Some(schema) = stored.filter(|v| *v != self.version).and_then(|v| self.schemas.get(&v)) {
            prune(object, &schema.structural);
        }
        if let Some(map) = object.as_object_mut() {
            map.insert("apiVersion".to_owned(), format!("{group}/{}", self.version).into());
        }
        if let Some(schema) = self.structural() {
            // What no longer fits is shown without it; the text of such an error would have no reader.
            let _ = coerce_metadata(object, schema, true);
            prune(object, schema);
            shape::drop_nulls(object, Some(schema));
            shape::default(object, schema);
        }
    }
}

/// Sorts versions as upstream does: GA before beta before alpha, newer before older, the rest by name.
pub fn version_order(a: &str, b: &str) -> std::cmp::Ordering {
    fn key(version: &str) -> Option<(u8, u64, u64)> {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..digits].parse().ok()?;
        match &rest[digits..] {
            "" => Some((3, major, 0)),
            tail => {
                let (rank, minor) = match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
                    (Some(minor), _) => (2, minor),
                    (_, Some(minor)) => (1, minor),
                    _ => return None,
                };
                Some((rank, major, minor.parse().ok()?))
            }
        }
    }
    match (key(a), key(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// Verbs of every custom resource.
const VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

/// The row that a stored definition asks for. `None` if no version is served or the names are not accepted yet.
pub fn resource(definition: &Value) -> Option<Resource> {
    let spec = &definition["spec"];
    let names = &definition["status"]["acceptedNames"];
    let (group, plural) = (spec["group"].as_str()?, names["plural"].as_str()?);
    let kind = names["kind"].as_str().filter(|kind| !kind.is_empty())?;
    let versions: Vec<&Value> = spec["versions"].as_array()?.iter().collect();
    let name_of = |version: &Value| version["name"].as_str().unwrap_or_default().to_owned();
    let storage_version = name_of(versions.iter().find(|v| v["storage"] == true)?);
    let mut served: Vec<String> =
        versions.iter().filter(|v| v["served"] == true).map(|v| name_of(v)).collect();
    served.sort_by(|a, b| version_order(a, b));
    if served.is_empty() {
        return None;
    }
    let schemas: BTreeMap<String, VersionSchema> = versions
        .iter()
        .map(|version| {
            let openapi = version["schema"]["openAPIV3Schema"].clone();
            let structural =
                if openapi.is_null() { Structural::anything() } else { Structural::read(&openapi) };
            (name_of(version), VersionSchema { openapi, structural, types: OnceLock::new() })
        })
        .collect();
    let custom = Custom {
        definition: definition["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        list_kind: names["listKind"].as_str().unwrap_or_default().to_owned(),
        version: storage_version.clone(),
        schemas: Arc::new(schemas),
        epoch: epoch(definition),
        terminating: !definition["metadata"]["deletionTimestamp"].is_null(),
        warning: None,
    };
    let storage = GroupResource::new(group, plural);
    let base = Resource {
        group: group.to_owned(),
        versions: served.clone(),
        storage_version,
        kind: kind.to_owned(),
        plural: plural.to_owned(),
        singular: names["singular"].as_str().unwrap_or_default().to_owned(),
        short_names: strings(&names["shortNames"]),
        categories: strings(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        verbs: VERBS.iter().map(|v| (*v).to_owned()).collect(),
        subresources: Vec::new(),
        selectable_fields: Vec::new(),
        storage,
        converter: None,
        ttl: None,
        tracks_generation: true,
        reset_status_on_create: true,
        is_virtual: false,
        printer: columns::printer(&Value::Null),
        strategy: Arc::new(CustomStrategy::default()),
        custom: Some(Arc::new(custom.clone())),
        views: BTreeMap::new(),
    };
    let mut row = base.clone();
    for version in versions.iter().filter(|v| v["served"] == true) {
        let name = name_of(version);
        let view = view(&base, &custom, version, &name);
        for field in &view.selectable_fields {
            if !row.selectable_fields.iter().any(|f| f.path == field.path) {
                row.selectable_fields.push(field.clone());
            }
        }
        row.views.insert(name, Arc::new(view));
    }
    Some(row)
}

/// The row as one version has it.
fn view(base: &Resource, custom: &Custom, version: &Value, name: &str) -> Resource {
    let mut view = base.clone();
    let warning = (version["deprecated"] == true).then(|| match version["deprecationWarning"].as_str() {
        Some(text) => text.to_owned(),
        None => format!("{}/{name} {} is deprecated", base.group, base.kind),
    });
    let custom = Arc::new(Custom { version: name.to_owned(), warning, ..custom.clone() });
    let subresources = &version["subresources"];
    let verbs: Vec<String> = ["get", "patch", "update"].map(str::to_owned).to_vec();
    if !subresources["status"].is_null() {
        view.subresources.push(Subresource {
            name: "status".to_owned(),
            kind: base.gvk(name),
            verbs: verbs.clone(),
            scale: None,
        });
    }
    let scale = &subresources["scale"];
    if !scale.is_null() {
        let path = |key: &str| scale[key].as_str().unwrap_or_default().trim_start_matches('.').to_owned();
        view.subresources.push(Subresource {
            name: "scale".to_owned(),
            kind: GroupVersionKind::new("autoscaling", "v1", "Scale"),
            verbs,
            scale: Some(ScalePaths {
                spec_replicas: path("specReplicasPath"),
                status_replicas: path("statusReplicasPath"),
                selector: path("labelSelectorPath"),
            }),
        });
    }
    view.selectable_fields = version["selectableFields"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|field| field["jsonPath"].as_str())
        .map(|path| {
            let path = path.trim_start_matches('.').to_owned();
            SelectableField { name: path.clone(), path, absent: "" }
        })
        .collect();
    view.printer = columns::printer(&version["additionalPrinterColumns"]);
    let has_status = view.has_status();
    let scale = view.subresources.iter().find_map(|sub| sub.scale.clone());
    view.strategy = Arc::new(CustomStrategy { custom: Some(custom.clone()), has_status, scale });
    view.custom = Some(custom);
    view
}

fn epoch(definition: &Value) -> u64 {
    use std::hash::{Hash as _, Hasher as _};
    let mut hasher = std::hash::DefaultHasher::new();
    let meta = &definition["metadata"];
    meta["uid"].as_str().hash(&mut hasher);
    definition["spec"].to_string().hash(&mut hasher);
    definition["status"]["acceptedNames"].to_string().hash(&mut hasher);
    meta["deletionTimestamp"].is_null().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_order() {
        let mut versions =
            ["foo10", "v1", "v1beta1", "v11alpha2", "foo1", "v10", "v3beta1", "v2", "v11beta2", "v12alpha1"];
        versions.sort_by(|a, b| version_order(a, b));
        assert_eq!(
            versions,
            ["v10", "v2", "v1", "v11beta2", "v3beta1", "v1beta1", "v12alpha1", "v11alpha2", "foo1", "foo10"]
        );
    }
}
