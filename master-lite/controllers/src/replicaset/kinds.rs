//! The two kinds that the engine serves.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::Selector;

use super::status::Counts;
use crate::error::{Error, Result};
use crate::owners::Owner;

/// Making or deleting pods has failed.
#[derive(Debug)]
pub struct Failure {
    /// `FailedCreate` or `FailedDelete`.
    pub reason: &'static str,
    /// Why.
    pub error: Error,
}

/// The condition `ReplicaFailure`, whichever kind has it.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaFailure {
    /// `FailedCreate` or `FailedDelete`.
    pub reason: String,
    /// The API's words.
    pub message: String,
    /// Since when.
    pub since: Option<Time>,
}

/// An object that wants a number of pods made from its template.
pub trait Scaled: Owner {
    /// How many pods it wants.
    fn replicas(&self) -> i32;
    /// How long a ready pod must stay so to count as available.
    fn min_ready_seconds(&self) -> i32;
    /// How its pods look.
    fn template(&self) -> PodTemplateSpec;
    /// What its status says.
    fn counts(&self) -> Counts;
    /// The generation that its status is about.
    fn observed_generation(&self) -> Option<i64>;
    /// Writes the status into the object.
    fn set_status(&mut self, counts: &Counts, generation: Option<i64>);
}

impl Owner for ReplicaSet {
    fn selector(&self) -> Result<Selector> {
        Ok(Selector::compile(self.spec.as_ref().map(|s| &s.selector))?)
    }
}

impl Scaled for ReplicaSet {
    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }

    fn counts(&self) -> Counts {
        let status = self.status.clone().unwrap_or_default();
        let failure = status.conditions.iter().flatten().find(|c| c.type_ == "ReplicaFailure");
        Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: status.terminating_replicas,
            failure: failure.map(|c| ReplicaFailure {
                reason: c.reason.clone().unwrap_or_default(),
                message: c.message.clone().unwrap_or_default(),
                since: c.last_transition_time.clone(),
            }),
        }
    }

    fn observed_generation(&self) -> Option<i64> {
        self.status.as_ref().and_then(|s| s.observed_generation)
    }

    fn set_status(&mut self, counts: &Counts, generation: Option<i64>) {
        let mut conditions = self.status.take().and_then(|s| s.conditions).unwrap_or_default();
        conditions.retain(|c| c.type_ != "ReplicaFailure");
        conditions.extend(counts.failure.iter().map(|failure| ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(failure.reason.clone()),
            message: Some(failure.message.clone()),
            last_transition_time: failure.since.clone(),
        }));
        self.status = Some(ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            terminating_replicas: counts.terminating,
            observed_generation: generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        });
    }
}

impl Owner for ReplicationController {
    fn selector(&self) -> Result<Selector> {
        let selector = self.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty());
        Ok(selector.map_or_else(Selector::nothing, Selector::from_map))
    }
}

impl Scaled for ReplicationController {
    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }

    fn counts(&self) -> Counts {
        let status = self.status.clone().unwrap_or_default();
        let failure = status.conditions.iter().flatten().find(|c| c.type_ == "ReplicaFailure");
        Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: None,
            failure: failure.map(|c| ReplicaFailure {
                reason: c.reason.clone().unwrap_or_default(),
                message: c.message.clone().unwrap_or_default(),
                since: c.last_transition_time.clone(),
            }),
        }
    }

    fn observed_generation(&self) -> Option<i64> {
        self.status.as_ref().and_then(|s| s.observed_generation)
    }

    fn set_status(&mut self, counts: &Counts, generation: Option<i64>) {
        let mut conditions = self.status.take().and_then(|s| s.conditions).unwrap_or_default();
        conditions.retain(|c| c.type_ != "ReplicaFailure");
        conditions.extend(counts.failure.iter().map(|failure| ReplicationControllerCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(failure.reason.clone()),
            message: Some(failure.message.clone()),
            last_transition_time: failure.since.clone(),
        }));
        self.status = Some(ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            observed_generation: generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        });
    }
}
