//! Durations for people (`k8s.io/apimachinery/pkg/util/duration`).

use serde_json::Value;

use crate::time;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// Two or three significant figures of a number of seconds: `90s`, `5m30s`, `3d4h`, `2y10d`.
///
/// A second before now counts as now, for clocks that differ a little; anything earlier is `<invalid>`.
pub fn human_duration(seconds: i64) -> String {
    // A whole part and, unless it is zero, the rest in the next smaller unit.
    let two = |big: i64, big_name: &str, small: i64, small_name: &str, wrap: i64| {
        let (whole, rest) = (seconds / big, seconds / small % wrap);
        if rest == 0 { format!("{whole}{big_name}") } else { format!("{whole}{big_name}{rest}{small_name}") }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if seconds < 10 * MINUTE => two(MINUTE, "m", 1, "s", 60),
        _ if seconds < 3 * HOUR => format!("{}m", seconds / MINUTE),
        _ if seconds < 8 * HOUR => two(HOUR, "h", MINUTE, "m", 60),
        _ if seconds < 2 * DAY => format!("{}h", seconds / HOUR),
        _ if seconds < 8 * DAY => two(DAY, "d", HOUR, "h", 24),
        _ if seconds < 2 * YEAR => format!("{}d", seconds / DAY),
        _ if seconds < 8 * YEAR => two(YEAR, "y", DAY, "d", 365),
        _ => format!("{}y", seconds / YEAR),
    }
}

/// Time from an RFC 3339 string to `now` (seconds since 1970); `<unknown>` if there is none.
pub fn age(timestamp: &Value, now: i64) -> String {
    match seconds(timestamp) {
        Some(then) => human_duration(now.saturating_sub(then)),
        None => "<unknown>".to_owned(),
    }
}

/// Seconds since 1970 of an RFC 3339 string, unless it is absent or Go's zero time.
pub(super) fn seconds(timestamp: &Value) -> Option<i64> {
    let (seconds, _) = time::timestamp(timestamp.as_str()?)?;
    (seconds != time::ZERO_SECONDS).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_upstreams() {
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (330, "5m30s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_700, "3h15m"),
            (28_800, "8h"),
            (47 * HOUR, "47h"),
            (48 * HOUR, "2d"),
            (76 * HOUR, "3d4h"),
            (8 * DAY, "8d"),
            (2 * YEAR - 1, "729d"),
            (2 * YEAR, "2y"),
            (2 * YEAR + 10 * DAY, "2y10d"),
            (8 * YEAR + DAY, "8y"),
            (i64::MAX, "292471208677y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn ages() {
        assert_eq!(age(&"1970-01-01T00:00:10Z".into(), 100), "90s");
        assert_eq!(age(&Value::Null, 100), "<unknown>");
        assert_eq!(age(&"0001-01-01T00:00:00Z".into(), 100), "<unknown>");
        assert_eq!(age(&"soon".into(), 100), "<unknown>");
    }
}
