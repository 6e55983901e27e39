//! Finding the next time of a specification, step for step as `SpecSchedule.Next`, so that changes of clock come
//! out alike.

use crate::Fields;
use crate::parse::STAR;
use crate::zone::{Reading, Zone};

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;

fn has(bits: u64, value: i64) -> bool {
    u32::try_from(value).is_ok_and(|value| bits & 1u64.checked_shl(value).unwrap_or(0) != 0)
}

fn day_matches(fields: &Fields, read: &Reading) -> bool {
    let (day, weekday) = (has(fields.days, read.day), has(fields.weekdays, read.weekday));
    if (fields.days | fields.weekdays) & STAR != 0 { day && weekday } else { day || weekday }
}

/// The second of the day that the clock shows.
fn of_day(read: &Reading) -> i64 {
    read.hour * HOUR + read.minute * MINUTE + read.second
}

/// The first matching second after `after` (seconds since 1970); none within five years.
pub(crate) fn next(fields: &Fields, zone: &Zone, after: i64) -> Option<i64> {
    // The upcoming second, whatever part of this one has gone.
    let mut time = after.checked_add(1)?;
    // Whether a field has been moved on: then those below it are at their beginning.
    let mut moved = false;
    let last_year = zone.read(time).year + 5;
    'wrap: loop {
        let read = zone.read(time);
        if read.year > last_year {
            return None;
        }
        while !has(fields.months, zone.read(time).month) {
            let read = zone.read(time);
            if !moved {
                moved = true;
                time = zone.at(read.year, read.month, 1, 0);
            }
            let read = zone.read(time);
            time = zone.at(read.year, read.month + 1, read.day, of_day(&read));
            if zone.read(time).month == 1 {
                continue 'wrap;
            }
        }
        while !day_matches(fields, &zone.read(time)) {
            let read = zone.read(time);
            if !moved {
                moved = true;
                time = zone.at(read.year, read.month, read.day, 0);
            }
            let read = zone.read(time);
            time = zone.at(read.year, read.month, read.day + 1, of_day(&read));
            // There may be no midnight on a day that the clock is changed.
            let hour = zone.read(time).hour;
            if hour > 12 {
                time += (24 - hour) * HOUR;
            } else {
                time -= hour * HOUR;
            }
            if zone.read(time).day == 1 {
                continue 'wrap;
            }
        }
        while !has(fields.hours, zone.read(time).hour) {
            let read = zone.read(time);
            if !moved {
                moved = true;
                time = zone.at(read.year, read.month, read.day, read.hour * HOUR);
            }
            time += HOUR;
            if zone.read(time).hour == 0 {
                continue 'wrap;
            }
        }
        while !has(fields.minutes, zone.read(time).minute) {
            if !moved {
                moved = true;
                time -= time.rem_euclid(MINUTE);
            }
            time += MINUTE;
            if zone.read(time).minute == 0 {
                continue 'wrap;
            }
        }
        while zone.read(time).second != 0 {
            moved = true;
            time += 1;
            if zone.read(time).second == 0 {
                continue 'wrap;
            }
        }
        return Some(time);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::{Schedule, Timestamp};

    #[test]
    fn impossible_days_never_come() {
        assert_eq!(Schedule::parse("59 23 31 2 *").unwrap().next(Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn parts_of_seconds_are_dropped() {
        let time: Timestamp = "2026-01-01T00:00:00.7Z".parse().unwrap();
        assert_eq!(
            Schedule::parse("@every 90s").unwrap().next(time).unwrap().to_string(),
            "2026-01-01T00:01:30Z"
        );
        assert_eq!(
            Schedule::parse("* * * * *").unwrap().next(time).unwrap().to_string(),
            "2026-01-01T00:01:00Z"
        );
    }

    proptest! {
        /// The next time matches, lies ahead, and nothing before it matches, by a slow search in UTC.
        #[test]
        fn nothing_is_passed_over(minute in 0..60i64, hour in 0..24i64, day in 1..32i64, start in 0..4_000_000_000i64) {
            let schedule = Schedule::parse(&format!("{minute} {hour} {day} * *")).unwrap();
            let start = Timestamp::from_second(start).unwrap();
            let next = schedule.next(start).unwrap();
            prop_assert!(next > start);
            let mut at = start.as_second() - start.as_second().rem_euclid(60) + 60;
            let shown = |at: i64| Timestamp::from_second(at).unwrap().to_zoned(jiff::tz::TimeZone::UTC);
            loop {
                let zoned = shown(at);
                if i64::from(zoned.day()) == day && i64::from(zoned.hour()) == hour && i64::from(zoned.minute()) == minute {
                    break;
                }
                // Whole days and hours that can't match are skipped.
                at += if i64::from(zoned.day()) != day { 86_400 - at.rem_euclid(86_400) }
                    else if i64::from(zoned.hour()) != hour { 3600 - at.rem_euclid(3600) } else { 60 };
            }
            prop_assert_eq!(next.as_second(), at);
        }

        #[test]
        fn times_rise_in_any_zone(fields in "(\\*|[0-5]?[0-9]|\\*/[1-9]) (\\*|1?[0-9]|\\*/[1-9]) (\\*|[1-9]) \\* (\\*|[0-6])",
                                  zone in prop::sample::select(vec!["Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Africa/Cairo"]),
                                  start in 0..4_000_000_000i64) {
            let schedule = Schedule::parse_in(&fields, zone).unwrap();
            let mut time = Timestamp::from_second(start).unwrap();
            for _ in 0..5 {
                let Some(next) = schedule.next(time) else { break };
                prop_assert!(next > time);
                time = next;
            }
        }
    }
}
