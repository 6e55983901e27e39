//! The priority levels and flow schemas that every server has (`k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap`,
//! v1.36). The mandatory ones are fixed; the suggested ones an administrator may change or delete.

use serde_json::{Value, json};

const API_VERSION: &str = "flowcontrol.apiserver.k8s.io/v1";
/// Objects that carry it with the value `true` are kept as the server has them.
pub const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// A built-in object, and whether the server insists on it.
pub struct BuiltIn {
    /// The object, as it is created.
    pub object: Value,
    /// It is put back when it is deleted, and its spec can't be changed.
    pub mandatory: bool,
}

fn built_in(kind: &str, name: &str, mandatory: bool, spec: &Value) -> BuiltIn {
    let object = json!({
        "apiVersion": API_VERSION, "kind": kind,
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}},
        "spec": spec,
    });
    BuiltIn { object, mandatory }
}

/// Every built-in PriorityLevelConfiguration.
pub fn priority_levels() -> Vec<BuiltIn> {
    // Name, shares, percent that may be lent, queues, hand size.
    const SUGGESTED: &[(&str, i64, i64, i64, i64)] = &[
        ("system", 30, 33, 64, 6),
        ("node-high", 40, 25, 64, 6),
        ("leader-election", 10, 0, 16, 4),
        ("workload-high", 40, 50, 128, 6),
        ("workload-low", 100, 90, 128, 6),
        ("global-default", 20, 50, 128, 6),
    ];
    let level = |name: &str, mandatory: bool, spec: &Value| {
        built_in("PriorityLevelConfiguration", name, mandatory, spec)
    };
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let catch_all = json!({"type": "Limited", "limited": {
        "nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"},
    }});
    let mut levels = vec![level("catch-all", true, &catch_all), level("exempt", true, &exempt)];
    for (name, shares, lendable, queues, hand) in SUGGESTED {
        let spec = json!({"type": "Limited", "limited": {
            "nominalConcurrencyShares": shares, "lendablePercent": lendable,
            "limitResponse": {
                "type": "Queue",
                "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50},
            },
        }});
        levels.push(level(name, false, &spec));
    }
    levels
}

fn groups(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| json!({"kind": "Group", "group": {"name": name}})).collect()
}

fn users(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| json!({"kind": "User", "user": {"name": name}})).collect()
}

fn system_accounts() -> Vec<Value> {
    vec![json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}})]
}

fn on(verbs: &[&str], group: &str, resources: &[&str], cluster_scope: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster_scope {
        rule["clusterScope"] = true.into();
    }
    rule
}

/// All requests of these subjects.
fn everything(subjects: Vec<Value>) -> Value {
    json!({
        "subjects": subjects,
        "resourceRules": [on(&["*"], "*", &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    })
}

/// Every built-in FlowSchema.
pub fn flow_schemas() -> Vec<BuiltIn> {
    const EVERYONE: &[&str] = &["system:unauthenticated", "system:authenticated"];
    const LEASES: &str = "coordination.k8s.io";
    let nodes = || groups(&["system:nodes"]);
    let schema = |name: &str, level: &str, precedence: i64, method: &str, rule: Value| {
        let mandatory = matches!(name, "exempt" | "catch-all");
        let mut spec = json!({
            "priorityLevelConfiguration": {"name": level},
            "matchingPrecedence": precedence,
            "rules": [rule],
        });
        if !method.is_empty() {
            spec["distinguisherMethod"] = json!({"type": method});
        }
        built_in("FlowSchema", name, mandatory, &spec)
    };
    let probes = json!({
        "subjects": groups(EVERYONE),
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}],
    });
    let mut electors = users(&["system:kube-controller-manager", "system:kube-scheduler"]);
    electors.extend(system_accounts());
    let elections = json!({
        "subjects": electors,
        "resourceRules": [on(&["get", "create", "update"], LEASES, &["leases"], false)],
    });
    let health = json!({
        "subjects": nodes(),
        "resourceRules": [
            on(&["*"], "", &["nodes", "nodes/status"], true),
            on(&["*"], LEASES, &["leases"], false),
        ],
    });
    let (user, namespace) = ("ByUser", "ByNamespace");
    vec![
        schema("exempt", "exempt", 1, "", everything(groups(&["system:masters"]))),
        schema("catch-all", "catch-all", 10_000, user, everything(groups(EVERYONE))),
        schema("system-nodes", "system", 500, user, everything(nodes())),
        schema("system-node-high", "node-high", 400, user, health),
        schema("probes", "exempt", 2, "", probes),
        schema("system-leader-election", "leader-election", 100, user, elections),
        schema(
            "kube-controller-manager",
            "workload-high",
            800,
            namespace,
            everything(users(&["system:kube-controller-manager"])),
        ),
        schema(
            "kube-scheduler",
            "workload-high",
            800,
            namespace,
            everything(users(&["system:kube-scheduler"])),
        ),
        schema(
            "kube-system-service-accounts",
            "workload-high",
            900,
            namespace,
            everything(system_accounts()),
        ),
        schema(
            "service-accounts",
            "workload-low",
            9000,
            user,
            everything(groups(&["system:serviceaccounts"])),
        ),
        schema("global-default", "global-default", 9900, user, everything(groups(EVERYONE))),
    ]
}
