//! Apply configurations of policies, merged into objects by structured merge (`policy/mutating/patch/smd.go`).

use std::borrow::Cow;

use serde_json::Value;

use crate::smd::{PathElement, TypeId, Typed, Types};

/// An object with a configuration merged into it.
///
/// # Errors
/// When the configuration does not fit the type, or speaks of what is one value as a whole: fields that it does not name
/// would be lost.
pub fn apply(types: &Types, id: TypeId, object: &Value, mut configuration: Value) -> Result<Value, String> {
    for field in ["apiVersion", "kind"] {
        if let Some(value) = object.get(field) {
            configuration[field] = value.clone();
        }
    }
    let mut atomics = Vec::new();
    let patch = Typed::new(types, id, Cow::Owned(configuration), false)
        .map_err(|error| format!("failed to convert patch object to typed object: {error}"))?;
    find_atomics(types, id, patch.value(), String::new(), &mut atomics);
    if !atomics.is_empty() {
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomics.join(", ")
        ));
    }
    let live = Typed::new(types, id, Cow::Borrowed(object), true)
        .map_err(|error| format!("failed to convert original object to typed object: {error}"))?;
    let merged = live.merge(&patch).map_err(|error| format!("failed to merge patch: {error}"))?;
    Ok(merged.into_value())
}

fn find_atomics(types: &Types, id: TypeId, value: &Value, place: String, found: &mut Vec<String>) {
    let atom = types.atom(id);
    match value {
        Value::Object(fields) => {
            let Some(map) = &atom.map else { return };
            if map.atomic {
                found.push(place.clone());
            }
            for (name, value) in fields {
                if let Some(field) = map.field(name) {
                    let element = PathElement::Field(name.as_str().into());
                    find_atomics(types, field.id, value, format!("{place}{element}"), found);
                }
            }
        }
        Value::Array(items) => {
            let Some(list) = &atom.list else { return };
            if list.keys.is_none() {
                found.push(place.clone());
            }
            for (i, item) in items.iter().enumerate() {
                find_atomics(types, list.item, item, format!("{place}[{i}]"), found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::meta::GroupVersionKind;

    fn applied(configuration: Value) -> Result<Value, String> {
        let id = Types::builtin_kind(&GroupVersionKind::new("apps", "v1", "Deployment")).unwrap();
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"labels": {"a": "b"}},
            "spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        apply(Types::builtin(), id, &object, configuration).map(|mut merged| merged["spec"].take())
    }

    #[test]
    fn configurations_are_merged_by_type() {
        let template = json!({"spec": {"containers": [{"name": "d", "image": "j"}]}});
        let merged = applied(json!({"spec": {"replicas": 3, "template": template}})).unwrap();
        assert_eq!(merged["replicas"], 3);
        let containers = merged["template"]["spec"]["containers"].as_array().unwrap();
        assert_eq!(containers.len(), 2, "{containers:?}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let unknown = applied(json!({"spec": {"odd": 1}})).unwrap_err();
        assert!(unknown.starts_with("failed to convert patch object to typed object: "), "{unknown}");
        assert_eq!(
            applied(json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}})).unwrap_err(),
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector"
        );
        let args = json!({"spec": {"containers": [{"name": "c", "args": ["x"]}]}});
        assert_eq!(
            applied(json!({"spec": {"template": args}})).unwrap_err(),
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.template.spec.containers[0].args"
        );
    }
}
