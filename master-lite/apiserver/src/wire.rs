//! The one place where the request path meets the schema tree: bodies, patches, defaults.

use keelson_api::codec::{self, MediaType};
use keelson_api::meta::GroupVersionKind;
use keelson_api::patch::{self, PatchError};
use keelson_api::resources::Resource;
use serde_json::Value;

pub use keelson_api::codec::FieldValidation;

use crate::options::OptionsKind;
use crate::status::{Result, StatusError};

/// Media types of bodies, for 415 messages.
const READ: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// How a patch changes what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own, by patch strategies of the schema.
    Strategic,
}

/// What a PATCH asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// A change of what is there.
    Change(PatchType),
    /// Server-side apply.
    Apply,
}

impl PatchKind {
    /// By `Content-Type`.
    pub fn from_content_type(header: &str) -> Result<Self> {
        match header.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Change(PatchType::Json)),
            "application/merge-patch+json" => Ok(Self::Change(PatchType::Merge)),
            "application/strategic-merge-patch+json" => Ok(Self::Change(PatchType::Strategic)),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            _ => Err(StatusError::unsupported_media_type(&[
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
                "application/apply-patch+yaml",
            ])),
        }
    }

    /// The options that go with it.
    pub fn options(self) -> OptionsKind {
        match self {
            Self::Change(_) => OptionsKind::Patch,
            Self::Apply => OptionsKind::Apply,
        }
    }
}

impl PatchType {
    /// Refuses what the resource has no patch strategies for.
    pub fn check(self, row: &Resource) -> Result<()> {
        if self == Self::Strategic && row.custom.is_some() {
            return Err(StatusError::unsupported_media_type(&[
                "application/json-patch+json",
                "application/merge-patch+json",
            ]));
        }
        Ok(())
    }
}

fn media_type(content_type: &str) -> Result<MediaType> {
    MediaType::from_content_type(content_type).ok_or_else(|| StatusError::unsupported_media_type(READ))
}

/// Reads a body that must be an object of a kind. Returns it normalized, with warnings.
pub fn decode(
    content_type: &str,
    body: &[u8],
    expect: &GroupVersionKind,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>)> {
    let decoded = codec::decode(media_type(content_type)?, body, expect, validation)
        .map_err(|error| StatusError::bad_request(error.status_message(expect)))?;
    Ok((decoded.object, decoded.warnings))
}

/// Reads a body that must be an object of a row in a version.
pub fn decode_object(
    content_type: &str,
    body: &[u8],
    row: &Resource,
    version: &str,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>)> {
    let gvk = row.gvk(version);
    let Some(custom) = &row.custom else { return decode(content_type, body, &gvk, validation) };
    let media = media_type(content_type)?;
    if media == MediaType::Protobuf {
        return Err(StatusError::unsupported_media_type(&["application/json", "application/yaml"]));
    }
    let decoded = custom
        .decode(media, body, &gvk, validation)
        .map_err(|error| StatusError::bad_request(error.status_message(&gvk)))?;
    Ok((decoded.object, decoded.warnings))
}

/// Checks and prunes an object of a row that a patch has made.
pub fn normalize_object(
    row: &Resource,
    version: &str,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>> {
    let gvk = row.gvk(version);
    let Some(custom) = &row.custom else { return normalize(&gvk, object, validation) };
    custom
        .normalize(object, Vec::new(), validation)
        .map_err(|error| StatusError::bad_request(error.status_message(&gvk)))
}

/// Reads `DeleteOptions`, which every group and version takes as its own.
pub fn decode_delete_options(content_type: &str, body: &[u8]) -> Result<Value> {
    let expect = GroupVersionKind::new("meta.k8s.io", "v1", "DeleteOptions");
    Ok(decode(content_type, body, &expect, FieldValidation::Ignore)?.0)
}

/// Reads the text of a patch.
pub fn parse_patch(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body)
        .map_err(|error| StatusError::bad_request(format!("error decoding patch: {error}")))
}

/// Reads a configuration to be applied, which is YAML or JSON. Also returns what upstream's strict parser says of
/// duplicate keys.
pub fn parse_configuration(body: &[u8]) -> Result<(Value, Option<String>)> {
    let refuse = |why: String| StatusError::bad_request(format!("error decoding YAML: {why}"));
    let (mut config, duplicates) =
        codec::parse_configuration(body).map_err(|error| refuse(error.to_string()))?;
    let what = match &config {
        Value::Object(_) => None,
        Value::Null => {
            config = Value::Object(serde_json::Map::new());
            None
        }
        Value::Array(_) => Some("array"),
        Value::String(_) => Some("string"),
        Value::Bool(_) => Some("bool"),
        Value::Number(_) => Some("number"),
    };
    if let Some(what) = what {
        return Err(refuse(format!(
            "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {what} into Go value of type map[string]interface {{}}"
        )));
    }
    keelson_api::smd::whole_numbers(&mut config);
    Ok((config, duplicates))
}

/// What comes of duplicate keys in a configuration: warnings, or a refusal.
pub fn check_duplicates(duplicates: Option<&str>, validation: FieldValidation) -> Result<Vec<String>> {
    match (duplicates, validation) {
        (None, _) | (_, FieldValidation::Ignore) => Ok(Vec::new()),
        (Some(duplicates), FieldValidation::Warn) => Ok(vec![duplicates.to_owned()]),
        (Some(duplicates), FieldValidation::Strict) => {
            Err(StatusError::bad_request(format!("error strict decoding YAML: {duplicates}")))
        }
    }
}

/// Checks and prunes an object that a patch has made.
pub fn normalize(
    gvk: &GroupVersionKind,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>> {
    codec::normalize_object(gvk, object, validation)
        .map_err(|error| StatusError::bad_request(error.status_message(gvk)))
}

/// Fills the schema's defaults.
pub fn apply_defaults(gvk: &GroupVersionKind, object: &mut Value) {
    keelson_api::defaults::apply(gvk, object);
}

/// Applies a patch to an object.
pub fn patch(kind: PatchType, gvk: &GroupVersionKind, current: &Value, patch: &Value) -> Result<Value> {
    let patched = match kind {
        PatchType::Json => patch::json_patch(current, patch),
        PatchType::Merge => patch::merge_patch(current, patch),
        PatchType::Strategic => patch::strategic(gvk, current, patch),
    };
    patched.map_err(|error: PatchError| {
        let reason = match error.status() {
            400 => "BadRequest",
            413 => "RequestEntityTooLarge",
            422 => "Invalid",
            _ => "InternalError",
        };
        StatusError::new(error.status(), reason, error.to_string())
    })
}
