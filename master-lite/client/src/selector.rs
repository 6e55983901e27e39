//! Label selectors, and node selector terms, which share their operators.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels as the API holds them.
pub type Labels = BTreeMap<String, String>;

/// A selector whose operator is none of those the API knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The operator of a requirement is not known.
    #[error("{0:?} is not a valid label selector operator")]
    Operator(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

/// A compiled label selector. One without requirements selects everything; [`Selector::nothing`] nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    requirements: Option<Vec<(String, Test)>>,
}

impl Selector {
    /// Selects nothing, as an absent `LabelSelector` does.
    pub fn nothing() -> Self {
        Selector { requirements: None }
    }

    /// Selects what has all of `labels` (the map form of Services and ReplicationControllers).
    pub fn from_map(labels: &Labels) -> Self {
        let requirements = labels.iter().map(|(k, v)| (k.clone(), Test::In(vec![v.clone()]))).collect();
        Selector { requirements: Some(requirements) }
    }

    /// Compiles the API's selector. An absent one selects nothing, an empty one everything.
    pub fn compile(selector: Option<&LabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else { return Ok(Selector::nothing()) };
        let mut compiled = Selector::from_map(selector.match_labels.as_ref().unwrap_or(&Labels::new()));
        let requirements = compiled.requirements.get_or_insert_default();
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.clone().unwrap_or_default();
            let test = match expression.operator.as_str() {
                "In" => Test::In(values),
                "NotIn" => Test::NotIn(values),
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::DoesNotExist,
                other => return Err(SelectorError::Operator(other.into())),
            };
            requirements.push((expression.key.clone(), test));
        }
        Ok(compiled)
    }

    /// Whether it has no requirement, so that it selects everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether `labels` fulfil every requirement.
    pub fn matches(&self, labels: Option<&Labels>) -> bool {
        let Some(requirements) = &self.requirements else { return false };
        requirements.iter().all(|(key, test)| {
            let value = labels.and_then(|labels| labels.get(key));
            match test {
                Test::In(values) => value.is_some_and(|v| values.contains(v)),
                Test::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
                Test::Exists => value.is_some(),
                Test::DoesNotExist => value.is_none(),
            }
        })
    }
}

/// Whether the `nodeSelector` and the required node affinity of a pod accept `node`.
pub fn node_accepted(pod: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let wanted = pod.node_selector.iter().flatten();
    let selected = wanted.into_iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v));
    let affinity = pod.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|selector| node_selector_matches(selector, node))
}

/// Whether `node` fulfils a node selector: one of its terms must match. A selector without terms matches no node.
pub fn node_selector_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| node_term_matches(term, node))
}

/// Whether `node` fulfils one term; an empty term matches no node.
pub fn node_term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = node.metadata.labels.as_ref();
    let by_label = expressions
        .iter()
        .all(|r| node_requirement_matches(r, labels.and_then(|l| l.get(&r.key)).map(String::as_str)));
    // metadata.name is the one field that the API allows here.
    let by_field = fields
        .iter()
        .all(|r| r.key == "metadata.name" && node_requirement_matches(r, node.metadata.name.as_deref()));
    by_label && by_field
}

fn node_requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|x| x == v)),
        "NotIn" => value.is_none_or(|v| values.iter().all(|x| x != v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(a, b)| a > b),
        "Lt" => numbers().is_some_and(|(a, b)| a < b),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    fn check(expression: (&str, &str, &[&str]), on: &[(&str, &str)], expected: bool) {
        let selector = LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: expression.0.into(),
                operator: expression.1.into(),
                values: Some(expression.2.iter().map(|v| v.to_string()).collect()),
            }]),
        };
        let compiled = Selector::compile(Some(&selector)).unwrap();
        assert_eq!(compiled.matches(Some(&labels(on))), expected, "{expression:?} on {on:?}");
    }

    #[test]
    fn operators() {
        check(("a", "In", &["1", "2"]), &[("a", "2")], true);
        check(("a", "In", &["1"]), &[], false);
        check(("a", "NotIn", &["1"]), &[], true);
        check(("a", "NotIn", &["1"]), &[("a", "1")], false);
        check(("a", "Exists", &[]), &[("a", "")], true);
        check(("a", "DoesNotExist", &[]), &[("a", "")], false);
    }

    #[test]
    fn absent_selects_nothing_and_empty_everything() {
        assert!(!Selector::compile(None).unwrap().matches(None));
        let everything = Selector::compile(Some(&LabelSelector::default())).unwrap();
        assert!(everything.matches(None) && everything.is_everything());
    }
}
