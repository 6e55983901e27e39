//! What a webhook configuration says, and which requests that means: pure functions
//! (`k8s.io/apiserver/pkg/admission/plugin/webhook/{accessors,predicates}`).

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keelson_api::custom::condition::Condition;
use keelson_api::resources::selector::LabelSelector;
use rustls::ClientConfig;
use serde_json::Value;

use super::review::ReviewVersion;
use crate::authz::rbac::text;
use crate::extension::Operation;
use crate::handlers::selector_text;

/// Upstream's default, which the API's defaults fill in too.
const TIMEOUT: u64 = 10;
/// Port of a service unless the configuration names one.
const PORT: u16 = 443;

/// Where a webhook is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// Anywhere.
    Url(String),
    /// Behind a service of the cluster.
    Service {
        /// The service's namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its port.
        port: u16,
        /// Path of the requests.
        path: String,
    },
}

/// One webhook of a configuration.
#[derive(Debug)]
pub(super) struct Hook {
    /// Configuration, name and place in the configuration.
    pub(super) uid: String,
    pub(super) name: String,
    /// `failurePolicy: Ignore`.
    pub(super) ignores_failure: bool,
    pub(super) timeout: Duration,
    /// May be called for a dry run.
    pub(super) dry_run: bool,
    /// The first version of AdmissionReview that both sides know.
    pub(super) review: Option<ReviewVersion>,
    /// `reinvocationPolicy: IfNeeded`.
    pub(super) again: bool,
    pub(super) target: Target,
    /// PEM, base64-encoded as it stands in the configuration; empty for the machine's own roots.
    pub(super) ca_bundle: String,
    pub(super) tls: OnceLock<Result<Arc<ClientConfig>, String>>,
    pub(super) conditions: Vec<Condition>,
    rules: Vec<Rule>,
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
    /// For a namespace its own name.
    pub(super) namespace: &'a str,
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn selector(value: &Value) -> Selector {
    match value {
        Value::Null => Ok(LabelSelector::default()),
        selector => LabelSelector::parse(&selector_text(selector)).map_err(|error| error.to_string()),
    }
}

/// The webhooks of configurations, in the order in which they are called: by name of the configuration.
pub(super) fn hooks(mut configurations: Vec<Arc<Value>>) -> Vec<Arc<Hook>> {
    configurations.sort_by(|a, b| text(a, "/metadata/name").cmp(text(b, "/metadata/name")));
    let of = |configuration: &Arc<Value>| {
        let name = text(configuration, "/metadata/name");
        let hooks = configuration["webhooks"].as_array().into_iter().flatten().enumerate();
        hooks.map(|(at, hook)| Arc::new(Hook::read(name, at, hook))).collect::<Vec<_>>()
    };
    configurations.iter().flat_map(of).collect()
}

impl Hook {
    fn read(configuration: &str, at: usize, hook: &Value) -> Self {
        let name = text(hook, "/name");
        let config = &hook["clientConfig"];
        let service = &config["service"];
        let target = match config["url"].as_str() {
            Some(url) => Target::Url(url.to_owned()),
            None => Target::Service {
                namespace: text(service, "/namespace").to_owned(),
                name: text(service, "/name").to_owned(),
                port: service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT),
                path: text(service, "/path").to_owned(),
            },
        };
        let rule = |rule: &Value| Rule {
            operations: strings(&rule["operations"]),
            groups: strings(&rule["apiGroups"]),
            versions: strings(&rule["apiVersions"]),
            resources: strings(&rule["resources"]),
            scope: text(rule, "/scope").to_owned(),
        };
        Self {
            uid: format!("{configuration}/{name}/{at}"),
            name: name.to_owned(),
            ignores_failure: hook["failurePolicy"] == "Ignore",
            timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT)),
            dry_run: matches!(text(hook, "/sideEffects"), "None" | "NoneOnDryRun"),
            review: strings(&hook["admissionReviewVersions"]).iter().find_map(|v| ReviewVersion::parse(v)),
            again: hook["reinvocationPolicy"] == "IfNeeded",
            target,
            ca_bundle: text(config, "/caBundle").to_owned(),
            tls: OnceLock::new(),
            conditions: hook["matchConditions"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|condition| Condition::new(text(condition, "/expression")))
                .collect(),
            rules: hook["rules"].as_array().into_iter().flatten().map(rule).collect(),
            equivalent: hook["matchPolicy"] != "Exact",
            namespaces: selector(&hook["namespaceSelector"]),
            objects: selector(&hook["objectSelector"]),
        }
    }

    /// The place as which the webhook wants to see a request, if at all: the request's own, or one of the `equivalents`,
    /// which hold the same objects.
    pub(super) fn place(
        &self,
        place: &Place,
        asked: Asked<'_>,
        equivalents: impl FnOnce() -> Vec<Place>,
    ) -> Option<Place> {
        if self.rules.iter().any(|rule| rule.matches(place, asked)) {
            return Some(place.clone());
        }
        // Most rules are about something else altogether: other places are looked for only where they could matter.
        if !self.equivalent || !self.rules.iter().any(|rule| rule.is_asked(asked)) {
            return None;
        }
        let others = equivalents();
        let found = |rule: &Rule| others.iter().find(|other| *other != place && rule.matches(other, asked));
        self.rules.iter().find_map(found).cloned()
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

/// An object's labels.
pub(super) fn labels(object: &Value) -> BTreeMap<String, String> {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn is_in(list: &[String], value: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == value)
}

impl Rule {
    /// Whether operation and scope fit.
    fn is_asked(&self, asked: Asked<'_>) -> bool {
        is_in(&self.operations, asked.operation.as_str())
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
    use serde_json::json;

    fn place(group: &str, version: &str, resource: &str) -> Place {
        Place { group: group.into(), version: version.into(), resource: resource.into() }
    }

    fn hook(rule: Value) -> Hook {
        Hook::read("c", 0, &json!({"name": "h", "rules": [rule]}))
    }

    #[test]
    fn rules_match_as_upstreams() {
        let check = |rule: Value, at: Place, sub: &str, namespace: &str, wanted: bool| {
            let asked = Asked { operation: Operation::Create, subresource: sub, namespace };
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
        let asked = Asked { operation: Operation::Create, subresource: "", namespace: "a" };
        let others = || vec![place("g", "v2", "foos"), place("g", "v1", "foos")];
        let hook =
            |policy: &str| Hook::read("c", 0, &json!({"name": "h", "matchPolicy": policy, "rules": rules}));
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
        let hook = |field: &str, selector: Value| Hook::read("c", 0, &json!({"name": "h", field: selector}));
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
    fn hooks_are_ordered_and_read_whole() {
        let configuration =
            |name: &str, hooks: Value| Arc::new(json!({"metadata": {"name": name}, "webhooks": hooks}));
        let found = hooks(vec![
            configuration(
                "b",
                json!([{"name": "x", "failurePolicy": "Ignore", "timeoutSeconds": 3,
                "sideEffects": "NoneOnDryRun", "admissionReviewVersions": ["v9", "v1beta1", "v1"],
                "clientConfig": {"service": {"name": "s", "namespace": "n", "path": "/p"}}}]),
            ),
            configuration("a", json!([{"name": "z", "clientConfig": {"url": "https://h/"}}, {"name": "y"}])),
        ]);
        assert_eq!(found.iter().map(|h| h.uid.as_str()).collect::<Vec<_>>(), ["a/z/0", "a/y/1", "b/x/0"]);
        assert_eq!(found[0].target, Target::Url("https://h/".into()));
        assert!(!found[0].ignores_failure && !found[0].dry_run && found[0].review.is_none());
        let last = &found[2];
        assert!(last.ignores_failure && last.dry_run && last.timeout == Duration::from_secs(3));
        assert_eq!(last.review, Some(ReviewVersion::V1Beta1));
        let (namespace, name, path) = ("n".to_owned(), "s".to_owned(), "/p".to_owned());
        assert_eq!(last.target, Target::Service { namespace, name, port: 443, path });
    }
}
