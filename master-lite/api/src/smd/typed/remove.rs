//! Fields and items taken out of a value (`typed/remove.go`).

use serde_json::{Map, Value};

use super::{Shape, Typed, item_element, shape};
use crate::smd::element::PathElement;
use crate::smd::set::Set;
use crate::smd::types::{List, MapType, TypeId, Types};

impl<'v> Typed<'v> {
    /// The value without these fields and items. What is inside of an atomic value stays.
    #[must_use]
    pub fn without(&self, paths: &Set) -> Typed<'v> {
        self.with(Walk { types: self.types }.value(self.id, &self.value, paths))
    }
}

struct Walk<'t> {
    types: &'t Types,
}

impl Walk<'_> {
    /// What is left of a value; null if nothing.
    fn value(&self, id: TypeId, value: &Value, paths: &Set) -> Value {
        let atom = self.types.atom(id);
        match (shape(atom, Some(value)), value, &atom.map, &atom.list) {
            (Shape::Map, Value::Object(entries), Some(map), _) => {
                // Who removes parts of a value without parts removes it.
                if map.atomic || entries.is_empty() { Value::Null } else { self.map(map, entries, paths) }
            }
            (Shape::List, Value::Array(items), _, Some(list)) => {
                if list.keys.is_none() || items.is_empty() {
                    Value::Null
                } else {
                    self.list(list, items, paths)
                }
            }
            (Shape::Scalar, ..) => value.clone(),
            _ => Value::Null,
        }
    }

    fn map(&self, map: &MapType, entries: &Map<String, Value>, paths: &Set) -> Value {
        let mut out = Map::new();
        for (name, value) in entries {
            let element = PathElement::field(name);
            if paths.has_member(&element) {
                continue;
            }
            let left = match (paths.child(&element).filter(|inner| !inner.is_empty()), map.type_of(name)) {
                (Some(inner), Some(id)) => self.value(id, value, inner),
                (Some(_), None) => Value::Null,
                (None, _) => value.clone(),
            };
            out.insert(name.clone(), left);
        }
        if out.is_empty() { Value::Null } else { Value::Object(out) }
    }

    fn list(&self, list: &List, items: &[Value], paths: &Set) -> Value {
        let mut out = Vec::new();
        for item in items {
            // Lists with items that can't be named have been refused before.
            let element = item_element(self.types, list, item).ok();
            let is_member = element.as_ref().is_some_and(|element| paths.has_member(element));
            let inner =
                element.as_ref().and_then(|element| paths.child(element)).filter(|inner| !inner.is_empty());
            if is_member {
                continue;
            }
            out.push(match inner {
                Some(inner) => self.value(list.item, item, inner),
                None => item.clone(),
            });
        }
        if out.is_empty() { Value::Null } else { Value::Array(out) }
    }
}
