//! Whether a value fits its type (`typed/validate.go`).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Errors, Shape, Typed, ValidationErrors, item_element, shape};
use crate::patch::go_value;
use crate::smd::element::PathElement;
use crate::smd::types::{List, MapType, Scalar, TypeId, Types};

impl Typed<'_> {
    pub(super) fn validate(&self, duplicates: bool) -> Result<(), ValidationErrors> {
        let walk = Walk { types: self.types, duplicates };
        let mut errors = Errors::default();
        walk.value(self.id, &self.value, &mut errors);
        errors.result()
    }
}

struct Walk<'t> {
    types: &'t Types,
    duplicates: bool,
}

impl Walk<'_> {
    fn value(&self, id: TypeId, value: &Value, errors: &mut Errors) {
        let atom = self.types.atom(id);
        match (shape(atom, Some(value)), &atom.map, atom.scalar, &atom.list) {
            (Shape::Map, Some(map), ..) => match value {
                Value::Object(fields) => self.map(map, fields, errors),
                Value::Null => {}
                other => errors.push(format!("expected map, got &{{{}}}", go_value(other))),
            },
            (Shape::Scalar, _, Some(scalar), _) => {
                if let Err(error) = check_scalar(scalar, value) {
                    errors.push(error);
                }
            }
            (Shape::List, _, _, Some(list)) => match value {
                Value::Array(items) => self.list(list, items, errors),
                Value::Null => {}
                other => errors.push(format!("expected list, got &{{{}}}", go_value(other))),
            },
            _ => errors.push("schema error: invalid atom: inlined"),
        }
    }

    fn map(&self, map: &MapType, fields: &Map<String, Value>, errors: &mut Errors) {
        for (name, value) in fields {
            let element = || PathElement::field(name);
            match map.type_of(name) {
                Some(id) => errors.inside(element, |errors| self.value(id, value, errors)),
                None => {
                    errors.inside(element, |errors| errors.push("field not declared in schema"));
                    return;
                }
            }
        }
    }

    fn list(&self, list: &List, items: &[Value], errors: &mut Errors) {
        let mut seen = BTreeSet::new();
        for (index, item) in (0..).zip(items) {
            if list.keys.is_none() {
                let element = || PathElement::Index(index);
                errors.inside(element, |errors| self.value(list.item, item, errors));
                continue;
            }
            let element = match item_element(self.types, list, item) {
                Ok(element) => element,
                Err(why) => {
                    errors.push(format!("element {index}: {why}"));
                    return;
                }
            };
            if !self.duplicates && seen.contains(&element) {
                errors.push(format!("duplicate entries for key {element}"));
            }
            errors.inside(|| element.clone(), |errors| self.value(list.item, item, errors));
            if !self.duplicates {
                seen.insert(element);
            }
        }
    }
}

/// Null fits every scalar.
pub(super) fn check_scalar(scalar: Scalar, value: &Value) -> Result<(), String> {
    let is_scalar = matches!(value, Value::Number(_) | Value::String(_) | Value::Bool(_));
    match scalar {
        _ if value.is_null() => Ok(()),
        Scalar::Numeric if !value.is_number() => {
            Err(format!("expected numeric (int or float), got {}", go_type(value)))
        }
        Scalar::String if !value.is_string() => {
            Err(format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(value)))
        }
        Scalar::Boolean if !value.is_boolean() => {
            Err(format!("expected boolean, got &{{{}}}", go_value(value)))
        }
        Scalar::Untyped if !is_scalar => Err(format!("expected any scalar, got &{{{}}}", go_value(value))),
        _ => Ok(()),
    }
}

/// Go's `%T`. Configurations are decoded with every number a float.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// Go's `%#v`.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::String(text) => format!("{text:?}"),
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", items.iter().map(go_syntax).collect::<Vec<_>>().join(", "))
        }
        Value::Object(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|(key, value)| format!("{key:?}:{}", go_syntax(value))).collect();
            format!("map[string]interface {{}}{{{}}}", fields.join(", "))
        }
        other => other.to_string(),
    }
}
