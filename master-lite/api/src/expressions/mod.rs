//! Expressions in CEL: rules of custom resources, match conditions of webhooks, admission policies. The `cel` crate
//! parses and runs them, with Kubernetes' functions from kube-cel; what they see is decided by whoever has them.
//!
//! Two things are not as upstream has them. Nothing knows the types of fields before an expression runs: one that
//! speaks of a field that is not there is accepted, and then fails. And what an expression costs is not bounded, neither
//! estimated in advance nor counted. What the crate lacks is refused before it runs ([`check`]).

pub mod condition;
mod functions;
mod rewrite;
mod uses;

use kube_cel::cel::parser::Parser;
use kube_cel::cel::{Context, ExecutionError, IdedExpr, Value as Cel};

pub(crate) use functions::{FUNCTIONS, Made};
use functions::{KNOWN, NAMESPACES, TYPES};
use uses::Uses;
pub(crate) use uses::result_type;

/// Words that are no identifiers in CEL.
pub(crate) const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Where the variables of admission policies are: `variables.x` is a variable of this name.
pub(crate) const VARIABLES: &str = "variables";

/// A parsed expression.
#[derive(Debug)]
pub(crate) struct Expression {
    tree: IdedExpr,
    /// What it takes from outside.
    variables: Vec<String>,
}

impl Expression {
    /// Parses an expression; says why it is none.
    pub(crate) fn parse(source: &str) -> Result<Self, String> {
        let parsed = Parser::default().enable_optional_syntax(true).parse(source);
        let mut tree = parsed.map_err(|error| error.to_string())?;
        rewrite::rewrite(&mut tree);
        let variables = Uses::of(&tree).variables.into_iter().map(str::to_owned).collect();
        Ok(Self { tree, variables })
    }

    /// The variables that it takes from outside.
    pub(crate) fn variables(&self) -> &[String] {
        &self.variables
    }

    /// Whether it takes this variable from outside.
    pub(crate) fn speaks_of(&self, name: &str) -> bool {
        self.variables.iter().any(|variable| variable == name)
    }

    /// Runs it.
    pub(crate) fn evaluate(&self, context: &Context<'_>) -> Result<Cel, ExecutionError> {
        Cel::resolve(&self.tree, context)
    }
}

/// What an expression may do where it stands.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Dialect<'d> {
    /// Variables that it may speak of.
    pub(crate) variables: &'d [&'d str],
    /// It may make objects: `Object{…}`, `JSONPatch{…}`.
    pub(crate) makes_objects: bool,
    /// Types of which one must come out, where it is known beforehand; any if empty.
    pub(crate) results: &'d [&'d str],
}

/// Parses an expression; also returns what is wrong with it.
pub(crate) fn check(source: &str, dialect: Dialect<'_>) -> (Option<Expression>, Vec<String>) {
    let expression = match Expression::parse(source) {
        Ok(expression) => expression,
        Err(error) => return (None, vec![format!("compilation failed: {error}")]),
    };
    let uses = Uses::of(&expression.tree);
    let mut complaints = Vec::new();
    for name in uses.functions.iter().filter(|name| !KNOWN.contains(&name.as_str())) {
        complaints.push(format!("{name}, as it is used here, is not supported by this server"));
    }
    for name in &uses.variables {
        // A namespace of functions looks like a variable.
        if dialect.variables.contains(name) || NAMESPACES.contains(name) || TYPES.contains(name) {
            continue;
        }
        complaints.push(match name.strip_prefix("variables.") {
            Some(field) => format!("undefined field '{field}'"),
            None if *name == "authorizer" => "authorizer is not supported by this server".to_owned(),
            None => format!("undeclared reference to '{name}' (in container '')"),
        });
    }
    for name in &uses.types {
        let is_known = *name == "JSONPatch" || *name == "Object" || name.starts_with("Object.");
        if !dialect.makes_objects || !is_known {
            complaints.push(format!("undeclared reference to '{name}' (in container '')"));
        }
    }
    let mut complaints: Vec<String> =
        complaints.into_iter().map(|why| format!("compilation failed: {why}")).collect();
    if let Some(found) = result_type(&expression.tree)
        && !dialect.results.is_empty()
        && !dialect.results.contains(&found)
    {
        complaints.push(match dialect.results {
            [one] => format!("must evaluate to {one} but got {found}"),
            many => format!("must evaluate to one of [{}] but got {found}", many.join(" ")),
        });
    }
    (Some(expression), complaints)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(source: &str, dialect: Dialect<'_>) -> Vec<String> {
        check(source, dialect).1
    }

    #[test]
    fn what_is_not_there_is_complained_of() {
        let dialect = Dialect { variables: &["object", "variables.x"], ..Dialect::default() };
        for fine in [
            "object.a.b[0].c > 1 && object.l.all(x, x.startsWith('a'))",
            "variables.x == 'y'",
            "object.?a.?b.orValue(3) == 3",
            "quantity('1Gi').isGreaterThan(quantity('1Mi')) && math.abs(-1) == 1",
            "[1, 2].map(variables, variables.x).size() == 2",
            "object.metadata.namespace == 'a'",
        ] {
            assert_eq!(complaints(fine, dialect), Vec::<String>::new(), "{fine}");
        }
        for (source, wanted) in [
            ("params.x", "compilation failed: undeclared reference to 'params' (in container '')"),
            ("variables.y", "compilation failed: undefined field 'y'"),
            ("has(variables.x)", "compilation failed: undeclared reference to 'variables' (in container '')"),
            (
                "object.a.fly()",
                "compilation failed: fly, as it is used here, is not supported by this server",
            ),
            (
                "[1].all(i, x, x > 0)",
                "compilation failed: all, as it is used here, is not supported by this server",
            ),
            ("Object{a: 1}", "compilation failed: undeclared reference to 'Object' (in container '')"),
            (
                "authorizer.path('/').check('get').allowed()",
                "compilation failed: authorizer is not supported by this server",
            ),
        ] {
            assert!(
                complaints(source, dialect).iter().any(|c| c == wanted),
                "{source}: {:?}",
                complaints(source, dialect)
            );
        }
        assert!(complaints("object.a >", dialect)[0].starts_with("compilation failed: "));
    }

    #[test]
    fn known_results_must_be_of_the_wanted_type() {
        let dialect = Dialect { results: &["bool"], ..Dialect::default() };
        assert_eq!(complaints("1 == 1 ? true : false", dialect), Vec::<String>::new());
        assert_eq!(complaints("1", dialect), ["must evaluate to bool but got int"]);
        assert_eq!(complaints("'a' + 'b'", dialect), ["must evaluate to bool but got string"]);
    }

    #[test]
    fn every_known_function_is_there() {
        for name in KNOWN {
            let source = format!("{name}()");
            let expression = Expression::parse(&source).unwrap_or_else(|error| panic!("{source}: {error}"));
            let outcome = FUNCTIONS.with(|functions| expression.evaluate(functions));
            let undeclared = matches!(outcome, Err(ExecutionError::UndeclaredReference(_)));
            assert!(!undeclared, "{source}: {outcome:?}");
        }
    }

    #[test]
    fn what_is_no_map_has_no_fields() {
        let run = |source: &str| {
            let expression = Expression::parse(source).unwrap();
            FUNCTIONS.with(|functions| expression.evaluate(functions)).map_err(|error| error.to_string())
        };
        assert_eq!(run("{'a': {'b': 1}}.a.b"), Ok(Cel::Int(1)));
        assert!(run("{'a': 'x'}.a.b").is_err());
        assert_eq!(run("{'a': {}}.b"), Err("No such key: b".to_owned()));
        assert_eq!(run("{'a': {}}.?a.?b.c.orValue(7)"), Ok(Cel::Int(7)));
        assert_eq!(run("{'a': {'b': 1}}.?a.?b.orValue(7)"), Ok(Cel::Int(1)));
        assert_eq!(run("has({'a': 1}.a) && !has({'a': 1}.b)"), Ok(Cel::Bool(true)));
    }
}
