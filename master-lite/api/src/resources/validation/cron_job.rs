//! CronJobs (`pkg/apis/batch/validation`).

use keelson_cron::Schedule;
use serde_json::{Value, json};

use super::errors::{Errors, Path, flag, set, text};
use super::job::job_spec;
use crate::field::FieldError;

fn time_zone(zone: &str) -> Result<(), String> {
    if zone.is_empty() {
        return Err("timeZone must be nil or non-empty string".to_owned());
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-+".contains(&b);
    let sound = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= 14
            && !part.starts_with('-')
            && part.bytes().all(fits)
    };
    if !zone.split('/').all(sound) {
        return Err(format!("unknown time zone {zone}"));
    }
    if zone.eq_ignore_ascii_case("local") {
        let words = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        return Err(words.to_owned());
    }
    keelson_cron::check_zone(zone).map_err(|error| error.to_string())
}

/// A CronJob, new or changed.
pub(in crate::resources) fn cron_job(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&new["spec"], Path::new("spec"));
    let schedule = text(spec, "schedule");
    let place = at.child("schedule");
    if schedule.is_empty() {
        errors.required(&place, "");
    } else {
        let read = Schedule::parse(schedule);
        errors.rule(&place, &schedule.into(), read.map(drop).map_err(|error| error.to_string()));
        let kept = old.is_some_and(|old| text(&old["spec"], "schedule").contains("TZ"));
        if schedule.contains("TZ") && !kept {
            let words = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errors.invalid(&place, &schedule.into(), words);
        } else if schedule.contains("TZ") && set(spec, "timeZone") {
            let words = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
            errors.invalid(&place, &schedule.into(), words);
        }
    }
    errors.not_negative(
        spec,
        &["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"],
        &at,
    );
    let same_zone = old.is_some_and(|old| old["spec"]["timeZone"] == spec["timeZone"]);
    if let Some(zone) = spec["timeZone"].as_str().filter(|_| !same_zone) {
        errors.rule(&at.child("timeZone"), &zone.into(), time_zone(zone));
    }
    errors.one_of(
        &at.child("concurrencyPolicy"),
        &spec["concurrencyPolicy"],
        &["Allow", "Forbid", "Replace"],
    );
    let (job, at) = (&spec["jobTemplate"]["spec"], at.child("jobTemplate").child("spec"));
    job_spec(&mut errors, job, &at);
    if set(job, "selector") {
        errors.invalid(&at.child("selector"), &job["selector"], "`selector` will be auto-generated");
    }
    if flag(job, "manualSelector") {
        errors.unsupported(&at.child("manualSelector"), &json!(true), &["nil", "false"]);
    }
    let name = text(&new["metadata"], "name");
    if old.is_none() && name.len() > 52 {
        let words = "must be no more than 52 characters";
        errors.invalid(&Path::new("metadata").child("name"), &name.into(), words);
    }
    errors.0
}
