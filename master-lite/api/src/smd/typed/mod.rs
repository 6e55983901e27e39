//! Values with types: what merging, comparing and owning are about (`typed/`).

mod compare;
mod field_set;
mod merge;
mod reconcile;
mod remove;
mod validate;

use std::borrow::Cow;
use std::fmt;

use serde_json::{Map, Value};

use super::element::PathElement;
pub use reconcile::reconcile;

use super::set::{Filter, Set};
use super::types::{Atom, List, TypeId, Types};

/// A value that does not fit its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidationError {
    /// Where, as people read it: `.spec.replicas`; empty for the value itself.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// All complaints about a value; prints as upstream's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidationErrors(pub Vec<ValidationError>);

impl std::error::Error for ValidationErrors {}

impl fmt::Display for ValidationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for ValidationErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => one.fmt(f),
            many => {
                f.write_str("errors:")?;
                many.iter().try_for_each(|error| write!(f, "\n  {error}"))
            }
        }
    }
}

impl ValidationErrors {
    /// One complaint about the value itself.
    pub fn from_message(message: String) -> Self {
        Self(vec![ValidationError { path: String::new(), message }])
    }
}

/// Complaints that a walk has met so far.
#[derive(Debug, Default)]
struct Errors(Vec<ValidationError>);

impl Errors {
    fn push(&mut self, message: impl Into<String>) {
        self.0.push(ValidationError { path: String::new(), message: message.into() });
    }

    /// Runs a walk of something inside and puts its place before the paths of what it complains about.
    fn inside(&mut self, element: impl FnOnce() -> PathElement, walk: impl FnOnce(&mut Self)) {
        let before = self.0.len();
        walk(self);
        if self.0.len() > before {
            let element = element().to_string();
            for error in &mut self.0[before..] {
                error.path.insert_str(0, &element);
            }
        }
    }

    fn result(self) -> Result<(), ValidationErrors> {
        if self.0.is_empty() { Ok(()) } else { Err(ValidationErrors(self.0)) }
    }
}

/// What of an atom applies to a value: the one part that fits its kind, or all that the atom allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Map,
    Scalar,
    List,
    /// The type allows nothing.
    Nothing,
}

/// Which part of the atom a walk takes for a value. `None` is an absent value. Where nothing fits, the order is map,
/// scalar, list, and whoever validates complains.
fn shape(atom: &Atom, value: Option<&Value>) -> Shape {
    match value {
        Some(Value::Number(_) | Value::String(_) | Value::Bool(_)) if atom.scalar.is_some() => Shape::Scalar,
        Some(Value::Array(_)) if atom.list.is_some() => Shape::List,
        Some(Value::Object(_)) if atom.map.is_some() => Shape::Map,
        _ if atom.map.is_some() => Shape::Map,
        _ if atom.scalar.is_some() => Shape::Scalar,
        _ if atom.list.is_some() => Shape::List,
        _ => Shape::Nothing,
    }
}

/// The fields of a map; `None` if the value is none.
fn entries(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

/// The items of a list; none if the value is no list.
fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// How two values change between two states of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Fields that only the old one has.
    pub removed: Set,
    /// Fields that both have, differently.
    pub modified: Set,
    /// Fields that only the new one has.
    pub added: Set,
}

impl Comparison {
    /// True if nothing differs.
    pub fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }

    /// Only the changes that count.
    #[must_use]
    pub fn filtered(self, filter: Option<&Filter>) -> Self {
        match filter {
            None => self,
            Some(filter) => Self {
                removed: filter.apply(&self.removed),
                modified: filter.apply(&self.modified),
                added: filter.apply(&self.added),
            },
        }
    }
}

/// A value and its type.
#[derive(Debug, Clone)]
pub struct Typed<'v> {
    types: &'v Types,
    id: TypeId,
    value: Cow<'v, Value>,
}

impl<'v> Typed<'v> {
    /// A value that fits its type; `duplicates` says whether items of a set or keyed list may come twice, as they
    /// do in objects that were stored before their lists had keys.
    pub fn new(
        types: &'v Types,
        id: TypeId,
        value: Cow<'v, Value>,
        duplicates: bool,
    ) -> Result<Self, ValidationErrors> {
        let typed = Self { types, id, value };
        typed.validate(duplicates)?;
        Ok(typed)
    }

    /// The bare value.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The bare value, owned.
    pub fn into_value(self) -> Value {
        self.value.into_owned()
    }

    /// The arena of the type.
    pub fn types(&self) -> &'v Types {
        self.types
    }

    /// The type.
    pub fn id(&self) -> TypeId {
        self.id
    }

    fn with(&self, value: Value) -> Self {
        Self { types: self.types, id: self.id, value: Cow::Owned(value) }
    }
}

/// The element that names an item of a list with identities.
fn item_element(types: &Types, list: &List, item: &Value) -> Result<PathElement, String> {
    match list.keys.as_deref() {
        None => Err("invalid indexing of non-associative list".to_owned()),
        Some([]) => match item {
            Value::Object(_) => {
                Err("associative list without keys has an element that's a map type".to_owned())
            }
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            Value::Null => {
                Err("associative list without keys has an element that's an explicit null".to_owned())
            }
            scalar => Ok(PathElement::Value(scalar.clone())),
        },
        Some(keys) => keyed_element(types, list, keys, item),
    }
}

fn keyed_element(
    types: &Types,
    list: &List,
    keys: &[crate::schema::Name],
    item: &Value,
) -> Result<PathElement, String> {
    let fields = match item {
        Value::Object(fields) => fields,
        Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
        _ => return Err("associative list with keys may not have non-map elements".to_owned()),
    };
    let mut found: Vec<(&str, Value)> = Vec::with_capacity(keys.len());
    for key in keys {
        if let Some(value) = fields.get(key.as_ref()) {
            found.push((key, value.clone()));
            continue;
        }
        let Some(map) = &types.atom(list.item).map else {
            return Err(format!(
                "couldn't find default value for {key}: associative list may not have non-map types"
            ));
        };
        // Without a default the absence of the key is what names the item.
        if let Some(default) = map.field(key).and_then(|field| field.default.clone()) {
            found.push((key, default));
        }
    }
    if found.is_empty() {
        let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
            keys.join(" ")
        ));
    }
    Ok(PathElement::key(found))
}
