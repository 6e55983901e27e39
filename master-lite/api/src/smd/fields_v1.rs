//! `metav1.FieldsV1`: a field set as a JSON object (`fieldpath/serialize.go`).
//!
//! A key is a path element. An empty object is an element that ends there; a non-empty one holds what is below,
//! and then `"."` says that the element itself is in the set too.

use serde_json::{Map, Value};

use super::element::{ElementError, PathElement, write_string};
use super::set::Set;

/// A JSON value that is no field set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldsError {
    /// A set or subset is neither an object nor null.
    #[error("ReadMapCB: expect {{ or n")]
    NotAnObject,
    /// A key can't be read.
    #[error("parsing key as path element: {0}")]
    Element(#[from] ElementError),
}

impl Set {
    /// Reads a field set. Elements of unknown kinds are left out, with all below them.
    pub fn from_fields_v1(fields: &Value) -> Result<Self, FieldsError> {
        Ok(read(fields)?.0.unwrap_or_default())
    }

    /// The set as a JSON tree. Trees sort their keys as text; [`Set::to_fields_v1_text`] has upstream's order.
    pub fn to_fields_v1(&self) -> Value {
        self.tree(false)
    }

    fn tree(&self, is_member: bool) -> Value {
        let mut out = Map::new();
        if is_member && !(self.members().is_empty() && self.children().is_empty()) {
            out.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for element in self.members() {
            out.insert(element.serialize(), Value::Object(Map::new()));
        }
        for (element, child) in self.children() {
            out.insert(element.serialize(), child.tree(self.has_member(element)));
        }
        Value::Object(out)
    }

    /// The set as JSON text, byte for byte as upstream writes it.
    pub fn to_fields_v1_text(&self) -> String {
        let mut out = String::new();
        self.write(false, &mut out);
        out
    }

    fn write(&self, is_member: bool, out: &mut String) {
        let mut first = true;
        let mut key = |out: &mut String, key: &str| {
            if !std::mem::take(&mut first) {
                out.push(',');
            }
            write_string(out, key, false);
            out.push(':');
        };
        out.push('{');
        if is_member && !(self.members().is_empty() && self.children().is_empty()) {
            key(out, ".");
            out.push_str("{}");
        }
        let (mut members, mut children) = (self.members(), self.children());
        loop {
            match (members, children) {
                ([], []) => break,
                ([member, rest @ ..], [(child, _), ..]) if member < child => {
                    key(out, &member.serialize());
                    out.push_str("{}");
                    members = rest;
                }
                ([member, rest @ ..], []) => {
                    key(out, &member.serialize());
                    out.push_str("{}");
                    members = rest;
                }
                (_, [(element, child), rest @ ..]) => {
                    let also_member = members.first() == Some(element);
                    key(out, &element.serialize());
                    child.write(also_member, out);
                    children = rest;
                    members = &members[usize::from(also_member)..];
                }
            }
        }
        out.push('}');
    }
}

/// The subset in a value, and whether the value's key is in the set itself.
fn read(fields: &Value) -> Result<(Option<Set>, bool), FieldsError> {
    let entries = match fields {
        Value::Object(entries) => entries,
        Value::Null => return Ok((None, true)),
        _ => return Err(FieldsError::NotAnObject),
    };
    let (mut set, mut is_member): (Option<Set>, bool) = (None, false);
    for (key, value) in entries {
        if key == "." {
            is_member = true;
            continue;
        }
        let element = match PathElement::parse(key) {
            Ok(element) => element,
            Err(ElementError::UnknownKind) => continue,
            Err(error) => return Err(error.into()),
        };
        let (below, ends_here) = read(value)?;
        if below.is_none() && !ends_here {
            continue;
        }
        let set = set.get_or_insert_default();
        if let Some(below) = below {
            set.put_child(element.clone(), below);
        }
        if ends_here {
            set.insert_member(element);
        }
    }
    is_member |= set.is_none();
    Ok((set, is_member))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_upstreams() {
        for text in [
            r#"{}"#,
            r#"{"f:a":{}}"#,
            r#"{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:replicas":{}}}"#,
            r#"{"f:ports":{"k:{\"port\":80}":{".":{},"f:name":{}},"k:{\"port\":443}":{}}}"#,
            r#"{"f:finalizers":{".":{},"v:\"a/b\"":{}},"f:z":{"i:2":{},"i:10":{}}}"#,
            r#"{"k:{\"name\":\"a\\u0026b\"}":{}}"#,
        ] {
            let tree: Value = serde_json::from_str(text).unwrap();
            let set = Set::from_fields_v1(&tree).unwrap();
            assert_eq!(set.to_fields_v1_text(), text);
            assert_eq!(set.to_fields_v1(), tree);
        }
    }

    #[test]
    fn odd_input_is_read_or_refused() {
        let read = |text: &str| Set::from_fields_v1(&serde_json::from_str(text).unwrap());
        assert_eq!(
            read(r#"{"f:a":null,"x:new":{"f:b":{}},".":{}}"#).unwrap().to_fields_v1_text(),
            r#"{"f:a":{}}"#
        );
        assert_eq!(read(r#"{"f:a":{".":{}}}"#).unwrap().to_fields_v1_text(), r#"{"f:a":{}}"#);
        assert_eq!(read("null").unwrap(), Set::default());
        for bad in ["1", "[]", r#"{"f:a":1}"#, r#"{"a":{}}"#, r#"{"i:x":{}}"#, r#"{"k:{":{}}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    fn element() -> impl Strategy<Value = PathElement> {
        prop_oneof![
            "[a-d<\"\n]{0,2}".prop_map(|name| PathElement::field(&name)),
            (-3_i64..20).prop_map(PathElement::Index),
            any::<bool>().prop_map(|v| PathElement::Value(v.into())),
            "[a-c&\u{1}]{0,2}".prop_map(|v| PathElement::Value(v.into())),
            (0_i32..3, "[a-b]").prop_map(|(port, name)| {
                PathElement::key([("port", port.into()), ("name", name.into())])
            }),
        ]
    }

    pub(in crate::smd) fn any_set() -> impl Strategy<Value = Set> {
        prop::collection::vec(prop::collection::vec(element(), 0..5), 0..20).prop_map(Set::new)
    }

    proptest! {
        #[test]
        fn every_set_round_trips(set in any_set()) {
            let text = set.to_fields_v1_text();
            let tree: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&tree, &set.to_fields_v1());
            prop_assert_eq!(Set::from_fields_v1(&tree).unwrap(), set);
        }

        #[test]
        fn sets_are_sets(a in any_set(), b in any_set()) {
            let union = a.clone().union(b.clone());
            let both = a.intersection(&b);
            let only_a = a.difference(&b);
            for path in union.paths() {
                prop_assert_eq!(both.has(&path), a.has(&path) && b.has(&path));
                prop_assert_eq!(only_a.has(&path), a.has(&path) && !b.has(&path));
                prop_assert!(a.has(&path) || b.has(&path));
                let above = (1..=path.len()).any(|n| b.has(&path[..n]));
                prop_assert_eq!(a.recursive_difference(&b).has(&path), a.has(&path) && !above);
            }
            prop_assert_eq!(union.len(), a.len() + b.len() - both.len());
            prop_assert_eq!(only_a.union(both), a);
        }

        #[test]
        fn hostile_sets_do_not_panic(text in "[{}\":,fkvi.a1\\\\]{0,30}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let _ = Set::from_fields_v1(&value);
            }
            let _ = PathElement::parse(&text);
        }
    }
}
