//! JSON values compared, ordered and printed as structured-merge-diff does (`value/value.go`).

use std::cmp::Ordering;

use serde_json::{Map, Number, Value};

/// Rank of a value's kind in the total order of values of all kinds.
fn rank(value: &Value) -> u8 {
    match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    }
}

/// Numbers by value: `1` and `1.0` are the same.
fn compare_numbers(left: &Number, right: &Number) -> Ordering {
    match (left.as_i64(), right.as_i64()) {
        (Some(left), Some(right)) => left.cmp(&right),
        _ => left.as_f64().partial_cmp(&right.as_f64()).unwrap_or(Ordering::Equal),
    }
}

fn compare_maps(left: &Map<String, Value>, right: &Map<String, Value>) -> Ordering {
    // Both walk their keys in lexical order; the first key that only one side has decides.
    let (mut left, mut right) = (left.iter(), right.iter());
    loop {
        let order = match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some((a, left)), Some((b, right))) => a.cmp(b).then_with(|| compare(left, right)),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// A total order over values of all kinds: numbers, strings, booleans, lists, maps, null.
pub fn compare(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => compare_numbers(left, right),
        (Value::String(left), Value::String(right)) => left.cmp(right),
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::Array(left), Value::Array(right)) => {
            let differing = left.iter().zip(right).map(|(a, b)| compare(a, b)).find(|o| o.is_ne());
            differing.unwrap_or_else(|| left.len().cmp(&right.len()))
        }
        (Value::Object(left), Value::Object(right)) => compare_maps(left, right),
        _ => rank(left).cmp(&rank(right)),
    }
}

/// Equality, with numbers by value.
pub fn equals(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => compare_numbers(left, right).is_eq(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(a, b)| equals(a, b))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().zip(right).all(|((a, left), (b, right))| a == b && equals(left, right))
        }
        _ => left == right,
    }
}

/// A value inside of a path, for people: strings quoted.
pub fn print(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(print).collect::<Vec<_>>().join(",")),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key}={}", print(value))).collect()
        }
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

/// A value with every float that has no fraction turned into an integer. Upstream reads configurations and field
/// sets with all numbers as floats, and prints those without a fraction as integers.
pub fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|_| number.is_f64()).and_then(whole) {
                *number = whole;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// The float as an integer, if it is one and within the range of exact floats.
fn whole(float: f64) -> Option<Number> {
    let exact = float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "bounded by 2^53 on the line above")]
    exact.then(|| Number::from(float as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_kinds_are_ordered() {
        let ordered = [
            json!(-1),
            json!(1),
            json!(1.5),
            json!("a"),
            json!("b"),
            json!(false),
            json!(true),
            json!([]),
            json!([1]),
            json!([1, 0]),
            json!([2]),
            json!({}),
            json!({"a": 1}),
            json!({"a": 2}),
            json!({"b": 1}),
            json!(null),
        ];
        for (i, left) in ordered.iter().enumerate() {
            for (j, right) in ordered.iter().enumerate() {
                assert_eq!(compare(left, right), i.cmp(&j), "{left} {right}");
                assert_eq!(equals(left, right), i == j);
            }
        }
    }

    #[test]
    fn numbers_go_by_value() {
        assert!(equals(&json!([1, {"a": 2.0}]), &json!([1.0, {"a": 2}])));
        let mut value = json!({"a": [1.0, 1.5, 1e300]});
        whole_numbers(&mut value);
        assert_eq!(value.to_string(), r#"{"a":[1,1.5,1e+300]}"#);
    }
}
