//! What differs between two values of one type (`typed/compare.go`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::validate::check_scalar;
use super::{Comparison, Errors, Shape, Typed, ValidationErrors, entries, item_element, items, shape};
use crate::smd::element::PathElement;
use crate::smd::set::Set;
use crate::smd::types::{List, MapType, Scalar, TypeId, Types};
use crate::smd::value;

impl Typed<'_> {
    /// What changes from this value to `new`, which must be of the same type.
    pub fn compare(&self, new: &Self) -> Result<Comparison, ValidationErrors> {
        let mut out = Comparison::default();
        let mut errors = Errors::default();
        // Whether the whole object came or went is nobody's business.
        compare(self.types, self.id, Some(&self.value), Some(&new.value), &mut out, &mut errors);
        errors.result().map(|()| out)
    }
}

/// Which of the three sets a value itself belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    Removed,
    Modified,
    Added,
}

/// The comparison of one place: `out` gets what differs below it, the result is what became of the place itself.
fn compare(
    types: &Types,
    id: TypeId,
    old: Option<&Value>,
    new: Option<&Value>,
    out: &mut Comparison,
    errors: &mut Errors,
) -> Change {
    let atom = types.atom(id);
    let (old_shape, new_shape) = (shape(atom, old), shape(atom, new));
    let mut walk = |shape: Shape| match (shape, &atom.map, atom.scalar, &atom.list) {
        (Shape::Map, Some(map), ..) => compare_maps(types, map, old, new, out, errors),
        (Shape::Scalar, _, Some(scalar), _) => compare_scalars(scalar, old, new, errors),
        (Shape::List, _, _, Some(list)) => compare_lists(types, list, old, new, out, errors),
        _ => {
            errors.push("schema error: invalid atom: inlined");
            None
        }
    };
    // An absent side takes the other's shape. A value that changed its shape is walked as both.
    let leaf = match (old, new) {
        (_, None) => walk(old_shape),
        (None, _) => walk(new_shape),
        _ if old_shape == new_shape => walk(new_shape),
        _ => {
            let first = walk(old_shape);
            let second = walk(new_shape);
            match (first, second) {
                (Some(Change::None), Some(other)) | (Some(other), Some(Change::None)) => Some(other),
                (first, second) => first.or(second),
            }
        }
    };
    leaf.unwrap_or(match (old, new) {
        (None, _) => Change::Added,
        (_, None) => Change::Removed,
        _ => Change::None,
    })
}

/// Leaves differ as a whole.
fn leaf(old: Option<&Value>, new: Option<&Value>) -> Option<Change> {
    Some(match (old, new) {
        (None, _) => Change::Added,
        (_, None) => Change::Removed,
        (Some(old), Some(new)) if !value::equals(old, new) => Change::Modified,
        _ => Change::None,
    })
}

fn compare_scalars(
    scalar: Scalar,
    old: Option<&Value>,
    new: Option<&Value>,
    errors: &mut Errors,
) -> Option<Change> {
    let check = |value: Option<&Value>| value.map_or(Ok(()), |value| check_scalar(scalar, value));
    if let (Err(old), Err(new)) = (check(old), check(new)) {
        errors.push(format!("lhs: {old}"));
        errors.push(format!("rhs: {new}"));
        return None;
    }
    leaf(old, new)
}

/// Compares what is at an element and files the result.
fn compare_child(
    types: &Types,
    id: TypeId,
    element: impl Fn() -> PathElement,
    (old, new): (Option<&Value>, Option<&Value>),
    out: &mut Comparison,
    errors: &mut Errors,
) {
    if old == new {
        return;
    }
    let mut inner = Comparison::default();
    let mut change = Change::None;
    errors.inside(&element, |errors| change = compare(types, id, old, new, &mut inner, errors));
    let sets = [
        (&mut out.removed, inner.removed, Change::Removed),
        (&mut out.modified, inner.modified, Change::Modified),
        (&mut out.added, inner.added, Change::Added),
    ];
    for (set, inner, kind) in sets {
        if !inner.is_empty() {
            set.put_child(element(), inner);
        }
        if change == kind {
            set.insert_member(element());
        }
    }
}

fn compare_maps(
    types: &Types,
    map: &MapType,
    old: Option<&Value>,
    new: Option<&Value>,
    out: &mut Comparison,
    errors: &mut Errors,
) -> Option<Change> {
    let (old_entries, new_entries) = (entries(old), entries(new));
    // Nothing against nothing is a leaf: null and empty differ.
    let both_empty = old_entries.is_none_or(Map::is_empty) && new_entries.is_none_or(Map::is_empty);
    if map.atomic || both_empty {
        return leaf(old, new);
    }
    let mut each = |name: &str, old: Option<&Value>, new: Option<&Value>| match map.type_of(name) {
        Some(id) => compare_child(types, id, || PathElement::field(name), (old, new), out, errors),
        None => errors
            .inside(|| PathElement::field(name), |errors| errors.push("schema error: invalid atom: inlined")),
    };
    for (name, old) in old_entries.into_iter().flatten() {
        each(name, Some(old), new_entries.and_then(|new| new.get(name)));
    }
    for (name, new) in new_entries.into_iter().flatten() {
        if old_entries.is_none_or(|old| !old.contains_key(name)) {
            each(name, None, Some(new));
        }
    }
    None
}

fn compare_lists(
    types: &Types,
    list: &List,
    old: Option<&Value>,
    new: Option<&Value>,
    out: &mut Comparison,
    errors: &mut Errors,
) -> Option<Change> {
    let (old_items, new_items) = (items(old), items(new));
    if list.keys.is_none() || old_items.is_empty() && new_items.is_empty() {
        return leaf(old, new);
    }
    let (old, new) = (old_items, new_items);
    let mut all: BTreeMap<PathElement, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (index, item) in old.iter().enumerate() {
        match item_element(types, list, item) {
            Ok(element) => all.entry(element).or_default().0.push(item),
            Err(why) => errors.push(format!("element {index}: {why}")),
        }
    }
    for (index, item) in new.iter().enumerate() {
        match item_element(types, list, item) {
            Ok(element) => all.entry(element).or_default().1.push(item),
            Err(why) => errors.push(format!("element {index}: {why}")),
        }
    }
    for (element, (old, new)) in all {
        let mut items = |old: Option<&Value>, new: Option<&Value>| {
            compare_child(types, list.item, || element.clone(), (old, new), out, errors);
        };
        let mark = |set: &mut Set| set.insert_member(element.clone());
        // Items that share an identity are compared as one leaf.
        match (old.as_slice(), new.as_slice()) {
            ([] | [_], [] | [_]) => items(old.first().copied(), new.first().copied()),
            ([_, _, ..], [_, _, ..]) => {
                let same = old.len() == new.len() && old.iter().zip(&new).all(|(a, b)| value::equals(a, b));
                if !same {
                    mark(&mut out.modified);
                }
            }
            ([_, _, ..], _) => {
                if let Some(new) = new.first() {
                    items(None, Some(new));
                }
                mark(&mut out.removed);
            }
            (_, _) => {
                if let Some(old) = old.first() {
                    items(Some(old), None);
                }
                mark(&mut out.added);
            }
        }
    }
    None
}
