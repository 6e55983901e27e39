//! What expressions make, as JSON.

use std::collections::BTreeMap;

use base64::Engine as _;
use kube_cel::cel::Value as Cel;
use kube_cel::cel::objects::Key;
use serde_json::{Map, Number, Value, json};

use crate::expressions::Made;

/// The root of all types of objects.
const OBJECT: &str = "Object";
const PATCH: &str = "JSONPatch";
/// Whole numbers below are exact.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// An apply configuration out of an expression's result.
pub(super) fn configuration(result: &Cel) -> Result<Value, String> {
    match made(result) {
        Some(object) if object.type_name == OBJECT => {
            check_types(result, OBJECT)?;
            to_json(result)
        }
        _ => Err("unsupported return type from ApplyConfiguration expression".to_owned()),
    }
}

/// A JSON patch out of an expression's result.
pub(super) fn json_patch(result: &Cel) -> Result<Value, String> {
    let Cel::List(operations) = result else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned());
    };
    operations.iter().map(operation).collect()
}

fn operation(operation: &Cel) -> Result<Value, String> {
    let Some(operation) = made(operation).filter(|made| made.type_name == PATCH) else {
        return Err(
            "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch".to_owned()
        );
    };
    // Upstream's have an empty text where there is nothing.
    let mut out = json!({"op": "", "path": ""});
    for (name, value) in &operation.fields {
        out[name.as_str()] = match (name.as_str(), value) {
            ("op" | "path" | "from", Cel::String(text)) => text.as_str().into(),
            ("op" | "path" | "from", _) => {
                return Err(format!("unexpected type for JSONPatchType '{name}' field"));
            }
            ("value", value) => {
                if let Some(object) = made(value) {
                    check_types(value, &object.type_name)?;
                }
                to_json(value)?
            }
            _ => return Err(format!("unexpected JSONPatchType field: {name}")),
        };
    }
    Ok(out)
}

fn made(value: &Cel) -> Option<&Made> {
    match value {
        Cel::Opaque(opaque) => opaque.downcast_ref::<Made>(),
        _ => None,
    }
}

/// Objects inside of an object have to be of the type that is named after their place. Lists and maps between have no
/// names.
fn check_types(value: &Cel, place: &str) -> Result<(), String> {
    match value {
        Cel::List(items) => items.iter().try_for_each(|item| check_types(item, place)),
        Cel::Map(map) => map.map.values().try_for_each(|value| check_types(value, place)),
        _ => {
            let Some(object) = made(value) else { return Ok(()) };
            if object.type_name != place {
                return Err(format!(
                    "type mismatch: unexpected type name {:?}, expected {place:?}, which matches field name path from root Object type",
                    object.type_name
                ));
            }
            object.fields.iter().try_for_each(|(name, field)| check_types(field, &format!("{place}.{name}")))
        }
    }
}

fn to_json(value: &Cel) -> Result<Value, String> {
    Ok(match value {
        Cel::Null => Value::Null,
        Cel::Bool(value) => (*value).into(),
        Cel::Int(value) => (*value).into(),
        Cel::UInt(value) => (*value).into(),
        Cel::Float(value) => number(*value)?,
        Cel::String(text) => text.as_str().into(),
        Cel::Bytes(bytes) => base64::engine::general_purpose::STANDARD.encode(bytes.as_slice()).into(),
        Cel::Timestamp(time) => time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true).into(),
        Cel::List(items) => items.iter().map(to_json).collect::<Result<_, _>>()?,
        Cel::Map(map) => {
            let mut fields = BTreeMap::new();
            for (key, value) in map.map.iter() {
                let Key::String(name) = key else {
                    return Err(format!("map key {key} is no string"));
                };
                fields.insert(name.as_str(), to_json(value)?);
            }
            json!(fields)
        }
        other => match made(other) {
            Some(object) => {
                let mut fields = Map::new();
                for (name, field) in &object.fields {
                    fields.insert(name.clone(), to_json(field)?);
                }
                Value::Object(fields)
            }
            None => return Err(format!("a value of type {} has no form in JSON", other.type_of())),
        },
    })
}

/// Whole numbers are integers, as Go writes them.
fn number(value: f64) -> Result<Value, String> {
    #[expect(clippy::cast_possible_truncation, reason = "whole, and exact")]
    if value.fract() == 0.0 && value.abs() < EXACT {
        return Ok((value as i64).into());
    }
    let number = Number::from_f64(value).ok_or_else(|| format!("{value} has no form in JSON"))?;
    Ok(Value::Number(number))
}
