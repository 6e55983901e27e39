//! The set of all fields that a value has (`typed/tofieldset.go`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Shape, Typed, item_element, shape};
use crate::smd::element::PathElement;
use crate::smd::set::Set;
use crate::smd::types::{List, MapType, TypeId, Types};

impl Typed<'_> {
    /// Every leaf and every item.
    pub fn field_set(&self) -> Set {
        let mut set = Set::default();
        // Nobody owns the whole object, so it doesn't matter whether it is a leaf.
        fields(self.types, self.id, &self.value, &mut set);
        set
    }
}

/// Adds what is inside of a value to the set that belongs to it. Returns true if the value itself is a leaf.
fn fields(types: &Types, id: TypeId, value: &Value, set: &mut Set) -> bool {
    let atom = types.atom(id);
    match (shape(atom, Some(value)), &atom.map, &atom.list) {
        (Shape::Map, Some(map), _) => {
            if let (false, Value::Object(entries)) = (map.atomic, value) {
                map_fields(types, map, entries, set);
            }
            map.atomic
        }
        (Shape::List, _, Some(list)) => {
            if let (true, Value::Array(items)) = (list.keys.is_some(), value) {
                list_fields(types, list, items, set);
            }
            list.keys.is_none()
        }
        (Shape::Scalar, ..) => true,
        _ => false,
    }
}

fn map_fields(types: &Types, map: &MapType, entries: &Map<String, Value>, set: &mut Set) {
    for (name, value) in entries {
        let element = PathElement::field(name);
        let mut inner = Set::default();
        let is_leaf = map.type_of(name).is_some_and(|id| fields(types, id, value, &mut inner));
        let is_empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
        // A key of a map is there or not; a field of a struct always is.
        let is_key = map.field(name).is_none();
        add(set, element, inner, is_leaf || is_empty || is_key);
    }
}

fn list_fields(types: &Types, list: &List, items: &[Value], set: &mut Set) {
    let elements: Vec<PathElement> =
        items.iter().filter_map(|item| item_element(types, list, item).ok()).collect();
    if elements.len() < items.len() {
        // Validation has refused such a list.
        return;
    }
    let mut counts: BTreeMap<&PathElement, usize> = BTreeMap::new();
    for element in &elements {
        *counts.entry(element).or_default() += 1;
    }
    for (element, item) in elements.iter().zip(items) {
        let mut inner = Set::default();
        // Of items that share an identity only that is owned.
        if counts[element] == 1 {
            fields(types, list.item, item, &mut inner);
        }
        add(set, element.clone(), inner, true);
    }
}

fn add(set: &mut Set, element: PathElement, inner: Set, is_member: bool) {
    if !inner.is_empty() {
        set.put_child(element.clone(), inner);
    }
    if is_member {
        set.insert_member(element);
    }
}
