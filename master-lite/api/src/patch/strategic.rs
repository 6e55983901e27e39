//! Strategic merge patch, as `k8s.io/apimachinery/pkg/util/strategicpatch` applies it on the server.

use super::{PatchError, go_value};
use crate::{
    meta::GroupVersionKind,
    schema::{Extra, Node, NodeId, Schema},
};
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";
const SET_ORDER: &str = "$setElementOrder";

type Object = Map<String, Value>;

/// Applies a strategic merge patch to an object of a built-in kind.
pub fn strategic(gvk: &GroupVersionKind, current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let schema = Schema::builtin();
    // Upstream refuses the media type for kinds it has no struct of.
    let node = schema
        .kind(gvk)
        .ok_or_else(|| PatchError::Malformed("strategic merge patch format is not supported".to_owned()))?;
    strategic_with(schema, node, current, patch)
}

/// Applies a strategic merge patch to a value of any type of any schema.
pub fn strategic_with(
    schema: &Schema,
    node: NodeId,
    current: &Value,
    patch: &Value,
) -> Result<Value, PatchError> {
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Err(PatchError::Malformed("invalid JSON document".to_owned()));
    };
    let merged = Merger { schema }.map(current.clone(), patch.clone(), Some(node))?;
    Ok(Value::Object(merged))
}

struct Merger<'s> {
    schema: &'s Schema,
}

/// What the schema says about a field.
struct Meta<'s> {
    /// Type of the field, or of the items of a list.
    node: Option<NodeId>,
    extra: Option<&'s Extra>,
}

impl Meta<'_> {
    fn merges(&self) -> bool {
        self.extra.is_some_and(|extra| extra.merge)
    }

    fn replaces(&self) -> bool {
        self.extra.is_some_and(|extra| extra.replace)
    }

    fn merge_key(&self) -> &str {
        self.extra.and_then(|extra| extra.merge_key.as_deref()).unwrap_or_default()
    }
}

impl<'s> Merger<'s> {
    fn lookup(&self, of: Option<NodeId>, key: &str) -> Result<Meta<'s>, PatchError> {
        let Some(of) = of else { return Ok(Meta { node: None, extra: None }) };
        let missing = |name: &str| {
            PatchError::Unclassified(format!(
                "unable to find api field in struct {name} for the json field {key:?}"
            ))
        };
        match self.schema.node(of) {
            Node::Struct(inner) => {
                let short = inner.name.rsplit('.').next().unwrap_or_default();
                let field = self.schema.field(inner, key).ok_or_else(|| missing(short))?;
                Ok(Meta { node: Some(field.node), extra: field.extra.as_deref() })
            }
            Node::Special(_) => {
                let name = self.schema.go_type(of);
                Err(missing(name.rsplit('.').next().unwrap_or_default()))
            }
            Node::Map { .. } => Err(not_a_struct("map")),
            Node::List { .. } | Node::Wrapped(_) => Err(not_a_struct("slice")),
            Node::Scalar(_) | Node::Enum(_) => Err(not_a_struct("string")),
        }
    }

    fn lookup_list(&self, of: Option<NodeId>, key: &str) -> Result<Meta<'s>, PatchError> {
        let meta = self.lookup(of, key)?;
        let node = meta.node.and_then(|node| match self.schema.node(node) {
            Node::List { item, .. } => Some(*item),
            _ => None,
        });
        Ok(Meta { node, extra: meta.extra })
    }

    fn map(&self, mut original: Object, mut patch: Object, of: Option<NodeId>) -> Result<Object, PatchError> {
        if let Some(directive) = patch.remove(DIRECTIVE) {
            return match directive.as_str() {
                Some("replace") => Ok(patch),
                Some("delete") => Ok(Object::new()),
                _ => {
                    let map = go_value(&with_directive(patch, &directive));
                    Err(bad_patch_type(&directive, &map))
                }
            };
        }
        retain_keys(&mut original, &mut patch)?;
        self.ordered_lists(&mut original, &mut patch, of)?;
        for (key, value) in patch {
            let (key, deletes) = match key.strip_prefix(DELETE_FROM) {
                Some(rest) => (rest.strip_prefix('/').ok_or_else(bad_primitive_list)?.to_owned(), true),
                None => (key, false),
            };
            if value.is_null() {
                original.remove(&key);
                continue;
            }
            let Some(present) = original.get_mut(&key) else {
                if !deletes {
                    take(&mut original, key, value);
                }
                continue;
            };
            match (present, value) {
                (Value::Object(present), Value::Object(value)) => {
                    let meta = self.lookup(of, &key)?;
                    let present = std::mem::take(present);
                    let merged = if meta.replaces() { value } else { self.map(present, value, meta.node)? };
                    original.insert(key, Value::Object(merged));
                }
                (Value::Array(present), Value::Array(value)) => {
                    let meta = self.lookup_list(of, &key)?;
                    let present = std::mem::take(present);
                    let merged = if meta.merges() || deletes {
                        self.list(present, value, &meta, deletes)?
                    } else {
                        value
                    };
                    original.insert(key, Value::Array(merged));
                }
                (_, value) if !deletes => take(&mut original, key, value),
                _ => {}
            }
        }
        Ok(original)
    }

    /// Lists that come with a `$setElementOrder`: merged first, then put into that order.
    fn ordered_lists(
        &self,
        original: &mut Object,
        patch: &mut Object,
        of: Option<NodeId>,
    ) -> Result<(), PatchError> {
        let directives: Vec<String> =
            patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
        for directive in directives {
            let Some(Value::Array(order)) = patch.remove(&directive) else { return Err(bad_order()) };
            let field = directive.strip_prefix(SET_ORDER).and_then(|rest| rest.strip_prefix('/'));
            let field = field.ok_or_else(bad_order)?.to_owned();
            let existing = list_of(original.get(&field))?;
            let patched = list_of(patch.get(&field))?;
            let meta = self.lookup_list(of, &field)?;
            check_order(patched.as_deref().unwrap_or_default(), &order, meta.merge_key())?;
            let merged = match (existing.clone(), patched) {
                (Some(existing), None) => existing,
                (None, Some(patched)) => patched.into_iter().filter_map(strip_directives).collect(),
                (Some(existing), Some(patched)) if meta.merges() => {
                    self.list(existing, patched, &meta, false)?
                }
                (Some(_), Some(patched)) => patched,
                (None, None) => continue,
            };
            let key = meta.merge_key();
            let (wanted, others) = partition(merged, &order, key)?;
            let ordered = merge_sorted(
                sorted(others, existing.as_deref().unwrap_or_default(), key),
                sorted(wanted, &order, key),
                existing.as_deref().unwrap_or_default(),
                key,
            );
            original.insert(field.clone(), Value::Array(ordered));
            patch.remove(&field);
        }
        Ok(())
    }

    fn list(
        &self,
        original: Vec<Value>,
        patch: Vec<Value>,
        meta: &Meta<'_>,
        deletes: bool,
    ) -> Result<Vec<Value>, PatchError> {
        let maps = match (original.first(), patch.first()) {
            (None, None) => return Ok(original),
            _ => same_kind(original.iter().chain(&patch))?,
        };
        if !maps {
            if deletes {
                return Ok(original.into_iter().filter(|value| !patch.contains(value)).collect());
            }
            let mut merged: Vec<Value> = Vec::new();
            for value in original.iter().chain(&patch) {
                if !merged.contains(value) {
                    merged.push(value.clone());
                }
            }
            let (wanted, others) = partition(merged, &patch, "")?;
            return Ok(merge_sorted(
                sorted(others, &original, ""),
                sorted(wanted, &patch, ""),
                &original,
                "",
            ));
        }
        let key = meta.merge_key();
        if key.is_empty() {
            let name = meta.node.map(|node| self.schema.go_type(node)).unwrap_or_default();
            return Err(PatchError::Unclassified(format!("cannot merge lists without merge key for {name}")));
        }
        let (original, patch) = special_items(original, patch, key)?;
        let mut merged = original.clone();
        for item in &patch {
            let Value::Object(item) = item else { return Err(no_merge_key(item, key)) };
            let wanted = item.get(key).ok_or_else(|| no_merge_key(&Value::Object(item.clone()), key))?;
            match merged.iter().position(|found| found.get(key) == Some(wanted)) {
                Some(index) => {
                    if let Value::Object(found) = merged[index].take() {
                        merged[index] = Value::Object(self.map(found, item.clone(), meta.node)?);
                    }
                }
                None => merged.push(Value::Object(item.clone())),
            }
        }
        // `$patch: replace` on an item makes an empty key possible; such items stay where they are.
        let (wanted, others) = partition(merged, &patch, key)?;
        Ok(merge_sorted(sorted(others, &original, key), sorted(wanted, &patch, key), &original, key))
    }
}

/// Directives of list items: deletions are carried out, a replacement empties the original.
fn special_items(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut plain = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        match item.get(DIRECTIVE) {
            None => plain.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    let wanted = item.get(key).ok_or_else(|| no_merge_key(&item, key))?;
                    original.retain(|found| found.get(key) != Some(wanted));
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(PatchError::Unclassified(
                        "merging lists cannot yet be specified in the patch".to_owned(),
                    ));
                }
                _ => return Err(bad_patch_type(directive, &go_value(&item))),
            },
        }
    }
    Ok(if replace { (plain, Vec::new()) } else { (original, plain) })
}

/// `$retainKeys`: fields of the original that are not listed go.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || PatchError::Malformed("invalid patch format of retainKeys".to_owned());
    let Value::Array(keys) = directive else { return Err(bad()) };
    let listed = |key: &str| keys.iter().any(|listed| listed == key);
    for (key, value) in patch.iter() {
        let directive = key.starts_with(DELETE_FROM) || key.starts_with(SET_ORDER);
        if !value.is_null() && !directive && !listed(key) {
            return Err(bad());
        }
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

/// Takes a value of the patch as it is, minus nulls and directives.
fn take(original: &mut Object, key: String, mut value: Value) {
    discard_nulls(&mut value);
    match strip_directives(value) {
        Some(value) => {
            original.insert(key, value);
        }
        None => {
            original.remove(&key);
        }
    }
}

fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(discard_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

/// Drops every object with a `$patch` in it.
fn strip_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(fields) if fields.contains_key(DIRECTIVE) => None,
        Value::Object(fields) => {
            let kept = fields.into_iter().filter_map(|(key, value)| Some((key, strip_directives(value)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(strip_directives).collect())),
        other => Some(other),
    }
}

/// Every item that the patch names must be in the order, in that order.
fn check_order(patch: &[Value], order: &[Value], key: &str) -> Result<(), PatchError> {
    if order.is_empty() || patch.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in patch.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        let wanted = identity(item, key);
        if !key.is_empty() && wanted.is_none() {
            return Err(no_merge_key(item, key));
        }
        if !rest.any(|ordered| identity(ordered, key) == wanted) {
            return Err(PatchError::Unclassified(format!(
                "The order in patch list:\n{}\n doesn't match {SET_ORDER} list:\n{}\n",
                go_value(&Value::Array(patch.to_vec())),
                go_value(&Value::Array(order.to_vec()))
            )));
        }
    }
    Ok(())
}

/// What an item is known by: itself, or the value of the merge key.
fn identity<'v>(item: &'v Value, key: &str) -> Option<&'v Value> {
    if key.is_empty() { Some(item) } else { item.get(key) }
}

fn position(order: &[Value], item: &Value, key: &str) -> Option<usize> {
    let wanted = identity(item, key)?;
    order.iter().position(|ordered| identity(ordered, key) == Some(wanted))
}

/// Items that are in `by`, and the others.
fn partition(items: Vec<Value>, by: &[Value], key: &str) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    if let Some(item) = items.iter().find(|item| identity(item, key).is_none()) {
        return Err(no_merge_key(item, key));
    }
    Ok(items.into_iter().partition(|item| position(by, item, key).is_some()))
}

fn sorted(mut items: Vec<Value>, order: &[Value], key: &str) -> Vec<Value> {
    items.sort_by_key(|item| position(order, item, key).unwrap_or(usize::MAX));
    items
}

/// Merges the items that only the server has with those of the patch, going by the server's order where both are
/// in it; else the patch's come first.
fn merge_sorted(server: Vec<Value>, patch: Vec<Value>, order: &[Value], key: &str) -> Vec<Value> {
    let mut out = Vec::with_capacity(server.len() + patch.len());
    let mut server = server.into_iter().peekable();
    let mut patch = patch.into_iter().peekable();
    while let (Some(left), Some(right)) = (server.peek(), patch.peek()) {
        let before =
            matches!((position(order, left, key), position(order, right, key)), (Some(l), Some(r)) if l < r);
        out.extend(if before { server.next() } else { patch.next() });
    }
    out.extend(server);
    out.extend(patch);
    out
}

/// Whether all items are objects; lists may not mix kinds nor hold lists.
fn same_kind<'v>(mut items: impl Iterator<Item = &'v Value>) -> Result<bool, PatchError> {
    let Some(first) = items.next() else { return Ok(false) };
    let kind = std::mem::discriminant(first);
    if first.is_array() {
        return Err(PatchError::DoesNotApply("lists of lists are not supported".to_owned()));
    }
    if let Some(other) = items.find(|item| std::mem::discriminant(*item) != kind) {
        return Err(PatchError::Unclassified(format!(
            "list element types are not identical: [{} {}]",
            kind_name(first),
            kind_name(other)
        )));
    }
    Ok(first.is_object())
}

fn kind_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

fn list_of(value: Option<&Value>) -> Result<Option<Vec<Value>>, PatchError> {
    match value {
        None => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items.clone())),
        Some(other) => Err(PatchError::Unclassified(format!(
            "expected a []interface {{}}, but received a {}",
            kind_name(other)
        ))),
    }
}

fn with_directive(mut patch: Object, directive: &Value) -> Value {
    patch.insert(DIRECTIVE.to_owned(), directive.clone());
    Value::Object(patch)
}

fn bad_patch_type(directive: &Value, map: &str) -> PatchError {
    PatchError::Unclassified(format!("unknown patch type: {} in map: {map}", go_value(directive)))
}

fn bad_primitive_list() -> PatchError {
    PatchError::Malformed("invalid patch format of primitive list".to_owned())
}

fn bad_order() -> PatchError {
    PatchError::Malformed("invalid patch format of setElementOrder list".to_owned())
}

fn no_merge_key(item: &Value, key: &str) -> PatchError {
    PatchError::Unclassified(format!("map: {} does not contain declared merge key: {key}", go_value(item)))
}

fn not_a_struct(kind: &str) -> PatchError {
    PatchError::Unclassified(format!(
        "merging an object in json but data type is not struct, instead is: {kind}"
    ))
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
