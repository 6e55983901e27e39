//! What a policy's expressions know: the request, and variables that are evaluated when the first of them is spoken of.

use std::collections::BTreeMap;

use kube_cel::cel::{Context, ExecutionError, Value as Cel};
use serde_json::Value;

use crate::expressions::{Expression, VARIABLES};

/// `variables.NAME`.
#[derive(Debug)]
pub(super) struct Variable {
    name: String,
    expression: Program,
}

/// An expression with its text, which is part of what is said of its failures.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) text: String,
    parsed: Result<Expression, String>,
}

impl Program {
    pub(super) fn new(text: &str) -> Self {
        let text = text.trim();
        Self { text: text.to_owned(), parsed: Expression::parse(text) }
    }
}

impl Variable {
    pub(super) fn read(variable: &Value) -> Self {
        let text = |field: &str| variable[field].as_str().unwrap_or_default();
        Self { name: text("name").to_owned(), expression: Program::new(text("expression")) }
    }
}

/// One evaluation of a policy.
pub(super) struct Environment<'e> {
    context: Context<'e>,
    variables: &'e [Variable],
    /// Those that have been evaluated, and why they could not be.
    known: BTreeMap<&'e str, Option<String>>,
}

impl<'e> Environment<'e> {
    pub(super) fn new(context: Context<'e>, variables: &'e [Variable]) -> Self {
        Self { context, variables, known: BTreeMap::new() }
    }

    /// Runs an expression; says what went wrong as upstream does.
    pub(super) fn evaluate(&mut self, program: &Program) -> Result<Cel, String> {
        self.run(program).map_err(|why| format!("expression '{}' resulted in error: {why}", program.text))
    }

    fn run(&mut self, program: &Program) -> Result<Cel, String> {
        let expression = program.parsed.as_ref().map_err(|why| format!("compilation failed: {why}"))?;
        for name in expression.variables() {
            if let Some(name) = own(name) {
                self.prepare(name);
            }
        }
        expression.evaluate(&self.context).map_err(|error| match &error {
            // A variable that could not be evaluated matters only where the evaluation comes to it.
            ExecutionError::UndeclaredReference(name) => {
                let failed = own(name).and_then(|name| Some((name, self.known.get(name)?.as_ref()?)));
                failed.map_or_else(
                    || error.to_string(),
                    |(name, why)| format!("composited variable {name:?} fails to evaluate: {why}"),
                )
            }
            _ => error.to_string(),
        })
    }

    fn prepare(&mut self, name: &str) {
        let Some(variable) = self.variables.iter().find(|variable| variable.name == name) else { return };
        if self.known.contains_key(variable.name.as_str()) {
            return;
        }
        // Until it is evaluated, for one that speaks of itself.
        self.known.insert(&variable.name, Some("it speaks of itself".to_owned()));
        let failure = match self.run(&variable.expression) {
            Ok(value) => {
                self.context.add_variable_from_value(format!("{VARIABLES}.{name}"), value);
                None
            }
            Err(why) => Some(why),
        };
        self.known.insert(&variable.name, failure);
    }
}

/// The name of one of the policy's own variables.
fn own(name: &str) -> Option<&str> {
    name.strip_prefix(VARIABLES)?.strip_prefix('.')
}
