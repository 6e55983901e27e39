//! Clocks: what they show at a moment, and the moment at which they show something, as Go's `time` has it.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::ParseError;

/// A time zone.
#[derive(Debug, Clone)]
pub struct Zone(TimeZone);

/// What a clock shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    pub year: i64,
    /// From 1.
    pub month: i64,
    /// From 1.
    pub day: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
    /// 0 is Sunday.
    pub weekday: i64,
}

impl Zone {
    pub(crate) fn utc() -> Self {
        Zone(TimeZone::UTC)
    }

    /// The zone with this name, as it is written: names differ in case where file names do. No name means UTC.
    pub(crate) fn find(name: &str) -> Result<Self, ParseError> {
        if matches!(name, "" | "UTC") {
            return Ok(Zone::utc());
        }
        let unknown = || ParseError::UnknownZone(name.to_owned());
        let zone = TimeZone::get(name).map_err(|_unknown| unknown())?;
        if zone.iana_name() == Some(name) { Ok(Zone(zone)) } else { Err(unknown()) }
    }

    fn offset(&self, unix: i64) -> i64 {
        Timestamp::from_second(unix).map_or(0, |time| self.0.to_offset(time).seconds().into())
    }

    /// The time during which the clock has the offset that it has at `unix`: from, and up to before.
    fn period(&self, unix: i64) -> (i64, i64) {
        let Ok(time) = Timestamp::from_second(unix) else { return (i64::MIN, i64::MAX) };
        let before = Timestamp::from_second(unix.saturating_add(1)).unwrap_or(time);
        let start = self.0.preceding(before).next().map_or(i64::MIN, |t| t.timestamp().as_second());
        let end = self.0.following(time).next().map_or(i64::MAX, |t| t.timestamp().as_second());
        (start, end)
    }

    /// What the clock shows.
    pub(crate) fn read(&self, unix: i64) -> Reading {
        let shown = unix.saturating_add(self.offset(unix));
        let (days, second) = (shown.div_euclid(86_400), shown.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        Reading {
            year,
            month,
            day,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
            // 1970 began on a Thursday.
            weekday: (days + 4).rem_euclid(7),
        }
    }

    /// When the clock shows this second of this day; month and day may lie outside their bounds and then count on
    /// (`time.Date`). Of a time that the clock passes over or shows twice, one is chosen as Go does.
    pub(crate) fn at(&self, year: i64, month: i64, day: i64, second: i64) -> i64 {
        let (year, month) = (year + (month - 1).div_euclid(12), (month - 1).rem_euclid(12) + 1);
        let shown = (days_before(year, month) + day - 1) * 86_400 + second;
        // First as if the clock showed UTC, in the hope that this is not near a change.
        let offset = self.offset(shown);
        if offset == 0 {
            return shown;
        }
        let (start, end) = self.period(shown);
        let unix = shown - offset;
        if (start..end).contains(&unix) { unix } else { shown - self.offset(unix) }
    }

    pub(crate) fn format(&self, time: Timestamp) -> String {
        let offset = self.0.to_offset(time);
        let shown: DateTime = offset.to_datetime(time);
        let minutes = offset.seconds() / 60;
        let suffix = match minutes {
            0 => "Z".to_owned(),
            _ => format!(
                "{}{:02}:{:02}",
                if minutes < 0 { '-' } else { '+' },
                minutes.abs() / 60,
                minutes.abs() % 60
            ),
        };
        format!("{}{suffix}", shown.strftime("%Y-%m-%dT%H:%M:%S"))
    }
}

/// Days from 1970 to the first of a month (Howard Hinnant's `days_from_civil`).
fn days_before(year: i64, month: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Year, month and day of a day since 1970 (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names() {
        assert!(Zone::find("Europe/Berlin").is_ok() && Zone::find("UTC").is_ok());
        for bad in ["europe/berlin", "Nowhere", "../etc/passwd"] {
            assert_eq!(Zone::find(bad).unwrap_err(), ParseError::UnknownZone(bad.to_owned()));
        }
    }

    #[test]
    fn formats() {
        let time = Timestamp::from_second(1_800_000_000).unwrap();
        assert_eq!(Zone::utc().format(time), "2027-01-15T08:00:00Z");
        assert_eq!(Zone::find("Asia/Kolkata").unwrap().format(time), "2027-01-15T13:30:00+05:30");
        assert_eq!(Zone::find("America/New_York").unwrap().format(time), "2027-01-15T03:00:00-05:00");
    }

    proptest! {
        #[test]
        fn what_a_clock_shows_is_when_it_shows_it(unix in -4_000_000_000i64..8_000_000_000) {
            for name in ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/Sao_Paulo"] {
                let zone = Zone::find(name).unwrap();
                let hour = unix.div_euclid(3600) * 3600;
                let read = zone.read(hour);
                let at = zone.at(read.year, read.month, read.day, read.hour * 3600);
                // Whole hours of a clock need not be whole hours of another; and some hours come twice.
                let again = zone.read(at);
                prop_assert_eq!((again.year, again.month, again.day, again.hour), (read.year, read.month, read.day, read.hour));
            }
        }

        #[test]
        fn days_are_those_of_the_calendar(days in -800_000i64..800_000) {
            let (year, month, day) = civil(days);
            prop_assert_eq!(days_before(year, month) + day - 1, days);
            let date = jiff::civil::Date::new(year as i16, month as i8, day as i8).unwrap();
            prop_assert_eq!(i64::from(date.weekday().to_sunday_zero_offset()), (days + 4).rem_euclid(7));
        }
    }
}
