//! Parameters of policies: objects of a kind that the policy names, chosen by the binding
//! (`policy/generic.CollectParams`).

use std::sync::Arc;

use keelson_api::meta::GroupVersionKind;
use keelson_api::resources::ResourceTable;
use keelson_api::resources::selector::LabelSelector;
use serde_json::Value;

use crate::admission::matching::labels;
use crate::admission::seen::view;
use crate::authz::rbac::text;
use crate::extension::ObjectReader;
use crate::handlers::selector_text;

/// The parameters with which a policy is to be evaluated, once each: null if it has none, nothing if those that the
/// binding speaks of are not there and that is to be so.
///
/// # Errors
/// When the binding does not fit the kind or the request, or there have to be parameters and are none.
pub(super) fn collect(
    kind: Option<&GroupVersionKind>,
    reference: Option<&Value>,
    namespace: &str,
    table: &ResourceTable,
    reader: &dyn ObjectReader,
) -> Result<Vec<Arc<Value>>, String> {
    let (Some(kind), Some(reference)) = (kind, reference) else { return Ok(vec![Arc::new(Value::Null)]) };
    let row = table
        .find_kind(kind)
        .ok_or_else(|| format!("paramKind kind `{}, Kind={}` not known", kind.api_version(), kind.kind))?;
    let own = text(reference, "/namespace");
    let namespace = match (row.namespaced, own, namespace) {
        (false, "", _) => None,
        (false, ..) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
        (true, "", "") => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .to_owned(),
            );
        }
        (true, "", of_request) => Some(of_request),
        (true, own, _) => Some(own),
    };
    let found = match text(reference, "/name") {
        "" => {
            let selector = LabelSelector::parse(&selector_text(&reference["selector"]));
            let selector = selector.map_err(|error| error.to_string())?;
            let mut all = reader.list(&row.storage, namespace);
            all.retain(|object| selector.matches(&labels(object)));
            all
        }
        name => reader.get(&row.storage, namespace, name).into_iter().collect(),
    };
    if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    let shown =
        |object: Arc<Value>| Arc::new(view(row.view(&kind.version), &kind.version, (*object).clone()));
    Ok(found.into_iter().map(shown).collect())
}

#[cfg(test)]
mod tests {
    use keelson_api::meta::GroupResource;
    use serde_json::json;

    use super::*;

    /// ConfigMaps `a` of namespace `n` and namespaces `m` and `n`.
    struct Objects;

    fn object(kind: &str, namespace: Option<&str>, name: &str) -> Arc<Value> {
        Arc::new(json!({"apiVersion": "v1", "kind": kind,
            "metadata": {"name": name, "namespace": namespace, "labels": {"name": name}}}))
    }

    impl ObjectReader for Objects {
        fn get(&self, resource: &GroupResource, namespace: Option<&str>, name: &str) -> Option<Arc<Value>> {
            self.list(resource, namespace).into_iter().find(|object| object["metadata"]["name"] == name)
        }

        fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
            match (resource.resource.as_str(), namespace) {
                ("configmaps", Some("n")) => vec![object("ConfigMap", namespace, "a")],
                ("namespaces", None) => vec![object("Namespace", None, "m"), object("Namespace", None, "n")],
                _ => Vec::new(),
            }
        }

        fn resource_version(&self, _resource: &GroupResource) -> u64 {
            1
        }
    }

    #[test]
    fn params_are_chosen_by_name_or_selector() {
        let table = ResourceTable::builtin();
        let names = |kind: &str, reference: Value, namespace: &str| {
            let kind = GroupVersionKind::new("", "v1", kind);
            let found = collect(Some(&kind), Some(&reference), namespace, &table, &Objects)?;
            Ok(found.iter().map(|object| text(object, "/metadata/name").to_owned()).collect::<Vec<_>>())
        };
        let told = |outcome: Result<Vec<String>, String>| outcome.map(|names| names.join(","));
        let found = |names: &str| Ok(names.to_owned());
        assert_eq!(told(names("ConfigMap", json!({"name": "a"}), "n")), found("a"));
        assert_eq!(told(names("ConfigMap", json!({"name": "a"}), "m")), found(""));
        assert_eq!(told(names("ConfigMap", json!({"name": "a", "namespace": "n"}), "m")), found("a"));
        assert_eq!(told(names("Namespace", json!({"selector": {}}), "x")), found("m,n"));
        assert_eq!(
            told(names("Namespace", json!({"selector": {"matchLabels": {"name": "m"}}}), "x")),
            found("m")
        );
        let denied = json!({"name": "b", "parameterNotFoundAction": "Deny"});
        assert!(names("ConfigMap", denied, "n").unwrap_err().starts_with("no params found"));
        assert!(
            names("ConfigMap", json!({"name": "a"}), "").unwrap_err().starts_with("cannot use namespaced")
        );
        assert!(names("Namespace", json!({"name": "m", "namespace": "n"}), "").is_err());
        assert_eq!(
            names("Odd", json!({"name": "m"}), "").unwrap_err(),
            "paramKind kind `v1, Kind=Odd` not known"
        );
    }

    #[test]
    fn a_policy_without_params_is_evaluated_once() {
        let table = ResourceTable::builtin();
        let kind = GroupVersionKind::new("", "v1", "ConfigMap");
        let none = vec![Arc::new(Value::Null)];
        assert_eq!(collect(None, Some(&json!({"name": "a"})), "n", &table, &Objects), Ok(none.clone()));
        assert_eq!(collect(Some(&kind), None, "n", &table, &Objects), Ok(none));
    }
}
