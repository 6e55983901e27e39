use super::*;
use crate::meta::GroupResource;

fn quota(hard: &Value, used: &Value, scopes: &[&str]) -> Value {
    json!({
        "metadata": {"name": "q"},
        "spec": {"hard": hard, "scopes": scopes},
        "status": {"hard": hard, "used": used},
    })
}

fn pod(requests: &Value, limits: &Value) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]}})
}

fn created(object: &Value) -> Change<'_> {
    Change { is_update: false, subresource: "", new: object, old: &Value::Null }
}

fn check_charge(quota: &Value, evaluator: &Evaluator, object: &Value, want: Result<Option<Value>, &str>) {
    let got =
        charge(quota, evaluator, &created(object), 0).map(|used| used.map(|used| amounts::write(&used)));
    assert_eq!(got, want.map_err(str::to_owned), "{object}");
}

#[test]
fn pods_are_charged_within_their_limits() {
    let limits = json!({"pods": "2", "requests.cpu": "1", "requests.example.com/x": "3"});
    let used = json!({"pods": "1", "requests.cpu": "600m", "requests.example.com/x": "2"});
    let q = quota(&limits, &used, &[]);
    check_charge(
        &q,
        &Evaluator::Pods,
        &pod(&json!({"cpu": "400m", "memory": "1Gi", "example.com/x": "1"}), &json!({})),
        Ok(Some(json!({"pods": "2", "requests.cpu": "1", "requests.example.com/x": "3"}))),
    );
    check_charge(
        &q,
        &Evaluator::Pods,
        &pod(&json!({"cpu": "500m"}), &json!({})),
        Err(
            "exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1",
        ),
    );
    check_charge(
        &q,
        &Evaluator::Pods,
        &pod(&json!({}), &json!({})),
        Err("failed quota: q: must specify requests.cpu for: c"),
    );
    let fresh = json!({"metadata": {"name": "q"}, "spec": {"hard": limits}, "status": {"hard": limits}});
    check_charge(
        &fresh,
        &Evaluator::Pods,
        &pod(&json!({"cpu": "1m"}), &json!({})),
        Err("status unknown for quota: q, resources: pods,requests.cpu,requests.example.com/x"),
    );
    let mut ended = pod(&json!({"cpu": "1"}), &json!({}));
    ended["status"] = json!({"phase": "Succeeded"});
    assert_eq!(amounts::write(&Evaluator::Pods.usage(&ended, 0)), json!({"count/pods": "1"}));
}

#[test]
fn scopes_select_pods() {
    let best_effort = pod(&json!({}), &json!({}));
    let mut deadline = pod(&json!({"cpu": "1"}), &json!({"cpu": "1"}));
    deadline["spec"]["activeDeadlineSeconds"] = 5.into();
    let mut critical = pod(&json!({}), &json!({}));
    critical["spec"]["priorityClassName"] = "high".into();
    let check = |scopes: &[&str], object: &Value, want: bool| {
        let q = quota(&json!({"pods": "1"}), &json!({"pods": "0"}), scopes);
        assert_eq!(Evaluator::Pods.in_scope(&q, object), want, "{scopes:?} {object}");
    };
    check(&["BestEffort"], &best_effort, true);
    check(&["NotBestEffort"], &best_effort, false);
    check(&["Terminating"], &deadline, true);
    check(&["NotTerminating"], &deadline, false);
    check(&["BestEffort", "NotTerminating"], &best_effort, true);
    check(&["PriorityClass"], &critical, true);
    check(&["PriorityClass"], &best_effort, false);
    let mut q = quota(&json!({}), &json!({}), &[]);
    q["spec"]["scopeSelector"] = json!({"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high", "x"]}]});
    assert!(Evaluator::Pods.in_scope(&q, &critical));
    assert!(!Evaluator::Pods.in_scope(&q, &best_effort));
    let maps = Evaluator::Count(GroupResource::new("", "configmaps"));
    assert!(!maps.in_scope(&q, &json!({})), "scopes are of pods");
}

#[test]
fn other_kinds_have_their_prices() {
    let check = |group: &str, resource: &str, object: &Value, want: Value| {
        let evaluator = Evaluator::of(&GroupResource::new(group, resource)).unwrap();
        assert_eq!(amounts::write(&evaluator.usage(object, 0)), want);
    };
    check(
        "",
        "services",
        &json!({"spec": {"type": "NodePort", "ports": [{}, {}]}}),
        json!({"count/services": "1", "services": "1", "services.loadbalancers": "0", "services.nodeports": "2"}),
    );
    check("", "configmaps", &json!({}), json!({"configmaps": "1", "count/configmaps": "1"}));
    check("apps", "replicasets", &json!({}), json!({"count/replicasets.apps": "1"}));
    check(
        "",
        "persistentvolumeclaims",
        &json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}}),
        json!({
            "persistentvolumeclaims": "1", "count/persistentvolumeclaims": "1", "requests.storage": "1Gi",
            "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
            "gold.storageclass.storage.k8s.io/requests.storage": "1Gi",
        }),
    );
    check(
        "resource.k8s.io",
        "resourceclaims",
        &json!({"spec": {"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
            {"name": "b", "firstAvailable": [
                {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 3},
                {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1},
            ]},
        ]}}}),
        json!({
            "count/resourceclaims.resource.k8s.io": "1", "gpu.deviceclass.resource.k8s.io/devices": "5",
        }),
    );
    assert_eq!(Evaluator::of(&GroupResource::new("", "events")), None);
}

#[test]
fn updates_cost_the_difference() {
    let q = quota(&json!({"services.nodeports": "1"}), &json!({"services.nodeports": "0"}), &[]);
    let service = |kind: &str| json!({"spec": {"type": kind, "ports": [{}]}});
    let (plain, port) = (service("ClusterIP"), service("NodePort"));
    let change = |old, new| Change { is_update: true, subresource: "", new, old };
    let used = charge(&q, &Evaluator::Services, &change(&plain, &port), 0).unwrap().unwrap();
    assert_eq!(amounts::write(&used), json!({"services.nodeports": "1"}));
    assert_eq!(charge(&q, &Evaluator::Services, &change(&port, &plain), 0), Ok(None));
    let status = Change { subresource: "status", ..change(&plain, &port) };
    assert_eq!(charge(&q, &Evaluator::Services, &status, 0), Ok(None));
}

#[test]
fn a_quota_is_measured() {
    let hard =
        json!({"pods": "5", "cpu": "10", "count/deployments.apps": "3", "secrets": "1", "odd/name": "1"});
    let q = json!({"spec": {"hard": hard}});
    let mut tracked: Vec<String> = evaluators(&q).iter().map(|e| e.resource().to_string()).collect();
    tracked.sort();
    assert_eq!(tracked, ["deployments.apps", "pods", "secrets"]);
    let pods = [pod(&json!({"cpu": "100m"}), &json!({})), pod(&json!({"cpu": "0.9"}), &json!({}))];
    let used = total(&q, &Evaluator::Pods, pods.iter(), 0);
    assert_eq!(amounts::write(&used), json!({"cpu": "1", "pods": "2"}));
    let status = status(&q, &used).unwrap();
    assert_eq!(status, json!({"hard": hard, "used": {"cpu": "1", "pods": "2"}}));
    let mut measured = q.clone();
    measured["status"] = status;
    assert_eq!(super::status(&measured, &used), None);
}

#[test]
fn init_containers_and_sidecars() {
    let container = |cpu: &str, sidecar: bool| {
        let mut c = json!({"name": cpu, "resources": {"requests": {"cpu": cpu}}});
        if sidecar {
            c["restartPolicy"] = "Always".into();
        }
        c
    };
    let check = |init: Vec<Value>, want: &str| {
        let pod = json!({"spec": {"containers": [container("1", false)], "initContainers": init,
            "overhead": {"cpu": "10m"}}});
        let total = amounts::pod_total(&pod, amounts::Kind::Requests, true);
        assert_eq!(total["cpu"].to_string(), want);
    };
    check(vec![], "1010m");
    check(vec![container("3", false)], "3010m");
    check(vec![container("500m", true), container("1200m", false)], "1710m");
    check(vec![container("500m", true), container("100m", false)], "1510m");
}
