use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::cache::Cache;
use crate::schedule;
use crate::testing::{cpu, node, on, pod, priority_of};

/// Seconds after some moment.
fn at(seconds: i64) -> Time {
    Time(Timestamp::UNIX_EPOCH.saturating_add(SignedDuration::from_secs(seconds)).unwrap())
}

fn cache(nodes: Vec<Node>, placed: Vec<Pod>) -> Cache {
    let mut cache = Cache::default();
    nodes.into_iter().for_each(|node| cache.set_node(Arc::new(node)));
    placed.iter().for_each(|pod| cache.set_pod(&Arc::new(pod.clone())));
    cache
}

/// A pod on a node.
fn placed(name: &str, node: &str, priority: i32, amount: &str) -> Pod {
    pod(name, on(node, priority_of(priority, cpu(amount))))
}

fn labelled(mut pod: Pod, value: &str) -> Pod {
    pod.metadata.labels = Some([("app".to_owned(), value.to_owned())].into());
    pod
}

fn since(mut pod: Pod, seconds: i64) -> Pod {
    pod.status.get_or_insert_default().start_time = Some(at(seconds));
    pod
}

fn budget(value: &str, allowed: i32, disrupted: &[&str]) -> Arc<PodDisruptionBudget> {
    let disrupted: serde_json::Map<String, Value> =
        disrupted.iter().map(|name| ((*name).to_owned(), json!("2026-01-01T00:00:00Z"))).collect();
    let budget = json!({
        "metadata": {"namespace": "ns", "name": value},
        "spec": {"selector": {"matchLabels": {"app": value}}},
        "status": {"disruptionsAllowed": allowed, "disruptedPods": disrupted},
    });
    Arc::new(serde_json::from_value(budget).unwrap())
}

fn decide(cache: &mut Cache, pod: &Pod, budgets: &[Arc<PodDisruptionBudget>]) -> Preemption {
    let (info, snapshot) = (PodInfo::new(Arc::new(pod.clone())), cache.snapshot());
    let refused = schedule(&info, &snapshot).expect_err("the pod fits as it is");
    preempt(&info, &snapshot, &refused, budgets, &at(1000))
}

/// The node and the names of the victims, or why there are none.
fn outcome(preemption: Preemption) -> String {
    match preemption {
        Preemption::Evict(candidate) => {
            let names: Vec<&str> = candidate.victims.iter().map(|v| meta::name(&v.pod.metadata)).collect();
            format!("{}: {}", candidate.node, names.join(" "))
        }
        Preemption::NotEligible(why) => why.to_owned(),
        Preemption::NoCandidate(why) => why,
    }
}

#[track_caller]
fn check(nodes: &[&str], placed: Vec<Pod>, pod: Pod, budgets: &[Arc<PodDisruptionBudget>], expected: &str) {
    let nodes = nodes.iter().map(|name| node(name, json!({}))).collect();
    assert_eq!(outcome(decide(&mut cache(nodes, placed), &pod, budgets)), expected);
}

fn wants(amount: &str) -> Pod {
    pod("p", priority_of(10, cpu(amount)))
}

#[test]
fn no_more_go_than_must_and_the_least_important_first() {
    let pods = || vec![placed("x", "a", 1, "1"), placed("y", "a", 2, "500m"), placed("z", "a", 3, "500m")];
    check(&["a"], pods(), wants("1"), &[], "a: x");
    check(&["a"], pods(), wants("1500m"), &[], "a: y x");
    check(&["a"], pods(), wants("2"), &[], "a: z y x");
    // Of equals the one that has run longer stays.
    let equals = vec![since(placed("old", "a", 1, "1"), 5), since(placed("new", "a", 1, "1"), 6)];
    check(&["a"], equals, wants("1"), &[], "a: new");
    let starting = vec![placed("starting", "a", 1, "1"), since(placed("running", "a", 1, "1"), 6)];
    check(&["a"], starting, wants("1"), &[], "a: starting");
}

#[test]
fn where_nothing_helps() {
    let full = |priority: i32| vec![placed("x", "a", priority, "2")];
    check(
        &["a"],
        full(10),
        wants("1"),
        &[],
        "0/1 nodes are available: 1 No preemption victims found for incoming pod.",
    );
    check(
        &["a", "b"],
        vec![placed("x", "a", 10, "2"), placed("y", "b", 10, "1"), placed("z", "b", 1, "500m")],
        wants("1500m"),
        &[],
        "0/2 nodes are available: 1 Insufficient cpu, 1 No preemption victims found for incoming pod.",
    );
    check(
        &["a"],
        full(1),
        wants("3"),
        &[],
        "0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    );
    let never = pod(
        "p",
        priority_of(
            10,
            json!({"spec": {"preemptionPolicy": "Never", "containers": [
        {"name": "c", "resources": {"requests": {"cpu": "1"}}}]}}),
        ),
    );
    check(&["a"], full(1), never, &[], "not eligible due to preemptionPolicy=Never.");
    let claim = priority_of(
        10,
        json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}),
    );
    check(
        &["a"],
        full(1),
        pod("p", claim),
        &[],
        "0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    );
}

#[test]
fn the_node_where_least_is_lost() {
    let nodes = ["a", "b"];
    let protected = |name: &str, node: &str, priority| labelled(placed(name, node, priority, "2"), "kept");
    // Fewest budgets broken, though the priority is higher.
    let pods = vec![protected("x", "a", 1), placed("y", "b", 2, "2")];
    check(&nodes, pods, wants("1"), &[budget("kept", 0, &[])], "b: y");
    // The lower highest priority.
    let pods = vec![placed("x", "a", 3, "2"), placed("y", "b", 2, "1"), placed("z", "b", 2, "1")];
    check(&nodes, pods, wants("2"), &[], "b: y z");
    // The smaller sum of priorities, and negative ones count too.
    let pods = vec![placed("x", "a", 2, "1"), placed("y", "a", 2, "1"), placed("z", "b", 2, "2")];
    check(&nodes, pods, wants("2"), &[], "b: z");
    let pods = vec![placed("x", "a", -2, "1"), placed("y", "a", -2, "1"), placed("z", "b", -2, "2")];
    check(&nodes, pods, wants("2"), &[], "b: z");
    // Who has run least.
    let pods = vec![since(placed("x", "a", 1, "2"), 5), since(placed("y", "b", 1, "2"), 6)];
    check(&nodes, pods, wants("1"), &[], "b: y");
}

#[test]
fn budgets_are_kept_where_that_is_possible() {
    let pods = || {
        vec![
            labelled(placed("x", "a", 1, "1"), "kept"),
            labelled(placed("y", "a", 2, "500m"), "free"),
            placed("z", "a", 3, "500m"),
        ]
    };
    // `x` is the least important, but its budget forbids its going.
    check(&["a"], pods(), wants("1"), &[budget("kept", 0, &[])], "a: z y");
    check(&["a"], pods(), wants("1"), &[budget("kept", 1, &[])], "a: x");
    // Its eviction has been counted already.
    check(&["a"], pods(), wants("1"), &[budget("kept", 0, &["x"])], "a: x");
    // No way but to break it.
    check(&["a"], pods(), wants("2"), &[budget("kept", 0, &[])], "a: z y x");
    let Preemption::Evict(candidate) =
        decide(&mut cache(vec![node("a", json!({}))], pods()), &wants("2"), &[budget("kept", 0, &[])])
    else {
        panic!("nobody to evict")
    };
    assert_eq!(candidate.violations, 1);
}

#[test]
fn a_preemptor_waits_for_its_victims() {
    let leaving = |reason: &str| {
        let mut victim = placed("x", "a", 1, "2");
        victim.metadata.deletion_timestamp = Some(at(0));
        let condition = json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
        victim.status.get_or_insert_default().conditions = serde_json::from_value(condition).unwrap();
        victim
    };
    let check = |victim: Pod, expected: &str| {
        let mut cache =
            cache(vec![node("a", json!({})), node("b", json!({}))], vec![victim, placed("y", "b", 0, "2")]);
        let waiting = wants("1");
        cache.nominate(Arc::new(PodInfo::new(Arc::new(waiting.clone()))), "a");
        assert_eq!(outcome(decide(&mut cache, &waiting, &[])), expected);
    };
    check(leaving(PREEMPTION_BY_SCHEDULER), "not eligible due to a terminating pod on the nominated node.");
    // One that goes for another reason may take its time.
    check(leaving("DeletionByTaintManager"), "b: y");
    check(placed("x", "a", 1, "2"), "b: y");
}

#[test]
fn room_that_is_kept_for_others_is_not_taken() {
    let other = |priority: i32| {
        let mut cache =
            cache(vec![node("a", json!({}))], vec![placed("x", "a", 1, "1"), placed("y", "a", 2, "1")]);
        cache.nominate(Arc::new(PodInfo::new(Arc::new(pod("o", priority_of(priority, cpu("1")))))), "a");
        outcome(decide(&mut cache, &wants("1"), &[]))
    };
    // `x` goes for the other one already, so `y` must go too.
    assert_eq!(other(10), "a: y x");
    assert_eq!(other(9), "a: x");
}

/// Spread constraints and anti-affinity are judged as they will be without the victims.
#[test]
fn rules_about_other_pods() {
    let apart = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"priority": 10, "affinity": {"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]}}}});
    let pods = vec![labelled(placed("x", "a", 1, "1"), "web"), placed("y", "a", 0, "1")];
    check(&["a"], pods, pod("p", apart), &[], "a: x");
    let spread = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"priority": 10, "topologySpreadConstraints": [{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}}]}});
    let mut pods = vec![labelled(placed("h", "a", 20, "2"), "web")];
    for (name, start) in [("x", 5), ("y", 6), ("z", 7)] {
        pods.push(since(labelled(placed(name, "b", 1, "500m"), "web"), start));
    }
    let mut wanted = pod("p", spread);
    wanted.spec.as_mut().unwrap().containers[0].resources =
        serde_json::from_value(json!({"requests": {"cpu": "500m"}})).unwrap();
    // There is room for it, but two must go to keep the skew.
    check(&["a", "b"], pods, wanted, &[], "b: y z");
}

prop_compose! {
    fn any_pod(nodes: usize)(node in 0..nodes, priority in -2..6i32, halves in 0..4u32, app in 0..3usize, start in 0..9i64)
        -> (usize, i32, u32, usize, i64) {
        (node, priority, halves, app, start)
    }
}

fn half_cpus(halves: u32) -> String {
    format!("{}m", halves * 500)
}

proptest! {
    /// Without the victims the pod fits, with any of them it does not, and all are less important than it. Where there are no
    /// victims no node would do.
    #[test]
    fn victims_are_enough_and_needed(
        pods in proptest::collection::vec(any_pod(3), 0..12),
        waiting in proptest::collection::vec(any_pod(3), 0..3),
        allowed in proptest::collection::vec(0..3i32, 2),
        priority in 0..6i32,
        halves in 1..5u32,
    ) {
        let names = ["a", "b", "c"];
        let placed: Vec<Pod> = pods.iter().enumerate().map(|(i, (node, priority, halves, app, start))| {
            let pod = placed(&format!("x{i}"), names[*node], *priority, &half_cpus(*halves));
            since(labelled(pod, ["kept", "held", "free"][*app]), *start)
        }).collect();
        let mut cache = cache(names.map(|name| node(name, json!({}))).into(), placed);
        for (i, (node, priority, halves, ..)) in waiting.iter().enumerate() {
            let other = pod(&format!("w{i}"), priority_of(*priority, cpu(&half_cpus(*halves))));
            cache.nominate(Arc::new(PodInfo::new(Arc::new(other))), names[*node]);
        }
        let budgets = [budget("kept", allowed[0], &[]), budget("held", allowed[1], &[])];
        let wanted = PodInfo::new(Arc::new(pod("p", priority_of(priority, cpu(&half_cpus(halves))))));
        let snapshot = cache.snapshot();
        let filters = concerning(&wanted, &snapshot);
        let Err(refused) = schedule(&wanted, &snapshot) else { return Ok(()) };
        match preempt(&wanted, &snapshot, &refused, &budgets, &at(10)) {
            Preemption::NotEligible(why) => panic!("{why}"),
            Preemption::NoCandidate(_) => {
                for (at, node) in snapshot.nodes.iter().enumerate() {
                    let mut emptied = (**node).clone();
                    for other in node.pods.iter().filter(|other| other.priority() < priority) {
                        emptied.remove_pod(other.uid());
                    }
                    prop_assert!(fits(&filters, &wanted, &snapshot.with_node(at, emptied), at).is_err());
                }
            }
            Preemption::Evict(candidate) => {
                let at = snapshot.position(&candidate.node).unwrap();
                let node = &snapshot.nodes[at];
                let fits_without = |kept: Option<&str>| {
                    let mut emptied = (**node).clone();
                    for victim in candidate.victims.iter().filter(|v| Some(v.uid()) != kept) {
                        assert!(emptied.remove_pod(victim.uid()), "the victim is not on the node");
                    }
                    fits(&filters, &wanted, &snapshot.with_node(at, emptied), at).is_ok()
                };
                prop_assert!(fits_without(None));
                for victim in &candidate.victims {
                    prop_assert!(victim.priority() < priority);
                    prop_assert!(!fits_without(Some(victim.uid())), "{} need not go", victim.uid());
                }
                prop_assert!(!candidate.victims.is_empty());
            }
        }
    }
}
