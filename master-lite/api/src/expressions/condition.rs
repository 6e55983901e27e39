//! Match conditions of webhooks and admission policies
//! (`k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions`): expressions over a request that all have to be true.

use kube_cel::cel::{Context, Value as Cel};
use serde_json::Value;

use super::{Dialect, Expression, FUNCTIONS, check};
use crate::custom::convert;

/// What expressions may speak of. `namespaceObject` is always null in conditions, as upstream has it.
pub(crate) const VARIABLES: &[&str] = &["object", "oldObject", "request", "namespaceObject"];

/// What is wrong with a webhook's condition; empty if nothing is.
pub fn complaints(expression: &str) -> Vec<String> {
    check(expression, Dialect { variables: VARIABLES, results: &["bool"], ..Dialect::default() }).1
}

/// A compiled condition.
#[derive(Debug)]
pub struct Condition {
    program: Result<Expression, String>,
}

/// What conditions say of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All are true.
    Met,
    /// One is false, whatever became of the others.
    Unmet,
    /// None is false, but these could not be evaluated.
    Failed(Vec<String>),
}

impl Condition {
    /// A condition; one that does not compile fails whenever it is evaluated.
    pub fn new(expression: &str) -> Self {
        Self { program: Expression::parse(expression.trim()) }
    }

    /// The conditions of a webhook or policy.
    pub fn all_of(parent: &Value) -> Vec<Self> {
        let conditions = parent["matchConditions"].as_array().into_iter().flatten();
        conditions.map(|condition| Self::new(condition["expression"].as_str().unwrap_or_default())).collect()
    }
}

/// What conditions are evaluated over: parts of an AdmissionRequest, and the request without them.
#[derive(Debug, Clone, Copy)]
pub struct Variables<'v> {
    /// The new object, or null.
    pub object: &'v Value,
    /// The old object, or null.
    pub old_object: &'v Value,
    /// The rest of the request.
    pub request: &'v Value,
    /// A policy's parameters, or null.
    pub params: &'v Value,
}

impl Variables<'_> {
    /// Makes them known to expressions.
    pub(crate) fn bind(&self, scope: &mut Context<'_>) {
        for (name, value) in [
            ("object", self.object),
            ("oldObject", self.old_object),
            ("request", self.request),
            ("params", self.params),
            ("namespaceObject", &Value::Null),
        ] {
            scope.add_variable_from_value(name, convert(value, None));
        }
    }
}

/// Evaluates all conditions.
pub fn evaluate(conditions: &[Condition], variables: Variables<'_>) -> Outcome {
    if conditions.is_empty() {
        return Outcome::Met;
    }
    FUNCTIONS.with(|functions| {
        let mut scope = functions.new_inner_scope();
        variables.bind(&mut scope);
        evaluate_in(conditions, &scope)
    })
}

fn evaluate_in(conditions: &[Condition], scope: &Context<'_>) -> Outcome {
    let mut failures = Vec::new();
    let unmet = conditions.iter().any(|condition| {
        let outcome = match &condition.program {
            Ok(program) => program.evaluate(scope).map_err(|error| error.to_string()),
            Err(error) => Err(format!("compilation failed: {error}")),
        };
        match outcome {
            Ok(Cel::Bool(met)) => return !met,
            Ok(_) => failures.push("the result is no bool".to_owned()),
            Err(error) => failures.push(error),
        }
        false
    });
    match (unmet, failures.is_empty()) {
        (true, _) => Outcome::Unmet,
        (false, true) => Outcome::Met,
        (false, false) => Outcome::Failed(failures),
    }
}

/// Several failures in one line, as upstream puts them (`utilerrors.NewAggregate`).
pub fn aggregate(failures: &[String]) -> String {
    match failures {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_are_evaluated_over_requests() {
        let object = json!({"metadata": {"name": "skip-me"}, "spec": {"replicas": 3}});
        let request = json!({"operation": "CREATE", "userInfo": {"username": "eve"}});
        let check = |expressions: &[&str], wanted: Outcome| {
            let conditions: Vec<Condition> = expressions.iter().map(|e| Condition::new(e)).collect();
            let none = &Value::Null;
            let variables = Variables { object: &object, old_object: none, request: &request, params: none };
            assert_eq!(evaluate(&conditions, variables), wanted, "{expressions:?}");
        };
        check(&[], Outcome::Met);
        check(&["object.metadata.name == 'skip-me'", "object.spec.replicas > 2"], Outcome::Met);
        check(&["object.metadata.name != 'skip-me'"], Outcome::Unmet);
        check(&["request.operation != 'CREATE' || request.userInfo.username == 'eve'"], Outcome::Met);
        check(&["oldObject == null && namespaceObject == null"], Outcome::Met);
        check(&["!has(object.metadata.labels)"], Outcome::Met);
        check(&["object.metadata.none == 'x'", "false"], Outcome::Unmet);
        check(&["object.metadata.none == 'x'"], Outcome::Failed(vec!["No such key: none".to_owned()]));
        check(&["1 + 1"], Outcome::Failed(vec!["the result is no bool".to_owned()]));
    }

    #[test]
    fn bad_conditions_are_complained_of() {
        assert!(complaints("object.metadata.name.startsWith('a') && request.dryRun").is_empty());
        assert!(complaints("... [] bad expression")[0].starts_with("compilation failed: "));
        assert_eq!(
            complaints("authorizer.group('').resource('pods').check('get').allowed()"),
            [
                "compilation failed: allowed, as it is used here, is not supported by this server",
                "compilation failed: check, as it is used here, is not supported by this server",
                "compilation failed: group, as it is used here, is not supported by this server",
                "compilation failed: resource, as it is used here, is not supported by this server",
                "compilation failed: authorizer is not supported by this server",
            ]
        );
        assert_eq!(
            complaints("params.x"),
            ["compilation failed: undeclared reference to 'params' (in container '')"]
        );
    }
}
