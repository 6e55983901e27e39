//! Resource quantities (`500m`, `1.5Gi`, `2e3`) as numbers.
//!
//! Source: apimachinery `pkg/api/resource/quantity.go`. Values are held as billionths, which is the finest step that
//! upstream keeps; rounding is away from zero, as there.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const NANO: i128 = 1_000_000_000;

/// A quantity that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quantity {0:?} is not a number with a suffix that Kubernetes knows")]
pub struct BadQuantity(pub String);

/// Billionths of the unit.
pub fn parse_nano(text: &str) -> Result<i128, BadQuantity> {
    let bad = || BadQuantity(text.chars().take(64).collect());
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let digits_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 40 {
        return Err(bad());
    }
    let mut mantissa: i128 = 0;
    for b in whole.bytes().chain(fraction.bytes()) {
        mantissa =
            mantissa.checked_mul(10).and_then(|m| m.checked_add(i128::from(b - b'0'))).ok_or_else(bad)?;
    }
    let mut divisor: i128 = 1;
    for _ in 0..fraction.len() {
        divisor = divisor.checked_mul(10).ok_or_else(bad)?;
    }
    let (multiplier, extra_divisor) = suffix_scale(suffix).ok_or_else(bad)?;
    let divisor = divisor.checked_mul(extra_divisor).ok_or_else(bad)?;
    let nano =
        mantissa.checked_mul(multiplier).and_then(|v| v.checked_mul(NANO)).map(|v| ceil_div(v, divisor));
    // Upstream caps what it can't hold instead of failing, so that an absurd limit reads as "no limit".
    let nano = nano.unwrap_or(i128::from(i64::MAX) * NANO);
    Ok(if negative { -nano } else { nano })
}

/// Multiplier and divisor of a suffix.
fn suffix_scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            if exponent >= 0 { (power, 1) } else { (1, power) }
        }
    })
}

fn ceil_div(a: i128, b: i128) -> i128 {
    a / b + i128::from(a % b != 0 && a > 0)
}

/// Whole units, rounded up: Go's `Quantity.Value()`. What can't be parsed is 0; the apiserver validated it before.
pub fn value(q: &Quantity) -> i64 {
    scaled(q, NANO)
}

/// Thousandths, rounded up: Go's `Quantity.MilliValue()`.
pub fn milli_value(q: &Quantity) -> i64 {
    scaled(q, NANO / 1000)
}

fn scaled(q: &Quantity, unit: i128) -> i64 {
    let nano = parse_nano(&q.0).unwrap_or(0);
    i64::try_from(ceil_div(nano, unit)).unwrap_or(if nano > 0 { i64::MAX } else { i64::MIN })
}

/// An amount in Kubernetes' canonical form: in binary steps if `like` is, else in decimal ones.
pub fn format(amount: i64, like: &Quantity) -> Quantity {
    let positive = u64::try_from(amount).unwrap_or(0);
    Quantity(if like.0.ends_with('i') { binary(positive) } else { decimal(positive) })
}

/// Bytes with the largest binary suffix that divides them, Kubernetes' canonical form.
pub fn binary(bytes: u64) -> String {
    for (shift, suffix) in [(40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

fn decimal(mut amount: u64) -> String {
    let mut suffixes = ["k", "M", "G", "T", "P", "E"].into_iter();
    let mut suffix = "";
    while amount != 0 && amount.is_multiple_of(1000) {
        let Some(next) = suffixes.next() else { break };
        (amount, suffix) = (amount / 1000, next);
    }
    format!("{amount}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want_value: i64, want_milli: i64) {
        let q = Quantity(text.to_owned());
        assert_eq!((value(&q), milli_value(&q)), (want_value, want_milli), "{text}");
    }

    #[test]
    fn values() {
        check("0", 0, 0);
        check("1", 1, 1000);
        check("500m", 1, 500);
        check("1500m", 2, 1500);
        check("1.5", 2, 1500);
        check(".5", 1, 500);
        check("1Ki", 1024, 1_024_000);
        check("1.5Gi", 1_610_612_736, 1_610_612_736_000);
        check("2e3", 2000, 2_000_000);
        check("1E", 1_000_000_000_000_000_000, i64::MAX);
        check("100u", 1, 1);
        check("-1", -1, -1000);
    }

    #[test]
    fn texts() {
        let text = |amount, like: &str| format(amount, &Quantity(like.into())).0;
        assert_eq!(text(5 << 20, "1Mi"), "5Mi");
        assert_eq!(text((5 << 20) + 1, "1Mi"), "5242881");
        assert_eq!(text(5_000_000, "1M"), "5M");
        assert_eq!(text(5_500_000, "1"), "5500k");
        assert_eq!(text(0, "0"), "0");
    }

    #[test]
    fn refused() {
        for text in ["", "x", "1.2.3", "1Kib", "1 Gi", "--1", "1e", "."] {
            assert!(parse_nano(text).is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,24}") { let _ = parse_nano(&text); }

        #[test]
        fn whole_numbers_are_themselves(n in 0_i64..1_000_000_000) {
            assert_eq!(value(&Quantity(n.to_string())), n);
        }
    }
}
