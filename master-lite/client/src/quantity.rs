//! Exact resource quantities (`100m`, `1.5Gi`, `2e3`).

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::str::FromStr;

/// A resource quantity, exact to a thousand-millionth: the finest that the API keeps
/// (`k8s.io/apimachinery/pkg/api/resource`). Finer digits round up, what is too large saturates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity {
    nanos: i128,
}

/// The text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a resource quantity")]
pub struct QuantityError(String);

const NANO: i128 = 1_000_000_000;
/// The API caps quantities at 2^63-1 whole units.
const MAX: i128 = i64::MAX as i128 * NANO;

impl Quantity {
    /// None of the resource.
    pub const ZERO: Quantity = Quantity { nanos: 0 };

    /// So many whole units.
    pub const fn units(value: i64) -> Self {
        Quantity { nanos: value as i128 * NANO }
    }

    /// So many thousandths.
    pub const fn millis(value: i64) -> Self {
        Quantity { nanos: value as i128 * (NANO / 1000) }
    }

    /// Whole units, rounded up.
    pub fn value(self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths, rounded up; saturating.
    pub fn milli_value(self) -> i64 {
        self.scaled(NANO / 1000)
    }

    /// Whether there is none of it.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    fn scaled(self, unit: i128) -> i64 {
        let up = self.nanos.div_euclid(unit) + i128::from(self.nanos.rem_euclid(unit) != 0);
        i64::try_from(up).unwrap_or(if up < 0 { i64::MIN } else { i64::MAX })
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse(text).ok_or_else(|| QuantityError(text.into()))
    }
}

fn parse(text: &str) -> Option<Quantity> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let scale = scale_of(suffix)?;
    let digits: String = [whole, fraction].concat();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Some(Quantity::ZERO);
    }
    let nanos = magnitude(digits, i32::try_from(fraction.len()).ok()?, scale);
    Some(Quantity { nanos: if negative { -nanos } else { nanos } })
}

#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

fn scale_of(suffix: &str) -> Option<Scale> {
    Some(match suffix {
        "" => Scale::Ten(0),
        "n" => Scale::Ten(-9),
        "u" => Scale::Ten(-6),
        "m" => Scale::Ten(-3),
        "k" => Scale::Ten(3),
        "M" => Scale::Ten(6),
        "G" => Scale::Ten(9),
        "T" => Scale::Ten(12),
        "P" => Scale::Ten(15),
        "E" => Scale::Ten(18),
        "Ki" => Scale::Two(10),
        "Mi" => Scale::Two(20),
        "Gi" => Scale::Two(30),
        "Ti" => Scale::Two(40),
        "Pi" => Scale::Two(50),
        "Ei" => Scale::Two(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            Scale::Ten(exponent.parse::<i32>().ok()?.clamp(-100, 100))
        }
    })
}

/// `digits * 10^-fraction * scale` in thousand-millionths, rounded up and capped.
fn magnitude(digits: &str, fraction: i32, scale: Scale) -> i128 {
    // Beyond 37 digits an i128 is full: what is dropped can only matter for values that are capped anyway, or
    // for the rounding of digits far below the precision kept.
    let kept = digits.len().min(30);
    let dropped = i32::try_from(digits.len() - kept).unwrap_or(i32::MAX / 2);
    let mut inexact = digits[kept..].bytes().any(|b| b != b'0');
    let mut value: i128 = digits[..kept].parse().unwrap_or(i128::MAX);
    let mut exponent = 9 - fraction + dropped;
    match scale {
        Scale::Ten(power) => exponent += power,
        Scale::Two(bits) => match value.checked_mul(1i128 << bits) {
            Some(scaled) => value = scaled,
            None => {
                // Make room: these low digits are below any precision that a value this long can keep.
                let room = 10i128.pow(19);
                inexact |= value % room != 0;
                value = (value / room).saturating_mul(1i128 << bits);
                exponent += 19;
            }
        },
    }
    while exponent > 0 {
        value = value.saturating_mul(10).min(MAX);
        exponent -= 1;
        if value >= MAX {
            return MAX;
        }
    }
    while exponent < 0 && value > 0 {
        inexact |= value % 10 != 0;
        value /= 10;
        exponent += 1;
    }
    (value + i128::from(inexact)).min(MAX)
}

impl Add for Quantity {
    type Output = Quantity;
    fn add(self, other: Quantity) -> Quantity {
        Quantity { nanos: self.nanos.saturating_add(other.nanos) }
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Quantity) {
        *self = *self + other;
    }
}

impl Sub for Quantity {
    type Output = Quantity;
    fn sub(self, other: Quantity) -> Quantity {
        Quantity { nanos: self.nanos.saturating_sub(other.nanos) }
    }
}

impl fmt::Display for Quantity {
    /// Decimal digits with the largest of `m`, `u`, `n` that keeps the value whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, suffix) in [(NANO, ""), (NANO / 1_000, "m"), (NANO / 1_000_000, "u")] {
            if self.nanos % unit == 0 {
                return write!(f, "{}{suffix}", self.nanos / unit);
            }
        }
        write!(f, "{}n", self.nanos)
    }
}

/// The quantity that the API object holds. Validation has seen it, so what does not parse counts as zero.
pub fn of(quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Quantity {
    quantity.0.parse().unwrap_or_default()
}

/// Compares two quantities of the API by value.
pub fn compare(
    a: &k8s_openapi::apimachinery::pkg::api::resource::Quantity,
    b: &k8s_openapi::apimachinery::pkg::api::resource::Quantity,
) -> Ordering {
    of(a).cmp(&of(b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, milli: i64) {
        assert_eq!(text.parse::<Quantity>().map(Quantity::milli_value), Ok(milli), "{text}");
    }

    #[test]
    fn suffixes() {
        check("1", 1000);
        check("100m", 100);
        check("0.5", 500);
        check(".5", 500);
        check("1.", 1000);
        check("1Ki", 1_024_000);
        check("1.5Ki", 1_536_000);
        check("2e3", 2_000_000);
        check("2E-3", 2);
        check("1k", 1_000_000);
        check("-1", -1000);
        check("1n", 1);
        check("1E", i64::MAX);
        check("0", 0);
    }

    #[test]
    fn rounding_and_caps() {
        assert_eq!("0.0000000001".parse::<Quantity>().unwrap().value(), 1);
        assert_eq!(
            "99999999999999999999999999999999999999999Ei".parse::<Quantity>().unwrap().value(),
            i64::MAX
        );
        assert_eq!("1Gi".parse::<Quantity>().unwrap().value(), 1 << 30);
        assert_eq!("1500m".parse::<Quantity>().unwrap().value(), 2);
    }

    #[test]
    fn refused() {
        for text in ["", "m", "1.2.3", "1KB", "e3", "1e", "1e+", "--1", "1 ", "ä"] {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn what_is_shown_reads_back(nanos in any::<i64>()) {
            let quantity = Quantity { nanos: nanos.into() };
            prop_assert_eq!(quantity.to_string().parse::<Quantity>().unwrap(), quantity);
        }
    }
}
