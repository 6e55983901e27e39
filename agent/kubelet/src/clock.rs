//! Wall time that tests can move.

use std::time::{Duration, SystemTime};

/// Where "now" comes from. Decisions compare it with times that the runtime recorded, so it is wall time.
#[derive(Debug, Clone, Copy, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// Follows tokio's clock from a fixed start, so that a paused runtime moves it.
    Virtual {
        /// Wall time at the start.
        base: SystemTime,
        /// The same moment on tokio's clock.
        start: tokio::time::Instant,
    },
}

impl Clock {
    /// A clock that tokio's paused time drives.
    pub fn virtual_from(base: SystemTime) -> Self {
        Self::Virtual { base, start: tokio::time::Instant::now() }
    }

    /// Now.
    pub fn now(&self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            Self::Virtual { base, start } => *base + start.elapsed(),
        }
    }

    /// Sleeps until that moment; returns at once when it has passed.
    pub async fn sleep_until(&self, at: SystemTime) {
        tokio::time::sleep(at.duration_since(self.now()).unwrap_or(Duration::ZERO)).await;
    }
}

/// A time of the Kubernetes API. Times before 1970 or beyond year 9999 become the epoch.
pub fn api_time(at: SystemTime) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        jiff::Timestamp::try_from(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH),
    )
}
