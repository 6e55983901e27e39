//! CustomResourceDefinitions themselves: defaults, preparation and validation
//! (`apiextensions-apiserver/pkg/{registry/customresourcedefinition,apis/apiextensions/validation}`).

use serde_json::{Value, json};

use super::format::Format;
use super::names::{is_true, set_condition};
use super::structural::{Structural, compile};
use super::{CLEANUP_FINALIZER, JsonPath, columns, shape, strings};
use crate::field::FieldError;
use crate::resources::{Strategy, StrategyContext, metadata};

/// The annotation that says where a group of Kubernetes' own was approved.
pub const APPROVED: &str = "api-approved.kubernetes.io";

/// True for groups that only Kubernetes itself may use.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|own| group == *own || group.strip_suffix(own).is_some_and(|rest| rest.ends_with('.')))
}

/// The strategy of `customresourcedefinitions`.
pub struct CustomResourceDefinition;

impl Strategy for CustomResourceDefinition {
    fn default(&self, object: &mut Value) {
        let spec = &mut object["spec"];
        if !spec.is_object() {
            return;
        }
        let names = &mut spec["names"];
        if names.is_object() {
            let kind = names["kind"].as_str().unwrap_or_default().to_owned();
            if names["singular"].as_str().unwrap_or_default().is_empty() {
                names["singular"] = kind.to_lowercase().into();
            }
            if names["listKind"].as_str().unwrap_or_default().is_empty() && !kind.is_empty() {
                names["listKind"] = format!("{kind}List").into();
            }
        }
        if spec["conversion"].is_null() {
            spec["conversion"] = json!({"strategy": "None"});
        }
        if let Some(service) = spec.pointer_mut("/conversion/webhook/clientConfig/service")
            && service["port"].is_null()
        {
            service["port"] = 443.into();
        }
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({});
        add_stored_version(object);
        fill_status(object);
    }

    fn prepare_for_delete(&self, object: &mut Value, now: &str) {
        let finalizers = &mut object["metadata"]["finalizers"];
        if !finalizers.is_array() {
            *finalizers = json!([]);
        }
        if let Some(list) = finalizers.as_array_mut()
            && !list.iter().any(|f| f == CLEANUP_FINALIZER)
        {
            list.push(CLEANUP_FINALIZER.into());
        }
        let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
        set_condition(object, "Terminating", "True", "InstanceDeletionPending", message, now);
    }

    fn prepare_for_update(&self, context: &StrategyContext, new: &mut Value, _old: &Value) {
        if context.subresource.is_empty() {
            add_stored_version(new);
        }
        fill_status(new);
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        let mut errors = validate(object);
        errors.extend(approval(object, None));
        if object["spec"]["preserveUnknownFields"] == true {
            errors.push(preserve_unknown());
        }
        errors
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return names(&new["status"]["acceptedNames"], "status.acceptedNames");
        }
        let mut errors = validate(new);
        let immutable = |path: &str, new: &Value, old: &Value| {
            (new != old).then(|| FieldError::invalid(path, new, "field is immutable"))
        };
        let (spec, before) = (&new["spec"], &old["spec"]);
        if is_true(old, "Established") {
            errors.extend(immutable("spec.scope", &spec["scope"], &before["scope"]));
            errors.extend(immutable("spec.names.kind", &spec["names"]["kind"], &before["names"]["kind"]));
        }
        errors.extend(immutable("spec.group", &spec["group"], &before["group"]));
        errors.extend(immutable("spec.names.plural", &spec["names"]["plural"], &before["names"]["plural"]));
        errors.extend(approval(new, Some(old)));
        if spec["preserveUnknownFields"] == true && before["preserveUnknownFields"] != true {
            errors.push(preserve_unknown());
        }
        errors
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut unknown = Vec::new();
        for version in object["spec"]["versions"].as_array().into_iter().flatten() {
            unknown_formats(&version["schema"]["openAPIV3Schema"], &mut unknown);
        }
        unknown.sort();
        unknown.dedup();
        unknown.iter().map(|format| format!("unrecognized format {format:?}")).collect()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn preserve_unknown() -> FieldError {
    FieldError::invalid(
        "spec.preserveUnknownFields",
        &true.into(),
        "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
    )
}

fn unknown_formats(schema: &Value, unknown: &mut Vec<String>) {
    if let Some(format) = schema["format"].as_str().filter(|format| !format.is_empty())
        && !Format::is_known(schema["type"].as_str().unwrap_or_default(), format)
    {
        unknown.push(format.to_owned());
    }
    for (_, inner) in schema["properties"].as_object().into_iter().flatten() {
        unknown_formats(inner, unknown);
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            unknown_formats(&schema[key], unknown);
        }
    }
}

/// `status.storedVersions` holds every version that objects may have been stored in.
fn add_stored_version(object: &mut Value) {
    let versions = object["spec"]["versions"].as_array().cloned().unwrap_or_default();
    let Some(storage) = versions.iter().find(|v| v["storage"] == true) else { return };
    let stored = &mut object["status"]["storedVersions"];
    if !stored.is_array() {
        *stored = json!([]);
    }
    if let Some(list) = stored.as_array_mut()
        && !list.contains(&storage["name"])
    {
        list.push(storage["name"].clone());
    }
}

/// Fields of the status that are written whether or not they hold anything.
fn fill_status(object: &mut Value) {
    let status = &mut object["status"];
    if status["acceptedNames"].is_null() {
        status["acceptedNames"] = json!({"plural": "", "kind": ""});
    }
    if status.get("conditions").is_none() {
        status["conditions"] = Value::Null;
    }
    if status.get("storedVersions").is_none() {
        status["storedVersions"] = Value::Null;
    }
}

fn approval(new: &Value, old: Option<&Value>) -> Option<FieldError> {
    fn state(definition: &Value) -> (&str, u8) {
        let text = definition["metadata"]["annotations"][APPROVED].as_str().unwrap_or_default();
        let state = match text {
            "" => 0,
            text if text.starts_with("unapproved") => 1,
            text if text.starts_with("https://") || text.starts_with("http://") => 2,
            _ => 3,
        };
        (text, state)
    }
    if !is_protected(new["spec"]["group"].as_str().unwrap_or_default()) {
        return None;
    }
    let path = format!("metadata.annotations[{APPROVED}]");
    let (text, now) = state(new);
    if old.is_some_and(|old| state(old).1 == now) {
        return None;
    }
    match now {
        0 => Some(FieldError::required(
            path,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        )),
        3 => Some(FieldError::invalid(
            path,
            &text.into(),
            format!(
                "protected groups must have approval annotation \"{APPROVED}\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111"
            ),
        )),
        _ => None,
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    if object["metadata"]["name"] != format!("{plural}.{group}") {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", &object["metadata"]["name"], why));
    }
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if let Err(why) = metadata::dns_subdomain(&group) {
        errors.push(FieldError::invalid("spec.group", &spec["group"], why));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid(
            "spec.group",
            &spec["group"],
            "should be a domain with at least one dot",
        ));
    }
    match spec["scope"].as_str().unwrap_or_default() {
        "" => errors.push(FieldError::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        _ => errors.push(FieldError::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"])),
    }
    let versions = spec["versions"].as_array().cloned().unwrap_or_default();
    let mut seen: Vec<String> = Vec::new();
    let mut unique = true;
    for (i, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        let name = text(&version["name"]);
        unique &= !seen.contains(&name);
        if let Err(why) = metadata::dns_1035_label(&name) {
            errors.push(FieldError::invalid(format!("{path}.name"), &version["name"], why));
        }
        seen.push(name);
        errors.extend(version_errors(version, &path));
    }
    let shown = Value::Array(versions.clone());
    if !unique {
        errors.push(FieldError::invalid("spec.versions", &shown, "must contain unique version names"));
    }
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", &shown, why));
    }
    for key in ["plural", "singular", "kind", "listKind"] {
        if text(&spec["names"][key]).is_empty() {
            errors.push(FieldError::required(format!("spec.names.{key}"), ""));
        }
    }
    errors.extend(names(&spec["names"], "spec.names"));
    errors.extend(conversion(&spec["conversion"]));
    errors.extend(stored_versions(&object["status"]["storedVersions"], &seen, &versions));
    errors
}

fn stored_versions(stored: &Value, names: &[String], versions: &[Value]) -> Vec<FieldError> {
    let path = "status.storedVersions";
    let list = strings(stored);
    if list.is_empty() {
        return vec![FieldError::invalid(path, &json!([]), "must have at least one stored version")];
    }
    let mut errors = Vec::new();
    for version in versions.iter().filter(|v| v["storage"] == true) {
        let name = version["name"].as_str().unwrap_or_default();
        if !list.iter().any(|stored| stored == name) {
            errors.push(FieldError::invalid(path, stored, format!("must have the storage version {name}")));
        }
    }
    for (i, name) in list.iter().enumerate().filter(|(_, name)| !names.contains(name)) {
        let why = format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
        );
        errors.push(FieldError::invalid(format!("{path}[{i}]"), &name.as_str().into(), why));
    }
    errors
}

fn names(names: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let text = |key: &str| names[key].as_str().unwrap_or_default();
    for key in ["plural", "singular"] {
        if !text(key).is_empty()
            && let Err(why) = metadata::dns_1035_label(text(key))
        {
            errors.push(FieldError::invalid(format!("{path}.{key}"), &names[key], why));
        }
    }
    for key in ["kind", "listKind"] {
        if !text(key).is_empty()
            && let Err(why) = metadata::dns_1035_label(&text(key).to_lowercase())
        {
            let why = format!("may have mixed case, but should otherwise match: {why}");
            errors.push(FieldError::invalid(format!("{path}.{key}"), &names[key], why));
        }
    }
    let list = |key: &str| -> Vec<FieldError> {
        strings(&names[key])
            .iter()
            .enumerate()
            .filter_map(|(i, name)| {
                let why = metadata::dns_1035_label(name).err()?;
                Some(FieldError::invalid(format!("{path}.{key}[{i}]"), &name.as_str().into(), why))
            })
            .collect()
    };
    errors.extend(list("shortNames"));
    if !text("kind").is_empty() && text("kind") == text("listKind") {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(format!("{path}.listKind"), &names["listKind"], why));
    }
    errors.extend(list("categories"));
    errors
}

fn conversion(conversion: &Value) -> Vec<FieldError> {
    let path = "spec.conversion";
    match conversion["strategy"].as_str().unwrap_or_default() {
        "" => vec![FieldError::required(format!("{path}.strategy"), "")],
        "None" if !conversion["webhook"].is_null() => vec![FieldError::forbidden(
            format!("{path}.webhookClientConfig"),
            "should not be set when strategy is not set to Webhook",
        )],
        "None" => Vec::new(),
        "Webhook" => vec![FieldError::forbidden(
            format!("{path}.strategy"),
            "conversion webhooks are not supported by this server",
        )],
        _ => vec![FieldError::not_supported(
            format!("{path}.strategy"),
            &conversion["strategy"],
            &["None", "Webhook"],
        )],
    }
}

fn version_errors(version: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let warning = &version["deprecationWarning"];
    if let Some(text) = warning.as_str() {
        let field = format!("{path}.deprecationWarning");
        let mut complain = |why: String| errors.push(FieldError::invalid(field.as_str(), warning, why));
        if version["deprecated"] != true {
            complain("can only be set for deprecated versions".to_owned());
        } else if text.is_empty() {
            complain("must not be an empty string".to_owned());
        } else if text.len() > 256 {
            complain("must be <= 256 characters long".to_owned());
        } else if let Some((at, _)) = text.char_indices().find(|(_, c)| c.is_control()) {
            complain(format!(
                "must only contain printable UTF-8 characters; non-printable character found at index {at}"
            ));
        }
    }
    let schema = &version["schema"]["openAPIV3Schema"];
    let at = format!("{path}.schema.openAPIV3Schema");
    if schema.is_null() {
        errors.push(FieldError::required(at, ""));
    } else {
        errors.extend(root_schema(schema, &at, !version["subresources"]["status"].is_null()));
    }
    errors.extend(scale_paths(&version["subresources"]["scale"], &format!("{path}.subresources")));
    for (i, column) in version["additionalPrinterColumns"].as_array().into_iter().flatten().enumerate() {
        errors.extend(column_errors(column, &format!("{path}.additionalPrinterColumns[{i}]")));
    }
    errors.extend(selectable(&version["selectableFields"], schema, &format!("{path}.selectableFields")));
    errors
}

fn scale_paths(scale: &Value, path: &str) -> Vec<FieldError> {
    if scale.is_null() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    for (key, roots, required) in [
        ("specReplicasPath", &[".spec."][..], true),
        ("statusReplicasPath", &[".status."][..], true),
        ("labelSelectorPath", &[".spec.", ".status."][..], false),
    ] {
        let field = format!("{path}.scale.{key}");
        let text = scale[key].as_str().unwrap_or_default();
        if text.is_empty() {
            if required {
                errors.push(FieldError::required(field, ""));
            }
        } else if !text.starts_with('.') {
            errors.push(FieldError::invalid(
                field,
                &scale[key],
                "must be a simple json path starting with .",
            ));
        } else if !roots.iter().any(|root| text.starts_with(root)) {
            let why = match key {
                "specReplicasPath" => "should be a json path under .spec",
                "statusReplicasPath" => "should be a json path under .status",
                _ => "should be a json path under either .spec or .status",
            };
            errors.push(FieldError::invalid(field, &scale[key], why));
        } else if !JsonPath::parse(text).is_ok_and(|path| path.fields().is_some()) {
            errors.push(FieldError::invalid(field, &scale[key], "must be a json path in the dot notation"));
        }
    }
    errors
}

fn column_errors(column: &Value, path: &str) -> Vec<FieldError> {
    const KINDS: &str = "must be one of boolean,date,integer,number,string";
    let mut errors = Vec::new();
    let text = |key: &str| column[key].as_str().unwrap_or_default();
    if text("name").is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    }
    if text("type").is_empty() {
        errors.push(FieldError::required(format!("{path}.type"), KINDS));
    } else if columns::column_kind(text("type")).is_none() {
        errors.push(FieldError::invalid(format!("{path}.type"), &column["type"], KINDS));
    }
    if !text("format").is_empty() && columns::column_format(text("format")).is_none() {
        let why = "must be one of byte,date,date-time,double,float,int32,int64,password";
        errors.push(FieldError::invalid(format!("{path}.format"), &column["format"], why));
    }
    let field = format!("{path}.JSONPath");
    if text("jsonPath").is_empty() {
        errors.push(FieldError::required(field, ""));
    } else if let Err(error) = JsonPath::parse(text("jsonPath")) {
        errors.push(FieldError::invalid(field, &column["jsonPath"], error.to_string()));
    }
    errors
}

const MAX_SELECTABLE: usize = 8;

fn selectable(fields: &Value, schema: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (i, field) in fields.as_array().into_iter().flatten().enumerate() {
        let at = format!("{path}[{i}].jsonPath");
        let text = field["jsonPath"].as_str().unwrap_or_default();
        let value = &field["jsonPath"];
        if text.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let parsed = JsonPath::parse(text).ok();
        let Some(names) = parsed.as_ref().and_then(JsonPath::fields).filter(|names| !names.is_empty()) else {
            errors.push(FieldError::invalid(at, value, "is an invalid path"));
            continue;
        };
        if names[0] == "metadata" {
            errors.push(FieldError::invalid(at.as_str(), value, "must not point to fields in metadata"));
        }
        let found = names.iter().try_fold(schema, |schema, name| schema["properties"].get(name));
        match found.map(|schema| schema["type"].as_str().unwrap_or_default()) {
            None => {
                let why = "is an invalid path: does not refer to a valid field";
                errors.push(FieldError::invalid(at.as_str(), value, why));
                continue;
            }
            Some("string" | "boolean" | "integer") => {}
            Some(_) => errors.push(FieldError::invalid(
                at.as_str(),
                value,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            )),
        }
        if seen.contains(&text) {
            errors.push(FieldError::duplicate(at, value));
        } else {
            seen.push(text);
        }
    }
    if seen.len() > MAX_SELECTABLE {
        errors.push(FieldError::too_many(path, seen.len(), MAX_SELECTABLE));
    }
    errors
}

/// Fields that the root may have when its status is a subresource.
const ROOT_FIELDS: &[&str] = &[
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];

/// Where a schema stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

fn root_schema(schema: &Value, path: &str, has_status: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if has_status && let Some(map) = schema.as_object() {
        if map.get("type").is_some_and(|kind| kind != "object") {
            errors.push(FieldError::invalid(
                format!("{path}.type"),
                &schema["type"],
                "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled",
            ));
        } else if map.keys().any(|key| !ROOT_FIELDS.contains(&key.as_str())) {
            let go: Vec<String> = ROOT_FIELDS
                .iter()
                .map(|name| match *name {
                    "x-kubernetes-preserve-unknown-fields" => "XPreserveUnknownFields".to_owned(),
                    "x-kubernetes-validations" => "XValidations".to_owned(),
                    name => name[..1].to_uppercase() + &name[1..],
                })
                .collect();
            let why = format!(
                "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                go.join(" ")
            );
            errors.push(FieldError::invalid(path, schema, why));
        }
    }
    if schema["nullable"] == true {
        errors.push(FieldError::forbidden(format!("{path}.nullable"), "nullable cannot be true at the root"));
    }
    let mut structural = Vec::new();
    invariants(schema, Level::Root, path, &mut structural);
    complete(schema, schema, path, &mut structural);
    structural.sort_by_key(ToString::to_string);
    structural.dedup();
    if structural.is_empty() {
        defaults(schema, path, &mut structural, true);
    }
    errors.extend(structural);
    rules(schema, path, None, &mut errors);
    errors
}

fn flag(schema: &Value, key: &str) -> bool {
    schema[key].as_bool().unwrap_or(false)
}

fn kind_of(schema: &Value) -> &str {
    schema["type"].as_str().unwrap_or_default()
}

fn int_or_string() -> Value {
    json!([{"type": "integer"}, {"type": "string"}])
}

/// `validateStructuralInvariants`.
fn invariants(schema: &Value, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let kind = kind_of(schema);
    if kind == "array" && schema["items"].is_null() {
        errors.push(FieldError::required(format!("{path}.items"), "must be specified"));
    }
    if schema["items"].is_object() {
        invariants(&schema["items"], Level::Item, &format!("{path}.items"), errors);
    }
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        invariants(inner, Level::Field, &format!("{path}.properties[{key}]"), errors);
    }
    let additional = &schema["additionalProperties"];
    if !additional.is_null() {
        if level == Level::Root {
            let why = "must not be used at the root";
            errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), why));
        }
        if additional.is_object() {
            invariants(additional, Level::Field, &format!("{path}.additionalProperties"), errors);
        }
    }
    let (embedded, preserve, either) = (
        flag(schema, "x-kubernetes-embedded-resource"),
        flag(schema, "x-kubernetes-preserve-unknown-fields"),
        flag(schema, "x-kubernetes-int-or-string"),
    );
    for (set, key) in
        [(preserve, "x-kubernetes-preserve-unknown-fields"), (embedded, "x-kubernetes-embedded-resource")]
    {
        if either && set {
            let why = "must be false if x-kubernetes-int-or-string is true";
            errors.push(FieldError::invalid(format!("{path}.{key}"), &true.into(), why));
        }
    }
    let skip_any = schema["anyOf"] == int_or_string();
    let skip_all = schema["allOf"][0]["anyOf"] == int_or_string();
    junctions(schema, skip_any, skip_all, path, errors);
    if embedded && kind != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        let field = format!("{path}.type");
        errors.push(match kind {
            "" => FieldError::required(field, why),
            _ => FieldError::invalid(field, &schema["type"], why),
        });
    } else if kind.is_empty() && !either && !preserve {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(format!("{path}.type"), why));
    }
    if embedded && !additional.is_null() {
        let why = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), why));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        let why = "must be object at the root";
        errors.push(FieldError::invalid(format!("{path}.type"), &schema["type"], why));
    }
    if level == Level::Root || embedded {
        for (key, wanted) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
            if let Some(inner) = schema["properties"].get(key)
                && kind_of(inner) != wanted
            {
                let field = format!("{path}.properties[{key}].type");
                let why = format!("must be {wanted}");
                errors.push(FieldError::invalid(field, &kind_of(inner).into(), why));
            }
        }
    }
    if level == Level::Root
        && let Some(meta) = schema["properties"]["metadata"].as_object()
    {
        let allowed = |name: &String| matches!(name.as_str(), "name" | "generateName");
        let names_only =
            meta.get("properties").and_then(Value::as_object).is_none_or(|p| p.keys().all(allowed));
        let plain = meta.keys().all(|key| matches!(key.as_str(), "type" | "properties" | "description"));
        if !names_only || !plain {
            let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.push(FieldError::forbidden(format!("{path}.properties[metadata]"), why));
        }
    }
    let no_properties = schema["properties"].as_object().is_none_or(serde_json::Map::is_empty);
    if embedded && !preserve && no_properties {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(format!("{path}.properties"), why));
    }
}

/// `validateValueValidation`: what allOf, anyOf, oneOf and not may hold.
fn junctions(schema: &Value, skip_any: bool, skip_all: bool, path: &str, errors: &mut Vec<FieldError>) {
    for key in ["anyOf", "allOf", "oneOf"] {
        if key == "anyOf" && skip_any {
            continue;
        }
        for (i, inner) in schema[key].as_array().into_iter().flatten().enumerate() {
            nested(inner, key == "allOf" && skip_all && i == 0, &format!("{path}.{key}[{i}]"), errors);
        }
    }
    if schema["not"].is_object() {
        nested(&schema["not"], false, &format!("{path}.not"), errors);
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && let Err(error) = compile(pattern)
    {
        let why = format!("must be a valid regular expression, but isn't: {error}");
        errors.push(FieldError::invalid(format!("{path}.pattern"), &schema["pattern"], why));
    }
}

fn nested(schema: &Value, skip_any: bool, path: &str, errors: &mut Vec<FieldError>) {
    junctions(schema, skip_any, false, path, errors);
    if schema["items"].is_object() {
        nested(&schema["items"], false, &format!("{path}.items"), errors);
    }
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        nested(inner, false, &format!("{path}.properties[{key}]"), errors);
        if key == "metadata" {
            let why = "must not be specified in a nested context";
            errors.push(FieldError::forbidden(format!("{path}.properties[metadata]"), why));
        }
    }
    for (key, why) in [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        ("x-kubernetes-embedded-resource", "must be false to be structural"),
        ("x-kubernetes-int-or-string", "must be false to be structural"),
        ("x-kubernetes-list-map-keys", "must be empty to be structural"),
        ("x-kubernetes-list-type", "must be undefined to be structural"),
        ("x-kubernetes-map-type", "must be undefined to be structural"),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ] {
        let empty = match schema.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(_) => false,
        };
        if !empty {
            errors.push(FieldError::forbidden(format!("{path}.{key}"), why));
        }
    }
}

/// `validateStructuralCompleteness`: what a nested schema speaks of must be declared outside as well.
fn complete(outer: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for key in ["anyOf", "allOf", "oneOf"] {
        for (i, inner) in schema[key].as_array().into_iter().flatten().enumerate() {
            complete_nested(outer, inner, path, &format!("{path}.{key}[{i}]"), errors);
        }
    }
    if schema["not"].is_object() {
        complete_nested(outer, &schema["not"], path, &format!("{path}.not"), errors);
    }
    if std::ptr::eq(outer, schema) {
        if schema["items"].is_object() {
            complete(&schema["items"], &schema["items"], &format!("{path}.items"), errors);
        }
        for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
            complete(inner, inner, &format!("{path}.properties[{key}]"), errors);
        }
        let additional = &schema["additionalProperties"];
        if additional.is_object() {
            complete(additional, additional, &format!("{path}.additionalProperties"), errors);
        }
    }
}

fn complete_nested(outer: &Value, inner: &Value, at: &str, path: &str, errors: &mut Vec<FieldError>) {
    for (key, property) in inner["properties"].as_object().into_iter().flatten() {
        match outer["properties"].get(key) {
            Some(declared) => complete_nested(
                declared,
                property,
                &format!("{at}.properties[{key}]"),
                &format!("{path}.properties[{key}]"),
                errors,
            ),
            None => {
                let why = format!("because it is defined in {path}.properties[{key}]");
                errors.push(FieldError::required(format!("{at}.properties[{key}]"), why));
            }
        }
    }
    if inner["items"].is_object() {
        if outer["items"].is_object() {
            let (at, path) = (format!("{at}.items"), format!("{path}.items"));
            complete_nested(&outer["items"], &inner["items"], &at, &path, errors);
        } else {
            let why = format!("because it is defined in {path}.items");
            errors.push(FieldError::required(format!("{at}.items"), why));
        }
    }
    for key in ["anyOf", "allOf", "oneOf"] {
        for (i, deeper) in inner[key].as_array().into_iter().flatten().enumerate() {
            complete_nested(outer, deeper, at, &format!("{path}.{key}[{i}]"), errors);
        }
    }
    if inner["not"].is_object() {
        complete_nested(outer, &inner["not"], at, &format!("{path}.not"), errors);
    }
}

/// Defaults must be what the schema itself would make of them, and valid.
fn defaults(schema: &Value, path: &str, errors: &mut Vec<FieldError>, root: bool) {
    if let Some(default) = schema.get("default").filter(|v| !v.is_null()) {
        let field = format!("{path}.default");
        if root {
            errors.push(FieldError::forbidden(field, "must not be set"));
        } else {
            let structural = Structural::read(schema);
            let mut pruned = default.clone();
            shape::prune_inner(&mut pruned, &structural);
            if pruned != *default {
                errors.push(FieldError::invalid(field, default, "must not have unknown fields"));
            } else {
                let mut whole = default.clone();
                shape::default(&mut whole, &structural);
                errors.extend(super::validate(&field, &whole, None, &structural));
                errors.extend(super::validate_lists(&field, &whole, &structural));
                errors.extend(super::rules::evaluate(&field, &whole, None, &structural));
            }
        }
    }
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        defaults(inner, &format!("{path}.properties[{key}]"), errors, false);
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            defaults(&schema[key], &format!("{path}.{key}"), errors, false);
        }
    }
}

const KINDS: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

/// `ValidateCustomResourceDefinitionOpenAPISchema`.
///
/// `uncorrelated` is the path of the list or map from which on a value has no certain predecessor.
fn rules(schema: &Value, path: &str, uncorrelated: Option<&str>, errors: &mut Vec<FieldError>) {
    let atomic = schema["x-kubernetes-map-type"] == "atomic";
    let in_map = uncorrelated.or(atomic.then_some(path));
    let in_list = uncorrelated.or((schema["x-kubernetes-list-type"] != "map").then_some(path));

    let kind = kind_of(schema);
    if kind == "null" {
        let why = "type cannot be set to null, use nullable as an alternative";
        errors.push(FieldError::forbidden(format!("{path}.type"), why));
    } else if !kind.is_empty() && !KINDS.contains(&kind) {
        errors.push(FieldError::not_supported(format!("{path}.type"), &schema["type"], KINDS));
    }
    for key in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        if schema.get(key).is_some_and(|v| !v.is_null()) {
            errors.push(FieldError::forbidden(format!("{path}.{key}"), format!("{key} is not supported")));
        }
    }
    if schema["items"].is_array() {
        let why = "items must be a schema object and not an array";
        errors.push(FieldError::forbidden(format!("{path}.items"), why));
    }
    if flag(schema, "uniqueItems") {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(format!("{path}.uniqueItems"), why));
    }
    let additional = &schema["additionalProperties"];
    if !additional.is_null() {
        let has_properties = schema["properties"].as_object().is_some_and(|p| !p.is_empty());
        if has_properties && *additional != true {
            let why = "additionalProperties and properties are mutual exclusive";
            errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), why));
        }
        if *additional == false {
            let why = "additionalProperties cannot be set to false";
            errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), why));
        }
        if additional.is_object() {
            rules(additional, &format!("{path}.additionalProperties"), in_map, errors);
        }
    }
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        rules(inner, &format!("{path}.properties[{key}]"), in_map, errors);
    }
    for (key, uncorrelated) in [("not", uncorrelated), ("items", in_list)] {
        if schema[key].is_object() {
            rules(&schema[key], &format!("{path}.{key}"), uncorrelated, errors);
        }
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        for (i, inner) in schema[key].as_array().into_iter().flatten().enumerate() {
            rules(inner, &format!("{path}.{key}[{i}]"), uncorrelated, errors);
        }
    }
    let preserve = "x-kubernetes-preserve-unknown-fields";
    if schema[preserve] == false {
        errors.push(FieldError::invalid(
            format!("{path}.{preserve}"),
            &false.into(),
            "must be true or undefined",
        ));
    }
    extension_types(schema, path, errors);
    super::rules::check(schema, path, uncorrelated, errors);
}

/// x-kubernetes-map-type, x-kubernetes-list-type and x-kubernetes-list-map-keys.
fn extension_types(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let kind = kind_of(schema);
    let typed = |key: &str, wanted: &str| {
        if kind == wanted || schema.get(key).is_none_or(Value::is_null) {
            return None;
        }
        let why = format!("must be {wanted} if {key} is specified");
        let field = format!("{path}.type");
        Some(match kind {
            "" => FieldError::required(field, why),
            _ => FieldError::invalid(field, &schema["type"], why),
        })
    };
    errors.extend(typed("x-kubernetes-map-type", "object"));
    let map_type = &schema["x-kubernetes-map-type"];
    if !matches!(map_type.as_str(), None | Some("atomic" | "granular")) {
        let field = format!("{path}.x-kubernetes-map-type");
        errors.push(FieldError::not_supported(field, map_type, &["atomic", "granular"]));
    }
    let list_type = schema["x-kubernetes-list-type"].as_str();
    let list_field = format!("{path}.x-kubernetes-list-type");
    let items = &schema["items"];
    if let Some(error) = typed("x-kubernetes-list-type", "array") {
        errors.push(error);
    } else if list_type == Some("set") {
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let inner = |key: &str| items[key].as_str().unwrap_or_default();
        match kind_of(items) {
            "array" if !matches!(inner("x-kubernetes-list-type"), "" | "atomic") => {
                let field = format!("{path}.items.x-kubernetes-list-type");
                errors.push(FieldError::invalid(field, &items["x-kubernetes-list-type"], why));
            }
            "object" if inner("x-kubernetes-map-type") != "atomic" => {
                let field = format!("{path}.items.x-kubernetes-map-type");
                errors.push(FieldError::invalid(field, &items["x-kubernetes-map-type"], why));
            }
            _ => {}
        }
    }
    if !matches!(list_type, None | Some("atomic" | "set" | "map")) {
        let value = &schema["x-kubernetes-list-type"];
        errors.push(FieldError::not_supported(list_field.as_str(), value, &["atomic", "set", "map"]));
    }
    let keys = strings(&schema["x-kubernetes-list-map-keys"]);
    let keys_field = format!("{path}.x-kubernetes-list-map-keys");
    if !keys.is_empty() && list_type != Some("map") {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(match list_type {
            None => FieldError::required(list_field, why),
            Some(_) => FieldError::invalid(list_field, &schema["x-kubernetes-list-type"], why),
        });
    }
    if list_type == Some("map") {
        if keys.is_empty() {
            let why = "must not be empty if x-kubernetes-list-type is map";
            errors.push(FieldError::required(keys_field.as_str(), why));
        }
        if items.is_null() {
            let why = "must have a schema if x-kubernetes-list-type is map";
            errors.push(FieldError::required(format!("{path}.items"), why));
        } else if kind_of(items) != "object" {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            errors.push(FieldError::invalid(format!("{path}.items.type"), &kind_of(items).into(), why));
        } else {
            list_keys(items, &keys, path, &keys_field, errors);
        }
    }
    if matches!(list_type, Some("set" | "map")) && flag(items, "nullable") {
        let why =
            format!("cannot be nullable when x-kubernetes-list-type is {}", list_type.unwrap_or_default());
        errors.push(FieldError::forbidden(format!("{path}.items.nullable"), why));
    }
}

fn list_keys(items: &Value, keys: &[String], path: &str, keys_field: &str, errors: &mut Vec<FieldError>) {
    let required = strings(&items["required"]);
    for (i, key) in keys.iter().enumerate() {
        if keys[..i].contains(key) {
            errors.push(FieldError::invalid(keys_field, &json!(keys), "must not contain duplicate entries"));
        }
        let Some(property) = items["properties"].get(key) else {
            let why = "entries must all be names of item properties";
            errors.push(FieldError::invalid(keys_field, &json!(keys), why));
            continue;
        };
        let field = format!("{path}.items.properties[{key}]");
        if matches!(kind_of(property), "array" | "object") {
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.push(FieldError::invalid(format!("{field}.type"), &property["type"], why));
        }
        if !required.contains(key) && property.get("default").is_none_or(Value::is_null) {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(format!("{field}.default"), why));
        }
        if flag(property, "nullable") {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(format!("{field}.nullable"), why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(schema: Value) -> Value {
        let mut object = json!({
            "metadata": {"name": "foos.example.com"},
            "spec": {
                "group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
                "versions": [{"name": "v1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": schema}}],
            },
        });
        CustomResourceDefinition.default(&mut object);
        CustomResourceDefinition.prepare_for_create(&StrategyContext::default(), &mut object);
        object
    }

    fn errors(object: &Value) -> Vec<String> {
        let errors = CustomResourceDefinition.validate_create(&StrategyContext::default(), object);
        errors.iter().map(ToString::to_string).collect()
    }

    fn schema_errors(property: Value) -> Vec<String> {
        errors(&definition(json!({"type": "object", "properties": {"a": property}})))
            .iter()
            .map(|e| e.replace("spec.versions[0].schema.openAPIV3Schema.properties[a]", "A"))
            .collect()
    }

    #[test]
    fn a_plain_definition_is_fine() {
        let object = definition(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
        assert_eq!(errors(&object), Vec::<String>::new());
        assert_eq!(object["spec"]["names"]["listKind"], "FooList");
        assert_eq!(object["status"]["storedVersions"], json!(["v1"]));
        let mut wrong = object.clone();
        wrong["spec"]["group"] = "example".into();
        wrong["spec"]["versions"][0]["storage"] = false.into();
        // The name, the group, and that no version is stored.
        assert_eq!(errors(&wrong).len(), 3, "{:?}", errors(&wrong));
    }

    #[test]
    fn schemas_must_be_structural() {
        let cases = [
            (json!({}), "A.type: Required value: must not be empty for specified object fields"),
            (json!({"type": "array"}), "A.items: Required value: must be specified"),
            (
                json!({"type": "object", "anyOf": [{"type": "object"}]}),
                "A.anyOf[0].type: Forbidden: must be empty to be structural",
            ),
            (
                json!({"type": "object", "anyOf": [{"properties": {"x": {}}}]}),
                "A.properties[x]: Required value: because it is defined in A.anyOf[0].properties[x]",
            ),
            (
                json!({"type": "integer", "default": "x"}),
                "A.default: Invalid value: \"string\": A.default in body must be of type integer: \"string\"",
            ),
            (
                json!({"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object",
                    "properties": {"k": {"type": "string"}}}, "x-kubernetes-list-map-keys": ["k"]}),
                "A.items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ),
            (
                json!({"type": "array", "items": {"type": "string",
                    "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}),
                "A.items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within A",
            ),
        ];
        for (property, text) in cases {
            assert_eq!(schema_errors(property), [text]);
        }
        for good in [
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            json!({"type": "object", "properties": {"x": {"type": "string"}}, "oneOf": [{"required": ["x"]}]}),
        ] {
            assert_eq!(schema_errors(good), Vec::<String>::new());
        }
    }

    #[test]
    fn groups_of_kubernetes_need_approval() {
        let mut object = definition(json!({"type": "object"}));
        object["spec"]["group"] = "x.k8s.io".into();
        object["metadata"]["name"] = "foos.x.k8s.io".into();
        assert_eq!(errors(&object).len(), 1);
        object["metadata"]["annotations"] =
            json!({(APPROVED): "https://github.com/kubernetes/kubernetes/pull/1"});
        assert_eq!(errors(&object), Vec::<String>::new());
    }
}
