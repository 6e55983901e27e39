//! Table tests of the decision: `check_schedule(nodes, pods on them, pod, expected)`.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::*;
use crate::cache::Cache;
use crate::testing::{cpu, node, on, pod, priority_of};

#[track_caller]
fn check_schedule(nodes: Vec<Node>, placed: Vec<Pod>, pod: Pod, expected: Result<&str, &str>) {
    let mut cache = Cache::default();
    for node in nodes {
        cache.set_node(Arc::new(node));
    }
    for pod in placed {
        cache.set_pod(&Arc::new(pod));
    }
    let snapshot = cache.snapshot();
    let outcome = schedule(&PodInfo::new(Arc::new(pod)), &snapshot)
        .map(|node| node.name().to_owned())
        .map_err(|error| error.to_string());
    match (&outcome, expected) {
        (Ok(node), Ok(expected)) => assert_eq!(node, expected),
        (Err(error), Err(expected)) => {
            assert!(error.starts_with(expected), "\n got: {error}\nwant: {expected}");
        }
        _ => panic!("got {outcome:?}, expected {expected:?}"),
    }
}

#[test]
fn no_nodes() {
    check_schedule(vec![], vec![], pod("p", json!({})), Err("no nodes available to schedule pods"));
}

#[test]
fn resources() {
    let nodes = || vec![node("a", json!({})), node("b", json!({}))];
    check_schedule(nodes(), vec![pod("x", on("a", cpu("1")))], pod("p", cpu("500m")), Ok("b"));
    check_schedule(nodes(), vec![pod("x", on("b", cpu("1")))], pod("p", cpu("1500m")), Ok("a"));
    check_schedule(
        nodes(),
        vec![pod("x", on("b", cpu("1")))],
        pod("p", cpu("3")),
        Err("0/2 nodes are available: 2 Insufficient cpu."),
    );
    check_schedule(
        vec![node("a", json!({}))],
        vec![pod("x", on("a", cpu("1")))],
        pod("p", cpu("1500m")),
        Err("0/1 nodes are available: 1 Insufficient cpu."),
    );
    check_schedule(
        vec![node("a", json!({"status": {"allocatable": {"pods": "1"}}}))],
        vec![pod("x", on("a", json!({})))],
        pod("p", json!({})),
        Err("0/1 nodes are available: 1 Too many pods."),
    );
    let gpu = json!({"spec": {"containers": [
        {"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]}});
    check_schedule(
        nodes(),
        vec![],
        pod("p", gpu),
        Err("0/2 nodes are available: 2 Insufficient example.com/gpu."),
    );
}

#[test]
fn taints_and_unschedulable() {
    let tainted = |effect: &str| json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
    let tolerating = json!({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}});
    let untolerated = Err("0/1 nodes are available: 1 node(s) had untolerated taint(s).");
    check_schedule(vec![node("a", tainted("NoSchedule"))], vec![], pod("p", json!({})), untolerated);
    check_schedule(vec![node("a", tainted("NoExecute"))], vec![], pod("p", json!({})), untolerated);
    check_schedule(vec![node("a", tainted("NoSchedule"))], vec![], pod("p", tolerating), Ok("a"));
    check_schedule(
        vec![node("a", tainted("PreferNoSchedule")), node("b", json!({}))],
        vec![],
        pod("p", json!({})),
        Ok("b"),
    );
    check_schedule(
        vec![node("a", json!({"spec": {"unschedulable": true}}))],
        vec![],
        pod("p", json!({})),
        Err("0/1 nodes are available: 1 node(s) were unschedulable."),
    );
}

#[test]
fn node_selection() {
    let nodes = || vec![node("a", json!({"metadata": {"labels": {"disk": "ssd"}}})), node("b", json!({}))];
    check_schedule(nodes(), vec![], pod("p", json!({"spec": {"nodeSelector": {"disk": "ssd"}}})), Ok("a"));
    check_schedule(
        nodes(),
        vec![],
        pod("p", json!({"spec": {"nodeSelector": {"disk": "tape"}}})),
        Err("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."),
    );
    let preferring = json!({"spec": {"affinity": {"nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "preference": {
            "matchExpressions": [{"key": "disk", "operator": "DoesNotExist"}]}}]}}}});
    check_schedule(nodes(), vec![], pod("p", preferring), Ok("b"));
    let by_field = json!({"spec": {"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{
            "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}}}});
    check_schedule(nodes(), vec![], pod("p", by_field), Ok("b"));
}

#[test]
fn host_ports() {
    let port = |ip: &str| {
        json!({"spec": {"containers": [
        {"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]}})
    };
    let refused =
        Err("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.");
    check_schedule(
        vec![node("a", json!({}))],
        vec![pod("x", on("a", port("")))],
        pod("p", port("127.0.0.1")),
        refused,
    );
    check_schedule(
        vec![node("a", json!({}))],
        vec![pod("x", on("a", port("127.0.0.2")))],
        pod("p", port("127.0.0.1")),
        Ok("a"),
    );
}

fn affinity(kind: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"affinity": {kind: {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]}}}})
}

#[test]
fn pod_affinity() {
    let nodes = || vec![node("a", json!({})), node("b", json!({}))];
    let web = |n: &str| pod("x", on(n, json!({"metadata": {"labels": {"app": "web"}}})));
    check_schedule(nodes(), vec![web("b")], pod("p", affinity("podAffinity")), Ok("b"));
    check_schedule(nodes(), vec![web("b")], pod("p", affinity("podAntiAffinity")), Ok("a"));
    // The first of a group may go anywhere, for it matches its own term.
    check_schedule(vec![node("a", json!({}))], vec![], pod("p", affinity("podAffinity")), Ok("a"));
    check_schedule(
        vec![node("a", json!({}))],
        vec![web("a")],
        pod("p", affinity("podAntiAffinity")),
        Err("0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules."),
    );
    // The other pod's rule holds too.
    check_schedule(
        vec![node("a", json!({}))],
        vec![pod("x", on("a", affinity("podAntiAffinity")))],
        pod("p", json!({"metadata": {"labels": {"app": "web"}}})),
        Err("0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."),
    );
    let lonely = json!({"spec": {"affinity": {"podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": "kubernetes.io/hostname"}]}}}});
    check_schedule(
        nodes(),
        vec![],
        pod("p", lonely),
        Err("0/2 nodes are available: 2 node(s) didn't match pod affinity rules."),
    );
}

#[test]
fn topology_spread() {
    let spread = |when: &str| {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"topologySpreadConstraints": [{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": "web"}}}]}})
    };
    let nodes = || vec![node("a", json!({})), node("b", json!({}))];
    let web = |name: &str, n: &str| pod(name, on(n, json!({"metadata": {"labels": {"app": "web"}}})));
    check_schedule(nodes(), vec![web("x", "a")], pod("p", spread("DoNotSchedule")), Ok("b"));
    check_schedule(nodes(), vec![web("x", "a")], pod("p", spread("ScheduleAnyway")), Ok("b"));
    check_schedule(
        vec![node("a", json!({})), node("b", json!({"spec": {"unschedulable": true}}))],
        vec![web("x", "a")],
        pod("p", spread("DoNotSchedule")),
        Err("0/2 nodes are available: 1 node(s) didn't match pod topology spread constraints, \
             1 node(s) were unschedulable."),
    );
}

#[test]
fn what_is_not_done_is_said() {
    let claim = json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    check_schedule(
        vec![node("a", json!({}))],
        vec![],
        pod("p", claim),
        Err("0/1 nodes are available: pod uses persistentvolumeclaim \"c\""),
    );
}

/// Room that is kept for `waits` on node `a` is not given to another of at most its priority.
#[test]
fn room_that_is_kept() {
    let check = |priority: i32, expected: Option<&str>| {
        let mut cache = Cache::default();
        cache.set_node(Arc::new(node("a", json!({}))));
        cache.nominate(Arc::new(PodInfo::new(Arc::new(pod("waits", priority_of(5, cpu("1")))))), "a");
        let new = PodInfo::new(Arc::new(pod("p", priority_of(priority, cpu("1500m")))));
        let got = schedule(&new, &cache.snapshot()).ok().map(|node| node.name().to_owned());
        assert_eq!(got.as_deref(), expected, "priority {priority}");
    };
    check(4, None);
    check(5, None);
    check(6, Some("a"));
}

#[test]
fn a_pod_goes_where_it_is_nominated_to() {
    let mut cache = Cache::default();
    for name in ["a", "b", "c"] {
        cache.set_node(Arc::new(node(name, json!({}))));
    }
    cache.set_pod(&Arc::new(pod("x", on("b", cpu("1")))));
    let new = PodInfo::new(Arc::new(pod("p", cpu("1"))));
    cache.nominate(Arc::new(new.clone()), "b");
    assert_eq!(schedule(&new, &cache.snapshot()).unwrap().name(), "b");
    // Unless it doesn't fit there any more.
    cache.set_pod(&Arc::new(pod("y", on("b", cpu("1")))));
    assert_ne!(schedule(&new, &cache.snapshot()).unwrap().name(), "b");
}
