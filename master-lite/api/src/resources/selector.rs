//! Label and field selectors, as query parameters carry them (`k8s.io/apimachinery/pkg/labels`, `.../fields`).

use std::collections::BTreeMap;

/// One condition on a key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

/// A label selector; the empty one selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<(String, Condition)>,
}

/// A selector's text can't be read; the message is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

impl LabelSelector {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            let term = term.trim();
            if term.is_empty() {
                if text.trim().is_empty() {
                    break;
                }
                return Err(SelectorError(format!("found '', expected: identifier after ',' in {text:?}")));
            }
            let (key, condition) = parse_term(term)?;
            super::metadata::qualified_name(&key)
                .map_err(|why| SelectorError(format!("key: Invalid value: {key:?}: {why}")))?;
            requirements.push((key, condition));
        }
        Ok(Self { requirements })
    }

    /// True if it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// True if the labels satisfy every condition.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|(key, condition)| {
            let value = labels.get(key);
            let number = || value.and_then(|v| v.parse::<i64>().ok());
            match condition {
                Condition::In(list) => value.is_some_and(|v| list.contains(v)),
                Condition::NotIn(list) => value.is_none_or(|v| !list.contains(v)),
                Condition::Exists => value.is_some(),
                Condition::DoesNotExist => value.is_none(),
                Condition::GreaterThan(than) => number().is_some_and(|n| n > *than),
                Condition::LessThan(than) => number().is_some_and(|n| n < *than),
            }
        })
    }
}

/// Splits at commas outside parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut depth) = (0, 0_u32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn parse_term(term: &str) -> Result<(String, Condition), SelectorError> {
    let bad = || {
        SelectorError(format!(
            "unable to parse requirement: found '{term}', expected: '=', '!=', '==', 'in', notin'"
        ))
    };
    if let Some(key) = term.strip_prefix('!') {
        return Ok((key.trim().to_owned(), Condition::DoesNotExist));
    }
    if let Some(list) = term.strip_suffix(')') {
        let (head, values) = list.split_once('(').ok_or_else(bad)?;
        let mut words = head.split_whitespace();
        let (Some(key), Some(operator), None) = (words.next(), words.next(), words.next()) else {
            return Err(bad());
        };
        let values: Vec<String> = values.split(',').map(|v| v.trim().to_owned()).collect();
        for value in &values {
            check_value(value)?;
        }
        return match operator {
            "in" => Ok((key.to_owned(), Condition::In(values))),
            "notin" => Ok((key.to_owned(), Condition::NotIn(values))),
            _ => Err(bad()),
        };
    }
    // The two-character operators first, so that `a!=b` and `a==b` don't split at the `=`.
    for operator in ["!=", "==", "=", ">", "<"] {
        let Some((key, value)) = term.split_once(operator) else { continue };
        let (key, value) = (key.trim().to_owned(), value.trim());
        let number = || {
            value.parse().map_err(|_e| {
                SelectorError(format!(
                    "values: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                ))
            })
        };
        let condition = match operator {
            ">" => Condition::GreaterThan(number()?),
            "<" => Condition::LessThan(number()?),
            "!=" => Condition::NotIn(vec![check_value(value)?]),
            _ => Condition::In(vec![check_value(value)?]),
        };
        return Ok((key, condition));
    }
    if term.contains(char::is_whitespace) {
        return Err(bad());
    }
    Ok((term.to_owned(), Condition::Exists))
}

fn check_value(value: &str) -> Result<String, SelectorError> {
    super::metadata::label_value(value)
        .map_err(|why| SelectorError(format!("values: Invalid value: {value:?}: {why}")))?;
    Ok(value.to_owned())
}

/// A field selector: equalities and inequalities, all of which must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<(String, bool, String)>,
}

impl FieldSelector {
    /// Reads `a=b,c!=d`; a backslash escapes `\`, `,` and `=`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for term in split_escaped(text) {
            if term.is_empty() {
                continue;
            }
            let bad = || SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'"));
            let at = term.find(['=', '!']).ok_or_else(bad)?;
            let (key, rest) = term.split_at(at);
            let (equal, value) = if let Some(value) = rest.strip_prefix("!=") {
                (false, value)
            } else if let Some(value) = rest.strip_prefix("==") {
                (true, value)
            } else {
                (true, rest.strip_prefix('=').ok_or_else(bad)?)
            };
            requirements.push((key.to_owned(), equal, unescape(value)));
        }
        Ok(Self { requirements })
    }

    /// Selects what has this value.
    pub fn equal(field: &str, value: &str) -> Self {
        Self { requirements: vec![(field.to_owned(), true, value.to_owned())] }
    }

    /// True if it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Names of the fields it looks at.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.requirements.iter().map(|(field, _, _)| field.as_str())
    }

    /// The value a field must have, if the selector requires one.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|(f, equal, _)| f == field && *equal).map(|(_, _, v)| v.as_str())
    }

    /// True if every condition holds for what `value_of` gives.
    pub fn matches<'a>(&self, value_of: impl Fn(&str) -> &'a str) -> bool {
        self.requirements.iter().all(|(field, equal, value)| (value_of(field) == value) == *equal)
    }
}

fn split_escaped(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            ',' if !escaped => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        escaped = false;
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(selector: &str, labels: &[(&str, &str)], expected: bool) {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(
            LabelSelector::parse(selector).unwrap().matches(&labels),
            expected,
            "{selector} on {labels:?}"
        );
    }

    #[test]
    fn labels() {
        check("", &[], true);
        check("a=b", &[("a", "b")], true);
        check("a==b,c!=d", &[("a", "b"), ("c", "d")], false);
        check("a!=b", &[], true);
        check("a in (b, c)", &[("a", "c")], true);
        check("a notin (b,c),d", &[("d", "")], true);
        check("!a", &[("a", "")], false);
        check("app.kubernetes.io/x in (1)", &[("app.kubernetes.io/x", "1")], true);
        check("a>1,a<3", &[("a", "2")], true);
        for bad in ["a b", "a=b,", "a in b", "a=b c", "a>x", "-a=b"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields() {
        let selector = FieldSelector::parse("metadata.name=a\\,b,status.phase!=Running").unwrap();
        assert_eq!(selector.required("metadata.name"), Some("a,b"));
        assert!(selector.matches(|f| if f == "metadata.name" { "a,b" } else { "Pending" }));
        assert!(!selector.matches(|f| if f == "metadata.name" { "a,b" } else { "Running" }));
        assert!(FieldSelector::parse("nonsense").is_err());
    }
}
