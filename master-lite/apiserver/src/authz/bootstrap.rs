//! The default roles and bindings: upstream's bootstrap policy, those that kubeadm adds for joining nodes, and
//! `keelson:node-agent`, which lets a node's agent read what upstream's kube-proxy reads with its own account
//! (the agent is kubelet and proxy in one, with one identity), and `keelson:kubelet-serving-approver`, since the master
//! verifies the serving certificates of kubelets and so approves nodes' own requests for them.
//!
//! The table is `bootstrap_policy.json` (facts of Kubernetes v1.36). [`reconcile`] follows upstream's
//! `rbac/reconciliation`: missing rules and subjects are added, extra ones that an administrator put there stay,
//! and an object annotated `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Value, json};

use super::rbac::text;
use super::rule::{PolicyRule, uncovered};

const GROUP: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// A role of the table.
#[derive(Debug, Deserialize)]
struct RoleRow {
    #[serde(default)]
    namespace: Option<String>,
    name: String,
    #[serde(default)]
    labels: Vec<String>,
    #[serde(default)]
    aggregate: Vec<String>,
    rules: Vec<Value>,
}

/// A binding of the table. The role reads `Kind/name`, a subject `User:name`, `Group:name` or
/// `ServiceAccount:namespace/name`.
#[derive(Debug, Deserialize)]
struct BindingRow {
    #[serde(default)]
    namespace: Option<String>,
    name: String,
    role: String,
    subjects: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    cluster_roles: Vec<RoleRow>,
    cluster_role_bindings: Vec<BindingRow>,
    roles: Vec<RoleRow>,
    role_bindings: Vec<BindingRow>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    serde_json::from_str(include_str!("bootstrap_policy.json"))
        .expect("the embedded policy table is checked by a unit test")
});

/// The default policy as API objects, in the order in which they should be written: roles before bindings.
pub fn objects() -> Vec<Value> {
    let table = &*TABLE;
    let mut out: Vec<Value> = Vec::new();
    out.extend(table.cluster_roles.iter().map(|r| role("ClusterRole", r)));
    out.extend(table.roles.iter().map(|r| role("Role", r)));
    out.extend(table.cluster_role_bindings.iter().map(|b| binding("ClusterRoleBinding", b)));
    out.extend(table.role_bindings.iter().map(|b| binding("RoleBinding", b)));
    out
}

/// The rules of `system:node`, which the Node authorizer applies to every node for resources it doesn't subdivide.
pub fn node_rules() -> Vec<PolicyRule> {
    let node = TABLE.cluster_roles.iter().find(|r| r.name == "system:node");
    node.into_iter().flat_map(|r| &r.rules).map(PolicyRule::from_value).collect()
}

fn metadata(namespace: Option<&str>, name: &str, labels: &[String]) -> Value {
    let mut meta = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTOUPDATE: "true"},
    });
    for label in labels {
        meta["labels"][label] = json!("true");
    }
    if let Some(namespace) = namespace {
        meta["namespace"] = json!(namespace);
    }
    meta
}

fn role(kind: &str, row: &RoleRow) -> Value {
    let mut out = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": metadata(row.namespace.as_deref(), &row.name, &row.labels),
        "rules": row.rules,
    });
    if !row.aggregate.is_empty() {
        let selectors: Vec<Value> =
            row.aggregate.iter().map(|l| json!({"matchLabels": {l: "true"}})).collect();
        out["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
    }
    out
}

fn binding(kind: &str, row: &BindingRow) -> Value {
    let (role_kind, role_name) = row.role.split_once('/').unwrap_or(("ClusterRole", &row.role));
    let subjects: Vec<Value> = row.subjects.iter().filter_map(|s| subject(s)).collect();
    json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": metadata(row.namespace.as_deref(), &row.name, &[]),
        "roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": role_name},
        "subjects": subjects,
    })
}

fn subject(text: &str) -> Option<Value> {
    let (kind, name) = text.split_once(':')?;
    if kind == "ServiceAccount" {
        let (namespace, name) = name.split_once('/')?;
        return Some(json!({"kind": kind, "name": name, "namespace": namespace}));
    }
    Some(json!({"apiGroup": GROUP, "kind": kind, "name": name}))
}

/// What to do with one object of the default policy.
#[derive(Debug, PartialEq)]
pub enum Change {
    /// It is as it should be, or protected.
    Keep,
    /// It isn't there.
    Create(Value),
    /// It lacks something; the value is the whole new object.
    Update(Value),
    /// Its roleRef differs, which can't be updated: delete it, then create this.
    Recreate(Value),
}

/// Compares a stored object with the one that should be there.
pub fn reconcile(existing: Option<&Value>, expected: &Value) -> Change {
    let Some(existing) = existing else { return Change::Create(expected.clone()) };
    if existing["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return Change::Keep;
    }
    if expected.get("roleRef").is_some() && !same_role(&existing["roleRef"], &expected["roleRef"]) {
        return Change::Recreate(expected.clone());
    }
    let mut wanted = existing.clone();
    for field in ["labels", "annotations"] {
        for (key, value) in expected["metadata"][field].as_object().into_iter().flatten() {
            if existing["metadata"][field].get(key).is_none() {
                wanted["metadata"][field][key] = value.clone();
            }
        }
    }
    if expected.get("aggregationRule").is_some() {
        // The rules of an aggregating role belong to the aggregation; only the selectors are ours.
        add_missing(
            &mut wanted["aggregationRule"]["clusterRoleSelectors"],
            &expected["aggregationRule"]["clusterRoleSelectors"],
        );
    } else if expected.get("roleRef").is_some() {
        add_missing(&mut wanted["subjects"], &expected["subjects"]);
    } else {
        let read = |v: &Value| -> Vec<PolicyRule> {
            v["rules"].as_array().into_iter().flatten().map(PolicyRule::from_value).collect()
        };
        let missing = uncovered(&read(existing), &read(expected));
        if !missing.is_empty() {
            let mut rules = existing["rules"].as_array().cloned().unwrap_or_default();
            rules.extend(super::rule::compact(missing).iter().map(PolicyRule::to_value));
            wanted["rules"] = Value::Array(rules);
        }
    }
    if wanted == *existing { Change::Keep } else { Change::Update(wanted) }
}

fn same_role(a: &Value, b: &Value) -> bool {
    ["/kind", "/name"].iter().all(|p| text(a, p) == text(b, p))
}

fn add_missing(list: &mut Value, wanted: &Value) {
    let wanted = wanted.as_array().map(Vec::as_slice).unwrap_or_default();
    if wanted.is_empty() {
        return;
    }
    if !list.is_array() {
        *list = json!([]);
    }
    if let Value::Array(items) = list {
        for item in wanted {
            if !items.contains(item) {
                items.push(item.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::rbac::{Policy, PolicyObjects, Verdict};
    use super::super::rule::Ask;
    use super::*;

    fn policy() -> Policy {
        let mut all = PolicyObjects::default();
        for object in objects() {
            let list = match object["kind"].as_str() {
                Some("ClusterRole") => &mut all.cluster_roles,
                Some("Role") => &mut all.roles,
                Some("ClusterRoleBinding") => &mut all.cluster_role_bindings,
                _ => &mut all.role_bindings,
            };
            list.push(Arc::new(object));
        }
        Policy::compile(&all)
    }

    #[test]
    fn the_table_is_whole() {
        let count = |kind: &str| objects().iter().filter(|o| o["kind"] == kind).count();
        // Upstream v1.36 has 69 + 50 + 7 + 7; the rest is kubeadm's for joining nodes and our own.
        assert_eq!(
            (count("ClusterRole"), count("ClusterRoleBinding"), count("Role"), count("RoleBinding")),
            (71, 58, 7, 7)
        );
        for binding in &TABLE.cluster_role_bindings {
            assert!(binding.subjects.iter().all(|s| subject(s).is_some()), "{}", binding.name);
            let name = binding.role.split_once('/').map(|(_, n)| n).unwrap_or_default();
            assert!(TABLE.cluster_roles.iter().any(|r| r.name == name), "{} binds {name}", binding.name);
        }
        assert!(node_rules().len() > 20);
    }

    #[test]
    fn the_table_grants_what_upstream_grants() {
        let policy = policy();
        let check = |user: &str,
                     groups: &[&str],
                     namespace: &str,
                     verb: &str,
                     group: &str,
                     resource: &str,
                     want: bool| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let ask = Ask::Resource { verb, group, resource, subresource, name: "" };
            let groups: Vec<String> = groups.iter().map(|s| (*s).to_owned()).collect();
            let got = matches!(policy.authorize(user, &groups, namespace, &ask), Verdict::Allow(_));
            assert_eq!(got, want, "{user} {groups:?} {verb} {resource}/{subresource} in {namespace:?}");
        };
        let scheduler = "system:kube-scheduler";
        check(scheduler, &[], "a", "create", "", "pods/binding", true);
        check(scheduler, &[], "a", "create", "", "pods", false);
        check(scheduler, &[], "kube-system", "update", "coordination.k8s.io", "leases", true);
        let boot = ["system:bootstrappers:kubeadm:default-node-token"];
        let csr = "certificates.k8s.io";
        check("system:bootstrap:abcdef", &boot, "", "create", csr, "certificatesigningrequests", true);
        check(
            "system:bootstrap:abcdef",
            &boot,
            "",
            "create",
            csr,
            "certificatesigningrequests/nodeclient",
            true,
        );
        check("system:bootstrap:abcdef", &boot, "", "list", "", "pods", false);
        check(
            "system:node:n",
            &["system:nodes"],
            "",
            "create",
            csr,
            "certificatesigningrequests/selfnodeclient",
            true,
        );
        check("kube-apiserver-kubelet-client", &[], "", "create", "", "nodes/proxy", true);
        check(
            "x",
            &["system:authenticated"],
            "",
            "create",
            "authorization.k8s.io",
            "selfsubjectaccessreviews",
            true,
        );
        check(
            "x",
            &["system:unauthenticated"],
            "",
            "create",
            "authorization.k8s.io",
            "selfsubjectaccessreviews",
            false,
        );
        check("x", &["kubeadm:cluster-admins"], "", "delete", "", "nodes", true);
        check("system:node:n", &["system:nodes"], "", "watch", "discovery.k8s.io", "endpointslices", true);
        check("system:node:n", &["system:nodes"], "", "list", "", "secrets", false);
        let rs = "system:serviceaccount:kube-system:replicaset-controller";
        check(rs, &[], "a", "create", "", "pods", true);
        check(rs, &[], "a", "get", "", "secrets", false);
        for (path, want) in [("/healthz", true), ("/version", true), ("/apis", false), ("/metrics", false)] {
            let ask = Ask::NonResource { verb: "get", path };
            let got = policy.authorize("system:anonymous", &["system:unauthenticated".to_owned()], "", &ask);
            assert_eq!(matches!(got, Verdict::Allow(_)), want, "{path}");
        }
    }

    #[test]
    fn aggregation_builds_admin_edit_view() {
        let policy = policy();
        let check = |role: &str, verb: &str, resource: &str, want: bool| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let ask = Ask::Resource { verb, group: "", resource, subresource, name: "" };
            let got = policy.cluster_role(role).is_some_and(|rules| rules.iter().any(|r| r.allows(&ask)));
            assert_eq!(got, want, "{role} {verb} {resource}");
        };
        check("view", "get", "pods", true);
        check("view", "get", "secrets", false);
        check("view", "create", "pods", false);
        check("edit", "get", "pods", true);
        check("edit", "create", "pods/exec", true);
        check("admin", "create", "pods/exec", true);
        check("edit", "create", "serviceaccounts/token", true);
        let bind = Ask::Resource {
            verb: "create",
            group: GROUP,
            resource: "rolebindings",
            subresource: "",
            name: "",
        };
        let can =
            |role: &str| policy.cluster_role(role).is_some_and(|rules| rules.iter().any(|r| r.allows(&bind)));
        assert!(can("admin") && !can("edit"));
    }

    #[test]
    fn reconcile_adds_and_never_takes() {
        let expected = json!({"kind": "ClusterRole", "metadata": {"name": "r", "labels": {"a": "1"}, "annotations": {AUTOUPDATE: "true"}},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]});
        assert_eq!(reconcile(None, &expected), Change::Create(expected.clone()));
        assert_eq!(reconcile(Some(&expected), &expected), Change::Keep);
        let mut wider = expected.clone();
        wider["rules"][0]["verbs"] = json!(["*"]);
        wider["metadata"]["uid"] = json!("u");
        assert_eq!(reconcile(Some(&wider), &expected), Change::Keep);
        let mut less = expected.clone();
        less["rules"][0]["verbs"] = json!(["get"]);
        let Change::Update(got) = reconcile(Some(&less), &expected) else { panic!("no update") };
        assert_eq!(got["rules"][1], json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}));
        less["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        assert_eq!(reconcile(Some(&less), &expected), Change::Keep);
        let bind = json!({"kind": "ClusterRoleBinding", "metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
            "subjects": [{"kind": "User", "name": "x"}]});
        let mut other = bind.clone();
        other["roleRef"]["name"] = json!("q");
        assert_eq!(reconcile(Some(&other), &bind), Change::Recreate(bind.clone()));
        let mut fewer = bind.clone();
        fewer["subjects"] = json!([{"kind": "User", "name": "y"}]);
        let Change::Update(got) = reconcile(Some(&fewer), &bind) else { panic!("no update") };
        assert_eq!(got["subjects"].as_array().map(Vec::len), Some(2));
    }
}
