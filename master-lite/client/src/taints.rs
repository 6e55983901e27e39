//! Taints and tolerations.

use k8s_openapi::api::core::v1::{Node, Taint, Toleration};

/// No new pod may come that does not tolerate the taint.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// The scheduler avoids the node for pods that do not tolerate the taint.
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
/// Pods that do not tolerate the taint must leave.
pub const NO_EXECUTE: &str = "NoExecute";

/// The taints of a node.
pub fn of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// Whether `toleration` tolerates `taint` (`v1.Toleration.ToleratesTaint`): an empty effect stands for every
/// effect, an empty key with `Exists` for every key.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let value = toleration.value.as_deref().unwrap_or_default();
    let present = taint.value.as_deref().unwrap_or_default();
    let numbers = || Some((present.parse::<i64>().ok()?, value.parse::<i64>().ok()?));
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => !key.is_empty() && value == present,
        "Exists" => true,
        "Lt" => numbers().is_some_and(|(taint, limit)| taint < limit),
        "Gt" => numbers().is_some_and(|(taint, limit)| taint > limit),
        _ => false,
    }
}

/// The first of `taints` with one of `effects` that none of `tolerations` tolerates.
pub fn first_untolerated<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    effects: &[&str],
) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toleration: (&str, &str, &str, &str), taint: (&str, &str, &str), expected: bool) {
        let text = |s: &str| (!s.is_empty()).then(|| s.to_string());
        let toleration = Toleration {
            key: text(toleration.0),
            operator: text(toleration.1),
            value: text(toleration.2),
            effect: text(toleration.3),
            toleration_seconds: None,
        };
        let taint =
            Taint { key: taint.0.into(), value: text(taint.1), effect: taint.2.into(), time_added: None };
        assert_eq!(tolerates(&toleration, &taint), expected, "{toleration:?} {taint:?}");
    }

    #[test]
    fn toleration_rules() {
        check(("k", "Equal", "v", "NoSchedule"), ("k", "v", "NoSchedule"), true);
        check(("k", "", "v", ""), ("k", "v", "NoExecute"), true);
        check(("k", "Equal", "w", ""), ("k", "v", "NoExecute"), false);
        check(("k", "Exists", "", "NoExecute"), ("k", "v", "NoSchedule"), false);
        check(("", "Exists", "", ""), ("k", "v", "NoSchedule"), true);
        check(("j", "Exists", "", ""), ("k", "v", "NoSchedule"), false);
    }
}
