//! What a list or watch selects.

use std::collections::BTreeMap;

use keelson_api::resources::Resource;
use keelson_api::resources::selector::{FieldSelector, LabelSelector};
use serde_json::Value;

use crate::cache::CachedObject;
use crate::status::{Result, StatusError};

/// Namespace, name, labels and fields that objects must have.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this namespace.
    pub namespace: Option<String>,
    labels: LabelSelector,
    fields: FieldSelector,
    /// Places of the fields in [`CachedObject::fields`], by name.
    places: BTreeMap<String, usize>,
}

impl Filter {
    /// Reads the selectors of a request for `row` (a view) whose objects are stored as `storage`.
    pub fn new(
        row: &Resource,
        storage: &Resource,
        namespace: Option<String>,
        label_selector: &str,
        field_selector: &str,
    ) -> Result<Self> {
        let labels = LabelSelector::parse(label_selector).map_err(|e| {
            StatusError::bad_request(format!(
                "unable to parse requirement: {}",
                e.to_string().trim_start_matches("unable to parse requirement: ")
            ))
        })?;
        let fields =
            FieldSelector::parse(field_selector).map_err(|e| StatusError::bad_request(e.to_string()))?;
        let mut places = BTreeMap::new();
        for field in fields.fields() {
            if matches!(field, "metadata.name" | "metadata.namespace") {
                continue;
            }
            let path = row.selectable_fields.iter().find(|f| f.name == field).map(|f| &f.path);
            let place = path.and_then(|path| storage.selectable_fields.iter().position(|f| f.path == *path));
            let Some(place) = place else {
                return Err(StatusError::bad_request(format!("field label not supported: {field}")));
            };
            places.insert(field.to_owned(), place);
        }
        Ok(Self { namespace, labels, fields, places })
    }

    /// Selects the objects of a stored resource whose field has this value; none if that field is not kept.
    pub fn field(storage: &Resource, namespace: Option<&str>, field: &str, value: &str) -> Option<Self> {
        let place = storage.selectable_fields.iter().position(|f| f.name == field)?;
        Some(Self {
            namespace: namespace.map(str::to_owned),
            labels: LabelSelector::default(),
            fields: FieldSelector::equal(field, value),
            places: BTreeMap::from([(field.to_owned(), place)]),
        })
    }

    /// Restricts to one name, for a watch on `/resource/name`.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        self.fields = FieldSelector::equal("metadata.name", name);
        self
    }

    /// True if everything in the namespace is selected.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name that can match, if the selector names one.
    pub fn name(&self) -> Option<&str> {
        self.fields.required("metadata.name")
    }

    /// A value that all selected objects have, and where they have it, if the selector names one.
    pub fn key(&self) -> Option<(Place, &str)> {
        let of_field =
            |(name, place): (&String, &usize)| Some((Place::Field(*place), self.fields.required(name)?));
        self.name().map(|name| (Place::Name, name)).or_else(|| self.places.iter().find_map(of_field))
    }

    /// Looks at one object.
    pub fn matches(&self, object: &CachedObject) -> bool {
        self.namespace.as_ref().is_none_or(|ns| *ns == object.namespace)
            && self.labels.matches(&object.labels)
            && self.fields.matches(|field| match field {
                "metadata.name" => &object.name,
                "metadata.namespace" => &object.namespace,
                other => self.places.get(other).map_or("", |place| Place::Field(*place).of(object)),
            })
    }
}

/// Where an object has a value that a selector may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// `metadata.name`.
    Name,
    /// One of [`CachedObject::fields`].
    Field(usize),
}

impl Place {
    /// The value that an object has there.
    pub fn of(self, object: &CachedObject) -> &str {
        match self {
            Self::Name => &object.name,
            Self::Field(place) => object.fields.get(place).map_or("", |value| value),
        }
    }
}

/// Where in an object a row's selectable fields are.
pub fn selectable_paths(storage: &Resource) -> impl Iterator<Item = &str> {
    storage.selectable_fields.iter().flat_map(|field| field.path.split('|'))
}

/// Values of a row's selectable fields, as selectors compare them. Of the object no more is needed than
/// [`selectable_paths`].
pub fn selectable_values(storage: &Resource, object: &Value) -> Box<[Box<str>]> {
    storage
        .selectable_fields
        .iter()
        .map(|field| {
            let at = |path: &str| path.split('.').fold(object, |at, key| &at[key]);
            let is_empty = |value: &Value| value.is_null() || *value == "";
            let found = field.path.split('|').map(at).find(|value| !is_empty(value));
            match found.unwrap_or(&Value::Null) {
                Value::Null => field.absent.into(),
                Value::String(text) => text.as_str().into(),
                other => other.to_string().into(),
            }
        })
        .collect()
}
