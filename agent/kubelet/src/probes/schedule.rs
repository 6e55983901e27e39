//! When a probe runs and what its results add up to. Pure.
//!
//! Source: upstream `doProbe` in `pkg/kubelet/prober/worker.go`.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;

/// The numbers of a probe with the API's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Wait after the container's start.
    pub initial_delay: Duration,
    /// Time between two probes.
    pub period: Duration,
    /// Deadline of one probe.
    pub timeout: Duration,
    /// Successes in a row that make a success.
    pub success_threshold: u32,
    /// Failures in a row that make a failure.
    pub failure_threshold: u32,
}

impl Timing {
    /// Reads a probe.
    pub fn of(probe: &Probe) -> Self {
        let seconds = |v: Option<i32>, default: u64| {
            Duration::from_secs(v.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
        };
        let count = |v: Option<i32>, default: u32| {
            v.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: count(probe.success_threshold, 1),
            failure_threshold: count(probe.failure_threshold, 3),
        }
    }
}

/// Results in a row.
#[derive(Debug, Default, Clone, Copy)]
pub struct Run {
    last: Option<bool>,
    length: u32,
}

impl Run {
    /// Adds a result; gives the verdict once its threshold is reached.
    pub fn add(&mut self, success: bool, timing: &Timing) -> Option<bool> {
        self.length = if self.last == Some(success) { self.length.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { timing.success_threshold } else { timing.failure_threshold };
        (self.length >= threshold).then_some(success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(success: i32, failure: i32, results: &str, want: &str) {
        let probe =
            Probe { success_threshold: Some(success), failure_threshold: Some(failure), ..Probe::default() };
        let timing = Timing::of(&probe);
        let mut run = Run::default();
        let got: String = results
            .chars()
            .map(|c| match run.add(c == '+', &timing) {
                None => '.',
                Some(true) => '+',
                Some(false) => '-',
            })
            .collect();
        assert_eq!(got, want, "{results}");
    }

    #[test]
    fn thresholds() {
        check(1, 3, "+--+---", "+..+..-");
        check(2, 1, "+-++", ".-.+");
    }

    #[test]
    fn defaults() {
        let t = Timing::of(&Probe { initial_delay_seconds: Some(0), ..Probe::default() });
        assert_eq!(
            (t.initial_delay, t.period, t.timeout),
            (Duration::ZERO, Duration::from_secs(10), Duration::from_secs(1))
        );
    }
}
