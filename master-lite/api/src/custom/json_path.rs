//! The JSONPath of printer columns and scale paths: fields, indexes, wildcards and comparing filters
//! (`k8s.io/client-go/util/jsonpath`, as far as `validateSimpleJSONPath` and practice go).

use serde_json::Value;

/// A parsed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(i64),
    Every,
    /// `[?(@.a.b == "x")]`; without a comparison the field must be there.
    Filter {
        path: Vec<String>,
        wanted: Option<(Value, bool)>,
    },
}

/// Why a path can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonPathError {
    /// It has no leading dot.
    #[error("must be a simple json path starting with .")]
    NoDot,
    /// It has a part that is not understood.
    #[error("is an invalid json path: unrecognized expression at {0:?}")]
    Part(String),
}

impl JsonPath {
    /// Reads a path such as `.status.conditions[?(@.type=="Ready")].status`.
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        if !text.starts_with('.') {
            return Err(JsonPathError::NoDot);
        }
        let mut steps = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let fail = || JsonPathError::Part(rest.to_owned());
            if let Some(after) = rest.strip_prefix('.') {
                let (name, after) = field_name(after);
                rest = after;
                match name.as_str() {
                    "" if rest.is_empty() || rest.starts_with('[') => {}
                    "" => return Err(fail()),
                    "*" => steps.push(Step::Every),
                    _ => steps.push(Step::Field(name)),
                }
            } else {
                let end = closing_bracket(rest).ok_or_else(fail)?;
                steps.push(bracket(&rest[1..end]).ok_or_else(fail)?);
                rest = &rest[end + 1..];
            }
        }
        Ok(Self(steps))
    }

    /// The names of a path that has nothing but fields.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0
            .iter()
            .map(|step| match step {
                Step::Field(name) => Some(name.as_str()),
                _ => None,
            })
            .collect()
    }

    /// All values the path leads to.
    pub fn find<'v>(&self, root: &'v Value) -> Vec<&'v Value> {
        let mut found = vec![root];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| apply(step, value)).collect();
        }
        found
    }
}

fn apply<'v>(step: &Step, value: &'v Value) -> Vec<&'v Value> {
    match step {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Index(index) => {
            let Some(items) = value.as_array() else { return Vec::new() };
            let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
            let at = if *index < 0 { length + index } else { *index };
            usize::try_from(at).ok().and_then(|at| items.get(at)).into_iter().collect()
        }
        Step::Every => match value {
            Value::Array(items) => items.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        },
        Step::Filter { path, wanted } => value
            .as_array()
            .into_iter()
            .flatten()
            .filter(|item| {
                let at = path.iter().try_fold(*item, |value, key| value.get(key));
                match (at, wanted) {
                    (Some(_), None) => true,
                    (Some(at), Some((wanted, equal))) => (at == wanted) == *equal,
                    (None, _) => false,
                }
            })
            .collect(),
    }
}

/// A name up to the next dot or bracket; a backslash takes the next character as it is.
fn field_name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '.' | '[' => return (name, &text[at..]),
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            _ => name.push(c),
        }
    }
    (name, "")
}

/// The place of the bracket that closes the one at the beginning, quotes respected.
fn closing_bracket(text: &str) -> Option<usize> {
    if !text.starts_with('[') {
        return None;
    }
    let mut quote = None;
    for (at, c) in text.char_indices().skip(1) {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, ']') => return Some(at),
            _ => {}
        }
    }
    None
}

fn bracket(inside: &str) -> Option<Step> {
    let inside = inside.trim();
    if inside == "*" {
        return Some(Step::Every);
    }
    if let Some(name) = unquote(inside) {
        return Some(Step::Field(name));
    }
    if let Some(filter) = inside.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let (path, wanted) = match (filter.split_once("=="), filter.split_once("!=")) {
            (Some((path, literal)), _) => (path, Some((literal_value(literal)?, true))),
            (None, Some((path, literal))) => (path, Some((literal_value(literal)?, false))),
            (None, None) if filter.contains(['<', '>', '&', '|']) => return None,
            (None, None) => (filter, None),
        };
        let path = JsonPath::parse(path.trim().strip_prefix('@')?).ok()?;
        let path = path.fields()?.into_iter().map(str::to_owned).collect();
        return Some(Step::Filter { path, wanted });
    }
    inside.parse().ok().map(Step::Index)
}

fn unquote(text: &str) -> Option<String> {
    ['\'', '"'].iter().find_map(|quote| {
        let inner = text.strip_prefix(*quote)?.strip_suffix(*quote)?;
        (!inner.contains(*quote)).then(|| inner.to_owned())
    })
}

fn literal_value(text: &str) -> Option<Value> {
    let text = text.trim();
    unquote(text).map(Value::String).or_else(|| serde_json::from_str(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn finds() {
        let object = json!({"spec": {"a": 1, "l": [{"t": "x", "v": 1}, {"t": "y", "v": 2}]},
            "metadata": {"labels": {"app.io/name": "n"}}});
        let cases = [
            (".spec.a", vec![json!(1)]),
            (".spec.l[1].v", vec![json!(2)]),
            (".spec.l[-1].v", vec![json!(2)]),
            (".spec.l[*].v", vec![json!(1), json!(2)]),
            (".spec.l[?(@.t==\"y\")].v", vec![json!(2)]),
            (".spec.l[?(@.t == 'x')].v", vec![json!(1)]),
            (".spec.l[?(@.v!=1)].t", vec![json!("y")]),
            (".metadata.labels.app\\.io/name", vec![json!("n")]),
            (".metadata.labels['app.io/name']", vec![json!("n")]),
            (".spec.none.x", vec![]),
        ];
        for (path, found) in cases {
            let values: Vec<Value> =
                JsonPath::parse(path).unwrap().find(&object).into_iter().cloned().collect();
            assert_eq!(values, found, "{path}");
        }
        for bad in ["spec", ".a..b", ".a[", ".a[x]", ".a[?(@.b<1)]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            if let Ok(path) = JsonPath::parse(&text) {
                path.find(&json!({"a": [{"b": 1}]}));
            }
        }
    }
}
