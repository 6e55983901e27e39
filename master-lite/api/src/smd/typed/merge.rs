//! A configuration merged into an object (`typed/merge.go`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Map, Value};

use super::validate::check_scalar;
use super::{Errors, Shape, Typed, ValidationErrors, entries, item_element, items, shape};
use crate::smd::element::PathElement;
use crate::smd::types::{List, MapType, Scalar, TypeId, Types};

impl<'v> Typed<'v> {
    /// This value with what `config` (of the same type) says on top. Nothing is removed. Lists with identities keep
    /// this value's order where `config` doesn't order their items.
    pub fn merge(&self, config: &Self) -> Result<Typed<'v>, ValidationErrors> {
        let mut errors = Errors::default();
        let merged = merge(self.types, self.id, Some(&self.value), Some(&config.value), &mut errors);
        errors.result()?;
        Ok(Typed { types: self.types, id: self.id, value: Cow::Owned(merged.unwrap_or(Value::Null)) })
    }
}

fn merge(
    types: &Types,
    id: TypeId,
    old: Option<&Value>,
    new: Option<&Value>,
    errors: &mut Errors,
) -> Option<Value> {
    let atom = types.atom(id);
    let (old_shape, new_shape) = (shape(atom, old), shape(atom, new));
    let mut walk = |shape: Shape| match (shape, &atom.map, atom.scalar, &atom.list) {
        (Shape::Map, Some(map), ..) => merge_maps(types, map, old, new, errors),
        (Shape::Scalar, _, Some(scalar), _) => merge_scalars(scalar, old, new, errors),
        (Shape::List, _, _, Some(list)) => merge_lists(types, list, old, new, errors),
        _ => {
            errors.push("schema error: invalid atom: inlined");
            None
        }
    };
    match (old, new) {
        (_, None) => walk(old_shape),
        (None, _) => walk(new_shape),
        _ => {
            // Where the shape changes, the old one is walked for its complaints alone.
            if old_shape != new_shape {
                walk(old_shape);
            }
            walk(new_shape)
        }
    }
}

/// Leaves are taken whole, the configuration's first.
fn leaf(old: Option<&Value>, new: Option<&Value>) -> Option<Value> {
    new.or(old).cloned()
}

fn merge_scalars(
    scalar: Scalar,
    old: Option<&Value>,
    new: Option<&Value>,
    errors: &mut Errors,
) -> Option<Value> {
    let check = |value: Option<&Value>| value.map_or(Ok(()), |value| check_scalar(scalar, value));
    if let (Err(old), Err(new)) = (check(old), check(new)) {
        errors.push(format!("lhs: {old}"));
        errors.push(format!("rhs: {new}"));
        return None;
    }
    leaf(old, new)
}

fn merge_maps(
    types: &Types,
    map: &MapType,
    old: Option<&Value>,
    new: Option<&Value>,
    errors: &mut Errors,
) -> Option<Value> {
    let (old_entries, new_entries) = (entries(old), entries(new));
    let both_empty = old_entries.is_none_or(Map::is_empty) && new_entries.is_none_or(Map::is_empty);
    if map.atomic || both_empty {
        return leaf(old, new);
    }
    let mut out = Map::new();
    let mut each = |name: &String, old: Option<&Value>, new: Option<&Value>| {
        errors.inside(
            || PathElement::field(name),
            |errors| match map.type_of(name) {
                Some(id) => {
                    if let Some(merged) = merge(types, id, old, new, errors) {
                        out.insert(name.clone(), merged);
                    }
                }
                None => errors.push("schema error: invalid atom: inlined"),
            },
        );
    };
    for (name, old) in old_entries.into_iter().flatten() {
        each(name, Some(old), new_entries.and_then(|new| new.get(name)));
    }
    for (name, new) in new_entries.into_iter().flatten() {
        if old_entries.is_none_or(|old| !old.contains_key(name)) {
            each(name, None, Some(new));
        }
    }
    (!out.is_empty()).then_some(Value::Object(out))
}

/// The items of a list by what names them.
struct Indexed<'i> {
    /// In the list's order; more than once for items that share an identity.
    elements: Vec<PathElement>,
    /// Null for items that share an identity, for those are not merged.
    items: BTreeMap<PathElement, &'i Value>,
}

impl<'i> Indexed<'i> {
    fn new(types: &Types, list: &List, items: &'i [Value], duplicates: bool, errors: &mut Errors) -> Self {
        static NULL: Value = Value::Null;
        let mut out = Self { elements: Vec::with_capacity(items.len()), items: BTreeMap::new() };
        for (index, item) in items.iter().enumerate() {
            let element = match item_element(types, list, item) {
                Ok(element) => element,
                Err(why) => {
                    errors.push(format!("element {index}: {why}"));
                    continue;
                }
            };
            if out.items.contains_key(&element) {
                if !duplicates {
                    errors.push(format!("duplicate entries for key {element}"));
                    continue;
                }
                out.items.insert(element.clone(), &NULL);
            } else {
                out.items.insert(element.clone(), item);
            }
            out.elements.push(element);
        }
        out
    }

    fn get(&self, element: &PathElement) -> Option<&'i Value> {
        self.items.get(element).copied()
    }
}

fn merge_lists(
    types: &Types,
    list: &List,
    old: Option<&Value>,
    new: Option<&Value>,
    errors: &mut Errors,
) -> Option<Value> {
    let (old_items, new_items) = (items(old), items(new));
    if list.keys.is_none() || old_items.is_empty() && new_items.is_empty() {
        return leaf(old, new);
    }
    let before = errors.0.len();
    let new = Indexed::new(types, list, new_items, false, errors);
    let old = Indexed::new(types, list, old_items, true, errors);
    if errors.0.len() > before {
        return None;
    }
    let out = interleave(types, list, old_items, &old, &new);
    (!out.is_empty()).then_some(Value::Array(out))
}

/// Items that both lists have come in the new list's order; items that only one has stay beside their neighbours.
fn interleave(
    types: &Types,
    list: &List,
    old_items: &[Value],
    old: &Indexed<'_>,
    new: &Indexed<'_>,
) -> Vec<Value> {
    let mut out = Vec::with_capacity(old.elements.len().max(new.elements.len()));
    let mut merge_item = |old: Option<&Value>, new: Option<&Value>| {
        // Upstream drops what merging an item complains about; both items have been validated.
        out.extend(merge(types, list.item, old, new, &mut Errors::default()));
    };
    let mut shared: VecDeque<&PathElement> =
        new.elements.iter().filter(|element| old.items.contains_key(element)).collect();
    let mut next_shared = shared.pop_front();
    let mut merged: BTreeSet<&PathElement> = BTreeSet::new();
    let (mut l, mut r) = (0, 0);
    while l < old.elements.len() || r < new.elements.len() {
        if let (Some(left), Some(right)) = (old.elements.get(l), new.elements.get(r)) {
            if left == right {
                merged.insert(left);
                merge_item(old.get(left), new.get(left));
                (l, r) = (l + 1, r + 1);
                next_shared = shared.pop_front();
                continue;
            }
            if new.items.contains_key(left) && next_shared.is_some_and(|next| next != left) {
                // Shared, but not the one whose turn it is.
                l += 1;
                continue;
            }
        }
        if let Some(left) = old.elements.get(l) {
            if !new.items.contains_key(left) {
                // By its index: of items that share an identity each stays.
                merge_item(old_items.get(l), None);
                l += 1;
                continue;
            }
            if merged.contains(left) {
                l += 1;
            }
        }
        if let Some(right) = new.elements.get(r) {
            merged.insert(right);
            merge_item(old.get(right), new.get(right));
            r += 1;
            if next_shared == Some(right) {
                next_shared = shared.pop_front();
            }
        }
    }
    out
}
