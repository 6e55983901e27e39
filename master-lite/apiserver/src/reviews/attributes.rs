//! `resourceAttributes` and `nonResourceAttributes` of access reviews.

use keelson_api::field::FieldError;
use serde_json::Value;

use crate::authz::rbac::text;
use crate::extension::{AuthorizerAttributes, UserInfo};

/// What a review's spec asks about, for this user, and what of it couldn't be read (upstream's evaluation error).
pub(super) fn read(user: UserInfo, spec: &Value) -> (AuthorizerAttributes, String) {
    let resource = &spec["resourceAttributes"];
    if !resource.is_object() {
        let path = &spec["nonResourceAttributes"];
        let attributes = AuthorizerAttributes {
            user,
            verb: text(path, "/verb").to_owned(),
            path: text(path, "/path").to_owned(),
            ..AuthorizerAttributes::default()
        };
        return (attributes, String::new());
    }
    let field = |key: &str| resource[key].as_str().unwrap_or_default().to_owned();
    let (field_selector, error) = field_selector(&resource["fieldSelector"]);
    let version = field("version");
    let attributes = AuthorizerAttributes {
        user,
        verb: field("verb"),
        namespace: field("namespace"),
        group: field("group"),
        version: if version.is_empty() { "*".to_owned() } else { version },
        resource: field("resource"),
        subresource: field("subresource"),
        name: field("name"),
        resource_request: true,
        path: String::new(),
        field_selector,
    };
    (attributes, error)
}

/// A selector as a query string has it. Requirements that have no such form are left out, which makes the question
/// broader, never narrower.
fn field_selector(selector: &Value) -> (String, String) {
    let raw = text(selector, "/rawSelector");
    if !raw.is_empty() {
        return (raw.to_owned(), String::new());
    }
    let requirements = selector["requirements"].as_array().map(Vec::as_slice).unwrap_or_default();
    let terms: Vec<String> = requirements
        .iter()
        .filter_map(|r| {
            let operator = match text(r, "/operator") {
                "In" => "=",
                "NotIn" => "!=",
                _ => return None,
            };
            let [value] = r["values"].as_array()?.as_slice() else { return None };
            Some(format!("{}{operator}{}", text(r, "/key"), value.as_str()?))
        })
        .collect();
    let error = match (terms.len(), requirements.len()) {
        (read, all) if read == all => "",
        (0, _) => "spec.resourceAttributes.fieldSelector ignored due to parse error",
        _ => "spec.resourceAttributes.fieldSelector partially ignored due to parse error",
    };
    (terms.join(","), error.to_owned())
}

/// Errors of a spec; `with_user` for reviews that name their subject.
pub(super) fn validate(spec: &Value, with_user: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    match (resource.is_object(), path.is_object()) {
        (true, true) => errors.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            path,
            "cannot be specified in combination with resourceAttributes",
        )),
        (false, false) => errors.push(FieldError::invalid(
            "spec.resourceAttributes",
            &Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    let no_groups = spec["groups"].as_array().is_none_or(Vec::is_empty);
    if with_user && text(spec, "/user").is_empty() && no_groups {
        errors.push(FieldError::invalid(
            "spec.user",
            &"".into(),
            "at least one of user or group must be specified",
        ));
    }
    for selector in ["fieldSelector", "labelSelector"] {
        let value = &resource[selector];
        if !value.is_object() {
            continue;
        }
        let at = format!("spec.resourceAttributes.{selector}");
        let raw = !text(value, "/rawSelector").is_empty();
        let requirements = value["requirements"].as_array().is_some_and(|r| !r.is_empty());
        if raw && requirements {
            let why = "may not specified at the same time as requirements";
            errors.push(FieldError::invalid(format!("{at}.rawSelector"), &value["rawSelector"], why));
        }
        if !raw && !requirements {
            let why = format!("when {at} is specified, requirements or rawSelector is required");
            errors.push(FieldError::required(format!("{at}.requirements"), why));
        }
    }
    errors
}
