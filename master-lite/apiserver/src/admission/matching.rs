//! Which requests webhooks and admission policies are asked about
//! (`k8s.io/apiserver/pkg/admission/plugin/{webhook/predicates,policy/matching}`).

use std::collections::BTreeMap;

use keelson_api::meta::GroupResource;
use keelson_api::resources::ResourceTable;
use keelson_api::resources::selector::LabelSelector;
use serde_json::{Value, json};

use crate::authz::rbac::text;
use crate::extension::{Attributes, HookView, ObjectReader, Operation, Result, StatusError};
use crate::handlers::selector_text;

/// The group of webhooks' configurations and of policies.
pub(super) const GROUP: &str = "admissionregistration.k8s.io";
/// Kinds that neither webhooks nor policies ever get to see, or nobody could repair a broken one.
const EXEMPT: &[&str] = &[
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
];

/// Whether webhooks and policies are never asked about a request.
pub(super) fn is_exempt(attributes: &Attributes) -> bool {
    let hidden = matches!(attributes.hooks.view, HookView::Hidden);
    hidden || attributes.kind.group == GROUP && EXEMPT.contains(&attributes.kind.kind.as_str())
}

/// What one of them wants to be asked about.
#[derive(Debug)]
pub(super) struct Matching {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// A binding without rules leaves them to its policy.
    everything: bool,
    equivalent: bool,
    namespaces: Selector,
    objects: Selector,
}

#[derive(Debug)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
    /// Empty for all.
    names: Vec<String>,
}

/// A selector, or why it can't be read.
type Selector = Result<LabelSelector, String>;

/// What rules are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) resource: String,
}

/// The rest of what rules are about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) operation: Operation,
    pub(super) subresource: &'a str,
    pub(super) name: &'a str,
    /// For a namespace its own name.
    pub(super) namespace: &'a str,
}

pub(super) fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn selector(value: &Value) -> Selector {
    match value {
        Value::Null => Ok(LabelSelector::default()),
        selector => LabelSelector::parse(&selector_text(selector)).map_err(|error| error.to_string()),
    }
}

fn rules(value: &Value) -> Vec<Rule> {
    value.as_array().into_iter().flatten().map(Rule::read).collect()
}

impl Matching {
    /// Of a webhook.
    pub(super) fn of_webhook(hook: &Value) -> Self {
        Self {
            rules: rules(&hook["rules"]),
            excluded: Vec::new(),
            everything: false,
            equivalent: hook["matchPolicy"] != "Exact",
            namespaces: selector(&hook["namespaceSelector"]),
            objects: selector(&hook["objectSelector"]),
        }
    }

    /// Of `matchConstraints` or `matchResources`.
    pub(super) fn of_policy(resources: &Value) -> Self {
        let rules_of = |field: &str| rules(&resources[field]);
        let wanted = rules_of("resourceRules");
        Self {
            everything: wanted.is_empty(),
            rules: wanted,
            excluded: rules_of("excludeResourceRules"),
            ..Self::of_webhook(resources)
        }
    }

    /// The place as which a request is to be seen, if it is to be seen at all.
    pub(super) fn find(
        &self,
        attributes: &Attributes,
        table: &ResourceTable,
        reader: &dyn ObjectReader,
    ) -> Result<Option<Place>> {
        let namespace = namespace(attributes);
        let own = Place {
            group: attributes.resource.group.clone(),
            version: attributes.version.clone(),
            resource: attributes.resource.resource.clone(),
        };
        let subresource = attributes.hooks.subresource(&attributes.subresource);
        let asked = Asked { operation: attributes.operation, subresource, name: &attributes.name, namespace };
        let Some(place) = self.place(&own, asked, || equivalents(table, attributes)) else {
            return Ok(None);
        };
        let objects = [attributes.object.as_ref(), attributes.old_object.as_deref()];
        let none = json!({"metadata": {}});
        let by_object = match attributes.hooks.view {
            // A scale has no labels.
            HookView::Scale(_) => self.wants_object([Some(&none), None]),
            _ => self.wants_object(objects),
        };
        // A selector that does not want the request counts before one that can't be read.
        if matches!(by_object, Ok(false)) || !self.by_namespace(attributes, namespace, reader)? {
            return Ok(None);
        }
        by_object.map_err(StatusError::internal)?;
        Ok(Some(place))
    }

    fn by_namespace(
        &self,
        attributes: &Attributes,
        namespace: &str,
        reader: &dyn ObjectReader,
    ) -> Result<bool> {
        let namespaces = GroupResource::new("", "namespaces");
        let is_namespace = attributes.resource == namespaces;
        if namespace.is_empty() && !is_namespace {
            return Ok(true);
        }
        let wanted = || {
            // The cache does not know yet what is being written.
            let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
            if is_namespace && attributes.subresource.is_empty() && writes {
                return Ok(attributes.object.as_ref().map(labels).unwrap_or_default());
            }
            let found = reader.get(&namespaces, None, namespace);
            let found = found.ok_or_else(|| StatusError::not_found(&namespaces, namespace))?;
            Ok(labels(&found))
        };
        self.wants_namespace(wanted, |error| StatusError::internal(error))
    }

    /// The place as which a request is to be seen, if at all: the request's own, or one of the `equivalents`, which hold
    /// the same objects.
    pub(super) fn place(
        &self,
        place: &Place,
        asked: Asked<'_>,
        equivalents: impl Fn() -> Vec<Place>,
    ) -> Option<Place> {
        if self.found(&self.excluded, place, asked, &equivalents).is_some() {
            return None;
        }
        if self.everything {
            return Some(place.clone());
        }
        self.found(&self.rules, place, asked, &equivalents)
    }

    fn found(
        &self,
        rules: &[Rule],
        place: &Place,
        asked: Asked<'_>,
        equivalents: &impl Fn() -> Vec<Place>,
    ) -> Option<Place> {
        if rules.iter().any(|rule| rule.matches(place, asked)) {
            return Some(place.clone());
        }
        // Most rules are about something else altogether: other places are looked for only where they could matter.
        if !self.equivalent || !rules.iter().any(|rule| rule.is_asked(asked)) {
            return None;
        }
        let others = equivalents();
        let found = |rule: &Rule| others.iter().find(|other| *other != place && rule.matches(other, asked));
        rules.iter().find_map(found).cloned()
    }

    /// Whether the namespace's labels are wanted. They are asked for only if it depends on them.
    pub(super) fn wants_namespace<E>(
        &self,
        labels: impl FnOnce() -> Result<BTreeMap<String, String>, E>,
        bad: impl FnOnce(&str) -> E,
    ) -> Result<bool, E> {
        match &self.namespaces {
            Err(error) => Err(bad(error)),
            Ok(selector) if selector.is_empty() => Ok(true),
            Ok(selector) => labels().map(|labels| selector.matches(&labels)),
        }
    }

    /// Whether one of the objects, old and new, has wanted labels. What is no object has none that could be wanted.
    pub(super) fn wants_object(&self, objects: [Option<&Value>; 2]) -> Result<bool, String> {
        let selector = self.objects.as_ref().map_err(Clone::clone)?;
        let wanted = |object: &Value| object.get("metadata").is_some() && selector.matches(&labels(object));
        Ok(selector.is_empty() || objects.into_iter().flatten().any(wanted))
    }
}

/// A namespace's own is its name.
pub(super) fn namespace(attributes: &Attributes) -> &str {
    let is_namespace = attributes.resource.group.is_empty() && attributes.resource.resource == "namespaces";
    if is_namespace { &attributes.name } else { &attributes.namespace }
}

/// Every version of every resource that holds the same objects.
fn equivalents(table: &ResourceTable, attributes: &Attributes) -> Vec<Place> {
    let Some(own) = table.get(&attributes.resource) else { return Vec::new() };
    let rows = table.rows().iter().filter(|row| row.storage == own.storage);
    let places = rows.flat_map(|row| {
        row.versions.iter().map(|version| Place {
            group: row.group.clone(),
            version: version.clone(),
            resource: row.plural.clone(),
        })
    });
    places.collect()
}

/// An object's labels.
pub(super) fn labels(object: &Value) -> BTreeMap<String, String> {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn is_in(list: &[String], value: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == value)
}

impl Rule {
    fn read(rule: &Value) -> Self {
        Self {
            operations: strings(&rule["operations"]),
            groups: strings(&rule["apiGroups"]),
            versions: strings(&rule["apiVersions"]),
            resources: strings(&rule["resources"]),
            scope: text(rule, "/scope").to_owned(),
            names: strings(&rule["resourceNames"]),
        }
    }

    /// Whether operation and name fit.
    fn is_asked(&self, asked: Asked<'_>) -> bool {
        let named = self.names.is_empty() || self.names.iter().any(|name| name == asked.name);
        named && is_in(&self.operations, asked.operation.as_str())
    }

    fn matches(&self, place: &Place, asked: Asked<'_>) -> bool {
        // A namespace is an object of the cluster, although its namespace counts as its own name.
        let in_cluster =
            asked.namespace.is_empty() || (place.group.is_empty() && place.resource == "namespaces");
        let scope = match self.scope.as_str() {
            "" | "*" => true,
            "Namespaced" => !in_cluster,
            "Cluster" => in_cluster,
            _ => false,
        };
        let resource = |entry: &String| {
            let (resource, sub) = entry.split_once('/').unwrap_or((entry, ""));
            (resource == "*" || resource == place.resource) && (sub == "*" || sub == asked.subresource)
        };
        scope
            && self.is_asked(asked)
            && is_in(&self.groups, &place.group)
            && is_in(&self.versions, &place.version)
            && self.resources.iter().any(resource)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(group: &str, version: &str, resource: &str) -> Place {
        Place { group: group.into(), version: version.into(), resource: resource.into() }
    }

    fn hook(rule: Value) -> Matching {
        Matching::of_webhook(&json!({"rules": [rule]}))
    }

    fn asked<'a>(operation: Operation, subresource: &'a str, namespace: &'a str) -> Asked<'a> {
        Asked { operation, subresource, name: "n", namespace }
    }

    #[test]
    fn rules_match_as_upstreams() {
        let check = |rule: Value, at: Place, sub: &str, namespace: &str, wanted: bool| {
            let asked = asked(Operation::Create, sub, namespace);
            let found = hook(rule.clone()).place(&at, asked, Vec::new);
            assert_eq!(found.is_some(), wanted, "{rule} {at:?} {sub}");
        };
        let rule = |operation: &str, group: &str, version: &str, resource: &str, scope: &str| {
            json!({"operations": [operation], "apiGroups": [group], "apiVersions": [version],
                "resources": [resource], "scope": scope})
        };
        let pods = || place("", "v1", "pods");
        check(rule("CREATE", "", "v1", "pods", "*"), pods(), "", "a", true);
        check(rule("UPDATE", "", "v1", "pods", "*"), pods(), "", "a", false);
        check(rule("*", "*", "*", "*", "*"), pods(), "", "a", true);
        check(rule("*", "*", "*", "*", "*"), pods(), "status", "a", false);
        check(rule("*", "*", "*", "*/*", "*"), pods(), "status", "a", true);
        check(rule("*", "*", "*", "*/*", "*"), pods(), "", "a", true);
        check(rule("*", "", "v1", "pods/*", "*"), pods(), "", "a", true);
        check(rule("*", "", "v1", "*/status", "*"), pods(), "status", "a", true);
        check(rule("*", "", "v1", "pods/exec", "*"), pods(), "attach", "a", false);
        check(rule("*", "apps", "v1", "pods", "*"), pods(), "", "a", false);
        check(rule("*", "", "v2", "pods", "*"), pods(), "", "a", false);
        check(rule("*", "", "v1", "pods", "Namespaced"), pods(), "", "a", true);
        check(rule("*", "", "v1", "pods", "Cluster"), pods(), "", "a", false);
        let namespaces = || place("", "v1", "namespaces");
        check(rule("*", "", "v1", "*", "Cluster"), namespaces(), "", "a", true);
        check(rule("*", "", "v1", "*", "Namespaced"), namespaces(), "", "a", false);
        check(rule("*", "", "v1", "*", "Cluster"), place("", "v1", "nodes"), "", "", true);
    }

    #[test]
    fn equivalent_places_are_found_unless_exact() {
        let rules = json!([{"operations": ["CREATE"], "apiGroups": ["g"], "apiVersions": ["v1"], "resources": ["foos"]}]);
        let asked = asked(Operation::Create, "", "a");
        let others = || vec![place("g", "v2", "foos"), place("g", "v1", "foos")];
        let hook = |policy: &str| Matching::of_webhook(&json!({"matchPolicy": policy, "rules": rules}));
        let at = place("g", "v2", "foos");
        assert_eq!(hook("Equivalent").place(&at, asked, others), Some(place("g", "v1", "foos")));
        assert_eq!(hook("Exact").place(&at, asked, others), None);
        let asked = Asked { operation: Operation::Delete, ..asked };
        assert_eq!(
            hook("Equivalent").place(&at, asked, || unreachable!("the operation does not match")),
            None
        );
    }

    #[test]
    fn selectors_choose_by_labels() {
        let hook = |field: &str, selector: Value| Matching::of_webhook(&json!({field: selector}));
        let labelled = |value: &str| json!({"metadata": {"labels": {"k": value}}});
        let by_object = hook("objectSelector", json!({"matchLabels": {"k": "v"}}));
        let wants = |new: Option<&Value>, old: Option<&Value>| by_object.wants_object([new, old]).unwrap();
        assert!(wants(Some(&labelled("v")), None));
        assert!(wants(Some(&labelled("x")), Some(&labelled("v"))));
        assert!(!wants(Some(&labelled("x")), None));
        assert!(!wants(None, None));
        let unlabelled =
            hook("objectSelector", json!({"matchExpressions": [{"key": "k", "operator": "DoesNotExist"}]}));
        assert!(unlabelled.wants_object([Some(&json!({"metadata": {}})), None]).unwrap());
        assert!(!unlabelled.wants_object([Some(&json!({"kind": "PodExecOptions"})), None]).unwrap());
        let by_namespace = hook(
            "namespaceSelector",
            json!({"matchExpressions": [{"key": "k", "operator": "NotIn", "values": ["v"]}]}),
        );
        let wants =
            |labels: Value| by_namespace.wants_namespace(|| Ok(super::labels(&labels)), str::to_owned);
        assert_eq!(wants(labelled("v")), Ok(false));
        assert_eq!(wants(json!({})), Ok(true));
        let any = hook("namespaceSelector", json!({}));
        assert_eq!(any.wants_namespace(|| Err("asked".to_owned()), str::to_owned), Ok(true));
    }

    #[test]
    fn policies_exclude_and_name() {
        let rule = |names: &[&str]| {
            json!({"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"],
                "resourceNames": names})
        };
        let found = |resources: Value| {
            let asked = asked(Operation::Create, "", "a");
            Matching::of_policy(&resources).place(&place("", "v1", "pods"), asked, Vec::new).is_some()
        };
        assert!(found(json!({"resourceRules": [rule(&[])]})));
        assert!(found(json!({"resourceRules": [rule(&["m", "n"])]})));
        assert!(!found(json!({"resourceRules": [rule(&["m"])]})));
        assert!(!found(json!({"resourceRules": [rule(&[])], "excludeResourceRules": [rule(&["n"])]})));
        assert!(found(json!({})));
        assert!(!found(json!({"excludeResourceRules": [rule(&[])]})));
    }
}
