//! Admission policies: what they say of a request (`k8s.io/apiserver/pkg/admission/plugin/policy`). Pure; which requests
//! they are asked about, and what comes of it, is the API server's business.

mod apply;
mod environment;
mod mutating;
mod object;
mod validating;

use serde_json::Value;

pub use apply::apply;
pub use mutating::{Change, Mutating, Mutation};
pub use validating::{Denial, Validating, Verdict};

use crate::custom::convert;
use crate::expressions::condition::{self, Condition, Outcome, Variables};
use crate::expressions::{Dialect, FUNCTIONS, check};
use environment::{Environment, Variable};

/// What a policy's expressions see.
#[derive(Debug, Clone, Copy)]
pub struct Input<'v> {
    /// What match conditions see too.
    pub variables: Variables<'v>,
    /// The namespace of the object, or null.
    pub namespace: &'v Value,
}

/// What both kinds of policy have.
#[derive(Debug)]
pub struct Common {
    /// `failurePolicy: Ignore`.
    pub ignores_failure: bool,
    conditions: Vec<Condition>,
    variables: Vec<Variable>,
}

impl Common {
    fn read(spec: &Value) -> Self {
        let variables = spec["variables"].as_array().into_iter().flatten();
        Self {
            ignores_failure: spec["failurePolicy"] == "Ignore",
            conditions: Condition::all_of(spec),
            variables: variables.map(Variable::read).collect(),
        }
    }

    /// Whether the match conditions are met. What can't be evaluated is not, where failures are ignored.
    ///
    /// # Errors
    /// When a condition can't be evaluated.
    pub fn is_met(&self, input: &Input<'_>) -> Result<bool, String> {
        match condition::evaluate(&self.conditions, input.variables) {
            Outcome::Met => Ok(true),
            Outcome::Unmet => Ok(false),
            Outcome::Failed(_) if self.ignores_failure => Ok(false),
            Outcome::Failed(errors) => Err(condition::aggregate(&errors)),
        }
    }

    /// Runs something where the policy's variables are known.
    fn run<T>(&self, input: &Input<'_>, run: impl FnOnce(&mut Environment<'_>) -> T) -> T {
        FUNCTIONS.with(|functions| {
            let mut scope = functions.new_inner_scope();
            input.variables.bind(&mut scope);
            scope.add_variable_from_value("namespaceObject", convert(input.namespace, None));
            run(&mut Environment::new(scope, &self.variables))
        })
    }
}

/// What an expression of a policy has to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A match condition: a bool, and no variables of the policy.
    Condition,
    /// A variable: anything.
    Variable,
    /// A validation.
    Bool,
    /// A message.
    Message,
    /// An audit annotation.
    Annotation,
    /// An apply configuration.
    Object,
    /// A JSON patch.
    Patch,
}

/// What is wrong with an expression of a policy that has (or has not) parameters and these variables.
pub fn complaints(expression: &str, wanted: Wanted, has_params: bool, variables: &[String]) -> Vec<String> {
    let own = variables.iter().map(String::as_str).filter(|_| wanted != Wanted::Condition);
    let params = has_params.then_some("params");
    let known: Vec<&str> = condition::VARIABLES.iter().copied().chain(own).chain(params).collect();
    let results: &[&str] = match wanted {
        Wanted::Condition | Wanted::Bool => &["bool"],
        Wanted::Variable => &[],
        Wanted::Message => &["string"],
        Wanted::Annotation => &["string", "null_type"],
        Wanted::Object => &["Object"],
        Wanted::Patch => &["list"],
    };
    let makes_objects = matches!(wanted, Wanted::Object | Wanted::Patch);
    check(expression, Dialect { variables: &known, makes_objects, results }).1
}
