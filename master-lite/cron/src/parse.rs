//! Reading schedules.

use crate::zone::Zone;
use crate::{Fields, Schedule, duration};

/// Why a schedule cannot be read, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// There is nothing.
    #[error("empty spec string")]
    Empty,
    /// The time zone is not known.
    #[error("unknown time zone {0}")]
    UnknownZone(String),
    /// The schedule names a time zone that is not known.
    #[error("provided bad location {0}: unknown time zone {0}")]
    BadLocation(String),
    /// There is nothing after the time zone.
    #[error("no schedule follows the time zone")]
    OnlyZone,
    /// There are too few fields, or too many.
    #[error("expected exactly 5 fields, found {}: [{}]", .0.len(), .0.join(" "))]
    FieldCount(Vec<String>),
    /// Not one of the known descriptors.
    #[error("unrecognized descriptor: {0}")]
    UnknownDescriptor(String),
    /// The duration of `@every` cannot be read.
    #[error("failed to parse duration {descriptor}: {reason}")]
    Duration {
        /// The whole descriptor.
        descriptor: String,
        /// Why.
        reason: String,
    },
    /// `a-b-c`.
    #[error("too many hyphens: {0}")]
    Hyphens(String),
    /// `a/b/c`.
    #[error("too many slashes: {0}")]
    Slashes(String),
    /// Neither a number nor a name.
    #[error("failed to parse int from {0}: strconv.Atoi: parsing {0:?}: {1}")]
    Number(String, &'static str),
    /// A number below 0.
    #[error("negative number ({0}) not allowed: {1}")]
    Negative(i64, String),
    /// A range begins too low.
    #[error("beginning of range ({start}) below minimum ({minimum}): {range}")]
    BelowMinimum {
        /// Its beginning.
        start: u64,
        /// The lowest value of the field.
        minimum: u64,
        /// The range.
        range: String,
    },
    /// A range ends too high.
    #[error("end of range ({end}) above maximum ({maximum}): {range}")]
    AboveMaximum {
        /// Its end.
        end: u64,
        /// The highest value of the field.
        maximum: u64,
        /// The range.
        range: String,
    },
    /// A range ends before it begins.
    #[error("beginning of range ({start}) beyond end of range ({end}): {range}")]
    Reversed {
        /// Its beginning.
        start: u64,
        /// Its end.
        end: u64,
        /// The range.
        range: String,
    },
    /// A step of 0.
    #[error("step of range should be a positive number: {0}")]
    NoStep(String),
}

/// Set when the field has a star in it: then day of month and day of week must both match, else either.
pub(crate) const STAR: u64 = 1 << 63;

struct Bounds {
    low: u64,
    high: u64,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { low: 0, high: 59, names: &[] };
const HOURS: Bounds = Bounds { low: 0, high: 23, names: &[] };
const DAYS: Bounds = Bounds { low: 1, high: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    low: 1,
    high: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds =
    Bounds { low: 0, high: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

pub(crate) fn schedule(text: &str, zone: Zone) -> Result<Schedule, ParseError> {
    if text.is_empty() {
        return Err(ParseError::Empty);
    }
    let (mut rest, mut zone) = (text, zone);
    if let Some(named) = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
        let (name, after) = named.split_once(' ').ok_or(ParseError::OnlyZone)?;
        zone = Zone::find(name).map_err(|_unknown| ParseError::BadLocation(name.to_owned()))?;
        rest = after.trim();
    }
    if rest.starts_with('@') {
        return descriptor(rest, zone);
    }
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let [minutes, hours, days, months, weekdays] = fields[..] else {
        return Err(ParseError::FieldCount(fields.into_iter().map(str::to_owned).collect()));
    };
    let fields = Fields {
        minutes: field(minutes, &MINUTES)?,
        hours: field(hours, &HOURS)?,
        days: field(days, &DAYS)?,
        months: field(months, &MONTHS)?,
        weekdays: field(weekdays, &WEEKDAYS)?,
    };
    Ok(Schedule::Spec { fields, zone })
}

fn descriptor(text: &str, zone: Zone) -> Result<Schedule, ParseError> {
    let all = |bounds: &Bounds| bits(bounds.low, bounds.high, 1) | STAR;
    let hourly = Fields {
        minutes: 1,
        hours: all(&HOURS),
        days: all(&DAYS),
        months: all(&MONTHS),
        weekdays: all(&WEEKDAYS),
    };
    let daily = Fields { hours: 1, ..hourly };
    let fields = match text {
        "@yearly" | "@annually" => Fields { days: 1 << 1, months: 1 << 1, ..daily },
        "@monthly" => Fields { days: 1 << 1, ..daily },
        "@weekly" => Fields { weekdays: 1, ..daily },
        "@daily" | "@midnight" => daily,
        "@hourly" => hourly,
        _ => {
            let Some(every) = text.strip_prefix("@every ") else {
                return Err(ParseError::UnknownDescriptor(text.to_owned()));
            };
            let nanos = duration::parse(every)
                .map_err(|reason| ParseError::Duration { descriptor: text.to_owned(), reason })?;
            return Ok(Schedule::Every((nanos / 1_000_000_000).max(1)));
        }
    };
    Ok(Schedule::Spec { fields, zone })
}

/// Empty parts of a list are passed over, as upstream does.
fn field(text: &str, bounds: &Bounds) -> Result<u64, ParseError> {
    text.split(',').filter(|part| !part.is_empty()).try_fold(0, |bits, part| Ok(bits | range(part, bounds)?))
}

/// `*`, `5`, `1-5`, each with an optional `/step`.
fn range(text: &str, bounds: &Bounds) -> Result<u64, ParseError> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let mut star = 0;
    let (start, mut end) = match ends[..] {
        ["*" | "?", ..] => {
            star = STAR;
            (bounds.low, bounds.high)
        }
        [only] => {
            let only = number_or_name(only, bounds)?;
            (only, only)
        }
        [first, last] => (number_or_name(first, bounds)?, number_or_name(last, bounds)?),
        // What stands first must be a number even so.
        [first, ..] => {
            number_or_name(first, bounds)?;
            return Err(ParseError::Hyphens(text.to_owned()));
        }
        [] => return Err(ParseError::Hyphens(text.to_owned())),
    };
    let step = match parts[1..] {
        [] => 1,
        [step] => {
            let step = number(step)?;
            // `5/10` means from 5 to the end.
            if ends.len() == 1 {
                end = bounds.high;
            }
            if step > 1 {
                star = 0;
            }
            step
        }
        _ => return Err(ParseError::Slashes(text.to_owned())),
    };
    let range = text.to_owned();
    if start < bounds.low {
        return Err(ParseError::BelowMinimum { start, minimum: bounds.low, range });
    }
    if end > bounds.high {
        return Err(ParseError::AboveMaximum { end, maximum: bounds.high, range });
    }
    if start > end {
        return Err(ParseError::Reversed { start, end, range });
    }
    if step == 0 {
        return Err(ParseError::NoStep(range));
    }
    Ok(bits(start, end, step) | star)
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u64, ParseError> {
    let name = text.to_lowercase();
    match (bounds.low..).zip(bounds.names).find(|(_, known)| **known == name) {
        Some((value, _)) => Ok(value),
        None => number(text),
    }
}

/// What `strconv.Atoi` reads, if it is not negative.
fn number(text: &str) -> Result<u64, ParseError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ParseError::Number(text.to_owned(), "invalid syntax"));
    }
    match text.parse::<i64>() {
        Ok(value) => u64::try_from(value).map_err(|_negative| ParseError::Negative(value, text.to_owned())),
        Err(_) => Err(ParseError::Number(text.to_owned(), "value out of range")),
    }
}

fn bits(start: u64, end: u64, step: u64) -> u64 {
    let mut bits = 0;
    let mut at = start;
    while at <= end {
        bits |= 1 << at;
        at = at.saturating_add(step);
    }
    bits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn schedules() {
        for good in [
            "* * * * *",
            "*/5 0-6,12 1 jan-mar MON",
            "@daily",
            "@every 1h30m",
            "0 0 ? * 5/2",
            "TZ=UTC 1 1 1 1 1",
            "CRON_TZ=Asia/Tokyo  @hourly",
            "1,,2 * * * *",
            "+1 * * * *",
        ] {
            assert!(Schedule::parse(good).is_ok(), "{good}");
        }
        for (bad, words) in [
            ("", "empty spec string"),
            ("* * *", "expected exactly 5 fields, found 3: [* * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("-1 * * * *", "failed to parse int from : strconv.Atoi: parsing \"\": invalid syntax"),
            ("1/-2 * * * *", "negative number (-2) not allowed: -2"),
            ("@never", "unrecognized descriptor: @never"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("TZ=Nowhere * * * * *", "provided bad location Nowhere: unknown time zone Nowhere"),
            ("TZ=UTC", "no schedule follows the time zone"),
        ] {
            assert_eq!(Schedule::parse(bad).unwrap_err().to_string(), words, "{bad}");
        }
    }

    fn selected(text: &str, bounds: &Bounds) -> Vec<u64> {
        let bits = field(text, bounds).unwrap();
        (0..63).filter(|n| bits & (1 << n) != 0).collect()
    }

    #[test]
    fn fields_select() {
        assert_eq!(selected("1-10/3,50", &MINUTES), [1, 4, 7, 10, 50]);
        assert_eq!(selected("20/2", &HOURS), [20, 22]);
        assert_eq!(selected("feb,DEC", &MONTHS), [2, 12]);
        assert_eq!(selected("sun-tue", &WEEKDAYS), [0, 1, 2]);
        assert_ne!(field("*", &DAYS).unwrap() & STAR, 0);
        assert_eq!(field("*/2", &DAYS).unwrap() & STAR, 0);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,40}") {
            let _ = Schedule::parse(&text);
        }

        #[test]
        fn what_looks_like_a_schedule_is_survived(text in "(@every |TZ=[A-Z]{0,3} )?([0-9*?/,-]{0,5} ){0,5}[0-9a-z*]{0,3}") {
            let _ = Schedule::parse(&text);
        }

        #[test]
        fn ranges_select_what_they_say(a in 0..60u64, b in 0..60u64, step in 1..70u64) {
            let (first, last) = (a.min(b), a.max(b));
            let wanted: Vec<u64> = (first..=last).step_by(usize::try_from(step).unwrap()).collect();
            prop_assert_eq!(selected(&format!("{first}-{last}/{step}"), &MINUTES), wanted);
        }
    }
}
