//! `format` of strings and numbers (`kube-openapi/pkg/validation/strfmt`).

use std::net::IpAddr;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

/// A format that is checked. Formats that upstream knows and that every string has (`password`) are none.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// As written in the schema.
    name: &'static str,
    check: Check,
}

type TextCheck = fn(&str) -> bool;

#[derive(Debug, Clone, Copy)]
enum Check {
    Text(TextCheck),
    Int32,
    Int64,
}

/// Text formats under the names that upstream normalizes to (without dashes).
const TEXT: &[(&str, &str, TextCheck)] = &[
    ("bsonobjectid", "bsonobjectid", |s| s.len() == 24 && s.bytes().all(|b| b.is_ascii_hexdigit())),
    ("uri", "uri", is_uri),
    ("email", "email", is_email),
    ("hostname", "hostname", is_hostname),
    ("ipv4", "ipv4", |s| matches!(s.parse(), Ok(IpAddr::V4(_)))),
    ("ipv6", "ipv6", |s| matches!(s.parse(), Ok(IpAddr::V6(_)))),
    ("cidr", "cidr", is_cidr),
    ("mac", "mac", is_mac),
    ("uuid", "uuid", |s| UUID.is_match(s)),
    ("uuid3", "uuid3", |s| UUID.is_match(s) && uuid_version(s) == Some(b'3')),
    ("uuid4", "uuid4", |s| UUID.is_match(s) && uuid_version(s) == Some(b'4') && uuid_variant(s)),
    ("uuid5", "uuid5", |s| UUID.is_match(s) && uuid_version(s) == Some(b'5') && uuid_variant(s)),
    ("isbn", "isbn", |s| is_isbn10(s) || is_isbn13(s)),
    ("isbn10", "isbn10", is_isbn10),
    ("isbn13", "isbn13", is_isbn13),
    ("creditcard", "creditcard", is_credit_card),
    ("ssn", "ssn", |s| SSN.is_match(s)),
    ("hexcolor", "hexcolor", |s| HEX_COLOR.is_match(s)),
    ("rgbcolor", "rgbcolor", |s| RGB_COLOR.is_match(s)),
    ("byte", "byte", is_base64),
    ("date", "date", |s| chrono::NaiveDate::parse_from_str(s, "%Y-%m-%d").is_ok() && s.len() == 10),
    ("duration", "duration", is_duration),
    ("datetime", "datetime", |s| chrono::DateTime::parse_from_rfc3339(s).is_ok()),
    ("datetime", "date-time", |s| chrono::DateTime::parse_from_rfc3339(s).is_ok()),
    ("k8sshortname", "k8s-short-name", |s| crate::resources::metadata::dns_label(s).is_ok()),
    ("k8slongname", "k8s-long-name", |s| crate::resources::metadata::dns_subdomain(s).is_ok()),
];

fn pattern(text: &str) -> Regex {
    match Regex::new(text) {
        Ok(regex) => regex,
        // Constants below, each compiled by a unit test.
        Err(error) => unreachable!("{error}"),
    }
}

static UUID: LazyLock<Regex> =
    LazyLock::new(|| pattern("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"));
static SSN: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$"));
static HEX_COLOR: LazyLock<Regex> = LazyLock::new(|| pattern("^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"));
static RGB_COLOR: LazyLock<Regex> = LazyLock::new(|| {
    const PART: &str = r"\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*";
    pattern(&format!(r"^rgb\({PART},{PART},{PART}\)$"))
});
static CREDIT_CARD: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35[0-9]{3})[0-9]{11})$",
    )
});
static HOSTNAME: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$",
    )
});
static SCALA_DURATION: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^\s*[0-9]+(\.[0-9]+)?\s*(ns|nano|nanos|nanosecond|nanoseconds|us|µs|μs|micro|micros|microsecond|microseconds|ms|milli|millis|millisecond|milliseconds|s|sec|secs|second|seconds|m|min|mins|minute|minutes|h|hr|hrs|hour|hours|d|day|days|w|wk|wks|week|weeks)\s*$",
    )
});

fn uuid_hex(text: &str) -> Vec<u8> {
    text.bytes().filter(|b| *b != b'-').collect()
}

fn uuid_version(text: &str) -> Option<u8> {
    uuid_hex(text).get(12).copied()
}

fn uuid_variant(text: &str) -> bool {
    uuid_hex(text).get(16).is_some_and(|b| b"89abAB".contains(b))
}

fn is_uri(text: &str) -> bool {
    // Go's url.ParseRequestURI: absolute, or a path from the root.
    let printable = text.bytes().all(|b| b > 0x20 && b != 0x7f);
    let scheme = text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    });
    printable && (text.starts_with('/') || scheme)
}

fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    !local.is_empty() && !domain.is_empty() && !text.contains(char::is_whitespace)
}

fn is_hostname(text: &str) -> bool {
    text.len() <= 255 && HOSTNAME.is_match(text) && text.split('.').all(|part| part.len() <= 63)
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    !bits.starts_with('+') && bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

fn is_mac(text: &str) -> bool {
    let groups = |separator: char, digits: usize| {
        let parts: Vec<&str> = text.split(separator).collect();
        let bytes = parts.len() * digits / 2;
        matches!(bytes, 6 | 8 | 20)
            && parts.iter().all(|p| p.len() == digits && p.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    groups(':', 2) || groups('-', 2) || groups('.', 4)
}

fn isbn_digits(text: &str) -> Vec<u8> {
    text.bytes().filter(|b| !matches!(b, b'-' | b' ')).collect()
}

fn is_isbn10(text: &str) -> bool {
    let digits = isbn_digits(text);
    let sum: Option<u32> = digits
        .iter()
        .enumerate()
        .map(|(i, b)| match b {
            b'0'..=b'9' => Some(u32::from(b - b'0') * u32::try_from(i + 1).ok()?),
            b'X' if i == 9 => Some(100),
            _ => None,
        })
        .sum();
    digits.len() == 10 && sum.is_some_and(|sum| sum % 11 == 0)
}

fn is_isbn13(text: &str) -> bool {
    let digits = isbn_digits(text);
    digits.len() == 13
        && digits.iter().all(u8::is_ascii_digit)
        && digits.iter().enumerate().map(|(i, b)| u32::from(b - b'0') * [1, 3][i % 2]).sum::<u32>() % 10 == 0
}

fn is_credit_card(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    CREDIT_CARD.is_match(&digits)
        && digits
            .bytes()
            .rev()
            .enumerate()
            .map(|(i, b)| {
                let digit = u32::from(b - b'0') * if i % 2 == 1 { 2 } else { 1 };
                if digit > 9 { digit - 9 } else { digit }
            })
            .sum::<u32>()
            % 10
            == 0
}

fn is_base64(text: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

fn is_duration(text: &str) -> bool {
    keelson_cron::duration::parse(text).is_ok() || SCALA_DURATION.is_match(text)
}

impl Format {
    /// The check behind the `format` of a `type`; `None` for what upstream does not check.
    pub fn of(kind: &str, format: &str) -> Option<Self> {
        match (kind, format) {
            ("" | "string", name) => {
                let normal = name.replace('-', "");
                TEXT.iter()
                    .find(|(_, shown, _)| *shown == name)
                    .or_else(|| TEXT.iter().find(|(known, _, _)| *known == normal))
                    .map(|(_, shown, check)| Self { name: shown, check: Check::Text(*check) })
            }
            ("integer", "int32") => Some(Self { name: "int32", check: Check::Int32 }),
            ("integer", "int64") => Some(Self { name: "int64", check: Check::Int64 }),
            _ => None,
        }
    }

    /// True if upstream knows the format for this type, whether or not there is something to check.
    pub fn is_known(kind: &str, format: &str) -> bool {
        match kind {
            "" | "string" => format == "password" || Self::of(kind, format).is_some(),
            "integer" => matches!(format, "int32" | "int64"),
            "number" => matches!(format, "float" | "double"),
            _ => false,
        }
    }

    /// As in messages.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// True if the value has the format; values of another type have.
    pub fn accepts(self, value: &Value) -> bool {
        match (self.check, value) {
            (Check::Text(check), Value::String(text)) => check(text),
            (Check::Int32, Value::Number(n)) => n.as_i64().is_none_or(|n| i32::try_from(n).is_ok()),
            (Check::Int64, Value::Number(n)) => !n.is_u64() || n.as_i64().is_some(),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples() {
        let cases = [
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("ipv6", "::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "01:02:03:04:05:06", "01:02"),
            ("uuid", "01234567-89ab-cdef-0123-456789abcdef", "x"),
            ("uuid4", "01234567-89ab-4def-8123-456789abcdef", "01234567-89ab-cdef-0123-456789abcdef"),
            ("isbn10", "0321751043", "0321751044"),
            ("isbn13", "978-0321751041", "978-0321751042"),
            ("date", "2020-01-31", "2020-02-31"),
            ("date-time", "2014-12-15T19:30:20.000Z", "2014-12-15"),
            ("duration", "22 ns", "x"),
            ("byte", "YQ==", "Y"),
            ("hexcolor", "#FFFFFF", "#FFFFF"),
            ("rgbcolor", "rgb(255,255,2)", "rgb(256,1,1)"),
            ("ssn", "123-45-6789", "12"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("hostname", "example.com", "a..b"),
            ("uri", "https://a/b", "a b"),
            ("email", "a@b.c", "a"),
            ("k8s-short-name", "abc-1", "ABC"),
        ];
        for (name, good, bad) in cases {
            let format = Format::of("string", name).unwrap();
            assert!(format.accepts(&good.into()), "{name} {good}");
            assert!(!format.accepts(&bad.into()), "{name} {bad}");
        }
        assert!(Format::of("string", "unheard-of").is_none());
        assert!(!Format::of("integer", "int32").unwrap().accepts(&5_000_000_000_i64.into()));
    }
}
