//! Where the time of a pod's start goes: a [`Timeline`] that whoever works on the pod writes its phases to.
//!
//! The kubelet puts its work into the [`Timeline::scope`] of the pod; the runtime behind the seam wraps its steps into
//! [`phase`] and need not know whether anybody listens. Phases may overlap and nest: each says when it began and how long
//! it took.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

tokio::task_local! {
    static CURRENT: Timeline;
}

/// One step of a pod's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// Name, such as `sandbox.network`: the part before the dot is the phase that this one belongs to.
    pub name: &'static str,
    /// When it began, counted from the beginning of the timeline.
    pub offset: Duration,
    /// How long it took.
    pub took: Duration,
}

/// The phases of one pod's start, in the order in which they ended. Clones write to the same one.
#[derive(Debug, Clone)]
pub struct Timeline {
    began: Instant,
    phases: Arc<Mutex<Vec<Phase>>>,
}

impl Timeline {
    /// Begins now.
    pub fn begin() -> Self {
        Self { began: Instant::now(), phases: Arc::default() }
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Work whose [`phase`]s are written here.
    pub async fn scope<F: Future>(&self, work: F) -> F::Output {
        CURRENT.scope(self.clone(), work).await
    }

    /// What was written so far.
    pub fn phases(&self) -> Vec<Phase> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, name: &'static str, from: Instant) {
        let phase = Phase { name, offset: from.saturating_duration_since(self.began), took: from.elapsed() };
        self.phases.lock().unwrap_or_else(PoisonError::into_inner).push(phase);
    }
}

/// Work that is a phase of its own. Without a timeline around it, it is just the work.
pub async fn phase<F: Future>(name: &'static str, work: F) -> F::Output {
    let from = Instant::now();
    let result = work.await;
    // No timeline: nobody asked.
    let _ = CURRENT.try_with(|timeline| timeline.add(name, from));
    result
}

/// As [`phase`], for work that does not wait.
pub fn phase_of<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    let from = Instant::now();
    let result = work();
    let _ = CURRENT.try_with(|timeline| timeline.add(name, from));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_land_in_the_timeline_of_their_task() {
        let timeline = Timeline::begin();
        let inner = async {
            phase("sandbox", async {
                phase_of("sandbox.cgroup", || ());
                tokio::task::yield_now().await;
            })
            .await;
        };
        tokio::spawn({
            let timeline = timeline.clone();
            async move { timeline.scope(inner).await }
        })
        .await
        .unwrap();
        phase("nobody listens", async {}).await;
        let names: Vec<_> = timeline.phases().iter().map(|phase| phase.name).collect();
        assert_eq!(names, ["sandbox.cgroup", "sandbox"]);
        assert!(timeline.phases().iter().all(|phase| phase.offset + phase.took <= timeline.elapsed()));
    }
}
