//! The RBAC evaluator: all roles and bindings compiled into maps by subject, so that a request costs a few hash
//! lookups however many bindings there are.
//!
//! A [`Policy`] is an immutable snapshot; [`super::cache`] rebuilds it when a role or binding changes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use super::rule::{Ask, PolicyRule, go_quote};

/// Shared rules of one role.
type Rules = Arc<[PolicyRule]>;

/// One binding as one subject sees it.
#[derive(Debug)]
struct Grant {
    /// How a decision names the binding: `ClusterRoleBinding "a" of ClusterRole "b" to Group "c"`.
    source: String,
    /// The bound rules, or why the role couldn't be resolved.
    rules: Result<Rules, String>,
}

/// Grants by subject, in one scope.
#[derive(Debug, Default)]
struct Subjects {
    users: HashMap<String, Vec<Arc<Grant>>>,
    groups: HashMap<String, Vec<Arc<Grant>>>,
}

/// The four kinds of RBAC objects, as read from the cache.
#[derive(Debug, Default)]
pub struct PolicyObjects {
    /// ClusterRoles.
    pub cluster_roles: Vec<Arc<Value>>,
    /// Roles of all namespaces.
    pub roles: Vec<Arc<Value>>,
    /// ClusterRoleBindings.
    pub cluster_role_bindings: Vec<Arc<Value>>,
    /// RoleBindings of all namespaces.
    pub role_bindings: Vec<Arc<Value>>,
}

/// A compiled snapshot of all roles and bindings.
#[derive(Debug, Default)]
pub struct Policy {
    cluster: Subjects,
    namespaces: HashMap<String, Subjects>,
    cluster_roles: HashMap<String, Rules>,
    roles: HashMap<(String, String), Rules>,
}

/// What RBAC says about a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed; the reason names the binding.
    Allow(String),
    /// Not allowed by any rule; the reason holds bindings that couldn't be resolved, or is empty.
    NoOpinion(String),
}

impl Policy {
    /// Compiles a snapshot. Bindings to roles that don't exist are kept, as errors to report.
    pub fn compile(objects: &PolicyObjects) -> Self {
        let cluster_roles = aggregate(&objects.cluster_roles);
        let roles: HashMap<(String, String), Rules> = objects
            .roles
            .iter()
            .map(|role| {
                let key =
                    (text(role, "/metadata/namespace").to_owned(), text(role, "/metadata/name").to_owned());
                (key, own_rules(role).into())
            })
            .collect();
        let mut policy = Self { cluster_roles, roles, ..Self::default() };
        for binding in &objects.cluster_role_bindings {
            let rules = policy.role_reference(&binding["roleRef"], "");
            add(&mut policy.cluster, "ClusterRoleBinding", binding, "", &rules);
        }
        for binding in &objects.role_bindings {
            let namespace = text(binding, "/metadata/namespace").to_owned();
            let rules = policy.role_reference(&binding["roleRef"], &namespace);
            let scope = policy.namespaces.entry(namespace.clone()).or_default();
            add(scope, "RoleBinding", binding, &namespace, &rules);
        }
        policy
    }

    /// Whether some binding of the user or its groups allows the request. `namespace` is empty for cluster scope.
    pub fn authorize(&self, user: &str, groups: &[String], namespace: &str, ask: &Ask<'_>) -> Verdict {
        let mut errors: Vec<&str> = Vec::new();
        for grant in self.grants(user, groups, namespace) {
            match &grant.rules {
                Ok(rules) if rules.iter().any(|rule| rule.allows(ask)) => {
                    return Verdict::Allow(format!("RBAC: allowed by {}", grant.source));
                }
                Ok(_) => {}
                Err(error) if errors.contains(&error.as_str()) => {}
                Err(error) => errors.push(error),
            }
        }
        Verdict::NoOpinion(match errors.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }

    /// All rules that apply to a user in a namespace, and the errors met while resolving them.
    pub fn rules_for(
        &self,
        user: &str,
        groups: &[String],
        namespace: &str,
    ) -> (Vec<PolicyRule>, Vec<String>) {
        let mut rules = Vec::new();
        let mut errors = Vec::new();
        for grant in self.grants(user, groups, namespace) {
            match &grant.rules {
                Ok(found) => rules.extend(found.iter().cloned()),
                Err(error) => errors.push(error.clone()),
            }
        }
        (rules, errors)
    }

    /// The rules behind a roleRef, `namespace` being that of the binding.
    ///
    /// # Errors
    /// The text of upstream's NotFound error when the role isn't there, or of an unknown kind.
    pub fn role_reference(&self, role_ref: &Value, namespace: &str) -> Result<Rules, String> {
        let name = text(role_ref, "/name");
        let (found, kind) = match text(role_ref, "/kind") {
            "ClusterRole" => (self.cluster_roles.get(name), "clusterrole"),
            "Role" => (self.roles.get(&(namespace.to_owned(), name.to_owned())), "role"),
            other => return Err(format!("unsupported role reference kind: {}", go_quote(other))),
        };
        found.cloned().ok_or_else(|| format!("{kind}.rbac.authorization.k8s.io {} not found", go_quote(name)))
    }

    /// The rules of a ClusterRole after aggregation.
    pub fn cluster_role(&self, name: &str) -> Option<&[PolicyRule]> {
        self.cluster_roles.get(name).map(|rules| &rules[..])
    }

    fn grants<'a>(
        &'a self,
        user: &str,
        groups: &'a [String],
        namespace: &str,
    ) -> impl Iterator<Item = &'a Arc<Grant>> {
        let scopes =
            [Some(&self.cluster), if namespace.is_empty() { None } else { self.namespaces.get(namespace) }];
        let user = user.to_owned();
        scopes.into_iter().flatten().flat_map(move |scope| {
            let by_user = scope.users.get(&user).into_iter().flatten();
            by_user.chain(groups.iter().filter_map(|g| scope.groups.get(g)).flatten())
        })
    }
}

/// Files a binding under each of its subjects.
fn add(scope: &mut Subjects, kind: &str, binding: &Value, namespace: &str, rules: &Result<Rules, String>) {
    let name = text(binding, "/metadata/name");
    let shown = if namespace.is_empty() { name.to_owned() } else { format!("{name}/{namespace}") };
    let of = format!(
        "{kind} {} of {} {}",
        go_quote(&shown),
        text(binding, "/roleRef/kind"),
        go_quote(text(binding, "/roleRef/name"))
    );
    for subject in binding["subjects"].as_array().into_iter().flatten() {
        let subject_name = text(subject, "/name");
        let grant = |to: String| Arc::new(Grant { source: format!("{of} to {to}"), rules: rules.clone() });
        match text(subject, "/kind") {
            "User" => {
                scope
                    .users
                    .entry(subject_name.to_owned())
                    .or_default()
                    .push(grant(format!("User {}", go_quote(subject_name))));
            }
            "Group" => {
                scope
                    .groups
                    .entry(subject_name.to_owned())
                    .or_default()
                    .push(grant(format!("Group {}", go_quote(subject_name))));
            }
            "ServiceAccount" => {
                let given = text(subject, "/namespace");
                let account_namespace = if given.is_empty() { namespace } else { given };
                if account_namespace.is_empty() {
                    continue;
                }
                let to =
                    format!("ServiceAccount {}", go_quote(&format!("{subject_name}/{account_namespace}")));
                let user = format!("system:serviceaccount:{account_namespace}:{subject_name}");
                scope.users.entry(user).or_default().push(grant(to));
            }
            _ => {}
        }
    }
}

/// Rules of every ClusterRole, with those of the roles that an `aggregationRule` selects.
///
/// Upstream's controller writes the aggregated rules into the role's `rules`. Here they are also derived at once,
/// so that `admin`, `edit` and `view` work before (and without) that write; a union is right either way unless a
/// stale stored rule lingers, so for aggregating roles only the derived rules count.
fn aggregate(roles: &[Arc<Value>]) -> HashMap<String, Rules> {
    let by_name: BTreeMap<&str, &Value> = roles.iter().map(|r| (text(r, "/metadata/name"), &**r)).collect();
    by_name
        .keys()
        .map(|name| {
            let mut rules: Vec<PolicyRule> = Vec::new();
            collect(name, &by_name, &mut HashSet::new(), &mut rules);
            let mut seen = HashSet::new();
            rules.retain(|rule| seen.insert(rule.clone()));
            ((*name).to_owned(), rules.into())
        })
        .collect()
}

fn collect<'a>(
    name: &'a str,
    roles: &BTreeMap<&'a str, &'a Value>,
    visited: &mut HashSet<&'a str>,
    out: &mut Vec<PolicyRule>,
) {
    let Some(role) = roles.get(name) else { return };
    if !visited.insert(name) {
        return;
    }
    let Some(selectors) = role["aggregationRule"]["clusterRoleSelectors"].as_array() else {
        out.extend(own_rules(role));
        return;
    };
    for (other, candidate) in roles {
        if *other != name && selectors.iter().any(|s| selects(s, &candidate["metadata"]["labels"])) {
            collect(other, roles, visited, out);
        }
    }
}

/// Whether a LabelSelector matches labels. An empty selector matches everything, as in upstream.
fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted = selector["matchLabels"].as_object();
    let exact = wanted.into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector["matchExpressions"].as_array();
    exact
        && expressions.into_iter().flatten().all(|e| {
            let value = labels.get(text(e, "/key"));
            let among = e["values"].as_array().is_some_and(|v| value.is_some_and(|value| v.contains(value)));
            match text(e, "/operator") {
                "In" => among,
                "NotIn" => !among,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

fn own_rules(role: &Value) -> Vec<PolicyRule> {
    role["rules"].as_array().into_iter().flatten().map(PolicyRule::from_value).collect()
}

/// A string at a JSON pointer, or the empty string.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn objects() -> PolicyObjects {
        let arc = |v: Value| Arc::new(v);
        PolicyObjects {
            cluster_roles: vec![
                arc(json!({"metadata": {"name": "reader", "labels": {"agg": "true"}},
                    "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]})),
                arc(json!({"metadata": {"name": "sum", "labels": {"agg2": "true"}}, "rules": null,
                    "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"agg": "true"}}]}})),
                arc(json!({"metadata": {"name": "sum2", "labels": {"agg": "true"}},
                    "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"agg2": "true"}}]}})),
            ],
            roles: vec![arc(json!({"metadata": {"name": "cm", "namespace": "a"},
                "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"], "resourceNames": ["x"]}]}))],
            cluster_role_bindings: vec![
                arc(json!({"metadata": {"name": "b1"}, "roleRef": {"kind": "ClusterRole", "name": "sum2"},
                    "subjects": [{"kind": "Group", "name": "readers"}]})),
                arc(
                    json!({"metadata": {"name": "gone"}, "roleRef": {"kind": "ClusterRole", "name": "missing"},
                    "subjects": [{"kind": "User", "name": "lost"}]}),
                ),
            ],
            role_bindings: vec![
                arc(
                    json!({"metadata": {"name": "b2", "namespace": "a"}, "roleRef": {"kind": "Role", "name": "cm"},
                    "subjects": [{"kind": "ServiceAccount", "name": "bot"}, {"kind": "User", "name": "jane"}]}),
                ),
                arc(
                    json!({"metadata": {"name": "b3", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "reader"},
                    "subjects": [{"kind": "User", "name": "jane"}]}),
                ),
            ],
        }
    }

    #[test]
    fn grants_reach_their_subjects_only() {
        let policy = Policy::compile(&objects());
        let check =
            |user: &str, group: &str, namespace: &str, verb: &str, resource: &str, name: &str, want: bool| {
                let ask = Ask::Resource { verb, group: "", resource, subresource: "", name };
                let got = policy.authorize(user, &[group.to_owned()], namespace, &ask);
                assert_eq!(
                    matches!(got, Verdict::Allow(_)),
                    want,
                    "{user} {verb} {resource} in {namespace:?}: {got:?}"
                );
            };
        check("x", "readers", "", "list", "pods", "", true);
        check("x", "readers", "a", "list", "pods", "", true);
        check("x", "others", "a", "list", "pods", "", false);
        check("jane", "", "a", "get", "pods", "p", true);
        check("jane", "", "", "get", "pods", "p", false);
        check("jane", "", "b", "get", "pods", "p", false);
        check("jane", "", "a", "delete", "configmaps", "x", true);
        check("jane", "", "a", "delete", "configmaps", "y", false);
        check("system:serviceaccount:a:bot", "", "a", "get", "configmaps", "x", true);
        check("system:serviceaccount:b:bot", "", "a", "get", "configmaps", "x", false);
    }

    #[test]
    fn reasons_name_the_binding() {
        let policy = Policy::compile(&objects());
        let ask =
            Ask::Resource { verb: "get", group: "", resource: "configmaps", subresource: "", name: "x" };
        assert_eq!(
            policy.authorize("system:serviceaccount:a:bot", &[], "a", &ask),
            Verdict::Allow(
                r#"RBAC: allowed by RoleBinding "b2/a" of Role "cm" to ServiceAccount "bot/a""#.to_owned()
            )
        );
        assert_eq!(
            policy.authorize("lost", &[], "", &ask),
            Verdict::NoOpinion(
                r#"RBAC: clusterrole.rbac.authorization.k8s.io "missing" not found"#.to_owned()
            )
        );
        assert_eq!(policy.authorize("nobody", &[], "", &ask), Verdict::NoOpinion(String::new()));
    }
}
