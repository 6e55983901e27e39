//! Path elements: one step from a value to one inside of it (`fieldpath/element.go`, `serialize-pe.go`).

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

use super::value;

/// One step of a path.
#[derive(Debug, Clone)]
pub enum PathElement {
    /// A field of a struct or a key of a map: `f:name`.
    Field(Box<str>),
    /// The list item whose fields have these values, sorted by name: `k:{"name":"a"}`.
    Key(Box<[(Box<str>, Value)]>),
    /// The item of a set: `v:"a"`.
    Value(Value),
    /// The item at an index: `i:0`.
    Index(i64),
}

/// Text that is no path element.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElementError {
    /// Shorter than the kind and its colon.
    #[error("key must be 2 characters long:")]
    Short,
    /// No colon after the kind.
    #[error("missing colon: {0}")]
    NoColon(String),
    /// What follows the colon can't be read.
    #[error("{0}")]
    Content(String),
    /// A kind that a later version may know. Such elements are skipped.
    #[error("unknown path element type")]
    UnknownKind,
}

impl PathElement {
    /// A field.
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// A list item by the values of its keys.
    pub fn key<'k>(fields: impl IntoIterator<Item = (&'k str, Value)>) -> Self {
        let mut fields: Vec<(Box<str>, Value)> =
            fields.into_iter().map(|(name, value)| (name.into(), value)).collect();
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self::Key(fields.into())
    }

    /// Reads what [`PathElement::serialize`] writes.
    pub fn parse(text: &str) -> Result<Self, ElementError> {
        let (kind, rest) = match text.as_bytes() {
            [] | [_] => return Err(ElementError::Short),
            [kind, b':', ..] => (kind, &text[2..]),
            _ => return Err(ElementError::NoColon(text.to_owned())),
        };
        let json = |text: &str| {
            let mut value: Value =
                serde_json::from_str(text).map_err(|error| ElementError::Content(error.to_string()))?;
            value::whole_numbers(&mut value);
            Ok(value)
        };
        match kind {
            b'f' => Ok(Self::field(rest)),
            b'v' => json(rest).map(Self::Value),
            b'k' => match json(rest)? {
                Value::Object(fields) => {
                    Ok(Self::Key(fields.into_iter().map(|(name, value)| (name.into(), value)).collect()))
                }
                _ => Err(ElementError::Content("expect { or n".to_owned())),
            },
            b'i' => rest.parse().map(Self::Index).map_err(|_number| {
                ElementError::Content(format!("strconv.Atoi: parsing {rest:?}: invalid syntax"))
            }),
            _ => Err(ElementError::UnknownKind),
        }
    }

    /// The element's text in a field set.
    pub fn serialize(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(fields) => {
                let mut out = String::from("k:{");
                for (i, (name, value)) in fields.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    write_string(&mut out, name, false);
                    out.push(':');
                    write_value(&mut out, value);
                }
                out.push('}');
                out
            }
            Self::Value(value) => {
                let mut out = String::from("v:");
                write_value(&mut out, value);
                out
            }
            Self::Index(index) => format!("i:{index}"),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

fn compare_fields(left: &[(Box<str>, Value)], right: &[(Box<str>, Value)]) -> Ordering {
    for ((a, left), (b, right)) in left.iter().zip(right) {
        let order = a.cmp(b).then_with(|| value::compare(left, right));
        if order.is_ne() {
            return order;
        }
    }
    left.len().cmp(&right.len())
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => compare_fields(a, b),
            (Self::Value(a), Self::Value(b)) => value::compare(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for PathElement {}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(fields) => {
                let fields: Vec<String> =
                    fields.iter().map(|(name, value)| format!("{name}={}", value::print(value))).collect();
                write!(f, "[{}]", fields.join(","))
            }
            Self::Value(value) => write!(f, "[={}]", value::print(value)),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// Steps from the root.
pub type Path = Vec<PathElement>;

/// A path for people: `.spec.containers[name="a"].image`.
pub fn print_path(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}

/// A path of field names.
pub fn field_path(names: &[&str]) -> Path {
    names.iter().map(|name| PathElement::field(name)).collect()
}

/// A JSON string. Go escapes fewer control characters by a letter than serde does, and, within values, `<`, `>`
/// and `&` too.
pub(super) fn write_string(out: &mut String, text: &str, html: bool) {
    use std::fmt::Write as _;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' if html => {
                // Writing to a string can't fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::String(text) => write_string(out, text, true),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(out, item);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push('{');
            for (i, (name, value)) in fields.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_string(out, name, true);
                out.push(':');
                write_value(out, value);
            }
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_round_trips() {
        for text in [
            "f:",
            "f:spec",
            "f:a.b/c:d",
            "f:\"",
            "i:0",
            "i:-3",
            "v:\"a\"",
            "v:1",
            "v:1.5",
            "v:true",
            "v:null",
            "k:{\"name\":\"a\"}",
            "k:{\"containerPort\":80,\"protocol\":\"TCP\"}",
            "k:{}",
            "v:\"a\\u0026b\\u0001\\n\"",
        ] {
            assert_eq!(PathElement::parse(text).unwrap().serialize(), text);
        }
        assert_eq!(PathElement::parse("k:{\"b\":1.0,\"a\":2}").unwrap().serialize(), "k:{\"a\":2,\"b\":1}");
        for bad in ["", "f", "spec", "i:a", "v:", "v:x", "k:1", "k:", "é:", "x:1"] {
            assert!(PathElement::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(PathElement::parse("x:1"), Err(ElementError::UnknownKind));
    }

    #[test]
    fn kinds_come_in_order() {
        let texts = ["f:a", "f:b", "k:{\"a\":443}", "k:{\"a\":8}", "v:9", "v:10", "v:\"a\"", "i:2", "i:10"];
        let mut elements: Vec<_> = texts.iter().map(|t| PathElement::parse(t).unwrap()).collect();
        elements.sort();
        let sorted: Vec<_> = elements.iter().map(PathElement::serialize).collect();
        assert_eq!(
            sorted,
            ["f:a", "f:b", "k:{\"a\":8}", "k:{\"a\":443}", "v:9", "v:10", "v:\"a\"", "i:2", "i:10"]
        );
    }

    #[test]
    fn paths_for_people() {
        let path = [
            PathElement::field("spec"),
            PathElement::key([("protocol", json!("TCP")), ("port", json!(80))]),
            PathElement::Value(json!("x")),
            PathElement::Index(1),
        ];
        assert_eq!(print_path(&path), ".spec[port=80,protocol=\"TCP\"][=\"x\"][1]");
    }
}
