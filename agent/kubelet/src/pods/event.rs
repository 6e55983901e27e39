//! Everything that can wake a pod's worker.

use k8s_openapi::api::core::v1::Pod;
use keelson_cri::PodSandboxStatus;

use super::decide::Op;
use super::local_storage::Usage;
use super::resize::actuate::Step;
use super::start::StartError;
use crate::status::writer::WriteError;
use crate::volumes::setup::Outcome;

/// What is wanted of a pod, as the manager tells its worker.
#[derive(Debug, Clone)]
pub struct Desired {
    /// The pod as the API last sent it.
    pub pod: std::sync::Arc<Pod>,
    /// Its API object is gone: end it without writing to the API.
    pub removed: bool,
}

/// Why there is no sandbox.
#[derive(Debug)]
pub struct NoSandbox {
    /// Text for people.
    pub error: String,
    /// Sandboxes that the runtime has of the pod all the same, such as one that could not be undone.
    pub left: Vec<String>,
}

/// A piece of work has ended.
#[derive(Debug)]
pub enum Done {
    /// Volumes were set up.
    Volumes(Outcome),
    /// A sandbox was made.
    Sandbox(Result<PodSandboxStatus, NoSandbox>),
    /// A container was started, or not.
    Started(String, Result<String, StartError>),
    /// A container was stopped.
    Killed(String, Result<(), String>),
    /// Resources were changed: these writes were done, and why there are no more if there should be.
    Resized(Vec<Step>, Result<(), String>),
    /// The whole pod was stopped.
    PodKilled(Result<(), String>),
    /// A record was removed.
    Collected(String),
    /// What the pod takes of the disk.
    Measured(Usage),
    /// The status was written.
    Status(Box<Result<Pod, WriteError>>),
    /// Volumes were unmounted.
    Unmounted(Result<(), String>),
    /// The API object was deleted.
    Deleted(Result<(), String>),
    /// Nothing of the pod is left.
    Forgotten(Result<(), String>),
}

impl Done {
    /// The work that ended.
    pub fn op(&self) -> Op {
        match self {
            Self::Volumes(_) => Op::Volumes,
            Self::Sandbox(_) => Op::Sandbox,
            Self::Started(name, _) => Op::Start(name.clone()),
            Self::Killed(id, _) => Op::Kill(id.clone()),
            Self::Resized(..) => Op::Resize,
            Self::PodKilled(_) => Op::KillPod,
            Self::Collected(id) => Op::Collect(id.clone()),
            Self::Measured(_) => Op::Measure,
            Self::Status(_) => Op::Status,
            Self::Unmounted(_) => Op::Unmount,
            Self::Deleted(_) => Op::Delete,
            Self::Forgotten(_) => Op::Forget,
        }
    }
}

/// What woke the worker.
#[derive(Debug)]
pub enum PodEvent {
    /// The API has news of the pod.
    Desired(Desired),
    /// The runtime says that a container or sandbox of the pod changed.
    RuntimeChanged,
    /// The node has room for a resize that was deferred.
    RoomMade,
    /// A probe's verdict changed.
    ProbeResult,
    /// A ConfigMap or Secret of the pod changed.
    ObjectsChanged,
    /// Work ended.
    Done(Done),
    /// Work was cancelled or panicked; the task says which it was.
    Lost(tokio::task::Id),
    /// The time that was waited for has come: a back-off, a deadline, a token's renewal.
    Deadline,
}
