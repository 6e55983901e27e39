//! Go's durations: `1h30m`, `1.5s`.

use std::fmt::Write;

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
///
/// # Errors
/// Go's words.
pub fn parse(text: &str) -> Result<i64, String> {
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
pub fn format(nanos: i64) -> String {
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
    use proptest::prelude::*;

    use super::*;

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
            assert_eq!(format(parse(text).unwrap()), canonical, "{text}");
        }
        for (text, error) in [
            ("", "time: invalid duration \"\""),
            ("1", "time: missing unit in duration \"1\""),
            ("1x", "time: unknown unit \"x\" in duration \"1x\""),
            ("99999999999h", "time: invalid duration \"99999999999h\""),
        ] {
            assert_eq!(parse(text).unwrap_err(), error);
        }
    }

    proptest! {
        #[test]
        fn durations_round_trip(nanos in any::<i64>()) {
            prop_assume!(nanos != i64::MIN);
            prop_assert_eq!(parse(&format(nanos)), Ok(nanos));
        }

        #[test]
        fn hostile_durations_do_not_panic(text in "[-+]?[0-9.]{0,60}(ns|s|h|\u{b5}s|x)?[0-9.hms]{0,20}") {
            let _ = parse(&text);
        }
    }
}
