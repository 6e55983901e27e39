//! Values against a schema, in the words of upstream's validator (`kube-openapi/pkg/validation/validate`), and
//! lists that are sets or maps (`apiextensions-apiserver/pkg/apiserver/schema/listtype`).

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Number, Value, json};

use super::structural::{Additional, ListType, Structural};
use crate::field::{ErrorType, FieldError};

/// Checks a value at `path` (empty for a whole object). What equals `old` at the same place is not held against an
/// update: rules that came later do not lock objects up.
pub fn validate(path: &str, value: &Value, old: Option<&Value>, schema: &Structural) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check(path, value, old, schema, &mut errors);
    errors.dedup();
    errors
}

/// Checks that sets and maps hold nothing twice.
pub fn validate_lists(path: &str, value: &Value, schema: &Structural) -> Vec<FieldError> {
    let mut errors = Vec::new();
    lists(path, value, schema, &mut errors);
    errors
}

pub(super) fn child(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn wrong_type(path: &str, wanted: &str, got: &str) -> FieldError {
    FieldError {
        kind: ErrorType::TypeInvalid,
        field: shown(path),
        value: Some(format!("{got:?}")),
        detail: format!("{path} in body must be of type {wanted}: {got:?}"),
    }
}

/// The path of an error at the root is `<nil>`, as Go prints a nil path.
pub(super) fn shown(path: &str) -> String {
    if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() }
}

fn invalid(path: &str, value: &Value, detail: String) -> FieldError {
    FieldError::invalid(shown(path), value, detail)
}

/// Returns how many checks ran, by which the best of several failures is chosen.
fn check(
    path: &str,
    value: &Value,
    old: Option<&Value>,
    schema: &Structural,
    errors: &mut Vec<FieldError>,
) -> usize {
    if old == Some(value) {
        return 1;
    }
    let before = errors.len();
    let mut ran = usize::from(check_type(path, value, schema, errors));
    if value.is_null() {
        check_enum(path, value, schema, errors);
        return ran;
    }
    ran += combine(path, value, old, schema, errors);
    let checks = &schema.checks;
    match value {
        Value::String(text) => {
            check_text(path, value, text, schema, errors);
            if let Some(format) = checks.format
                && !format.accepts(value)
            {
                let detail = format!("{path} in body must be of type {}: {text:?}", format.name());
                errors.push(FieldError { kind: ErrorType::TypeInvalid, ..invalid(path, value, detail) });
            }
        }
        Value::Number(number) => check_number(path, value, number, schema, errors),
        Value::Array(items) => ran += check_list(path, items, old, schema, errors),
        Value::Object(_) | Value::Bool(_) | Value::Null => {}
    }
    check_enum(path, value, schema, errors);
    if value.is_object() {
        ran += check_object(path, value, old, schema, errors);
    }
    ran + usize::from(errors.len() == before)
}

/// True if the type fits.
fn check_type(path: &str, value: &Value, schema: &Structural, errors: &mut Vec<FieldError>) -> bool {
    let wanted = if schema.int_or_string { "integer,string" } else { schema.kind.as_str() };
    let got = type_of(value);
    let fits = match value {
        Value::Null => wanted.is_empty() || schema.nullable || wanted == "null",
        _ if wanted.is_empty() => true,
        Value::Number(number) => {
            let whole = number.as_f64().is_some_and(|float| float.fract() == 0.0);
            wanted.split(',').any(|wanted| wanted == "number" || (wanted == "integer" && whole))
        }
        _ => wanted.split(',').any(|wanted| wanted == got),
    };
    if !fits {
        errors.push(wrong_type(path, wanted, got));
    } else if let (Value::Number(_), Some(format)) = (value, schema.checks.format)
        && !format.accepts(value)
    {
        errors.push(wrong_type(path, format.name(), got));
    }
    fits
}

fn check_enum(path: &str, value: &Value, schema: &Structural, errors: &mut Vec<FieldError>) {
    let allowed = &schema.checks.allowed;
    if allowed.is_empty() || allowed.iter().any(|allowed| same(allowed, value)) {
        return;
    }
    let texts: Vec<String> =
        allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    errors.push(FieldError::not_supported(shown(path), value, &texts));
}

/// Equality where 1 and 1.0 are the same.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare(a, b) == Some(Ordering::Equal),
        _ => a == b,
    }
}

fn compare(a: &Number, b: &Number) -> Option<Ordering> {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}

/// A number as Go's `%v` prints a float64.
fn go_number(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if float.fract() == 0.0 && float.abs() < 1e21 => format!("{float:.0}"),
        Some(float) => format!("{float}"),
        None => number.to_string(),
    }
}

fn check_text(path: &str, value: &Value, text: &str, schema: &Structural, errors: &mut Vec<FieldError>) {
    let checks = &schema.checks;
    let length = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
    if let Some(most) = checks.max_length.filter(|most| length > *most) {
        errors.push(FieldError::too_long(shown(path), usize::try_from(most).unwrap_or(usize::MAX)));
    }
    if let Some(least) = checks.min_length.filter(|least| length < *least) {
        errors.push(invalid(path, value, format!("{path} in body should be at least {least} chars long")));
    }
    if let Some((pattern, regex)) = &checks.pattern
        && !regex.is_match(text)
    {
        errors.push(invalid(path, value, format!("{path} in body should match '{pattern}'")));
    }
}

fn check_number(
    path: &str,
    value: &Value,
    number: &Number,
    schema: &Structural,
    errors: &mut Vec<FieldError>,
) {
    let checks = &schema.checks;
    if let Some(factor) = &checks.multiple_of {
        let quotient = number.as_f64().zip(factor.as_f64()).map(|(number, factor)| number / factor);
        if quotient.is_some_and(|quotient| quotient.fract() != 0.0) {
            let detail = format!("{path} in body should be a multiple of {}", go_number(factor));
            errors.push(invalid(path, value, detail));
        }
    }
    if let Some((most, exclusive)) = &checks.maximum {
        let order = compare(number, most);
        if order == Some(Ordering::Greater) || (*exclusive && order == Some(Ordering::Equal)) {
            let words = if *exclusive { "less than" } else { "less than or equal to" };
            errors.push(invalid(
                path,
                value,
                format!("{path} in body should be {words} {}", go_number(most)),
            ));
        }
    }
    if let Some((least, exclusive)) = &checks.minimum {
        let order = compare(number, least);
        if order == Some(Ordering::Less) || (*exclusive && order == Some(Ordering::Equal)) {
            let words = if *exclusive { "greater than" } else { "greater than or equal to" };
            let detail = format!("{path} in body should be {words} {}", go_number(least));
            errors.push(invalid(path, value, detail));
        }
    }
}

fn check_list(
    path: &str,
    items: &[Value],
    old: Option<&Value>,
    schema: &Structural,
    errors: &mut Vec<FieldError>,
) -> usize {
    let mut ran = 0;
    if let Some(inner) = schema.items.as_deref() {
        for (i, item) in items.iter().enumerate() {
            let before = old.and_then(|old| same_item(item, old, schema));
            ran += check(&format!("{path}[{i}]"), item, before, inner, errors);
        }
    }
    let checks = &schema.checks;
    let count = items.len();
    let length = u64::try_from(count).unwrap_or(u64::MAX);
    if let Some(least) = checks.min_items.filter(|least| length < *least) {
        let value = json!(count);
        errors.push(invalid(path, &value, format!("{path} in body should have at least {least} items")));
    }
    if let Some(most) = checks.max_items.filter(|most| length > *most) {
        errors.push(FieldError::too_many(shown(path), count, usize::try_from(most).unwrap_or(usize::MAX)));
    }
    ran
}

/// The item of the old list with the same keys; only maps have such a thing.
pub(super) fn same_item<'o>(item: &Value, old: &'o Value, schema: &Structural) -> Option<&'o Value> {
    if schema.list_type != Some(ListType::Map) {
        return None;
    }
    let keys =
        |value: &Value| -> Vec<Value> { schema.list_map_keys.iter().map(|key| value[key].clone()).collect() };
    let wanted = keys(item);
    old.as_array()?.iter().find(|candidate| keys(candidate) == wanted)
}

fn check_object(
    path: &str,
    value: &Value,
    old: Option<&Value>,
    schema: &Structural,
    errors: &mut Vec<FieldError>,
) -> usize {
    let Some(map) = value.as_object() else { return 0 };
    let checks = &schema.checks;
    let count = map.len();
    let length = u64::try_from(count).unwrap_or(u64::MAX);
    if let Some(least) = checks.min_properties.filter(|least| length < *least) {
        let detail = format!("{path} in body should have at least {least} properties");
        errors.push(invalid(path, &json!(count), detail));
    }
    if let Some(most) = checks.max_properties.filter(|most| length > *most) {
        errors.push(FieldError::too_many(shown(path), count, usize::try_from(most).unwrap_or(usize::MAX)));
    }
    let mut ran = 0;
    for (key, inner) in map {
        let before = old.and_then(|old| old.get(key));
        match (schema.properties.get(key), &schema.additional) {
            (Some(known), _) => ran += check(&child(path, key), inner, before, known, errors),
            (None, Some(Additional::Schema(known))) => {
                ran += check(&format!("{path}.{key}"), inner, before, known, errors);
            }
            (None, Some(Additional::Bool(false))) => {
                let detail = format!("{path}.{key} in body is a forbidden property");
                errors.push(invalid(path, &"".into(), detail));
            }
            (None, _) => {}
        }
    }
    for key in checks.required.iter().filter(|key| !map.contains_key(*key)) {
        errors.push(FieldError::required(child(path, key), ""));
    }
    ran
}

/// anyOf, oneOf, allOf, not.
fn combine(
    path: &str,
    value: &Value,
    old: Option<&Value>,
    schema: &Structural,
    errors: &mut Vec<FieldError>,
) -> usize {
    let checks = &schema.checks;
    let run = |schema: &Structural| {
        let mut found = Vec::new();
        let ran = check(path, value, old, schema, &mut found);
        (found, ran)
    };
    // Where all fail, the errors of the schema that came furthest are told.
    let judge = |schemas: &[Structural]| {
        let mut valid = 0;
        let mut best: Option<(Vec<FieldError>, usize)> = None;
        for schema in schemas {
            let (found, ran) = run(schema);
            if found.is_empty() {
                valid += 1;
            } else if best.as_ref().is_none_or(|(_, most)| ran > *most) {
                best = Some((found, ran));
            }
        }
        (valid, best.map(|(found, _)| found).unwrap_or_default())
    };
    let complain = |detail: String| FieldError::invalid("<nil>", &"".into(), detail);
    let mut ran = 0;
    if !checks.any_of.is_empty() {
        let (valid, failures) = judge(&checks.any_of);
        if valid == 0 {
            errors.push(complain(format!("{path:?} must validate at least one schema (anyOf)")));
            errors.extend(failures);
        }
        ran += usize::from(valid > 0);
    }
    if !checks.one_of.is_empty() {
        let (valid, failures) = judge(&checks.one_of);
        if valid == 0 {
            errors.push(complain(format!(
                "{path:?} must validate one and only one schema (oneOf). Found none valid"
            )));
            errors.extend(failures);
        } else if valid > 1 {
            errors.push(complain(format!(
                "{path:?} must validate one and only one schema (oneOf). Found {valid} valid alternatives"
            )));
        }
        ran += usize::from(valid == 1);
    }
    if !checks.all_of.is_empty() {
        let mut valid = 0;
        for schema in &checks.all_of {
            let (found, more) = run(schema);
            valid += usize::from(found.is_empty());
            errors.extend(found);
            ran += more;
        }
        if valid < checks.all_of.len() {
            let more = if valid == 0 { ". None validated" } else { "" };
            errors.push(complain(format!("{path:?} must validate all the schemas (allOf){more}")));
        }
    }
    if let Some(not) = &checks.not
        && run(not).0.is_empty()
    {
        errors.push(complain(format!("{path:?} must not validate the schema (not)")));
    }
    ran
}

fn lists(path: &str, value: &Value, schema: &Structural, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                match schema.properties.get(key) {
                    Some(known) => lists(&child(path, key), inner, known, errors),
                    None => {
                        if let Some(known) = schema.additional_schema() {
                            lists(&format!("{path}[{key}]"), inner, known, errors);
                        }
                    }
                }
            }
        }
        Value::Array(items) => {
            match schema.list_type {
                Some(ListType::Set) => {
                    for i in repeated(items.iter().cloned()) {
                        errors.push(FieldError::duplicate(format!("{path}[{i}]"), &items[i]));
                    }
                }
                Some(ListType::Map) => list_map(path, items, schema, errors),
                _ => {}
            }
            if let Some(inner) = schema.items.as_deref() {
                for (i, item) in items.iter().enumerate() {
                    lists(&format!("{path}[{i}]"), item, inner, errors);
                }
            }
        }
        _ => {}
    }
}

fn list_map(path: &str, items: &[Value], schema: &Structural, errors: &mut Vec<FieldError>) {
    if let Some(i) = items.iter().position(|item| !item.is_object() && !item.is_null()) {
        let detail = "must be an object for an array of list-type map";
        errors.push(FieldError::invalid(format!("{path}[{i}]"), &items[i], detail));
        return;
    }
    let keys: Vec<Value> = items
        .iter()
        .map(|item| {
            let present =
                schema.list_map_keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone())));
            Value::Object(present.collect())
        })
        .collect();
    for i in repeated(keys.iter().cloned()) {
        errors.push(FieldError::duplicate(format!("{path}[{i}]"), &keys[i]));
    }
}

/// Places of the second appearance of each value.
fn repeated(values: impl Iterator<Item = Value>) -> Vec<usize> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut places = Vec::new();
    for (i, value) in values.enumerate() {
        let times = seen.entry(value.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            places.push(i);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(schema: Value, value: Value) -> Vec<String> {
        let schema = Structural::read(&schema);
        let mut all = validate("", &value, None, &schema);
        all.extend(validate_lists("", &value, &schema));
        all.iter().map(ToString::to_string).collect()
    }

    fn field(rules: Value, value: Value) -> Vec<String> {
        errors(json!({"type": "object", "properties": {"a": rules}}), json!({"a": value}))
    }

    #[test]
    fn messages_are_upstreams() {
        let cases = [
            (
                json!({"type": "integer"}),
                json!("x"),
                "a: Invalid value: \"string\": a in body must be of type integer: \"string\"",
            ),
            (
                json!({"type": "integer", "minimum": 1}),
                json!(0),
                "a: Invalid value: 0: a in body should be greater than or equal to 1",
            ),
            (
                json!({"type": "integer", "maximum": 10}),
                json!(11),
                "a: Invalid value: 11: a in body should be less than or equal to 10",
            ),
            (
                json!({"type": "string", "pattern": "^b+$"}),
                json!("c"),
                "a: Invalid value: \"c\": a in body should match '^b+$'",
            ),
            (
                json!({"type": "string", "enum": ["x", "y"]}),
                json!("z"),
                "a: Unsupported value: \"z\": supported values: \"x\", \"y\"",
            ),
            (
                json!({"type": "string", "maxLength": 2}),
                json!("abc"),
                "a: Too long: may not be more than 2 bytes",
            ),
            (
                json!({"type": "string", "minLength": 4}),
                json!("abc"),
                "a: Invalid value: \"abc\": a in body should be at least 4 chars long",
            ),
            (json!({"type": "object", "required": ["b"]}), json!({}), "a.b: Required value"),
            (
                json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
                json!(["a", "b"]),
                "a: Too many: 2: must have at most 1 item",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}),
                json!(["a", "b", "a"]),
                "a[2]: Duplicate value: \"a\"",
            ),
            (
                json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["k"]}),
                json!([{"k": 1}, {"k": 1, "v": 2}]),
                "a[1]: Duplicate value: {\"k\":1}",
            ),
            (
                json!({"type": "string"}),
                json!(null),
                "a: Invalid value: \"null\": a in body must be of type string: \"null\"",
            ),
            (
                json!({"type": "string", "format": "ipv4"}),
                json!("x"),
                "a: Invalid value: \"x\": a in body must be of type ipv4: \"x\"",
            ),
        ];
        for (rules, value, text) in cases {
            assert_eq!(field(rules, value), [text]);
        }
    }

    #[test]
    fn what_fits_is_fine() {
        for (rules, value) in [
            (json!({"x-kubernetes-int-or-string": true}), json!(1)),
            (json!({"x-kubernetes-int-or-string": true}), json!("1")),
            (json!({"type": "number"}), json!(1)),
            (json!({"type": "string", "nullable": true}), json!(null)),
            (json!({"type": "object", "oneOf": [{"required": ["x"]}, {"required": ["y"]}]}), json!({"x": 1})),
            (json!({"type": "object", "not": {"required": ["x"]}}), json!({"y": 1})),
        ] {
            assert_eq!(field(rules, value), Vec::<String>::new());
        }
        assert_eq!(
            field(
                json!({"type": "object", "oneOf": [{"required": ["x"]}, {"required": ["y"]}]}),
                json!({"x": 1, "y": 1})
            ),
            [
                "<nil>: Invalid value: \"\": \"a\" must validate one and only one schema (oneOf). Found 2 valid alternatives"
            ]
        );
    }

    #[test]
    fn what_was_there_may_stay() {
        let schema = Structural::read(&json!({"type": "object", "properties": {
            "a": {"type": "integer", "maximum": 1}, "b": {"type": "string"}}}));
        let old = json!({"a": 5, "b": "x"});
        assert!(validate("", &json!({"a": 5, "b": "y"}), Some(&old), &schema).is_empty());
        assert_eq!(validate("", &json!({"a": 6, "b": "x"}), Some(&old), &schema).len(), 1);
    }
}
