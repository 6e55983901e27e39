//! OpenAPI v2 (Swagger), made out of the same paths and types as v3.
//!
//! What v2 cannot say is left out, as upstream does: defaults of types, and alternatives, in whose place a quantity and
//! an int-or-string are strings.

use serde_json::{Map, Value, json};

/// The document of paths and types as [`super::paths`] and [`super::components`] make them.
pub fn document(paths: &Value, schemas: &Value) -> Value {
    json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": super::VERSION },
        "paths": each(paths, path_item),
        "definitions": each(schemas, schema),
        "securityDefinitions": { "BearerToken": {
            "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header",
        } },
        "security": [{ "BearerToken": [] }],
    })
}

fn each(map: &Value, convert: fn(&Value) -> Value) -> Value {
    map.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), convert(value))).collect()
}

fn path_item(item: &Value) -> Value {
    let convert = |(key, value): (&String, &Value)| {
        let value = if key == "parameters" { parameters(value).into() } else { operation(value) };
        (key.clone(), value)
    };
    item.as_object().into_iter().flatten().map(convert).collect()
}

fn operation(operation: &Value) -> Value {
    let mut out = Map::new();
    let mut all = parameters(&operation["parameters"]);
    for (key, value) in operation.as_object().into_iter().flatten() {
        match key.as_str() {
            "parameters" => {}
            "requestBody" => {
                let (types, content) = content(value);
                out.insert("consumes".to_owned(), types.into());
                all.push(json!({ "name": "body", "in": "body", "required": true, "schema": content }));
            }
            "responses" => {
                let mut responses = Map::new();
                for (code, response) in value.as_object().into_iter().flatten() {
                    let (types, content) = content(response);
                    out.insert("produces".to_owned(), types.into());
                    let text = &response["description"];
                    responses.insert(code.clone(), json!({ "description": text, "schema": content }));
                }
                out.insert("responses".to_owned(), responses.into());
            }
            _ => {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    out.insert("parameters".to_owned(), all.into());
    out.into()
}

/// Media types and schema of a body. All media types of one have the same schema.
fn content(body: &Value) -> (Vec<String>, Value) {
    let content = body["content"].as_object();
    let types = content.into_iter().flatten().map(|(media, _)| media.clone()).collect();
    let first = content.and_then(|content| content.values().next());
    (types, first.map_or(Value::Null, |first| schema(&first["schema"])))
}

fn parameters(list: &Value) -> Vec<Value> {
    let convert = |parameter: &Value| {
        let mut out = parameter.as_object().cloned().unwrap_or_default();
        if let Some(Value::Object(schema)) = out.remove("schema") {
            out.extend(schema);
        }
        Value::Object(out)
    };
    list.as_array().into_iter().flatten().map(convert).collect()
}

fn schema(value: &Value) -> Value {
    let Value::Object(from) = value else { return value.clone() };
    let mut out = Map::new();
    for (key, value) in from {
        let (key, value) = match (key.as_str(), value) {
            ("default" | "nullable", _) => continue,
            ("$ref", Value::String(target)) => ("$ref", reference(target)),
            // A reference with something beside it is wrapped in v3; v2 has it directly.
            ("allOf", Value::Array(parts)) if parts.len() == 1 && parts[0]["$ref"].is_string() => {
                ("$ref", reference(parts[0]["$ref"].as_str().unwrap_or_default()))
            }
            ("allOf", Value::Array(parts)) => ("allOf", parts.iter().map(schema).collect()),
            ("oneOf" | "anyOf", Value::Array(parts)) => {
                let text = parts.iter().any(|part| part["type"] == "string");
                if !text {
                    continue;
                }
                ("type", "string".into())
            }
            ("properties", _) => ("properties", each(value, schema)),
            ("items" | "additionalProperties", _) => (key.as_str(), schema(value)),
            (key, value) => (key, value.clone()),
        };
        out.insert(key.to_owned(), value);
    }
    out.into()
}

fn reference(target: &str) -> Value {
    target.replacen("#/components/schemas/", "#/definitions/", 1).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{openapi, resources::ResourceTable};

    fn check(v3: Value, v2: Value) {
        assert_eq!(schema(&v3), v2);
    }

    #[test]
    fn schemas() {
        let target = "#/components/schemas/a.B";
        check(json!({"$ref": target}), json!({"$ref": "#/definitions/a.B"}));
        check(
            json!({"allOf": [{"$ref": target}], "default": {}, "description": "d", "x-kubernetes-map-type": "atomic"}),
            json!({"$ref": "#/definitions/a.B", "description": "d", "x-kubernetes-map-type": "atomic"}),
        );
        check(json!({"oneOf": [{"type": "string"}, {"type": "number"}]}), json!({"type": "string"}));
        check(
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
            json!({"format": "int-or-string", "type": "string"}),
        );
        // Fields that are called as keywords are.
        check(
            json!({"properties": {"default": {"type": "object", "default": {}}, "$ref": {"type": "string"}, "allOf":
                {"type": "array", "items": {"allOf": [{"$ref": target}], "default": {}}}}}),
            json!({"properties": {"default": {"type": "object"}, "$ref": {"type": "string"}, "allOf":
                {"type": "array", "items": {"$ref": "#/definitions/a.B"}}}}),
        );
    }

    #[test]
    fn the_whole_document_holds_together() {
        let document = openapi::v2_document(&ResourceTable::builtin());
        let definitions = document["definitions"].as_object().unwrap();
        references(&document, definitions);
        let pod = &document["definitions"]["io.k8s.api.core.v1.Pod"];
        assert_eq!(
            pod["x-kubernetes-group-version-kind"],
            json!([{"group": "", "version": "v1", "kind": "Pod"}])
        );
        assert_eq!(pod["properties"]["spec"]["$ref"], "#/definitions/io.k8s.api.core.v1.PodSpec");
        let item = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        let get = &item["get"];
        assert_eq!(get["responses"]["200"]["schema"]["$ref"], "#/definitions/io.k8s.api.apps.v1.Deployment");
        let patch = item["patch"]["parameters"].as_array().unwrap();
        let body = patch.iter().find(|p| p["in"] == "body").unwrap();
        assert_eq!(body["schema"]["$ref"], "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.Patch");
        assert!(patch.iter().any(|p| p["name"] == "force" && p["type"] == "boolean"));
        assert!(
            item["patch"]["consumes"].as_array().unwrap().contains(&json!("application/merge-patch+json"))
        );
        assert!(!document.to_string().contains("components/schemas"));
    }

    fn references(value: &Value, definitions: &Map<String, Value>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(target)) = fields.get("$ref") {
                    let name = target.strip_prefix("#/definitions/").unwrap();
                    assert!(definitions.contains_key(name), "{name}");
                }
                fields.values().for_each(|value| references(value, definitions));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, definitions)),
            _ => {}
        }
    }
}
