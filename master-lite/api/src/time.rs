//! Times and durations as API objects carry them.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;
use std::fmt::Write;

/// Seconds since 1970 of Go's zero time, the first instant of year 1. It stands for "no time".
pub const ZERO_SECONDS: i64 = -62_135_596_800;

fn parse(text: &str, layout: &str) -> Result<DateTime<Utc>, String> {
    match DateTime::parse_from_rfc3339(text) {
        Ok(time) => Ok(time.to_utc()),
        Err(_) => Err(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")),
    }
}

/// `metav1.Time`: UTC, whole seconds; null for Go's zero time.
pub fn canonical_seconds(text: &str) -> Result<Value, String> {
    Ok(seconds(parse(text, "2006-01-02T15:04:05Z07:00")?.timestamp()))
}

/// `metav1.MicroTime`: UTC, six digits of fraction; null for Go's zero time.
pub fn canonical_micros(text: &str) -> Result<Value, String> {
    let time = parse(text, "2006-01-02T15:04:05.000000Z07:00")?;
    Ok(micros(time.timestamp(), time.timestamp_subsec_nanos()))
}

/// JSON of a `metav1.Time`; null when it is Go's zero time or can't be shown in RFC 3339.
pub fn seconds(seconds: i64) -> Value {
    match DateTime::from_timestamp(seconds, 0) {
        Some(time) if seconds != ZERO_SECONDS => {
            Value::String(time.to_rfc3339_opts(SecondsFormat::Secs, true))
        }
        _ => Value::Null,
    }
}

/// JSON of a `metav1.MicroTime`; null when it is Go's zero time or can't be shown in RFC 3339.
pub fn micros(seconds: i64, nanos: u32) -> Value {
    match DateTime::from_timestamp(seconds, nanos / 1000 * 1000) {
        Some(time) if (seconds, nanos) != (ZERO_SECONDS, 0) => {
            Value::String(time.to_rfc3339_opts(SecondsFormat::Micros, true))
        }
        _ => Value::Null,
    }
}

/// Seconds and nanoseconds of a time in JSON.
pub fn timestamp(text: &str) -> Option<(i64, u32)> {
    let time = DateTime::parse_from_rfc3339(text).ok()?.to_utc();
    Some((time.timestamp(), time.timestamp_subsec_nanos()))
}

const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Go's `time.ParseDuration`, in nanoseconds.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, after) = rest.split_at(digits(rest));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
        };
        // 19 digits exceed what 63 bits hold in any unit; more would overflow the sum.
        if whole.trim_start_matches('0').len() > 19 {
            return Err(invalid());
        }
        let mut number: i128 = 0;
        for digit in whole.bytes() {
            number = number * 10 + i128::from(digit - b'0');
        }
        total += number * scale;
        let mut place = *scale;
        for digit in fraction.bytes().take(18) {
            place /= 10;
            total += i128::from(digit - b'0') * place;
        }
        if total > i128::from(i64::MAX) {
            return Err(invalid());
        }
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).ok().ok_or_else(invalid)
}

/// Go's `Duration.String`: `1h0m0s`, `1.5s`, `250ms`.
pub fn format_duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".to_owned();
    }
    let size = nanos.unsigned_abs();
    let mut out = String::from(if nanos < 0 { "-" } else { "" });
    let fraction = |value: u64, unit: u64, name: &str| {
        let (whole, rest) = (value / unit, value % unit);
        let width = unit.ilog10() as usize;
        let digits = format!("{rest:0width$}");
        let digits = digits.trim_end_matches('0');
        if digits.is_empty() { format!("{whole}{name}") } else { format!("{whole}.{digits}{name}") }
    };
    let text = match size {
        0..1_000 => format!("{size}ns"),
        1_000..1_000_000 => fraction(size, 1_000, "\u{b5}s"),
        1_000_000..1_000_000_000 => fraction(size, 1_000_000, "ms"),
        _ => {
            let minutes = size / 60_000_000_000;
            let mut text = String::new();
            // Writing into a String can't fail.
            if minutes >= 60 {
                let _ = write!(text, "{}h", minutes / 60);
            }
            if minutes > 0 {
                let _ = write!(text, "{}m", minutes % 60);
            }
            text + &fraction(size % 60_000_000_000, 1_000_000_000, "s")
        }
    };
    out.push_str(&text);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_gos() {
        for (text, canonical) in [
            ("1h", "1h0m0s"),
            ("90m", "1h30m0s"),
            ("1.5s", "1.5s"),
            ("250ms", "250ms"),
            ("1us", "1\u{b5}s"),
            ("-1m1s", "-1m1s"),
            ("0", "0s"),
            ("1h0.5s", "1h0m0.5s"),
            ("1500ns", "1.5\u{b5}s"),
        ] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), canonical, "{text}");
        }
        for (text, error) in [
            ("", "time: invalid duration \"\""),
            ("1", "time: missing unit in duration \"1\""),
            ("1x", "time: unknown unit \"x\" in duration \"1x\""),
            ("99999999999h", "time: invalid duration \"99999999999h\""),
        ] {
            assert_eq!(parse_duration(text).unwrap_err(), error);
        }
    }

    #[test]
    fn times_are_utc_and_short() {
        assert_eq!(canonical_seconds("2020-01-01T01:00:00.5+01:00").unwrap(), "2020-01-01T00:00:00Z");
        assert_eq!(canonical_micros("2020-01-01T00:00:00.1Z").unwrap(), "2020-01-01T00:00:00.100000Z");
        assert_eq!(canonical_seconds("0001-01-01T00:00:00Z").unwrap(), Value::Null);
        assert!(canonical_seconds("yesterday").unwrap_err().starts_with("parsing time \"yesterday\" as"));
    }

    proptest! {
        #[test]
        fn durations_round_trip(nanos in any::<i64>()) {
            prop_assume!(nanos != i64::MIN);
            prop_assert_eq!(parse_duration(&format_duration(nanos)), Ok(nanos));
        }

        #[test]
        fn hostile_durations_do_not_panic(text in "[-+]?[0-9.]{0,60}(ns|s|h|\u{b5}s|x)?[0-9.hms]{0,20}") {
            let _ = parse_duration(&text);
        }
    }
}
