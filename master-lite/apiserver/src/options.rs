//! Query parameters and `DeleteOptions`.

use keelson_api::field::FieldError;
use keelson_api::meta::GroupVersionKind;
use serde_json::{Value, json};

use crate::status::{Result, StatusError};
use crate::wire::FieldValidation;

/// Decoded query pairs.
#[derive(Debug, Clone, Default)]
pub struct Query(pub Vec<(String, String)>);

impl Query {
    /// First value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All values of a key.
    pub fn all<'q>(&'q self, key: &'q str) -> impl Iterator<Item = &'q str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A boolean as Go reads it; absent is false.
    pub fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<i64>> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_e| {
                StatusError::bad_request(format!("{key}: Invalid value: {text:?}: must be an integer"))
            }),
        }
    }

    /// `resourceVersion`: `None` if absent or empty.
    pub fn resource_version(&self) -> Result<Option<u64>> {
        match self.get("resourceVersion") {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_e| {
                StatusError::bad_request(format!(
                    "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
                ))
            }),
        }
    }
}

/// Which of the options types of meta/v1 a request's query is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionsKind {
    /// `CreateOptions`.
    Create,
    /// `UpdateOptions`.
    Update,
    /// `PatchOptions` of a patch that changes what is there.
    Patch,
    /// `PatchOptions` of server-side apply.
    Apply,
    /// `DeleteOptions`.
    Delete,
}

impl OptionsKind {
    fn gvk(self) -> GroupVersionKind {
        let kind = match self {
            Self::Create => "CreateOptions",
            Self::Update => "UpdateOptions",
            Self::Patch | Self::Apply => "PatchOptions",
            Self::Delete => "DeleteOptions",
        };
        GroupVersionKind::new("meta.k8s.io", "v1", kind)
    }
}

/// Longest name of a manager, in bytes.
const MANAGER_MAX_LENGTH: usize = 128;

/// Options that all writes share.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Nothing is kept.
    pub dry_run: bool,
    /// Unknown fields.
    pub validation: FieldValidation,
    /// `fieldManager` as sent; may be empty.
    pub manager: String,
    /// Server-side apply takes what others own.
    pub force: bool,
}

impl WriteOptions {
    /// Of the server's own writes.
    pub fn own() -> Self {
        Self { dry_run: false, validation: FieldValidation::Ignore, manager: String::new(), force: false }
    }

    /// From the query.
    pub fn parse(query: &Query, kind: OptionsKind) -> Result<Self> {
        let mut errors = Vec::new();
        let manager = query.get("fieldManager").unwrap_or_default();
        let force = query.get("force");
        match kind {
            OptionsKind::Apply if manager.is_empty() => {
                errors.push(FieldError::required("fieldManager", "is required for apply patch"));
            }
            OptionsKind::Patch if force.is_some() => {
                errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
            }
            _ => {}
        }
        if manager.len() > MANAGER_MAX_LENGTH {
            errors.push(FieldError::too_long("fieldManager", MANAGER_MAX_LENGTH));
        }
        errors.extend(manager.char_indices().filter(|(_, c)| !is_print(*c)).map(|(at, c)| {
            let why = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
            FieldError::invalid("fieldManager", &manager.into(), why)
        }));
        let dry_run: Vec<&str> = query.all("dryRun").filter(|value| !value.is_empty()).collect();
        if dry_run.iter().any(|value| *value != "All") {
            errors.push(FieldError::not_supported("dryRun", &dry_run.clone().into(), &["All"]));
        }
        let directive = query.get("fieldValidation").unwrap_or_default();
        let validation = FieldValidation::from_query(directive);
        if validation.is_none() {
            let known = ["", "Ignore", "Strict", "Warn"];
            errors.push(FieldError::not_supported("fieldValidation", &directive.into(), &known));
        }
        if !errors.is_empty() {
            return Err(StatusError::invalid(&kind.gvk(), "", &errors));
        }
        Ok(Self {
            dry_run: !dry_run.is_empty(),
            validation: validation.unwrap_or_default(),
            manager: manager.to_owned(),
            // Whatever is not false is true, as upstream reads flags of a query.
            force: force.is_some_and(|flag| !matches!(flag.to_ascii_lowercase().as_str(), "false" | "0")),
        })
    }

    /// The same as an object (`CreateOptions` or `UpdateOptions`, which a patch's options become), for admission.
    pub fn to_value(&self, kind: &str) -> Value {
        let mut value = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if self.dry_run {
            value["dryRun"] = json!(["All"]);
        }
        if !self.manager.is_empty() {
            value["fieldManager"] = self.manager.as_str().into();
        }
        match self.validation {
            FieldValidation::Strict => value["fieldValidation"] = "Strict".into(),
            FieldValidation::Ignore => value["fieldValidation"] = "Ignore".into(),
            FieldValidation::Warn => {}
        }
        value
    }

    /// Who owns what the request changes: the manager that it names, or the program that sent it.
    pub fn manager_or_agent(&self, user_agent: &str) -> String {
        if self.manager.is_empty() { manager_of_agent(user_agent) } else { self.manager.clone() }
    }
}

/// The first part of a `User-Agent`, cut to what a manager's name may be.
fn manager_of_agent(user_agent: &str) -> String {
    let mut out = String::new();
    for c in user_agent.split('/').next().unwrap_or_default().chars().filter(|c| is_print(*c)) {
        if out.len() + c.len_utf8() > MANAGER_MAX_LENGTH {
            break;
        }
        out.push(c);
    }
    out
}

/// Go's `unicode.IsPrint`, near enough: no controls, no spaces but the one, nothing invisible.
fn is_print(c: char) -> bool {
    let invisible = matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0001}'..='\u{e007f}' | '\u{f0000}'..);
    c == ' ' || !(c.is_control() || c.is_whitespace() || invisible)
}

/// What happens to dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// They are left without an owner.
    Orphan,
    /// The garbage collector deletes them afterwards.
    Background,
    /// They go first.
    Foreground,
}

/// `metav1.DeleteOptions`.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Seconds; `None` is the kind's own.
    pub grace_period_seconds: Option<i64>,
    /// `None` leaves finalizers as they are.
    pub propagation: Option<Propagation>,
    /// The object must have this uid.
    pub uid: Option<String>,
    /// The object must be at this resourceVersion.
    pub resource_version: Option<String>,
    /// Nothing is kept.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From the body if there is one, else from the query, as upstream does.
    pub fn parse(query: &Query, body: Option<&Value>) -> Result<Self> {
        let mut options =
            Self { dry_run: WriteOptions::parse(query, OptionsKind::Delete)?.dry_run, ..Self::default() };
        let (policy, orphan);
        match body {
            Some(body) => {
                options.grace_period_seconds = body["gracePeriodSeconds"].as_i64();
                policy = body["propagationPolicy"].as_str().map(str::to_owned);
                orphan = body["orphanDependents"].as_bool();
                options.uid = body["preconditions"]["uid"].as_str().map(str::to_owned);
                options.resource_version =
                    body["preconditions"]["resourceVersion"].as_str().map(str::to_owned);
                options.dry_run |=
                    body["dryRun"].as_array().is_some_and(|list| list.iter().any(|v| v == "All"));
            }
            None => {
                options.grace_period_seconds = query.number("gracePeriodSeconds")?;
                policy = query.get("propagationPolicy").map(str::to_owned);
                orphan = query.get("orphanDependents").map(|_| query.flag("orphanDependents"));
            }
        }
        options.propagation = match (policy.as_deref(), orphan) {
            (Some("Orphan"), None) | (None | Some(""), Some(true)) => Some(Propagation::Orphan),
            (Some("Background"), None) | (None | Some(""), Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), None) => Some(Propagation::Foreground),
            (None | Some(""), None) => None,
            (Some(_), Some(_)) => {
                return Err(StatusError::new(
                    422,
                    "Invalid",
                    "orphanDependents and deletionPropagation cannot be both set",
                ));
            }
            (Some(other), None) => {
                return Err(StatusError::new(
                    422,
                    "Invalid",
                    format!(
                        "propagationPolicy: Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                    ),
                ));
            }
        };
        Ok(options)
    }

    /// The same as an object, for admission.
    pub fn to_value(&self) -> Value {
        let mut value = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(seconds) = self.grace_period_seconds {
            value["gracePeriodSeconds"] = seconds.into();
        }
        for (field, given) in [("uid", &self.uid), ("resourceVersion", &self.resource_version)] {
            if let Some(given) = given {
                value["preconditions"][field] = given.as_str().into();
            }
        }
        if let Some(propagation) = self.propagation {
            value["propagationPolicy"] = match propagation {
                Propagation::Orphan => "Orphan",
                Propagation::Background => "Background",
                Propagation::Foreground => "Foreground",
            }
            .into();
        }
        if self.dry_run {
            value["dryRun"] = json!(["All"]);
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &[(&str, &str)], kind: OptionsKind) -> Result<WriteOptions> {
        let query = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        WriteOptions::parse(&Query(query), kind)
    }

    #[test]
    fn options_are_checked_as_upstream() {
        let check = |query: &[(&str, &str)], kind: OptionsKind, message: &str| {
            let error = parse(query, kind).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (422, message));
        };
        check(
            &[],
            OptionsKind::Apply,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        );
        check(
            &[("force", "true")],
            OptionsKind::Patch,
            "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
        );
        check(
            &[("dryRun", "x"), ("fieldValidation", "y")],
            OptionsKind::Create,
            "CreateOptions.meta.k8s.io \"\" is invalid: [dryRun: Unsupported value: [\"x\"]: supported values: \"All\", fieldValidation: Unsupported value: \"y\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"]",
        );
        check(
            &[("fieldManager", "a\u{7}")],
            OptionsKind::Update,
            "UpdateOptions.meta.k8s.io \"\" is invalid: fieldManager: Invalid value: \"a\\u{7}\": invalid character U+0007 (at position 1)",
        );
        assert!(parse(&[("fieldManager", &"x".repeat(129))], OptionsKind::Create).is_err());
        let options = parse(&[("fieldManager", "m"), ("force", ""), ("dryRun", "All")], OptionsKind::Apply);
        let options = options.unwrap();
        assert!(options.force && options.dry_run);
        assert!(!parse(&[("fieldManager", "m"), ("force", "False")], OptionsKind::Apply).unwrap().force);
    }

    #[test]
    fn programs_are_managers() {
        let nobody = parse(&[], OptionsKind::Create).unwrap();
        for (agent, manager) in [
            ("kubectl/v1.36.0 (linux/amd64) kubernetes/abc", "kubectl"),
            ("", ""),
            ("a\u{200b}b", "ab"),
            (&"é".repeat(100), &"é".repeat(64)),
        ] {
            assert_eq!(nobody.manager_or_agent(agent), manager);
        }
        assert_eq!(
            parse(&[("fieldManager", "m")], OptionsKind::Create).unwrap().manager_or_agent("k/1"),
            "m"
        );
    }
}
