//! Rules of single values (`k8s.io/apimachinery/pkg/util/validation`). Each gives the words for what is wrong.

use std::net::{IpAddr, Ipv6Addr};

use serde_json::Value;

use super::errors::{Errors, Path};
use crate::resources::metadata::{dns_label, dns_subdomain};

const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NOT_A_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// A port's number.
pub(super) fn port_number(port: i64) -> Result<(), String> {
    in_range(port, 1, 65535)
}

/// A number between two others.
pub(super) fn in_range(number: i64, low: i64, high: i64) -> Result<(), String> {
    if (low..=high).contains(&number) {
        return Ok(());
    }
    Err(format!("must be between {low} and {high}, inclusive"))
}

/// A user's or group's number.
pub(super) fn id(number: i64) -> Result<(), String> {
    in_range(number, 0, i64::from(i32::MAX))
}

/// A port's name (`IsValidPortName`).
pub(super) fn port_name(name: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let mut rule = |broken_rule: bool, words: &str| {
        if broken_rule {
            broken.push(words.to_owned());
        }
    };
    rule(name.len() > 15, "must be no more than 15 characters");
    let plain =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    rule(!plain, "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    rule(!name.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)");
    rule(name.contains("--"), "must not contain consecutive hyphens");
    rule(name.starts_with('-') || name.ends_with('-'), "must not begin or end with a hyphen");
    broken
}

/// A port by number or name.
pub(super) fn port(errors: &mut Errors, at: &Path, value: &Value) {
    match value {
        Value::String(name) => errors.rules(at, value, port_name(name)),
        _ => errors.rule(at, value, port_number(value.as_i64().unwrap_or_default())),
    }
}

/// An environment variable's name.
pub(super) fn env_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("environment variable name must be non-empty".to_owned());
    }
    if name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Ok(());
    }
    Err("a valid environment variable name must consist only of printable ASCII characters other than '='"
        .to_owned())
}

/// A key of a ConfigMap or Secret.
pub(super) fn config_key(key: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if key.len() > 253 {
        broken.push("must be no more than 253 characters".to_owned());
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if key.is_empty() || !key.bytes().all(plain) {
        broken.push("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".to_owned());
    }
    match key {
        "." | ".." => broken.push(format!("must not be '{key}'")),
        _ if key.starts_with("..") => broken.push("must not start with '..'".to_owned()),
        _ => {}
    }
    broken
}

/// An HTTP header's name.
pub(super) fn header_name(name: &str) -> Result<(), String> {
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Ok(());
    }
    Err("a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')".to_owned())
}

/// `50%`, as a number; `None` for anything else.
pub(super) fn percent(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('%')?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// An absolute number or a percentage, not below zero.
pub(super) fn int_or_percent(errors: &mut Errors, at: &Path, value: &Value) {
    match value {
        Value::String(text) if percent(text).is_none() => errors.invalid(at, value, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"),
        Value::Number(number) if number.as_i64().is_some_and(|n| n < 0) => {
            errors.invalid(at, value, "must be greater than or equal to 0");
        }
        _ => {}
    }
}

/// A percentage of at most 100.
pub(super) fn at_most_100_percent(errors: &mut Errors, at: &Path, value: &Value) {
    if value.as_str().and_then(percent).is_some_and(|p| p > 100) {
        errors.invalid(at, value, "must not be greater than 100%");
    }
}

/// True if an absolute number or percentage is zero or absent.
pub(super) fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => percent(text).or_else(|| text.parse().ok()).unwrap_or(0) == 0,
        _ => value.as_i64().unwrap_or(0) == 0,
    }
}

/// An IP address; leading zeros and IPv4-mapped IPv6 are refused (`StrictIPCIDRValidation`).
pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) if is_mapped(ip) => Err("must not be an IPv4-mapped IPv6 address".to_owned()),
        Ok(ip) => Ok(ip),
        Err(_) if without_leading_zeros(text).parse::<IpAddr>().is_ok() => {
            Err("must not have leading 0s".to_owned())
        }
        Err(_) => Err(NOT_AN_IP.to_owned()),
    }
}

fn is_mapped(ip: Ipv6Addr) -> bool {
    ip.to_ipv4_mapped().is_some()
}

fn without_leading_zeros(text: &str) -> String {
    let strip = |octet: &str| match octet.trim_start_matches('0') {
        "" if !octet.is_empty() => "0".to_owned(),
        rest => rest.to_owned(),
    };
    text.split('.').map(strip).collect::<Vec<_>>().join(".")
}

/// An address range, as its address and prefix length; no bits may be set beyond the prefix.
pub(super) fn cidr(text: &str) -> Result<(IpAddr, u8), String> {
    let Some((address, length)) = text.split_once('/') else { return Err(NOT_A_CIDR.to_owned()) };
    let (Ok(address), Ok(length)) = (address.parse::<IpAddr>(), length.parse::<u8>()) else {
        let sloppy = without_leading_zeros(address).parse::<IpAddr>().is_ok() && length.parse::<u8>().is_ok();
        let words = if sloppy { "must not have leading 0s in IP or prefix length" } else { NOT_A_CIDR };
        return Err(words.to_owned());
    };
    match address {
        IpAddr::V4(_) if length > 32 => Err(NOT_A_CIDR.to_owned()),
        IpAddr::V6(_) if length > 128 => Err(NOT_A_CIDR.to_owned()),
        IpAddr::V6(ip) if is_mapped(ip) => Err("must not have an IPv4-mapped IPv6 address".to_owned()),
        _ if bits(address) != prefix(address, length) => {
            Err("must not have bits set beyond the prefix length".to_owned())
        }
        _ => Ok((address, length)),
    }
}

/// The address as a number, at the upper end of 128 bits.
fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn prefix(ip: IpAddr, length: u8) -> u128 {
    let mask = if length == 0 { 0 } else { u128::MAX << (128 - u32::from(length.min(128))) };
    bits(ip) & mask
}

/// True if the second range is a strict part of the first.
pub(super) fn is_strict_subset((ip, length): (IpAddr, u8), (part, part_length): (IpAddr, u8)) -> bool {
    ip.is_ipv4() == part.is_ipv4() && length < part_length && prefix(part, length) == prefix(ip, length)
}

/// An address that traffic can be sent to.
pub(super) fn endpoint_ip(errors: &mut Errors, at: &Path, value: &Value) {
    let text = value.as_str().unwrap_or_default();
    let ip = match ip(text) {
        Ok(ip) => ip,
        Err(words) => return errors.invalid(at, value, words),
    };
    let (link_local, multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    if ip.is_unspecified() {
        errors.invalid(at, value, format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        errors.invalid(at, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        errors.invalid(at, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        errors.invalid(at, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// A path without `..`.
pub(super) fn no_backsteps(errors: &mut Errors, at: &Path, value: &Value) {
    if value.as_str().unwrap_or_default().split('/').any(|part| part == "..") {
        errors.invalid(at, value, "must not contain '..'");
    }
}

/// A relative path without `..`.
pub(super) fn descending_path(errors: &mut Errors, at: &Path, value: &Value) {
    if value.as_str().unwrap_or_default().starts_with('/') {
        errors.invalid(at, value, "must be a relative path");
    }
    no_backsteps(errors, at, value);
}

/// A relative path below a volume that does not collide with the kubelet's own `..data`.
pub(super) fn volume_file_path(errors: &mut Errors, at: &Path, value: &Value) {
    descending_path(errors, at, value);
    let text = value.as_str().unwrap_or_default();
    if text.starts_with("..") && !text.starts_with("../") {
        errors.invalid(at, value, "must not start with '..'");
    }
}

/// Permission bits of a file.
pub(super) fn file_mode(errors: &mut Errors, at: &Path, value: &Value) {
    if value.as_i64().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        errors.invalid(at, value, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// `example.com/signer-name`.
pub(super) fn signer_name(errors: &mut Errors, at: &Path, value: &Value) {
    let name = value.as_str().unwrap_or_default();
    if name.is_empty() {
        return errors.required(at, "");
    }
    let segments: Vec<&str> = name.split('/').collect();
    let [domain, path] = segments[..] else {
        let words = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return errors.invalid(at, value, words);
    };
    let first_bad = |text: &str, rule: fn(&str) -> Result<(), String>| {
        text.split('.')
            .find_map(|label| rule(label).err().map(|why| format!("validating label {label:?}: {why}")))
    };
    errors.rules(at, &domain.into(), first_bad(domain, dns_label));
    if !domain.contains('.') {
        errors.invalid(at, &domain.into(), "should be a domain with at least two segments separated by dots");
    }
    errors.rules(at, &path.into(), first_bad(path, dns_subdomain));
}

/// A host name, or one with `*.` in front.
pub(super) fn host_name(host: &str) -> Result<(), String> {
    if !host.contains('*') {
        return dns_subdomain(host);
    }
    match host.strip_prefix("*.").map(dns_subdomain) {
        Some(Ok(())) => Ok(()),
        _ => Err("a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_by_name() {
        assert!(port_name("http-2").is_empty());
        for (name, count) in
            [("", 2), ("80", 1), ("a--b", 1), ("-a", 1), ("HTTP", 2), ("a-very-long-port-name", 1)]
        {
            assert_eq!(port_name(name).len(), count, "{name}: {:?}", port_name(name));
        }
    }

    #[test]
    fn addresses() {
        assert!(ip("10.0.0.1").is_ok() && ip("fd00::1").is_ok());
        for (text, words) in [
            ("010.0.0.1", "must not have leading 0s"),
            ("::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address"),
            ("1.2.3", NOT_AN_IP),
            ("", NOT_AN_IP),
        ] {
            assert_eq!(ip(text).unwrap_err(), words, "{text}");
        }
        assert!(cidr("10.0.0.0/8").is_ok() && cidr("::/0").is_ok());
        for (text, words) in [
            ("10.0.0.1/8", "must not have bits set beyond the prefix length"),
            ("10.0.0.0/33", NOT_A_CIDR),
            ("10.0.0.0", NOT_A_CIDR),
            ("010.0.0.0/8", "must not have leading 0s in IP or prefix length"),
        ] {
            assert_eq!(cidr(text).unwrap_err(), words, "{text}");
        }
        let subset = |a: &str, b: &str| is_strict_subset(cidr(a).unwrap(), cidr(b).unwrap());
        assert!(subset("10.0.0.0/8", "10.1.0.0/16"));
        assert!(!subset("10.0.0.0/8", "10.0.0.0/8"));
        assert!(!subset("10.0.0.0/8", "11.0.0.0/16"));
    }
}
