//! `x-kubernetes-validations`: rules in CEL (`apiextensions-apiserver/pkg/apiserver/schema/cel`). Which values they see,
//! and when, is decided here.
//!
//! Nothing knows types before a rule runs: one that speaks of what the schema does not declare is accepted with its
//! definition, and then refuses every object.

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::cel::objects::{Key, Map, OptionalValue};
use kube_cel::cel::{Context, Value as Cel};
use serde_json::{Number, Value};

use super::JsonPath;
use super::structural::Structural;
use super::validate::{child, same_item, shown};
use crate::expressions::{self, Dialect, Expression, FUNCTIONS, RESERVED};
use crate::field::{ErrorType, FieldError};

const FIELD: &str = "x-kubernetes-validations";
const REASONS: &[&str] =
    &["FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"];
const MAX_MESSAGE: usize = 2048;
/// Longest text that a `messageExpression` may make.
const MAX_MADE_MESSAGE: usize = 5 << 10;
/// One rule.
#[derive(Debug)]
pub struct Rule {
    text: String,
    program: Result<Expression, String>,
    message: String,
    message_program: Option<Expression>,
    reason: String,
    field_path: String,
    /// It speaks of the value before.
    is_transition: bool,
    /// It is held against new values too; the value before is an optional.
    optional_old: bool,
}

fn text<'v>(rule: &'v Value, key: &str) -> &'v str {
    rule[key].as_str().unwrap_or_default()
}

/// The rules of one node of a schema.
pub(super) fn read(schema: &Value) -> Arc<[Rule]> {
    schema[FIELD].as_array().into_iter().flatten().map(Rule::read).collect()
}

/// Holds all rules against a value. `old` is the value before.
pub(super) fn evaluate(
    path: &str,
    value: &Value,
    old: Option<&Value>,
    schema: &Structural,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if schema.is_ruled {
        FUNCTIONS.with(|functions| {
            Walk { functions, errors: &mut errors }.walk(path, value, old, schema, false);
        });
    }
    errors
}

struct Walk<'a> {
    functions: &'a Context<'a>,
    errors: &'a mut Vec<FieldError>,
}

impl Walk<'_> {
    /// `unchanged`: the value is part of one that is as it was.
    fn walk(&mut self, path: &str, value: &Value, old: Option<&Value>, schema: &Structural, unchanged: bool) {
        if value.is_null() || !schema.is_ruled {
            return;
        }
        let unchanged = unchanged || old == Some(value);
        if !schema.rules.is_empty() {
            let mut scope = self.functions.new_inner_scope();
            scope.add_variable_from_value("self", convert(value, Some(schema)));
            let before = old.filter(|old| !old.is_null()).map(|old| convert(old, Some(schema)));
            let subject = Subject { path, value, kind: &schema.kind, before, unchanged };
            self.errors.extend(schema.rules.iter().filter_map(|rule| rule.check(&scope, &subject)));
        }
        match value {
            Value::Array(items) => {
                let Some(inner) = schema.items.as_deref() else { return };
                for (i, item) in items.iter().enumerate() {
                    let before = old.and_then(|old| same_item(item, old, schema));
                    self.walk(&format!("{path}[{i}]"), item, before, inner, unchanged);
                }
            }
            Value::Object(map) => {
                for (key, value) in map {
                    let before = old.and_then(|old| old.get(key)).filter(|_| !schema.map_atomic);
                    if let Some(inner) = schema.properties.get(key) {
                        self.walk(&child(path, key), value, before, inner, unchanged);
                    } else if let Some(inner) = schema.additional_schema() {
                        self.walk(&format!("{path}[{key}]"), value, before, inner, unchanged);
                    }
                }
            }
            _ => {}
        }
    }
}

/// What a rule is held against.
struct Subject<'a> {
    path: &'a str,
    value: &'a Value,
    kind: &'a str,
    before: Option<Cel>,
    unchanged: bool,
}

impl Rule {
    fn read(rule: &Value) -> Self {
        let program = Expression::parse(text(rule, "rule"));
        let is_transition = program.as_ref().is_ok_and(|program| program.speaks_of("oldSelf"));
        Self {
            text: text(rule, "rule").trim().to_owned(),
            message: text(rule, "message").trim().to_owned(),
            message_program: Some(text(rule, "messageExpression"))
                .filter(|text| !text.is_empty())
                .and_then(|text| Expression::parse(text).ok()),
            reason: text(rule, "reason").to_owned(),
            field_path: text(rule, "fieldPath").to_owned(),
            is_transition,
            optional_old: rule["optionalOldSelf"] == true,
            program,
        }
    }

    fn check(&self, scope: &Context<'_>, subject: &Subject<'_>) -> Option<FieldError> {
        let wrong =
            |detail: String| Some(FieldError::invalid(shown(subject.path), &subject.kind.into(), detail));
        let program = match &self.program {
            Ok(program) => program,
            Err(error) => return wrong(format!("rule compile error: {error}")),
        };
        if self.is_transition && subject.before.is_none() && !self.optional_old {
            return None;
        }
        let mut scope = scope.new_inner_scope();
        match (&subject.before, self.optional_old) {
            (Some(before), false) => scope.add_variable_from_value("oldSelf", before.clone()),
            (None, false) => {}
            (before, true) => {
                let before = before.clone().map_or_else(OptionalValue::none, OptionalValue::of);
                scope.add_variable_from_value("oldSelf", Cel::Opaque(Arc::new(before)));
            }
        }
        match program.evaluate(&scope) {
            Ok(Cel::Bool(true)) => None,
            // A rule that came later does not lock objects up.
            Ok(Cel::Bool(false)) if subject.unchanged && !self.is_transition => None,
            Ok(Cel::Bool(false)) => Some(self.broken(&scope, subject)),
            Ok(_) => wrong(format!("the result is no bool evaluating rule: {}", self.told())),
            Err(error) => wrong(format!("{error} evaluating rule: {}", self.told())),
        }
    }

    fn told(&self) -> &str {
        if self.message.is_empty() { &self.text } else { &self.message }
    }

    fn broken(&self, scope: &Context<'_>, subject: &Subject<'_>) -> FieldError {
        let made = self.message_program.as_ref().and_then(|program| match program.evaluate(scope) {
            Ok(Cel::String(text)) => Some(text.trim().to_owned()),
            _ => None,
        });
        let usable =
            |text: &String| !text.is_empty() && text.len() <= MAX_MADE_MESSAGE && !text.contains('\n');
        let detail = made.filter(usable).unwrap_or_else(|| match self.message.as_str() {
            "" => format!("failed rule: {}", self.text),
            message => message.to_owned(),
        });
        let field = shown(format!("{}{}", subject.path, self.field_path).trim_start_matches('.'));
        let mut error = match self.reason.as_str() {
            "FieldValueForbidden" => return FieldError::forbidden(field, detail),
            "FieldValueRequired" => return FieldError::required(field, detail),
            "FieldValueDuplicate" => FieldError::duplicate(field, subject.value),
            _ => FieldError::invalid(field, subject.value, detail),
        };
        if matches!(subject.kind, "object" | "array") {
            error.value = None;
        }
        error
    }
}

/// Whether rules could not be held against a value because of other errors (`hasBlockingErr`).
pub(super) fn is_blocked(errors: &[FieldError]) -> bool {
    errors.iter().any(|error| {
        matches!(
            error.kind,
            ErrorType::NotSupported
                | ErrorType::Required
                | ErrorType::TooLong
                | ErrorType::TooMany
                | ErrorType::TypeInvalid
        )
    })
}

/// Says that they could not.
pub(super) fn blocked() -> FieldError {
    FieldError::invalid(
        "<nil>",
        &Value::Null,
        "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
    )
}

/// A value as rules see it.
pub(crate) fn convert(value: &Value, schema: Option<&Structural>) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(value) => Cel::Bool(*value),
        Value::Number(number) => convert_number(number, schema.map_or("", |schema| &schema.kind)),
        Value::String(value) => {
            let format = schema.and_then(|schema| schema.checks.format).map_or("", |format| format.name());
            convert_text(value, format)
        }
        Value::Array(items) => {
            let inner = schema.and_then(|schema| schema.items.as_deref());
            Cel::List(Arc::new(items.iter().map(|item| convert(item, inner)).collect()))
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| {
                let (name, inner) = match schema.and_then(|schema| schema.properties.get(name)) {
                    Some(inner) => (escape(name), Some(inner)),
                    None => (name.clone(), schema.and_then(Structural::additional_schema)),
                };
                (Key::String(Arc::new(name)), convert(value, inner))
            });
            Cel::Map(Map { map: Arc::new(fields.collect::<HashMap<_, _>>()) })
        }
    }
}

fn convert_number(number: &Number, kind: &str) -> Cel {
    match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (_, _, Some(float)) if kind == "number" => Cel::Float(float),
        (Some(int), _, _) => Cel::Int(int),
        (None, Some(uint), _) => Cel::UInt(uint),
        #[expect(clippy::cast_possible_truncation, reason = "whole, and as Go converts it")]
        (_, _, Some(float)) if kind == "integer" && float.fract() == 0.0 => Cel::Int(float as i64),
        (_, _, float) => Cel::Float(float.unwrap_or(f64::NAN)),
    }
}

/// What does not fit its format stays a text: the schema has something to say about it.
fn convert_text(text: &str, format: &str) -> Cel {
    use base64::Engine as _;
    let made = match format {
        "date-time" | "datetime" => chrono::DateTime::parse_from_rfc3339(text).ok().map(Cel::Timestamp),
        "date" => chrono::DateTime::parse_from_rfc3339(&format!("{text}T00:00:00Z")).ok().map(Cel::Timestamp),
        "duration" => keelson_cron::duration::parse(text)
            .ok()
            .map(|nanos| Cel::Duration(chrono::Duration::nanoseconds(nanos))),
        "byte" => base64::engine::general_purpose::STANDARD
            .decode(text)
            .ok()
            .map(|bytes| Cel::Bytes(Arc::new(bytes))),
        _ => None,
    };
    made.unwrap_or_else(|| Cel::String(Arc::new(text.to_owned())))
}

/// A field's name as rules write it (`apiserver/pkg/cel.Escape`).
fn escape(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
}

/// Checks the rules of one node of a definition's schema. `uncorrelated` is the path of the node from which on a value
/// has no certain predecessor.
pub(super) fn check(schema: &Value, path: &str, uncorrelated: Option<&str>, errors: &mut Vec<FieldError>) {
    for (i, rule) in schema[FIELD].as_array().into_iter().flatten().enumerate() {
        let at = |key: &str| format!("{path}.{FIELD}[{i}].{key}");
        check_texts(rule, schema, &at, errors);
        let source = text(rule, "rule");
        if source.trim().is_empty() {
            errors.push(FieldError::required(at("rule"), "rule is not specified"));
            continue;
        }
        let uses_old = check_source(source, &at("rule"), errors);
        if uses_old && let Some(from) = uncorrelated {
            let why =
                format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {from}");
            errors.push(FieldError::invalid(at("rule"), &rule["rule"], why));
        }
        if !uses_old && rule["optionalOldSelf"] == true {
            let why = "may not be set if oldSelf is not used in rule";
            errors.push(FieldError::invalid(at("optionalOldSelf"), &true.into(), why));
        }
        let made = text(rule, "messageExpression");
        if !made.trim().is_empty() {
            check_source(made, &at("messageExpression"), errors);
        }
    }
}

fn check_texts(rule: &Value, schema: &Value, at: &dyn Fn(&str) -> String, errors: &mut Vec<FieldError>) {
    let message = text(rule, "message");
    let mut complain = |key: &str, why: &str| errors.push(FieldError::invalid(at(key), &rule[key], why));
    if !message.is_empty() && message.trim().is_empty() {
        complain("message", "message must be non-empty if specified");
    } else if message.trim().contains('\n') {
        complain("message", "message must not contain line breaks");
    } else if message.len() > MAX_MESSAGE {
        complain("message", "message must have a maximum length of 2048 characters");
    }
    let made = text(rule, "messageExpression");
    if !made.is_empty() && made.trim().is_empty() {
        complain("messageExpression", "messageExpression must be non-empty if specified");
    }
    let field_path = text(rule, "fieldPath");
    if !field_path.is_empty() && !leads_somewhere(field_path, schema) {
        complain("fieldPath", "fieldPath must be a valid path: does not refer to a valid field");
    }
    if message.is_empty() && text(rule, "rule").trim().contains('\n') {
        errors.push(FieldError::required(
            at("message"),
            "message must be specified if rule contains line breaks",
        ));
    }
    let reason = text(rule, "reason");
    if !reason.is_empty() && !REASONS.contains(&reason) {
        errors.push(FieldError::not_supported(at("reason"), &rule["reason"], REASONS));
    }
}

fn leads_somewhere(path: &str, schema: &Value) -> bool {
    let Ok(path) = JsonPath::parse(path) else { return false };
    path.fields().is_some_and(|fields| {
        let mut at = schema;
        fields.iter().all(|field| {
            at = match at["properties"].get(*field) {
                Some(inner) => inner,
                None => &at["additionalProperties"],
            };
            at.is_object()
        })
    })
}

/// Parses a rule; tells whether it speaks of the value before.
fn check_source(source: &str, field: &str, errors: &mut Vec<FieldError>) -> bool {
    let dialect = Dialect { variables: &["self", "oldSelf"], ..Dialect::default() };
    let (rule, complaints) = expressions::check(source, dialect);
    errors.extend(complaints.into_iter().map(|why| FieldError::invalid(field, &source.into(), why)));
    rule.is_some_and(|rule| rule.speaks_of("oldSelf"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(schema: Value, value: Value, old: Option<Value>) -> Vec<String> {
        let schema = Structural::read(&schema);
        evaluate("", &value, old.as_ref(), &schema).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_are_held_against_values() {
        let schema = json!({"type": "object", "properties": {
            "min": {"type": "integer"}, "max": {"type": "integer", FIELD: [{"rule": "self < 100"}]},
            "my_name": {"type": "string"}, "ratio": {"type": "number"}, "namespace": {"type": "string"},
            "l": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}},
                FIELD: [{"rule": "self.n > 0", "message": "n must be positive"}]}},
            "m": {"type": "object", "additionalProperties": {"type": "string", FIELD: [
                {"rule": "self.startsWith('x')", "messageExpression": "'not ' + self"}]}},
        }, FIELD: [
            {"rule": "!has(self.min) || !has(self.max) || self.min <= self.max",
             "message": "min must not be above max", "fieldPath": ".min"},
            {"rule": "!has(self.my_name) || self.my_name != 'bad'", "reason": "FieldValueForbidden"},
            {"rule": "!has(self.ratio) || self.ratio <= 1.0"},
            {"rule": "!has(self.__namespace__) || self.__namespace__.size() < 3", "message": "long"},
        ]});
        let check = |value: Value, wanted: &[&str]| assert_eq!(told(schema.clone(), value, None), wanted);
        check(json!({"min": 1, "max": 2, "ratio": 1, "my_name": "good"}), &[]);
        check(json!({"min": 3, "max": 2}), &["min: Invalid value: min must not be above max"]);
        check(json!({"max": 100}), &["max: Invalid value: 100: failed rule: self < 100"]);
        check(
            json!({"my_name": "bad"}),
            &["<nil>: Forbidden: failed rule: !has(self.my_name) || self.my_name != 'bad'"],
        );
        check(json!({"namespace": "abc"}), &["<nil>: Invalid value: long"]);
        check(json!({"l": [{"n": 1}, {"n": 0}]}), &["l[1]: Invalid value: n must be positive"]);
        check(json!({"m": {"k": "y"}}), &["m[k]: Invalid value: \"y\": not y"]);
        check(
            json!({"l": [{}]}),
            &["l[0]: Invalid value: \"object\": No such key: n evaluating rule: n must be positive"],
        );
    }

    #[test]
    fn changes_are_held_against_what_was() {
        let schema = json!({"type": "object", "properties": {
            "fixed": {"type": "string", FIELD: [{"rule": "self == oldSelf", "message": "immutable"}]},
            "later": {"type": "integer", FIELD: [{"rule": "self < 10"}]},
            "grows": {"type": "integer", FIELD: [
                {"rule": "!oldSelf.hasValue() || oldSelf.value() <= self", "optionalOldSelf": true, "message": "shrunk"}]},
            "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"},
                    "v": {"type": "integer", FIELD: [{"rule": "self >= oldSelf", "message": "less"}]}}}},
        }});
        let check = |old: Option<Value>, new: Value, wanted: &[&str]| {
            assert_eq!(told(schema.clone(), new, old), wanted);
        };
        check(None, json!({"fixed": "a", "grows": 3}), &[]);
        check(
            Some(json!({"fixed": "a"})),
            json!({"fixed": "b"}),
            &["fixed: Invalid value: \"b\": immutable"],
        );
        check(Some(json!({})), json!({"fixed": "b"}), &[]);
        check(Some(json!({"later": 12})), json!({"later": 12}), &[]);
        check(
            Some(json!({"later": 12})),
            json!({"later": 13}),
            &["later: Invalid value: 13: failed rule: self < 10"],
        );
        check(Some(json!({"grows": 3})), json!({"grows": 2}), &["grows: Invalid value: 2: shrunk"]);
        check(
            Some(json!({"l": [{"k": "a", "v": 1}, {"k": "b", "v": 5}]})),
            json!({"l": [{"k": "b", "v": 4}, {"k": "a", "v": 2}]}),
            &["l[0].v: Invalid value: 4: less"],
        );
    }

    #[test]
    fn values_have_their_types() {
        let schema = json!({"type": "object", "properties": {
            "at": {"type": "string", "format": "date-time"}, "for": {"type": "string", "format": "duration"},
            "port": {"x-kubernetes-int-or-string": true}, "bytes": {"type": "string", "format": "byte"},
        }, FIELD: [
            {"rule": "self.at > timestamp('2024-01-01T00:00:00Z')"},
            {"rule": "self.__for__ <= duration('1h')"},
            {"rule": "type(self.port) == int ? self.port > 0 : self.port.size() > 0"},
            {"rule": "self.bytes.size() == 1"},
            {"rule": "quantity('1Gi').isGreaterThan(quantity('1Mi')) && isIP('10.0.0.1')"},
        ]});
        let value = json!({"at": "2025-01-01T00:00:00Z", "for": "30m", "port": "http", "bytes": "YQ=="});
        assert_eq!(told(schema, value, None), Vec::<String>::new());
    }

    #[test]
    fn names_are_escaped() {
        for (name, escaped) in [
            ("my_name", "my_name"),
            ("a__b", "a__underscores__b"),
            ("a-b.c/d", "a__dash__b__dot__c__slash__d"),
            ("namespace", "__namespace__"),
        ] {
            assert_eq!(escape(name), escaped);
        }
    }

    #[test]
    fn definitions_with_wrong_rules_are_refused() {
        let errors = |rule: Value, uncorrelated: Option<&str>| -> Vec<String> {
            let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, FIELD: [rule]});
            let mut errors = Vec::new();
            check(&schema, "s", uncorrelated, &mut errors);
            errors
                .iter()
                .map(|error| error.to_string().replace("s.x-kubernetes-validations[0]", "R"))
                .collect()
        };
        let none = Vec::<String>::new();
        assert_eq!(
            errors(json!({"rule": "self.a > 0", "fieldPath": ".a", "reason": "FieldValueInvalid"}), None),
            none
        );
        assert_eq!(errors(json!({"rule": "[1].all(x, x > 0) && math.abs(-1) == 1"}), None), none);
        assert_eq!(errors(json!({"rule": " "}), None), ["R.rule: Required value: rule is not specified"]);
        assert_eq!(errors(json!({"rule": "self.a >"}), None).len(), 1);
        assert_eq!(
            errors(json!({"rule": "object.a > 0"}), None),
            [
                "R.rule: Invalid value: \"object.a > 0\": compilation failed: undeclared reference to 'object' (in container '')"
            ]
        );
        assert!(!errors(json!({"rule": "[1].all(i, x, x > 0)"}), None).is_empty());
        assert!(!errors(json!({"rule": "[1].sortBy(x, x) == [1]"}), None).is_empty());
        assert_eq!(
            errors(json!({"rule": "self == oldSelf"}), Some("l")),
            [
                "R.rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within l"
            ]
        );
        assert_eq!(errors(json!({"rule": "true", "optionalOldSelf": true}), None).len(), 1);
        assert_eq!(errors(json!({"rule": "true", "fieldPath": ".b"}), None).len(), 1);
        assert_eq!(errors(json!({"rule": "true", "reason": "Odd"}), None).len(), 1);
        assert_eq!(errors(json!({"rule": "true", "message": "a\nb"}), None).len(), 1);
    }
}
