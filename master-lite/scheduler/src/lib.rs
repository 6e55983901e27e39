//! keelson-scheduler: chooses a node for each pod, as kube-scheduler does.
//!
//! - [`schedule`](mod@schedule) is the decision: `schedule(pod, &Snapshot)` is pure, and its plugins are in [`plugins`].
//! - [`preemption`] is the decision which pods must go for one that fits nowhere, pure too; [`executor`] has them go.
//! - [`cache`] keeps nodes and the pods on them, counting pods as placed from the moment of the decision.
//! - [`queue`] holds pods that wait: to be tried, for their back-off, or for an event that may make them fit.
//! - [`scheduler`] is the loop around the three, and the only part that talks to the API.

pub mod cache;
pub mod executor;
pub mod framework;
pub mod node_info;
pub mod plugins;
pub mod preemption;
pub mod queue;
pub mod schedule;
pub mod scheduler;
#[cfg(test)]
mod testing;

pub use framework::FitError;
pub use node_info::{NodeInfo, PodInfo, Snapshot};
pub use schedule::schedule;
pub use scheduler::{SchedulerConfig, run};
