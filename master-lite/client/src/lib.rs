//! What every client of the API inside the control plane is built from: shared, trimmed caches
//! ([`informer`]), a rate-limited [`queue`] with workers, an event [`events::Recorder`], [`leader`] election,
//! and the pure rules of the API that scheduler and controllers have in common ([`selector`], [`quantity`],
//! [`taints`], [`pods`], [`meta`]).
//!
//! Nothing here knows a controller or the scheduler, and nothing sees the API server other than through
//! [`kube::Client`].

pub mod events;
pub mod informer;
pub mod leader;
pub mod meta;
pub mod pods;
pub mod queue;
pub mod selector;
pub mod taints;
pub mod trim;

pub use events::{EventType, Recorder};
pub use informer::{Delta, Informer, Key};
pub use leader::{LeaderConfig, LeaderError, run_as_leader};
pub use queue::{WorkQueue, run_workers};
pub use selector::Selector;
