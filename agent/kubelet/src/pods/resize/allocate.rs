//! Whether this node has room for what a resize wants, and who is served first when room appears.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::pods::admission;
use crate::pods::podext::PodExt;
use crate::pods::qos::{QosClass, Side, amount, pod_amount, qos_class};
use crate::pods::table::PodTable;
use crate::status::generate::Verdict;

/// A deferred resize is looked at again after this, even if nothing was heard of.
pub const RETRY: Duration = Duration::from_secs(180);

/// Why a resize is not allocated: `reason` of the `PodResizePending` condition, and its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    /// Not now.
    Deferred,
    /// Never on this node.
    Infeasible,
}

impl Pending {
    /// The condition's reason.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Deferred => "Deferred",
            Self::Infeasible => "Infeasible",
        }
    }
}

/// Judges a resize of a pod beside the others of the node. Pure.
pub fn judge(
    wanted: &Pod,
    others: &[Arc<Pod>],
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<(), (Pending, String)> {
    for name in ["cpu", "memory"] {
        let requested = pod_amount(wanted, Side::Requests, name);
        if let Some(capacity) = allocatable.get(name).map(|q| amount(name, q))
            && requested > capacity
        {
            let message = format!(
                "Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"
            );
            return Err((Pending::Infeasible, message));
        }
    }
    match admission::lacking(wanted, others, allocatable) {
        None => Ok(()),
        Some(lack) => Err((Pending::Deferred, lack.message)),
    }
}

/// A resize that waits for room.
struct Waiting {
    wanted: Arc<Pod>,
    /// It asks for more cpu or memory than is allocated.
    grows: bool,
    since: SystemTime,
    wake: Arc<Notify>,
}

/// Hands the node's room out: one decision at a time, whichever pod's worker asks.
pub struct Allocations {
    /// The machine's own resources.
    own: BTreeMap<String, Quantity>,
    /// Those that others have written into the node's status.
    extended: watch::Receiver<BTreeMap<String, Quantity>>,
    waiting: Mutex<HashMap<String, Waiting>>,
    changed: Notify,
}

impl Allocations {
    /// Of a node with these resources of its own, and those that others give it.
    pub fn new(
        own: BTreeMap<String, Quantity>,
        extended: watch::Receiver<BTreeMap<String, Quantity>>,
    ) -> Self {
        Self { own, extended, waiting: Mutex::default(), changed: Notify::new() }
    }

    fn allocatable(&self) -> BTreeMap<String, Quantity> {
        let mut all = self.extended.borrow().clone();
        all.extend(self.own.clone());
        all
    }

    /// Waits until what pods have may have changed; one waiter at a time.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Whether a new pod fits beside those that were there before.
    pub fn admit(&self, table: &PodTable, pod: &Pod) -> Option<Verdict> {
        let _one_at_a_time = self.waiting.lock();
        self.changed.notify_one();
        admission::fits(pod, &table.ahead_of(pod), &self.allocatable())
    }

    /// Gives a pod its new resources (the table then shows them), or remembers that it waits for them; `wake` is notified
    /// when it need not wait any longer.
    pub fn resize(
        &self,
        table: &PodTable,
        allocated: &Pod,
        wanted: &Arc<Pod>,
        wake: &Arc<Notify>,
        now: SystemTime,
    ) -> Result<(), (Pending, String)> {
        let mut waiting = self.waiting.lock();
        self.changed.notify_one();
        let uid = PodExt::uid(&**wanted);
        let verdict = judge(wanted, &table.counted(), &self.allocatable());
        match &verdict {
            Ok(()) => {
                waiting.remove(uid);
                table.allocate(wanted.clone());
            }
            Err((Pending::Infeasible, _)) => {
                waiting.remove(uid);
            }
            Err((Pending::Deferred, _)) => {
                let since = waiting.get(uid).map_or(now, |w| w.since);
                let grows = ["cpu", "memory"].iter().any(|name| {
                    pod_amount(wanted, Side::Requests, name) > pod_amount(allocated, Side::Requests, name)
                });
                let entry = Waiting { wanted: wanted.clone(), grows, since, wake: wake.clone() };
                waiting.insert(uid.to_owned(), entry);
            }
        }
        verdict
    }

    /// The pod wants what it has, or wants nothing any more.
    pub fn settled(&self, uid: &str) {
        self.waiting.lock().remove(uid);
    }

    /// Some of the node's resources became free: those that wait are served in upstream's order.
    pub fn freed(&self, table: &PodTable) {
        self.changed.notify_one();
        let mut waiting = self.waiting.lock();
        let mut order: Vec<(_, String)> = waiting.iter().map(|(uid, w)| (rank(w), uid.clone())).collect();
        order.sort();
        let allocatable = self.allocatable();
        for (_, uid) in order {
            let Some(entry) = waiting.get(&uid) else { continue };
            if judge(&entry.wanted, &table.counted(), &allocatable).is_ok() {
                // The room is kept for it until its worker comes for it.
                table.allocate(entry.wanted.clone());
                entry.wake.notify_one();
                waiting.remove(&uid);
            }
        }
    }
}

/// First what doesn't grow, then by priority, then Guaranteed before Burstable, then who waits the longest.
fn rank(w: &Waiting) -> (bool, std::cmp::Reverse<i32>, bool, SystemTime) {
    let priority = PodExt::spec(&*w.wanted).priority.unwrap_or(0);
    (w.grows, std::cmp::Reverse(priority), qos_class(&w.wanted) != QosClass::Guaranteed, w.since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{pod_json, t0};
    use serde_json::json;

    fn pod(uid: &str, cpu: &str, priority: i32) -> Arc<Pod> {
        let resources = json!({"requests": {"cpu": cpu}});
        let spec = json!({"priority": priority, "containers": [{"name": "a", "resources": resources}]});
        let mut pod = pod_json(spec);
        pod.metadata.uid = Some(uid.into());
        Arc::new(pod)
    }

    fn bench() -> (Allocations, PodTable) {
        let own = BTreeMap::from([("cpu".into(), Quantity("4".into()))]);
        let node = Allocations::new(own, watch::Sender::default().subscribe());
        (node, PodTable::default())
    }

    #[test]
    fn room_now_later_or_never() {
        let others = [pod("o", "2", 0)];
        let allocatable = BTreeMap::from([("cpu".into(), Quantity("4".into()))]);
        let check = |cpu: &str, want: Result<(), (Pending, &str)>| {
            let got = judge(&pod("p", cpu, 0), &others, &allocatable);
            assert_eq!(got, want.map_err(|(p, m)| (p, m.to_owned())));
        };
        check("2", Ok(()));
        let lack = "Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000";
        check("3", Err((Pending::Deferred, lack)));
        let never = "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000";
        check("5", Err((Pending::Infeasible, never)));
    }

    #[test]
    fn who_comes_first() {
        let (node, table) = bench();
        let wakes: HashMap<&str, Arc<Notify>> =
            ["low", "high", "full"].map(|name| (name, Arc::new(Notify::new()))).into();
        for (uid, priority) in [("low", 0), ("high", 9)] {
            table.set(pod(uid, "1", priority), Arc::default());
        }
        table.set(pod("full", "2", 0), Arc::default());
        for (uid, priority) in [("low", 0), ("high", 9)] {
            let (old, new) = (pod(uid, "1", priority), pod(uid, "2", priority));
            let got = node.resize(&table, &old, &new, &wakes[uid], t0());
            assert_eq!(got.unwrap_err().0, Pending::Deferred);
        }
        // One CPU becomes free: it is for the pod of the higher priority.
        let (old, new) = (pod("full", "2", 0), pod("full", "1", 0));
        assert_eq!(node.resize(&table, &old, &new, &wakes["full"], t0()), Ok(()));
        node.freed(&table);
        let cpu = |uid: &str| {
            let found = table.pods().into_iter().find(|p| PodExt::uid(&**p) == uid).unwrap();
            pod_amount(&found, Side::Requests, "cpu")
        };
        assert_eq!((cpu("high"), cpu("low")), (2000, 1000));
        // What was kept for it is still there when its worker asks.
        let (old, new) = (pod("high", "1", 9), pod("high", "2", 9));
        assert_eq!(node.resize(&table, &old, &new, &wakes["high"], t0()), Ok(()));
        table.remove("full");
        node.freed(&table);
        assert_eq!(cpu("low"), 2000);
    }
}
