//! Query parameters and `DeleteOptions`.

use serde_json::Value;

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

/// Options that all writes share.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Nothing is kept.
    pub dry_run: bool,
    /// Unknown fields.
    pub validation: FieldValidation,
}

impl WriteOptions {
    /// From the query.
    pub fn parse(query: &Query) -> Result<Self> {
        let dry_run = match query.get("dryRun") {
            None | Some("") => false,
            Some("All") => true,
            Some(other) => {
                return Err(StatusError::new(
                    422,
                    "Invalid",
                    format!("dryRun: Unsupported value: {other:?}: supported values: \"All\""),
                ));
            }
        };
        let validation = FieldValidation::from_query(query.get("fieldValidation").unwrap_or_default())
            .ok_or_else(|| {
                StatusError::new(
                    422,
                    "Invalid",
                    "fieldValidation: Unsupported value: supported values: \"Ignore\", \"Strict\", \"Warn\"",
                )
            })?;
        Ok(Self { dry_run, validation })
    }
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
        let mut options = Self { dry_run: WriteOptions::parse(query)?.dry_run, ..Self::default() };
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
}
