//! Times as API objects carry them.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_and_short() {
        assert_eq!(canonical_seconds("2020-01-01T01:00:00.5+01:00").unwrap(), "2020-01-01T00:00:00Z");
        assert_eq!(canonical_micros("2020-01-01T00:00:00.1Z").unwrap(), "2020-01-01T00:00:00.100000Z");
        assert_eq!(canonical_seconds("0001-01-01T00:00:00Z").unwrap(), Value::Null);
        assert!(canonical_seconds("yesterday").unwrap_err().starts_with("parsing time \"yesterday\" as"));
    }
}
