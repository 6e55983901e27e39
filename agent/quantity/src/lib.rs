//! `resource.Quantity`: fixed-point numbers with SI suffixes, as `k8s.io/apimachinery/pkg/api/resource` parses,
//! compares, rounds and prints them.
//!
//! The one reader of amounts (`500m`, `1.5Gi`, `2e3`) for agent and control plane alike: a leaf that neither side's
//! other crates are needed for.

use std::{
    borrow::Cow,
    cmp::Ordering,
    fmt,
    ops::{Add, AddAssign, Neg, Sub},
    str::FromStr,
};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// How a quantity prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Format {
    /// `1500m`, `2`, `3M`: powers of ten with a suffix.
    #[default]
    DecimalSi,
    /// `1Ki`, `2Gi`: powers of 1024 with a suffix.
    BinarySi,
    /// `1e3`: powers of ten with an exponent.
    DecimalExponent,
}

/// Why a text is no quantity; upstream's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not of the shape number + suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number does not parse.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix is not one of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// A number, exact to 10⁻⁹; finer digits round away from zero.
///
/// Values live in a 128-bit count of 10⁻⁹ units: beyond ±1.7·10²⁹ they saturate, where upstream would go on with
/// big integers ([`canonical`] still prints those exactly). [`Quantity::value`] and [`Quantity::milli_value`] saturate
/// at 64 bits, where upstream's wrap or answer 0: an absurd limit then reads as no limit. Two quantities are equal
/// if the numbers are, whatever their notation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

const NANO: i128 = 1_000_000_000;
/// Upstream's `maxAllowed`: binary quantities are capped at 2⁶³-1.
const MAX_BINARY: i128 = i64::MAX as i128 * NANO;

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity::units(0);

    /// So many whole units.
    pub const fn units(value: i64) -> Self {
        Self { nanos: value as i128 * NANO, format: Format::DecimalSi }
    }

    /// So many thousandths, as CPU is counted.
    pub const fn millis(value: i64) -> Self {
        Self { nanos: value as i128 * (NANO / 1000), format: Format::DecimalSi }
    }

    /// So many whole units, printed in a notation: bytes of memory, say, in [`Format::BinarySi`].
    pub const fn with_format(value: i64, format: Format) -> Self {
        Self { nanos: value as i128 * NANO, format }
    }

    /// Upstream's `Value()`: units, rounded away from zero, saturating.
    pub fn value(self) -> i64 {
        self.scaled(NANO)
    }

    /// Upstream's `MilliValue()`: thousandths, rounded away from zero, saturating.
    pub fn milli_value(self) -> i64 {
        self.scaled(NANO / 1000)
    }

    /// Count of 10⁻⁹ units.
    pub fn nanos(self) -> i128 {
        self.nanos
    }

    /// The notation it prints in.
    pub fn format(self) -> Format {
        self.format
    }

    /// Whether it is zero.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Less than, equal to or greater than zero.
    pub fn sign(self) -> i32 {
        match self.nanos.cmp(&0) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }
    }

    fn scaled(self, unit: i128) -> i64 {
        let (whole, rest) = (self.nanos / unit, self.nanos % unit);
        let rounded = whole + rest.signum();
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }

    /// As upstream, a zero takes the notation of the other operand.
    fn joined(self, other: Self, nanos: i128) -> Self {
        Self { nanos, format: if self.is_zero() { other.format } else { self.format } }
    }
}

impl Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.joined(other, self.nanos.saturating_add(other.nanos))
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.joined(other, self.nanos.saturating_sub(other.nanos))
    }
}

impl Neg for Quantity {
    type Output = Self;
    fn neg(self) -> Self {
        Self { nanos: self.nanos.saturating_neg(), format: self.format }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The quantity that an API object holds. The API server has validated it, so what does not parse counts as zero.
pub fn of(text: &Text) -> Quantity {
    text.0.parse().unwrap_or_default()
}

/// The text of a quantity as upstream's `String()` gives it back after parsing: canonical, or as it came where
/// upstream takes it to be canonical already (`1.500` stays).
pub fn canonical(text: &str) -> Result<Cow<'_, str>, ParseError> {
    let parsed = Parsed::read(text)?;
    if parsed.prints_as_is() {
        return Ok(Cow::Borrowed(text));
    }
    let number = parsed.number();
    Ok(Cow::Owned(match parsed.suffix {
        Suffix::Ten { exponent, format } if number.nanos.unsigned_abs() >= i128::MAX.unsigned_abs() => {
            parsed.print_large(exponent, format)
        }
        _ => number.to_string(),
    }))
}

/// The parts of a text, as upstream's `parseQuantityString` cuts it.
struct Parts<'t> {
    negative: bool,
    whole: &'t str,
    fraction: &'t str,
    suffix: &'t str,
}

fn split(text: &str) -> Result<Parts<'_>, ParseError> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let stripped = rest.trim_start_matches('0');
    let (mut whole, mut rest) = stripped.split_at(digits(stripped));
    if whole.is_empty() {
        whole = "0";
    }
    let mut fraction = "";
    if let Some(after) = rest.strip_prefix('.') {
        (fraction, rest) = after.split_at(digits(after));
    }
    let letters = rest.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let tail = &rest[letters..];
    let tail = tail.strip_prefix(['-', '+']).unwrap_or(tail);
    if digits(tail) != tail.len() {
        return Err(ParseError::Format);
    }
    Ok(Parts { negative, whole, fraction, suffix: rest })
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

enum Suffix {
    Ten { exponent: i32, format: Format },
    Two { exponent: u32 },
}

fn suffix(text: &str) -> Result<Suffix, ParseError> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == text) {
        return Ok(Suffix::Ten { exponent: *exponent, format: Format::DecimalSi });
    }
    if let Some((_, exponent)) = BINARY.iter().find(|(name, _)| *name == text) {
        return Ok(Suffix::Two { exponent: *exponent });
    }
    let exponent = text.strip_prefix(['e', 'E']).and_then(|digits| digits.parse::<i64>().ok());
    let exponent = exponent.ok_or(ParseError::Suffix)?;
    let exponent = i32::try_from(exponent).unwrap_or(if exponent < 0 { i32::MIN } else { i32::MAX });
    Ok(Suffix::Ten { exponent, format: Format::DecimalExponent })
}

/// `digits` times 10^`scale`, in 10⁻⁹ units, rounded up to the next unit, saturating.
fn decimal(digits: &[u8], scale: i64) -> i128 {
    let significant = digits.iter().position(|d| *d != b'0').map_or(&[][..], |first| &digits[first..]);
    if significant.is_empty() {
        return 0;
    }
    let shift = scale.saturating_add(9);
    let length = i64::try_from(significant.len()).unwrap_or(i64::MAX);
    // The number has `length + shift` digits before its point; i128 holds 38.
    if length.saturating_add(shift) > 38 {
        return i128::MAX;
    }
    let kept = usize::try_from(length.saturating_add(shift.min(0)).max(0)).unwrap_or(0);
    let mut number: i128 = 0;
    for digit in &significant[..kept] {
        number = number.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
    }
    for _ in 0..shift.max(0) {
        number = number.saturating_mul(10);
    }
    if significant[kept..].iter().any(|digit| *digit != b'0') {
        number = number.saturating_add(1);
    }
    number
}

/// A text that has been read but not yet reckoned.
struct Parsed<'t> {
    parts: Parts<'t>,
    suffix: Suffix,
    /// Digits before and after the point.
    digits: Vec<u8>,
    /// Digits after the point.
    places: i64,
}

impl<'t> Parsed<'t> {
    fn read(text: &'t str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Format);
        }
        let parts = split(text)?;
        let suffix = suffix(parts.suffix)?;
        let digits = parts.whole.bytes().chain(parts.fraction.bytes()).collect();
        let places = i64::try_from(parts.fraction.len()).unwrap_or(i64::MAX);
        Ok(Self { parts, suffix, digits, places })
    }

    fn number(&self) -> Quantity {
        let (size, format) = match self.suffix {
            Suffix::Ten { exponent, format } => {
                (decimal(&self.digits, i64::from(exponent).saturating_sub(self.places)), format)
            }
            Suffix::Two { exponent } => {
                // Multiply before rounding: 0.5Ki is 512 and not 1Ki.
                let size = binary(&self.digits, self.places, 1_i128 << exponent).min(MAX_BINARY);
                // Upstream: "avoids rounding and hopefully confusion".
                let small = size > 0 && size < NANO;
                (size, if small { Format::DecimalSi } else { Format::BinarySi })
            }
        };
        Quantity { nanos: if self.parts.negative { -size } else { size }, format }
    }

    /// Whether upstream keeps the text: its fast path takes texts for canonical by a rule that is slightly wider
    /// than canonical (`1.500` stays), and clients see that.
    fn prints_as_is(&self) -> bool {
        let count = i64::try_from(self.digits.len()).unwrap_or(i64::MAX);
        let number = std::str::from_utf8(&self.digits).ok().and_then(|digits| digits.parse::<i64>().ok());
        let Some(number) = number else { return false };
        match self.suffix {
            Suffix::Ten { exponent, .. } => {
                let scale = i64::from(exponent).saturating_sub(self.places);
                18 - count >= 0
                    && scale >= -9
                    && scale % 3 == 0
                    && !self.digits.ends_with(b"000")
                    && self.digits.first() != Some(&b'0')
            }
            Suffix::Two { exponent } => {
                let whole = i64::try_from(self.parts.whole.len()).unwrap_or(i64::MAX);
                self.parts.fraction.is_empty()
                    && 15 - whole - i64::from(exponent) * 3 / 10 > 0
                    && number & 7 != 0
                    && number.checked_mul(1 << exponent).is_some()
            }
        }
    }

    /// Canonical form of a number that `i128` does not hold, by its digits alone.
    fn print_large(&self, exponent: i32, format: Format) -> String {
        let first = self.digits.iter().position(|d| *d != b'0').unwrap_or(self.digits.len());
        let mut digits = self.digits[first..].to_vec();
        let mut scale = i64::from(exponent).saturating_sub(self.places);
        // Nothing is kept below 10^-9.
        let cut = usize::try_from((-9_i64).saturating_sub(scale)).unwrap_or(0).min(digits.len());
        let dropped = digits.split_off(digits.len() - cut);
        scale += i64::try_from(cut).unwrap_or(0);
        if dropped.iter().any(|digit| *digit != b'0') {
            increment(&mut digits);
        }
        let limit = if format == Format::DecimalExponent { i64::MAX } else { 18 };
        while digits.last() == Some(&b'0') && scale < limit {
            digits.pop();
            scale += 1;
        }
        while scale % 3 != 0 || scale > limit {
            digits.push(b'0');
            scale -= 1;
        }
        let sign = if self.parts.negative { "-" } else { "" };
        let digits = String::from_utf8_lossy(&digits);
        match DECIMAL.iter().find(|(_, size)| i64::from(*size) == scale) {
            Some((name, _)) if format != Format::DecimalExponent || scale == 0 => {
                format!("{sign}{digits}{name}")
            }
            _ => format!("{sign}{digits}e{scale}"),
        }
    }
}

/// Adds one to a number in ASCII digits.
fn increment(digits: &mut Vec<u8>) {
    for digit in digits.iter_mut().rev() {
        if *digit == b'9' {
            *digit = b'0';
        } else {
            *digit += 1;
            return;
        }
    }
    digits.insert(0, b'1');
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Ok(Parsed::read(text)?.number())
    }
}

/// `digits` / 10^`places` * `factor` in 10⁻⁹ units, rounded up, saturating.
fn binary(digits: &[u8], places: i64, factor: i128) -> i128 {
    // 38 significant digits are far more than 2^63 * 10^9 can show; what is cut only matters for rounding up.
    let whole = digits.len().saturating_sub(usize::try_from(places).unwrap_or(usize::MAX));
    let units = decimal(&digits[..whole], -9).saturating_mul(factor).saturating_mul(NANO);
    let fraction = &digits[whole..];
    let kept = fraction.len().min(18);
    let mut number: i128 = 0;
    for digit in &fraction[..kept] {
        number = number * 10 + i128::from(digit - b'0');
    }
    let rest = fraction[kept..].iter().any(|digit| *digit != b'0');
    let divisor = 10_i128.pow(u32::try_from(kept).unwrap_or(18));
    // number < 10^18, factor <= 2^60: the product with 10^9 is split to stay within 128 bits.
    let product = number * factor;
    let (high, low) = (product / divisor, product % divisor);
    let scaled = low * NANO;
    let mut part = high * NANO + scaled / divisor;
    if scaled % divisor != 0 || rest {
        part += 1;
    }
    units.saturating_add(part)
}

impl fmt::Display for Quantity {
    /// Canonical form: no fraction digits, no leading zeros, the largest suffix that loses nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.format == Format::BinarySi && !small && self.nanos % NANO == 0 {
            let mut number = self.nanos / NANO;
            let mut exponent = 0;
            while number % 1024 == 0 && exponent < BINARY.len() {
                number /= 1024;
                exponent += 1;
            }
            let name = exponent.checked_sub(1).map_or("", |index| BINARY[index].0);
            return write!(f, "{number}{name}");
        }
        let mut number = self.nanos;
        let mut exponent = -9;
        let limit = if self.format == Format::DecimalExponent { i32::MAX } else { 18 };
        while number % 1000 == 0 && exponent < limit {
            number /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        let name = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(name, _)| name);
        write!(f, "{number}{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_form_is_upstreams() {
        let check = |text: &str, canonical: &str| {
            assert_eq!(super::canonical(text).unwrap(), canonical, "{text}");
        };
        for (text, canonical) in [
            ("0", "0"),
            ("0n", "0"),
            ("000", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1.500", "1.500"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1Ki", "1Ki"),
            ("1023Ki", "1023Ki"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1E3", "1E3"),
            ("1e1", "10"),
            ("12e6", "12e6"),
            ("1E", "1E"),
            ("0.1n", "1n"),
            ("1.1n", "2n"),
            ("-1", "-1"),
            ("-1.5Ki", "-1536"),
            ("0.0001Ki", "102400u"),
            ("2000Mi", "2000Mi"),
            ("123456789123456789Ei", "9223372036854775807"),
            ("7Ei", "7Ei"),
            (".5", "500m"),
            ("1.", "1."),
            ("1e400", "10e399"),
            ("999999999999999999999999999999.9999999991e0", "1e30"),
            // Upstream prints "1": it has no suffix for 10^21 and drops it.
            ("1000E", "1000E"),
        ] {
            check(text, canonical);
        }
    }

    #[test]
    fn errors_are_upstreams() {
        for (text, error) in [
            ("", ParseError::Format),
            ("1x", ParseError::Format),
            ("1.1.1", ParseError::Format),
            ("1mm", ParseError::Suffix),
            ("1Mii", ParseError::Suffix),
            ("1e", ParseError::Suffix),
            ("1ee3", ParseError::Suffix),
            (" 1", ParseError::Format),
            ("1 ", ParseError::Format),
        ] {
            assert_eq!(text.parse::<Quantity>().unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn values_round_away_from_zero() {
        let value = |text: &str| text.parse::<Quantity>().unwrap().value();
        assert_eq!([value("1500m"), value("-1500m"), value("1Ki"), value("1e30")], [2, -2, 1024, i64::MAX]);
        assert_eq!("1500u".parse::<Quantity>().unwrap().milli_value(), 2);
        let sum = "1Gi".parse::<Quantity>().unwrap() + "1G".parse().unwrap();
        assert_eq!(sum.to_string(), "2073741824");
        assert!("1Ki".parse::<Quantity>().unwrap() > "1k".parse().unwrap());
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}|[-+]?[0-9.]{0,60}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,20}") {
            if let Ok(parsed) = text.parse::<Quantity>() {
                let again = super::canonical(&text).unwrap().parse::<Quantity>().unwrap();
                prop_assert_eq!(again, parsed);
            }
        }

        #[test]
        fn canonical_form_is_stable(value in any::<i64>(), suffix in prop::sample::select(vec!["", "m", "Ki", "Gi", "k", "e3"])) {
            let text = format!("{value}{suffix}");
            let first = super::canonical(&text).unwrap();
            prop_assert_eq!(&super::canonical(&first).unwrap(), &first);
            let again = first.parse::<Quantity>().unwrap().to_string();
            prop_assert_eq!(again.parse::<Quantity>(), first.parse::<Quantity>());
        }

        #[test]
        fn sums_and_order_are_those_of_numbers(a in any::<i64>(), b in any::<i64>()) {
            let (x, y) = (Quantity::millis(a), Quantity::millis(b));
            prop_assert_eq!((x + y).nanos(), (i128::from(a) + i128::from(b)) * 1_000_000);
            prop_assert_eq!((x - y) + y, x);
            prop_assert_eq!(-(x - y), y - x);
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert_eq!((x + y).to_string().parse::<Quantity>(), Ok(x + y));
        }
    }
}
