//! Values of `--node-labels`, `--register-with-taints` and `--eviction-hard`; durations.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

/// Why a flag's value was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FlagError {
    /// Not of the form `key=value`.
    #[error("invalid label {0:?}: must be key=value")]
    Label(String),
    /// A label in the kubernetes.io namespace that a kubelet may not set on itself (NodeRestriction).
    #[error(
        "label {0:?} in the kubernetes.io namespace can't be set by the node itself: use node.kubernetes.io/ or kubelet.kubernetes.io/"
    )]
    Restricted(String),
    /// Not of the form `signal<value`, or no signal of kubelet.
    #[error("invalid eviction threshold {0:?}: must be signal<quantity or signal<percentage%")]
    Threshold(String),
    /// Not of the form `key[=value]:effect`.
    #[error(
        "invalid taint {0:?}: must be key[=value]:effect with effect NoSchedule, PreferNoSchedule or NoExecute"
    )]
    Taint(String),
    /// No duration.
    #[error("{0:?} is no duration such as 1m30s")]
    Duration(String),
}

/// Labels in the kubernetes.io namespace that a kubelet may set beside the two open prefixes (kubelet's
/// `IsKubeletLabel`).
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "topology.disk.csi.azure.com/zone",
];

/// Parses a duration as Go writes it: `1m30s`, `500ms`. Nothing below a millisecond, and not zero.
pub fn parse_duration(text: &str) -> Result<Duration, FlagError> {
    let bad = || FlagError::Duration(text.to_owned());
    let mut sum = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let number: u32 = number.parse().map_err(|_no_number| bad())?;
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(bad()),
        };
        sum = sum.saturating_add(unit.saturating_mul(number));
        rest = tail;
    }
    if sum.is_zero() { Err(bad()) } else { Ok(sum) }
}

/// Parses `key=value,key=value`.
pub fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, FlagError> {
    let mut labels = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| FlagError::Label(pair.to_owned()))?;
        if !is_qualified_name(key) || !(value.is_empty() || is_name(value)) {
            return Err(FlagError::Label(pair.to_owned()));
        }
        let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
        let under = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
        let open = under("kubelet.kubernetes.io") || under("node.kubernetes.io");
        if (under("kubernetes.io") || under("k8s.io")) && !open && !OWN_LABELS.contains(&key) {
            return Err(FlagError::Restricted(key.to_owned()));
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// Parses `key=value:effect,key:effect`.
pub fn parse_taints(text: &str) -> Result<Vec<Taint>, FlagError> {
    let mut taints: Vec<Taint> = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let bad = || FlagError::Taint(item.to_owned());
        let (pair, effect) = item.rsplit_once(':').ok_or_else(bad)?;
        let (key, value) = pair.split_once('=').map_or((pair, None), |(key, value)| (key, Some(value)));
        let value = value.filter(|value| !value.is_empty());
        if !is_qualified_name(key)
            || value.is_some_and(|value| !is_name(value))
            || !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute")
            || taints.iter().any(|other| other.key == key && other.effect == effect)
        {
            return Err(bad());
        }
        taints.push(Taint {
            key: key.to_owned(),
            value: value.map(str::to_owned),
            effect: effect.to_owned(),
            time_added: None,
        });
    }
    Ok(taints)
}

/// `[prefix/]name` with a DNS subdomain as prefix.
fn is_qualified_name(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let prefix_ok = prefix.is_none_or(|prefix| {
        prefix.len() <= 253
            && prefix.split('.').all(|part| {
                !part.is_empty()
                    && !part.starts_with('-')
                    && !part.ends_with('-')
                    && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            })
    });
    prefix_ok && is_name(name)
}

/// At most 63 of letters, digits, `-`, `_`, `.`, with a letter or digit at both ends.
fn is_name(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_labels(text: &str, expected: Option<&[(&str, &str)]>) {
        let got = parse_labels(text).ok();
        let expected = expected
            .map(|pairs| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn labels() {
        check_labels("", Some(&[]));
        check_labels("a=b,disk=ssd", Some(&[("a", "b"), ("disk", "ssd")]));
        check_labels("a=", Some(&[("a", "")]));
        check_labels("node.kubernetes.io/x=1", Some(&[("node.kubernetes.io/x", "1")]));
        check_labels("topology.kubernetes.io/zone=z1", Some(&[("topology.kubernetes.io/zone", "z1")]));
        check_labels("node-role.kubernetes.io/master=", None);
        check_labels("a", None);
        check_labels("-a=b", None);
    }

    fn check_taint(text: &str, expected: Option<(&str, Option<&str>, &str)>) {
        let got = parse_taints(text).ok().and_then(|taints| taints.into_iter().next());
        let got =
            got.as_ref().map(|taint| (taint.key.as_str(), taint.value.as_deref(), taint.effect.as_str()));
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn taints() {
        check_taint("k=v:NoSchedule", Some(("k", Some("v"), "NoSchedule")));
        check_taint("k:NoExecute", Some(("k", None, "NoExecute")));
        check_taint("k=:NoExecute", Some(("k", None, "NoExecute")));
        check_taint("k=v", None);
        check_taint("k=v:Never", None);
        check_taint("k=v:NoSchedule,k=w:NoSchedule", None);
    }

    #[test]
    fn durations() {
        for (text, millis) in [("1m30s", 90_000), ("500ms", 500), ("2h", 7_200_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "m", "0s", "-1s", "1d", "1s5"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
