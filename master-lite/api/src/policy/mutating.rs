//! MutatingAdmissionPolicies.

use serde_json::Value;

use super::environment::Program;
use super::object::{configuration, json_patch};
use super::{Common, Input};

/// The expressions of a policy.
#[derive(Debug)]
pub struct Mutating {
    /// What both kinds of policy have.
    pub common: Common,
    /// `reinvocationPolicy: IfNeeded`.
    pub again: bool,
    /// In order.
    pub mutations: Vec<Mutation>,
}

/// One of a policy's changes.
#[derive(Debug)]
pub struct Mutation {
    program: Program,
    is_patch: bool,
}

/// What is to be done to the object.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Merge this into it ([`apply`](super::apply)).
    Configuration(Value),
    /// Apply this JSON patch.
    Patch(Value),
}

impl Mutating {
    /// Compiles a policy. What does not compile fails whenever it is evaluated.
    pub fn read(spec: &Value) -> Self {
        let mutations = spec["mutations"].as_array().into_iter().flatten();
        Self {
            common: Common::read(spec),
            again: spec["reinvocationPolicy"] == "IfNeeded",
            mutations: mutations.map(Mutation::read).collect(),
        }
    }

    /// What one of the mutations wants done.
    ///
    /// # Errors
    /// When it can't be evaluated, or makes what is no change.
    pub fn change(&self, mutation: &Mutation, input: &Input<'_>) -> Result<Change, String> {
        self.common.run(input, |environment| {
            let result = environment.evaluate(&mutation.program)?;
            if mutation.is_patch {
                json_patch(&result).map(Change::Patch)
            } else {
                configuration(&result).map(Change::Configuration)
            }
        })
    }
}

impl Mutation {
    fn read(mutation: &Value) -> Self {
        let is_patch = mutation["patchType"] == "JSONPatch";
        let field = if is_patch { "jsonPatch" } else { "applyConfiguration" };
        Self { program: Program::new(mutation[field]["expression"].as_str().unwrap_or_default()), is_patch }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::expressions::condition::Variables;

    fn change(patch_type: &str, expression: &str) -> Result<Change, String> {
        let object = json!({"metadata": {"name": "d", "labels": {"a/b": "c"}}, "spec": {"replicas": 1}});
        let none = &Value::Null;
        let variables = Variables { object: &object, old_object: none, request: none, params: none };
        let field = if patch_type == "JSONPatch" { "jsonPatch" } else { "applyConfiguration" };
        let policy = Mutating::read(&json!({
            "variables": [{"name": "twice", "expression": "object.spec.replicas * 2"}],
            "mutations": [{"patchType": patch_type, field: {"expression": expression}}],
        }));
        policy.change(&policy.mutations[0], &Input { variables, namespace: none })
    }

    #[test]
    fn configurations_are_made_of_objects() {
        let made = |expression: &str| match change("ApplyConfiguration", expression) {
            Ok(Change::Configuration(value)) => Ok(value),
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why),
        };
        assert_eq!(
            made("Object{spec: Object.spec{replicas: variables.twice}}"),
            Ok(json!({"spec": {"replicas": 2}}))
        );
        assert_eq!(
            made("Object{metadata: Object.metadata{annotations: {'k/x': 'v', 'n': object.metadata.name}}}"),
            Ok(json!({"metadata": {"annotations": {"k/x": "v", "n": "d"}}}))
        );
        assert_eq!(
            made(
                "Object{spec: Object.spec{l: [Object.spec.l{name: 'a', ratio: 1.5, on: true, none: null}], ?q: object.?spec.?q}}"
            ),
            Ok(json!({"spec": {"l": [{"name": "a", "ratio": 1.5, "on": true, "none": null}]}}))
        );
        assert_eq!(
            made(
                "has(object.spec.none) ? Object{} : Object{spec: Object.spec{a: ['x'].map(i, Object.spec.a{n: i})}}"
            ),
            Ok(json!({"spec": {"a": [{"n": "x"}]}}))
        );
        assert_eq!(
            made("Object{spec: Object.metadata{}}"),
            Err("type mismatch: unexpected type name \"Object.metadata\", expected \"Object.spec\", which matches field name path from root Object type".to_owned())
        );
        assert_eq!(
            made("dyn({'a': 'b'})"),
            Err("unsupported return type from ApplyConfiguration expression".to_owned())
        );
        assert!(made("Object{spec: object.none}").is_err());
    }

    #[test]
    fn patches_are_made_of_operations() {
        let made = |expression: &str| match change("JSONPatch", expression) {
            Ok(Change::Patch(value)) => Ok(value),
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why),
        };
        assert_eq!(
            made(
                "[JSONPatch{op: 'test', path: '/spec/replicas', value: object.spec.replicas}, \
                 JSONPatch{op: 'replace', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'd'}, \
                 JSONPatch{op: 'add', path: '/spec/x', value: Object.spec.x{y: [1]}}, \
                 JSONPatch{op: 'move', from: '/a', path: '/b'}]"
            ),
            Ok(json!([
                {"op": "test", "path": "/spec/replicas", "value": 1},
                {"op": "replace", "path": "/metadata/labels/a~1b", "value": "d"},
                {"op": "add", "path": "/spec/x", "value": {"y": [1]}},
                {"op": "move", "path": "/b", "from": "/a"},
            ]))
        );
        assert_eq!(made("[]"), Ok(json!([])));
        assert_eq!(
            made("[JSONPatch{op: 1}]"),
            Err("unexpected type for JSONPatchType 'op' field".to_owned())
        );
        assert_eq!(made("[JSONPatch{odd: 1}]"), Err("unexpected JSONPatchType field: odd".to_owned()));
        assert!(made("[Object{}]").is_err());
    }
}
