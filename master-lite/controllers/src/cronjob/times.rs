//! When a cron job is due (`pkg/controller/cronjob/utils.go`). All pure.

use std::time::Duration;

use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use keelson_cron::{ParseError, Schedule};

/// Added to each wait, for clocks that run a little behind.
const PADDING: Duration = Duration::from_millis(100);
/// More missed times than this are worth a warning.
const MANY: i64 = 100;

/// The job's schedule by its own clock.
///
/// # Errors
/// It cannot be read.
pub fn schedule(job: &CronJob) -> Result<Schedule, ParseError> {
    let spec = &job.spec;
    match spec.time_zone.as_ref().filter(|_| !spec.schedule.contains("TZ")) {
        Some(zone) if keelson_cron::check_zone(zone).is_ok() => Schedule::parse_in(&spec.schedule, zone),
        _ => Schedule::parse(&spec.schedule),
    }
}

/// How many times have been missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// None, or the one that is due now.
    None,
    /// Some.
    Few,
    /// More than a hundred.
    Many,
}

/// A schedule whose times never come, or all at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("time difference between two schedules is less than 1 second")]
pub struct Senseless;

#[derive(Debug, PartialEq)]
struct Recent {
    /// From when times count.
    from: Timestamp,
    /// The last time that has come since.
    due: Option<Timestamp>,
    missed: Missed,
}

fn recent(
    job: &CronJob,
    now: Timestamp,
    schedule: &Schedule,
    with_deadline: bool,
) -> Result<Recent, Senseless> {
    let created = job.metadata.creation_timestamp.as_ref();
    let last = job.status.as_ref().and_then(|s| s.last_schedule_time.as_ref());
    let mut from = last.or(created).map_or(now, |time| time.0);
    let deadline = job.spec.starting_deadline_seconds.filter(|_| with_deadline);
    if let Some(seconds) = deadline {
        let earliest = now.saturating_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
        from = from.max(earliest);
    }
    let none = |missed| Ok(Recent { from, due: None, missed });
    // A schedule without a next time is upstream's at the beginning of all times, and so has passed.
    let Some(first) = schedule.next(from) else { return Err(Senseless) };
    if now < first {
        return none(Missed::None);
    }
    let second = schedule.next(first);
    if second.is_some_and(|second| now < second) {
        return Ok(Recent { from, due: Some(first), missed: Missed::None });
    }
    let gap = second.map_or(0, |second| second.duration_since(first).as_secs());
    if gap < 1 {
        return Err(Senseless);
    }
    // How many times there were is a guess from the first two; from the last but one of them on they are counted.
    let count = now.duration_since(first).as_secs() / gap + 1;
    let missed = if count > MANY { Missed::Many } else { Missed::Few };
    let back = SignedDuration::from_secs(gap.saturating_mul(count - 2));
    let mut due = None;
    let mut at = schedule.next(first.saturating_add(back).unwrap_or(first));
    while let Some(time) = at.filter(|time| *time <= now) {
        due = Some(time);
        at = schedule.next(time);
    }
    Ok(Recent { from, due, missed })
}

/// The time for which a job is due now, and how many others were missed.
///
/// # Errors
/// The schedule makes no sense.
pub fn due(
    job: &CronJob,
    now: Timestamp,
    schedule: &Schedule,
) -> Result<Option<(Timestamp, Missed)>, Senseless> {
    let recent = recent(job, now, schedule, true)?;
    Ok(recent.due.map(|time| (time, recent.missed)))
}

/// How long to wait for the next time.
pub fn wait(job: &CronJob, now: Timestamp, schedule: &Schedule) -> Option<Duration> {
    let from = match recent(job, now, schedule, false) {
        Ok(Recent { due: Some(due), .. }) => due,
        Ok(Recent { from, missed: Missed::None, .. }) => from,
        _ => now,
    };
    let left = schedule.next(from)?.duration_since(now);
    Some(Duration::try_from(left).unwrap_or_default() + PADDING)
}

/// The name of the job for a time: always the same, so that no time gets two jobs.
pub fn job_name(cron_job: &str, time: Timestamp) -> String {
    format!("{cron_job}-{}", time.as_second().div_euclid(60))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2026-03-01T{text}Z").parse().unwrap()
    }

    fn job(spec: Value, last: Option<&str>) -> CronJob {
        let mut job = json!({
            "metadata": {"name": "c", "creationTimestamp": at("00:00:30").to_string()},
            "spec": {"schedule": "*/10 * * * *", "jobTemplate": {}},
            "status": {"lastScheduleTime": last.map(|time| at(time).to_string())},
        });
        for (key, value) in spec.as_object().unwrap() {
            job["spec"][key] = value.clone();
        }
        serde_json::from_value(job).unwrap()
    }

    #[track_caller]
    fn check(job: &CronJob, now: &str, expected: Option<(&str, Missed)>, seconds: u64) {
        let schedule = schedule(job).unwrap();
        let expected = expected.map(|(time, missed)| (at(time), missed));
        assert_eq!(due(job, at(now), &schedule), Ok(expected));
        assert_eq!(wait(job, at(now), &schedule).unwrap().as_secs(), seconds);
    }

    #[test]
    fn times_that_have_come() {
        let plain = || json!({});
        check(&job(plain(), None), "00:05:00", None, 300);
        check(&job(plain(), None), "00:10:00", Some(("00:10:00", Missed::None)), 600);
        check(&job(plain(), Some("00:10:00")), "00:12:00", None, 480);
        check(&job(plain(), Some("00:10:00")), "00:45:00", Some(("00:40:00", Missed::Few)), 300);
        check(&job(json!({"schedule": "* * * * *"}), None), "10:00:00", Some(("10:00:00", Missed::Many)), 60);
        // What is older than the deadline does not count.
        let limited = json!({"startingDeadlineSeconds": 60});
        check(&job(limited, Some("00:10:00")), "00:45:00", None, 300);
        let every = json!({"schedule": "@every 7m"});
        check(&job(every, None), "00:30:00", Some(("00:28:30", Missed::Few)), 330);
    }

    #[test]
    fn clocks() {
        let berlin = job(json!({"schedule": "0 9 * * *", "timeZone": "Europe/Berlin"}), None);
        check(&berlin, "08:00:00", Some(("08:00:00", Missed::None)), 24 * 3600);
        let utc = job(json!({"schedule": "TZ=UTC 0 9 * * *"}), None);
        check(&utc, "08:00:00", None, 3600);
    }

    #[test]
    fn senseless_schedules() {
        let never = job(json!({"schedule": "0 0 31 2 *"}), None);
        assert_eq!(due(&never, at("01:00:00"), &schedule(&never).unwrap()), Err(Senseless));
        assert!(wait(&never, at("01:00:00"), &schedule(&never).unwrap()).is_none());
        assert!(schedule(&job(json!({"schedule": "* *"}), None)).is_err());
    }

    #[test]
    fn names() {
        assert_eq!(job_name("c", at("00:10:00")), "c-29538730");
    }
}
