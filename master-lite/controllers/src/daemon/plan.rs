//! Which daemon pods are to be made and which are to go. All of it is pure, but for the back-off that the caller
//! hands in.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{meta, pods};

use super::placement::{HASH_LABEL, Verdict, is_updated, template_generation};
use crate::percent::{Round, scaled};

/// The pods of a set by the node that they are on or meant for.
pub type ByNode = BTreeMap<String, Vec<Arc<Pod>>>;
/// What each node means to the set.
pub type Verdicts = BTreeMap<String, Verdict>;

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    /// Pods that go.
    pub delete: Vec<Arc<Pod>>,
    /// Those of them that have ended, for the set's events.
    pub ended: Vec<Arc<Pod>>,
}

fn rolling(set: &DaemonSet) -> Option<&RollingUpdateDaemonSet> {
    let strategy = set.spec.as_ref()?.update_strategy.as_ref()?;
    strategy.rolling_update.as_ref().filter(|_| strategy.type_.as_deref() == Some("RollingUpdate"))
}

/// Old pods that may still be there beside new ones.
fn max_surge(set: &DaemonSet, nodes: i32) -> i32 {
    rolling(set).map_or(0, |r| scaled(r.max_surge.as_ref(), nodes, Round::Up))
}

fn max_unavailable(set: &DaemonSet, nodes: i32) -> i32 {
    rolling(set).map_or(0, |r| scaled(r.max_unavailable.as_ref(), nodes, Round::Up))
}

fn min_ready_seconds(set: &DaemonSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
}

/// Those on a node first, then the older.
pub fn sort(pods: &mut [Arc<Pod>]) {
    pods.sort_by(|a, b| {
        let unassigned = |pod: &Pod| pods::node_name(pod).is_none();
        let by_age = || a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp);
        let by_name = || a.metadata.name.cmp(&b.metadata.name);
        unassigned(a).cmp(&unassigned(b)).then_with(by_age).then_with(by_name)
    });
}

/// Brings each node to as many pods as it should have (`manage`). `may_retry` is asked before a failed pod of a
/// node is deleted: without back-off set and kubelet would fight for ever.
pub fn manage(
    set: &DaemonSet,
    nodes: &Verdicts,
    pods: &ByNode,
    hash: &str,
    now: &Time,
    mut may_retry: impl FnMut(&str) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    for (node, verdict) in nodes {
        let present = pods.get(node);
        match (verdict, present) {
            (Verdict { run: true, .. }, None) => plan.create.push(node.clone()),
            (Verdict { stay: true, run }, Some(present)) => {
                on_node(&mut plan, set, node, *run, present, hash, now, &mut may_retry);
            }
            (Verdict { stay: false, .. }, Some(present)) => {
                plan.delete.extend(present.iter().filter(|pod| !pods::is_terminating(pod)).cloned());
            }
            (Verdict { run: false, .. }, None) => {}
        }
    }
    // The pod collector removes pods of nodes that are gone only if they were ever bound there.
    let homeless = pods.iter().filter(|(node, _)| !nodes.contains_key(*node)).flat_map(|(_, pods)| pods);
    plan.delete.extend(homeless.filter(|pod| pods::node_name(pod).is_none()).cloned());
    plan
}

#[allow(clippy::too_many_arguments, reason = "one step of `manage`, with its arguments")]
fn on_node(
    plan: &mut Plan,
    set: &DaemonSet,
    node: &str,
    run: bool,
    present: &[Arc<Pod>],
    hash: &str,
    now: &Time,
    may_retry: &mut impl FnMut(&str) -> bool,
) {
    let mut running = Vec::new();
    for pod in present.iter().filter(|pod| !pods::is_terminating(pod)) {
        match pods::phase(pod) {
            "Failed" if !may_retry(node) => {}
            "Failed" | "Succeeded" => {
                plan.ended.push(pod.clone());
                plan.delete.push(pod.clone());
            }
            _ => running.push(pod.clone()),
        }
    }
    sort(&mut running);
    if max_surge(set, 1) == 0 {
        plan.delete.extend(running.into_iter().skip(1));
        return;
    }
    if running.len() <= 1 {
        // A surging set has a pod that is not about to go on each node.
        if running.is_empty() && run {
            plan.create.push(node.to_owned());
        }
        return;
    }
    let (mut new, mut old) = (None, None);
    for pod in running {
        let is_new = meta::label(&pod.metadata, HASH_LABEL) == Some(hash);
        let place = if is_new { &mut new } else { &mut old };
        match place {
            None => *place = Some(pod),
            Some(_) => plan.delete.push(pod),
        }
    }
    if let (Some(new), Some(old)) = (new, old)
        && (!pods::is_ready(&old) || pods::is_available(&new, min_ready_seconds(set), now))
    {
        plan.delete.push(old);
    }
}

/// A pod of a node, if it has one of that revision.
type Occupant = Option<Arc<Pod>>;

/// The new and the old pod of a node, as far as they are not about to go; none if it has several of a kind, which
/// [`manage`] will mend.
fn updated_pods(set: &DaemonSet, present: &[Arc<Pod>], hash: &str) -> Option<(Occupant, Occupant)> {
    let generation = template_generation(set);
    let (mut new, mut old) = (None, None);
    for pod in present.iter().filter(|pod| !pods::is_terminating(pod)) {
        let place = if is_updated(pod, hash, generation) { &mut new } else { &mut old };
        if place.replace(pod.clone()).is_some() {
            return None;
        }
    }
    Some((new, old))
}

/// What a rolling update may do now (`rollingUpdate`).
pub fn roll(set: &DaemonSet, nodes: &Verdicts, pods: &ByNode, hash: &str, now: &Time) -> Plan {
    let desired = i32::try_from(nodes.values().filter(|v| v.run).count()).unwrap_or(i32::MAX);
    let surge = max_surge(set, desired);
    let mut unavailable = max_unavailable(set, desired);
    if desired > 0 && surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    let mut pods = pods.clone();
    for (node, _) in nodes.iter().filter(|(_, v)| v.run) {
        pods.entry(node.clone()).or_default();
    }
    if surge == 0 {
        replace(set, &pods, hash, now, unavailable)
    } else {
        surge_onto(set, nodes, &pods, hash, now, surge, desired)
    }
}

fn room(most: i32, taken: usize) -> usize {
    usize::try_from(most).unwrap_or(0).saturating_sub(taken)
}

/// Deletes as many old pods as may be unavailable; [`manage`] makes new ones. Pods that are not available
/// anyway go first.
fn replace(set: &DaemonSet, pods: &ByNode, hash: &str, now: &Time, most: i32) -> Plan {
    let available = |pod: &Pod| pods::is_available(pod, min_ready_seconds(set), now);
    let mut unavailable = 0;
    let mut delete = Vec::new();
    let mut candidates = Vec::new();
    for present in pods.values() {
        match updated_pods(set, present, hash) {
            Some((Some(new), None)) => unavailable += usize::from(!available(&new)),
            Some((None, Some(old))) if !available(&old) => {
                delete.push(old);
                unavailable += 1;
            }
            Some((None, Some(old))) => candidates.push(old),
            // manage has work here: the node counts as unavailable.
            _ => unavailable += 1,
        }
    }
    delete.extend(candidates.into_iter().take(room(most, unavailable)));
    Plan { delete, ..Plan::default() }
}

/// Makes new pods beside up to `most` old ones that are available, and beside all that are not; an old pod goes
/// when the new one is available.
fn surge_onto(
    set: &DaemonSet,
    nodes: &Verdicts,
    pods: &ByNode,
    hash: &str,
    now: &Time,
    most: i32,
    desired: i32,
) -> Plan {
    let available = |pod: &Pod| pods::is_available(pod, min_ready_seconds(set), now);
    let mut plan = Plan::default();
    let (mut misplaced, mut candidates) = (Vec::new(), Vec::new());
    let (mut surging, mut up) = (0, 0);
    for (node, present) in pods {
        let Some((new, old)) = updated_pods(set, present, hash) else {
            surging += 1;
            continue;
        };
        up += usize::from(old.as_ref().or(new.as_ref()).is_some_and(|pod| available(pod)));
        let runs = nodes.get(node).is_some_and(|verdict| verdict.run);
        match (new, old) {
            (_, None) => {}
            (None, Some(old)) => match (available(&old), runs) {
                (false, false) => plan.delete.push(old),
                (false, true) => plan.create.push(node.clone()),
                (true, false) => misplaced.push(old),
                (true, true) => candidates.push(node.clone()),
            },
            (Some(new), Some(old)) => {
                if available(&new) {
                    plan.delete.push(old);
                } else {
                    surging += 1;
                }
            }
        }
    }
    // Who surges expects no gap: a pod leaves a node that is no longer wanted only when there are enough others.
    let spare = up.saturating_sub(usize::try_from(desired).unwrap_or(0));
    plan.delete.extend(misplaced.into_iter().take(spare));
    plan.create.extend(candidates.into_iter().take(room(most, surging)));
    plan
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(rolling: Value) -> DaemonSet {
        serde_json::from_value(json!({"spec": {
            "selector": {}, "template": {},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        }}))
        .unwrap()
    }

    fn replacing(unavailable: Value) -> DaemonSet {
        set(json!({"maxUnavailable": unavailable, "maxSurge": 0}))
    }

    fn surging(surge: Value) -> DaemonSet {
        set(json!({"maxUnavailable": 0, "maxSurge": surge}))
    }

    /// `n1 new ready`: its node, revision, and phase, readiness or deletion.
    fn pod(text: &str) -> Arc<Pod> {
        let words: Vec<&str> = text.split(' ').collect();
        let has = |word: &str| words.contains(&word);
        let phase = ["Failed", "Succeeded"].into_iter().find(|p| has(p)).unwrap_or("Running");
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": text, "labels": {HASH_LABEL: words[1]},
                             "deletionTimestamp": has("going").then_some("2026-01-01T00:00:00Z")},
                "spec": {"containers": [], "nodeName": (!has("unbound")).then_some(words[0])},
                "status": {"phase": phase, "conditions": [
                    {"type": "Ready", "status": if has("ready") { "True" } else { "False" },
                     "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .unwrap(),
        )
    }

    fn by_node(texts: &[&str]) -> ByNode {
        let mut pods = ByNode::new();
        for text in texts {
            let node = text.split(' ').next().unwrap();
            pods.entry(node.to_owned()).or_default().push(pod(text));
        }
        pods
    }

    /// `n1` runs, `-n1` lets stay what is there, `!n1` wants none.
    fn nodes(texts: &[&str]) -> Verdicts {
        texts
            .iter()
            .map(|text| {
                let verdict = Verdict { run: !text.starts_with(['-', '!']), stay: !text.starts_with('!') };
                (text.trim_start_matches(['-', '!']).to_owned(), verdict)
            })
            .collect()
    }

    fn shown(plan: &Plan) -> (Vec<&str>, Vec<&str>) {
        let delete = plan.delete.iter().map(|pod| meta::name(&pod.metadata)).collect();
        (plan.create.iter().map(String::as_str).collect(), delete)
    }

    #[track_caller]
    fn check_manage(set: &DaemonSet, on: &[&str], pods: &[&str], create: &[&str], delete: &[&str]) {
        let plan = manage(set, &nodes(on), &by_node(pods), "new", &meta::now(), |_| true);
        assert_eq!(shown(&plan), (create.to_vec(), delete.to_vec()));
    }

    #[test]
    fn each_node_gets_one() {
        let set = replacing(json!(1));
        check_manage(&set, &["a", "b", "-c", "!d"], &["b new", "c old", "d old"], &["a"], &["d old"]);
        check_manage(&set, &["a"], &["a new going"], &[], &[]);
        check_manage(&set, &["a"], &["a new Failed"], &[], &["a new Failed"]);
        check_manage(&set, &["a"], &["a new Succeeded"], &[], &["a new Succeeded"]);
        check_manage(&set, &["a"], &["a new unbound", "a new 2"], &[], &["a new unbound"]);
        check_manage(&set, &[], &["a new unbound", "a new"], &[], &["a new unbound"]);
        let plan = manage(&set, &nodes(&["a"]), &by_node(&["a new Failed"]), "new", &meta::now(), |_| false);
        assert_eq!(shown(&plan), (vec![], vec![]));
    }

    #[test]
    fn a_surging_set_may_have_two() {
        let set = surging(json!(1));
        check_manage(&set, &["a"], &["a new going"], &["a"], &[]);
        check_manage(&set, &["-a"], &["a new going"], &[], &[]);
        check_manage(&set, &["a"], &["a new", "a old ready"], &[], &[]);
        check_manage(&set, &["a"], &["a new", "a old"], &[], &["a old"]);
        check_manage(&set, &["a"], &["a new ready", "a old ready"], &[], &["a old ready"]);
        check_manage(&set, &["a"], &["a new", "a old ready", "a new 2"], &[], &["a new 2"]);
    }

    #[track_caller]
    fn check_roll(set: &DaemonSet, on: &[&str], pods: &[&str], create: &[&str], delete: &[&str]) {
        let plan = roll(set, &nodes(on), &by_node(pods), "new", &meta::now());
        assert_eq!(shown(&plan), (create.to_vec(), delete.to_vec()));
    }

    #[test]
    fn old_pods_are_replaced_within_the_limit() {
        let on = ["a", "b", "c", "d"];
        let old = ["a old ready", "b old ready", "c old ready", "d old ready"];
        check_roll(&replacing(json!(1)), &on, &old, &[], &["a old ready"]);
        check_roll(&replacing(json!("50%")), &on, &old, &[], &["a old ready", "b old ready"]);
        let half = ["a new ready", "b new", "c old ready", "d old ready"];
        check_roll(&replacing(json!(1)), &on, &half, &[], &[]);
        check_roll(&replacing(json!(2)), &on, &half, &[], &["c old ready"]);
        // A pod that does not work anyway costs nothing; a node without a pod is unavailable.
        check_roll(&replacing(json!(1)), &on, &["a old ready", "b old", "c old ready"], &[], &["b old"]);
        check_roll(&replacing(json!(1)), &["a", "b"], &["a old ready"], &[], &[]);
        check_roll(&replacing(json!(0)), &["a"], &["a old ready"], &[], &["a old ready"]);
    }

    #[test]
    fn new_pods_surge_within_the_limit() {
        let on = ["a", "b"];
        check_roll(&surging(json!(1)), &on, &["a old ready", "b old ready"], &["a"], &[]);
        check_roll(&surging(json!(1)), &on, &["a old ready", "b old"], &["b", "a"], &[]);
        check_roll(&surging(json!(1)), &on, &["a old ready", "a new", "b old ready"], &[], &[]);
        let pods = ["a old ready", "a new ready", "b old ready"];
        check_roll(&surging(json!(1)), &on, &pods, &["b"], &["a old ready"]);
        // Node b is not wanted any more: its pod stays until there is another in its place.
        check_roll(&surging(json!(1)), &["a", "-b"], &["a new", "b old ready"], &[], &[]);
        check_roll(&surging(json!(1)), &["a", "-b"], &["a new ready", "b old ready"], &[], &["b old ready"]);
        check_roll(&surging(json!(1)), &["a", "-b"], &["a new ready", "b old"], &[], &["b old"]);
    }
}
