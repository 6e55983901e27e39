//! keelson-cron: the schedules of CronJobs exactly as upstream reads and follows them (`robfig/cron` v3,
//! `ParseStandard`), time zones and their changes of clock included; and the durations of Go, which are part of
//! them.

pub mod duration;
mod next;
mod parse;
mod zone;

pub use jiff::Timestamp;
pub use parse::ParseError;

use zone::Zone;

/// Times at which something is to happen.
#[derive(Debug, Clone)]
pub enum Schedule {
    /// At the minutes that a specification selects.
    Spec {
        /// What it selects.
        fields: Fields,
        /// Whose clock counts.
        zone: Zone,
    },
    /// Again and again after so many seconds, at least one.
    Every(i64),
}

/// The values that a specification selects, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields {
    pub(crate) minutes: u64,
    pub(crate) hours: u64,
    pub(crate) days: u64,
    pub(crate) months: u64,
    pub(crate) weekdays: u64,
}

impl Schedule {
    /// Reads five fields (minute, hour, day of month, month, day of week) or a descriptor such as `@daily` or
    /// `@every 90m`, perhaps after `TZ=Europe/Berlin ` or `CRON_TZ=…`. Without a zone the clock is UTC.
    ///
    /// # Errors
    /// Upstream's words.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parse::schedule(text, Zone::utc())
    }

    /// The same, by the clock of `zone`.
    ///
    /// # Errors
    /// Upstream's words.
    pub fn parse_in(text: &str, zone: &str) -> Result<Self, ParseError> {
        parse::schedule(text, Zone::find(zone)?)
    }

    /// The first time after `after`; none when there is none within five years.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let seconds = match self {
            Schedule::Spec { fields, zone } => next::next(fields, zone, after.as_second())?,
            // A part of a second is dropped, so that the next time is a whole one.
            Schedule::Every(delay) => after.as_second().checked_add(*delay)?,
        };
        Timestamp::from_second(seconds).ok()
    }
}

/// Checks that there is a time zone of this name, as it is written.
///
/// # Errors
/// It is not known.
pub fn check_zone(name: &str) -> Result<(), ParseError> {
    Zone::find(name).map(drop)
}

/// A time as `time.RFC3339` writes it by the clock of `zone`.
///
/// # Errors
/// The zone is not known.
pub fn format_in(time: Timestamp, zone: &str) -> Result<String, ParseError> {
    Ok(Zone::find(zone)?.format(time))
}
