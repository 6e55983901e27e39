//! ValidatingAdmissionPolicies.

use kube_cel::cel::Value as Cel;
use serde_json::Value;

use super::environment::{Environment, Program};
use super::{Common, Input};

/// Longest text that a `messageExpression` may make.
const MAX_MESSAGE: usize = 5 << 10;

/// The expressions of a policy.
#[derive(Debug)]
pub struct Validating {
    /// What both kinds of policy have.
    pub common: Common,
    validations: Vec<Validation>,
    annotations: Vec<Program>,
}

#[derive(Debug)]
struct Validation {
    expression: Program,
    message: String,
    message_expression: Option<Program>,
    reason: String,
}

/// Why a policy does not want a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// `metav1.StatusReason`.
    pub reason: String,
    /// What is wrong.
    pub message: String,
}

/// What a policy says of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What its validations have against it: the bindings' actions decide what becomes of these.
    pub denials: Vec<Denial>,
    /// Audit annotations that could not be made: these refuse the request, whatever the bindings' actions.
    pub failed_annotations: Vec<String>,
}

impl Denial {
    fn failure(message: String) -> Self {
        Self { reason: "Invalid".to_owned(), message }
    }
}

impl Validating {
    /// Compiles a policy. What does not compile fails whenever it is evaluated.
    pub fn read(spec: &Value) -> Self {
        let items = |field: &str| spec[field].as_array().into_iter().flatten();
        Self {
            common: Common::read(spec),
            validations: items("validations").map(Validation::read).collect(),
            annotations: items("auditAnnotations")
                .map(|annotation| Program::new(annotation["valueExpression"].as_str().unwrap_or_default()))
                .collect(),
        }
    }

    /// Holds the policy against a request.
    pub fn validate(&self, input: &Input<'_>) -> Verdict {
        match self.common.is_met(input) {
            Ok(true) => self.common.run(input, |environment| self.verdict(environment)),
            Ok(false) => Verdict::default(),
            Err(why) => Verdict { denials: vec![Denial::failure(why)], ..Verdict::default() },
        }
    }

    fn verdict(&self, environment: &mut Environment<'_>) -> Verdict {
        let ignores = self.common.ignores_failure;
        let denials = self.validations.iter().filter_map(|v| v.check(environment, ignores)).collect();
        let failed = |program: &Program| annotation(environment, program, ignores);
        Verdict { denials, failed_annotations: self.annotations.iter().filter_map(failed).collect() }
    }
}

/// Why an audit annotation can't be made. Its value goes nowhere, for there is no audit log.
fn annotation(environment: &mut Environment<'_>, program: &Program, ignores: bool) -> Option<String> {
    match environment.evaluate(program) {
        Ok(Cel::String(_) | Cel::Null) => None,
        Ok(_) => Some(format!(
            "valueExpression '{}' resulted in unsupported return type. Return type must be either string or null.",
            program.text
        )),
        Err(_) if ignores => None,
        Err(why) => Some(why),
    }
}

impl Validation {
    fn read(validation: &Value) -> Self {
        let text = |field: &str| validation[field].as_str().unwrap_or_default().trim();
        Self {
            expression: Program::new(text("expression")),
            message: text("message").to_owned(),
            message_expression: Some(text("messageExpression")).filter(|t| !t.is_empty()).map(Program::new),
            reason: text("reason").to_owned(),
        }
    }

    fn check(&self, environment: &mut Environment<'_>, ignores_failure: bool) -> Option<Denial> {
        match environment.evaluate(&self.expression) {
            Ok(Cel::Bool(true)) => None,
            Err(_) if ignores_failure => None,
            Err(why) => Some(Denial::failure(why)),
            // What is no bool is not true.
            Ok(_) => {
                let reason = if self.reason.is_empty() { "Invalid" } else { &self.reason };
                Some(Denial { reason: reason.to_owned(), message: self.words(environment) })
            }
        }
    }

    /// The message, by the first of the ways there are that gives one.
    fn words(&self, environment: &mut Environment<'_>) -> String {
        let made = self.message_expression.as_ref().and_then(|made| match environment.evaluate(made) {
            Ok(Cel::String(text)) => Some(text.trim().to_owned()),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "a policy's message can't be made");
                None
            }
        });
        let usable = |text: &String| !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n');
        made.filter(usable).unwrap_or_else(|| match self.message.as_str() {
            "" => format!("failed expression: {}", self.expression.text),
            message => message.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::expressions::condition::Variables;

    fn verdict(spec: Value) -> Verdict {
        let object = json!({"metadata": {"name": "d", "namespace": "a"}, "spec": {"replicas": 1}});
        let request = json!({"operation": "CREATE"});
        let params = json!({"data": {"max": "3"}});
        let namespace = json!({"metadata": {"name": "a", "labels": {"env": "prod"}}});
        let old_object = &Value::Null;
        let variables = Variables { object: &object, old_object, request: &request, params: &params };
        Validating::read(&spec).validate(&Input { variables, namespace: &namespace })
    }

    fn denials(spec: Value) -> Vec<(String, String)> {
        verdict(spec).denials.into_iter().map(|denial| (denial.reason, denial.message)).collect()
    }

    fn denied(reason: &str, message: &str) -> Vec<(String, String)> {
        vec![(reason.to_owned(), message.to_owned())]
    }

    #[test]
    fn validations_deny_with_reason_and_message() {
        let one = |validation: Value| denials(json!({"validations": [validation]}));
        assert_eq!(one(json!({"expression": "object.spec.replicas == 1"})), []);
        assert_eq!(
            one(json!({"expression": " object.spec.replicas > 1 "})),
            denied("Invalid", "failed expression: object.spec.replicas > 1")
        );
        let asked = json!({"expression": "object.spec.replicas > 1", "message": "too few", "reason": "Forbidden",
            "messageExpression": "'wants more than ' + string(object.spec.replicas)"});
        assert_eq!(one(asked), denied("Forbidden", "wants more than 1"));
        // A message that can't be made is not the request's fault.
        let confused = json!({"expression": "false", "messageExpression": "'got ' + object.spec.replicas"});
        assert_eq!(one(confused), denied("Invalid", "failed expression: false"));
        let broken = json!({"expression": "false", "message": "m", "messageExpression": r"'a\nb'"});
        assert_eq!(one(broken), denied("Invalid", "m"));
    }

    #[test]
    fn everything_is_known_to_expressions() {
        let expressions = [
            "oldObject == null && request.operation == 'CREATE'",
            "object.spec.replicas <= int(params.data.max)",
            "namespaceObject.metadata.labels.env == 'prod' && object.metadata.namespace == namespaceObject.metadata.name",
        ];
        let validations: Vec<Value> = expressions.iter().map(|e| json!({"expression": e})).collect();
        assert_eq!(denials(json!({"validations": validations})), []);
    }

    #[test]
    fn variables_are_evaluated_when_they_are_needed() {
        let spec = |expression: &str| {
            json!({"variables": [
                {"name": "replicas", "expression": "object.spec.replicas"},
                {"name": "odd", "expression": "variables.replicas % 2 == 1"},
                {"name": "broken", "expression": "object.spec.none.such"},
            ], "validations": [{"expression": expression}]})
        };
        assert_eq!(denials(spec("variables.odd && variables.replicas == 1")), []);
        assert_eq!(denials(spec("[1, 2].exists(x, x == variables.replicas)")), []);
        assert_eq!(denials(spec("true || variables.broken")), []);
        assert_eq!(
            denials(spec("variables.broken == 1")),
            denied(
                "Invalid",
                "expression 'variables.broken == 1' resulted in error: composited variable \"broken\" fails to evaluate: No such key: none"
            )
        );
    }

    #[test]
    fn failures_count_as_the_policy_says() {
        let spec = |policy: &str| json!({"failurePolicy": policy, "validations": [{"expression": "object.none == 1"}]});
        assert_eq!(denials(spec("Fail")).len(), 1);
        assert_eq!(denials(spec("Ignore")), []);
        let conditions = |policy: &str, condition: &str| {
            json!({"failurePolicy": policy, "matchConditions": [{"name": "c", "expression": condition}],
                "validations": [{"expression": "false"}]})
        };
        assert_eq!(denials(conditions("Fail", "object.metadata.name == 'd'")).len(), 1);
        assert_eq!(denials(conditions("Fail", "object.metadata.name == 'e'")), []);
        assert_eq!(denials(conditions("Fail", "object.none == 1")), denied("Invalid", "No such key: none"));
        assert_eq!(denials(conditions("Ignore", "object.none == 1")), []);
    }

    #[test]
    fn annotations_have_to_be_texts() {
        let failed = |policy: &str, expression: &str| {
            verdict(json!({"failurePolicy": policy, "auditAnnotations": [{"key": "k", "valueExpression": expression}]}))
                .failed_annotations
                .len()
        };
        assert_eq!(failed("Fail", "object.metadata.name"), 0);
        assert_eq!(failed("Fail", "null"), 0);
        assert_eq!(failed("Fail", "object.none"), 1);
        assert_eq!(failed("Ignore", "object.none"), 0);
        assert_eq!(failed("Ignore", "object.spec.replicas"), 1);
    }
}
