//! From what is allocated to what the cgroups hold: which writes, in which order. Pure.
//!
//! Memory and cpu are changed one after the other. A pod's own cgroup grows before its containers and shrinks after them,
//! and containers shrink before others grow, so that no limit of a container is ever above the pod's.

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use keelson_cri::{ContainerState, LinuxResources};

use super::{Actuated, Amounts, requires_restart};
use crate::pods::ObservedPod;
use crate::pods::podext::PodExt;
use crate::pods::resources::{container_resources, pod_resources};

/// The two resources that can be resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `memory`.
    Memory,
    /// `cpu`.
    Cpu,
}

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// To the pod's own cgroup.
    Pod(LinuxResources),
    /// To a container.
    Container {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// Which resource this is about.
        kind: Kind,
        /// What the runtime is told.
        resources: LinuxResources,
        /// The container's resources in the spec; of them `kind` is in effect after this.
        wanted: ResourceRequirements,
    },
}

/// A memory limit that gets smaller. It must not fall below what is in use, or the kernel kills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decrease {
    /// Container id and name; none for the pod as a whole.
    pub container: Option<(String, String)>,
    /// The new limit in bytes.
    pub limit: i64,
}

/// Writes in their order, and what must hold before the first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// The writes.
    pub steps: Vec<Step>,
    /// Memory limits that get smaller.
    pub decreases: Vec<Decrease>,
}

/// One container to change.
struct Change<'a> {
    container: &'a Container,
    id: &'a str,
    old: Amounts,
    new: Amounts,
    full: LinuxResources,
}

/// What is to be written; no steps when everything allocated is in effect. Containers that must be restarted are not among
/// them: they are made anew.
pub fn plan(pod: &Pod, actuated: &Actuated, observed: &ObservedPod, memory_capacity: u64) -> Plan {
    let changes: Vec<Change<'_>> = running(pod, observed)
        .filter(|(container, _)| !requires_restart(container, actuated))
        .map(|(container, id)| Change {
            container,
            id,
            old: Amounts::of(actuated.containers.get(&container.name)),
            new: Amounts::of(container.resources.as_ref()),
            full: container_resources(pod, container, memory_capacity),
        })
        .filter(|change| change.old != change.new)
        .collect();
    let mut plan = Plan::default();
    memory(pod, actuated, &changes, &mut plan);
    cpu(pod, actuated, &changes, &mut plan);
    plan
}

/// Whether something of the running pod is not yet as allocated.
pub fn in_progress(pod: &Pod, actuated: &Actuated, observed: &ObservedPod) -> bool {
    let target = pod_resources(pod);
    let pending = |new: Option<i64>, old: Option<i64>| new.is_some() && new != old;
    let differs = running(pod, observed).any(|(container, _)| {
        Amounts::of(actuated.containers.get(&container.name)) != Amounts::of(container.resources.as_ref())
    });
    differs
        || pending(target.memory_limit, actuated.pod.memory_limit)
        || pending(target.cpu_quota, actuated.pod.cpu_quota)
        || target.cpu_shares != actuated.pod.cpu_shares
}

fn running<'a>(pod: &'a Pod, observed: &'a ObservedPod) -> impl Iterator<Item = (&'a Container, &'a str)> {
    PodExt::spec(pod).containers.iter().chain(pod.init_containers()).filter_map(|container| {
        let status = observed.container(&container.name)?;
        (status.state == ContainerState::Running).then_some((container, status.id.as_str()))
    })
}

/// Decreases first, in the order of the spec.
fn ordered<'a, 'b>(
    changes: &'b [Change<'a>],
    grows: impl Fn(&Change<'a>) -> Option<bool>,
) -> Vec<&'b Change<'a>> {
    let mut found: Vec<(bool, &Change<'a>)> =
        changes.iter().filter_map(|change| Some((grows(change)?, change))).collect();
    found.sort_by_key(|(grows, _)| *grows);
    found.into_iter().map(|(_, change)| change).collect()
}

/// Whether a pair of limits, or else of requests, grows; none when neither changes.
fn growth(limits: (i64, i64), requests: (i64, i64)) -> Option<bool> {
    if limits.0 != limits.1 {
        Some(limits.1 > limits.0)
    } else if requests.0 != requests.1 {
        Some(requests.1 > requests.0)
    } else {
        None
    }
}

fn step(change: &Change<'_>, kind: Kind, resources: LinuxResources) -> Step {
    Step::Container {
        id: change.id.to_owned(),
        name: change.container.name.clone(),
        kind,
        resources,
        wanted: change.container.resources.clone().unwrap_or_default(),
    }
}

fn memory(pod: &Pod, actuated: &Actuated, changes: &[Change<'_>], plan: &mut Plan) {
    let old = actuated.pod.memory_limit.unwrap_or(i64::MAX);
    // A limit is never taken away: then the one there is stays.
    let new = pod_resources(pod).memory_limit.unwrap_or(old);
    let whole = || Step::Pod(LinuxResources { memory_limit: Some(new), ..LinuxResources::default() });
    if new > old {
        plan.steps.push(whole());
    }
    let grows = |c: &Change<'_>| {
        growth((c.old.memory_limit, c.new.memory_limit), (c.old.memory_request, c.new.memory_request))
    };
    for change in ordered(changes, grows) {
        let limited = change.new.memory_limit > 0
            && (change.old.memory_limit == 0 || change.new.memory_limit < change.old.memory_limit);
        if limited {
            plan.decreases.push(Decrease {
                container: Some((change.id.to_owned(), change.container.name.clone())),
                limit: change.new.memory_limit,
            });
        }
        let resources = LinuxResources {
            memory_limit: change.full.memory_limit,
            // Which process the kernel kills first follows the request.
            oom_score_adj: change.full.oom_score_adj,
            ..LinuxResources::default()
        };
        plan.steps.push(step(change, Kind::Memory, resources));
    }
    if new < old {
        plan.decreases.push(Decrease { container: None, limit: new });
        plan.steps.push(whole());
    }
}

fn cpu(pod: &Pod, actuated: &Actuated, changes: &[Change<'_>], plan: &mut Plan) {
    let target = pod_resources(pod);
    let old_quota = actuated.pod.cpu_quota.unwrap_or(i64::MAX);
    let new_quota = target.cpu_quota.unwrap_or(old_quota);
    let (old_shares, new_shares) = (actuated.pod.cpu_shares, target.cpu_shares);
    let quota = || {
        let (cpu_quota, cpu_period) = (target.cpu_quota, target.cpu_period);
        Step::Pod(LinuxResources { cpu_quota, cpu_period, ..LinuxResources::default() })
    };
    let shares = || Step::Pod(LinuxResources { cpu_shares: new_shares, ..LinuxResources::default() });
    if new_quota > old_quota {
        plan.steps.push(quota());
    }
    if new_shares > old_shares {
        plan.steps.push(shares());
    }
    let grows =
        |c: &Change<'_>| growth((c.old.cpu_limit, c.new.cpu_limit), (c.old.cpu_request, c.new.cpu_request));
    for change in ordered(changes, grows) {
        let resources = LinuxResources {
            cpu_shares: change.full.cpu_shares,
            cpu_quota: change.full.cpu_quota,
            cpu_period: change.full.cpu_period,
            ..LinuxResources::default()
        };
        plan.steps.push(step(change, Kind::Cpu, resources));
    }
    if new_shares < old_shares {
        plan.steps.push(shares());
    }
    if new_quota < old_quota {
        plan.steps.push(quota());
    }
}

impl Actuated {
    /// A write was done.
    pub fn note(&mut self, step: &Step) {
        match step {
            Step::Pod(resources) => self.pod = std::mem::take(&mut self.pod).updated(resources.clone()),
            Step::Container { name, kind, wanted, .. } => {
                let resource = if *kind == Kind::Memory { "memory" } else { "cpu" };
                let own = self.containers.entry(name.clone()).or_default();
                for (own, wanted) in
                    [(&mut own.requests, &wanted.requests), (&mut own.limits, &wanted.limits)]
                {
                    if let Some(amount) = wanted.as_ref().and_then(|map| map.get(resource)) {
                        own.get_or_insert_default().insert(resource.to_owned(), amount.clone());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{cri_container, cri_sandbox, pod_json};
    use serde_json::json;

    /// One word a container: `name:cpu,memory` with requests equal to limits.
    fn pod(text: &str) -> Pod {
        let containers: Vec<serde_json::Value> = text
            .split_whitespace()
            .map(|word| {
                let (name, amounts) = word.split_once(':').unwrap();
                let (cpu, memory) = amounts.split_once(',').unwrap();
                let amounts = json!({"cpu": cpu, "memory": memory});
                json!({"name": name, "resources": {"requests": amounts, "limits": amounts}})
            })
            .collect();
        pod_json(json!({"containers": containers}))
    }

    fn observed() -> ObservedPod {
        let list = ["a", "b"].map(|n| cri_container(n, 0, ContainerState::Running, None));
        ObservedPod::new(vec![cri_sandbox(0, true)], list.to_vec())
    }

    fn render(step: &Step) -> String {
        let (who, r) = match step {
            Step::Pod(r) => ("pod", r),
            Step::Container { id, resources, .. } => (id.as_str(), resources),
        };
        let mut out = who.to_owned();
        let fields = [
            ("memory", r.memory_limit),
            ("quota", r.cpu_quota),
            ("shares", r.cpu_shares.and_then(|s| i64::try_from(s).ok())),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                out.push_str(&format!(" {name}={value}"));
            }
        }
        out
    }

    fn check(old: &str, new: &str, want: &[&str]) -> Plan {
        let (before, after) = (pod(old), pod(new));
        let mut actuated = Actuated::of(&before);
        let plan = plan(&after, &actuated, &observed(), 0);
        assert_eq!(plan.steps.iter().map(render).collect::<Vec<_>>(), want, "{old} to {new}");
        assert_eq!(in_progress(&after, &actuated, &observed()), !want.is_empty());
        // Once all is done, nothing is left to do.
        plan.steps.iter().for_each(|step| actuated.note(step));
        assert_eq!(super::plan(&after, &actuated, &observed(), 0), Plan::default());
        assert!(!in_progress(&after, &actuated, &observed()));
        plan
    }

    #[test]
    fn the_pod_grows_first_and_shrinks_last() {
        check("a:1,100 b:1,100", "a:1,100 b:1000m,100", &[]);
        check("a:1,100 b:1,100", "a:1,150 b:1,100", &["pod memory=250", "a-0 memory=150"]);
        let plan = check("a:1,100 b:1,100", "a:1,50 b:1,100", &["a-0 memory=50", "pod memory=150"]);
        let limits: Vec<i64> = plan.decreases.iter().map(|d| d.limit).collect();
        assert_eq!(limits, [50, 150]);
        check(
            "a:1,100 b:1,100",
            "a:2,100 b:1,100",
            &["pod quota=300000", "pod shares=3072", "a-0 quota=200000 shares=2048"],
        );
        check(
            "a:2,100 b:1,100",
            "a:1,100 b:1,100",
            &["a-0 quota=100000 shares=1024", "pod shares=2048", "pod quota=200000"],
        );
    }

    #[test]
    fn containers_shrink_before_others_grow() {
        let plan = check("a:1,100 b:1,200", "a:1,200 b:1,100", &["b-0 memory=100", "a-0 memory=200"]);
        assert_eq!(plan.decreases.len(), 1);
        check(
            "a:1,100 b:2,200",
            "a:2,200 b:1,100",
            &[
                "b-0 memory=100",
                "a-0 memory=200",
                "b-0 quota=100000 shares=1024",
                "a-0 quota=200000 shares=2048",
            ],
        );
    }

    #[test]
    fn what_does_not_run_is_made_with_the_new_resources() {
        let (before, after) = (pod("a:1,100 b:1,100"), pod("a:1,150 b:1,100"));
        let actuated = Actuated::of(&before);
        let mut observed = observed();
        observed.containers.iter_mut().for_each(|c| c.state = ContainerState::Exited);
        // Its pod must have grown before it starts.
        let steps = plan(&after, &actuated, &observed, 0).steps;
        assert_eq!(steps.iter().map(render).collect::<Vec<_>>(), ["pod memory=250"]);
    }
}
