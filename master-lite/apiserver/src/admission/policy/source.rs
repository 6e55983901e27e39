//! Policies with their bindings, compiled, out of the watch cache.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_api::meta::{GroupResource, GroupVersionKind};
use parking_lot::Mutex;
use serde_json::Value;

use crate::admission::matching::{GROUP, Matching};
use crate::authz::rbac::text;
use crate::extension::ObjectReader;

/// A policy that has bindings; one that has none is about nothing.
pub(super) struct Policy<C> {
    pub(super) name: String,
    pub(super) matching: Matching,
    pub(super) param_kind: Option<GroupVersionKind>,
    pub(super) compiled: Arc<C>,
    /// By name.
    pub(super) bindings: Vec<Arc<Binding>>,
}

/// A binding.
pub(super) struct Binding {
    pub(super) name: String,
    pub(super) matching: Option<Matching>,
    pub(super) param_ref: Option<Value>,
    /// `validationActions`.
    pub(super) actions: Vec<String>,
}

/// What one plug-in follows. `C` is what a policy's expressions are compiled into.
pub(super) struct Source<C> {
    policies: GroupResource,
    bindings: GroupResource,
    compile: fn(&Value) -> C,
    state: Mutex<State<C>>,
}

struct State<C> {
    /// Versions of policies and bindings; none before the first read.
    versions: Option<(u64, u64)>,
    policies: Arc<[Policy<C>]>,
    /// By name of the policy, with the spec that was compiled.
    compiled: BTreeMap<String, (Value, Arc<C>)>,
}

impl<C> Source<C> {
    pub(super) fn new(policies: &str, bindings: &str, compile: fn(&Value) -> C) -> Self {
        Self {
            policies: GroupResource::new(GROUP, policies),
            bindings: GroupResource::new(GROUP, bindings),
            compile,
            state: Mutex::new(State { versions: None, policies: Arc::new([]), compiled: BTreeMap::new() }),
        }
    }

    /// The policies that there are now, by name.
    pub(super) fn policies(&self, reader: &dyn ObjectReader) -> Arc<[Policy<C>]> {
        let versions = (reader.resource_version(&self.policies), reader.resource_version(&self.bindings));
        let mut state = self.state.lock();
        if state.versions != Some(versions) {
            let (policies, bindings) = (reader.list(&self.policies, None), reader.list(&self.bindings, None));
            state.policies = self.read(policies, &bindings, &mut state.compiled).into();
            state.versions = Some(versions);
        }
        state.policies.clone()
    }

    fn read(
        &self,
        mut policies: Vec<Arc<Value>>,
        bindings: &[Arc<Value>],
        compiled: &mut BTreeMap<String, (Value, Arc<C>)>,
    ) -> Vec<Policy<C>> {
        let mut bound: BTreeMap<&str, BTreeMap<&str, Arc<Binding>>> = BTreeMap::new();
        for binding in bindings {
            let name = text(binding, "/metadata/name");
            let of = bound.entry(text(binding, "/spec/policyName")).or_default();
            of.insert(name, Arc::new(Binding::read(name, &binding["spec"])));
        }
        compiled.retain(|name, _| policies.iter().any(|policy| text(policy, "/metadata/name") == name));
        policies.sort_by(|a, b| text(a, "/metadata/name").cmp(text(b, "/metadata/name")));
        let policy = |policy: &Arc<Value>| {
            let (name, spec) = (text(policy, "/metadata/name"), &policy["spec"]);
            let bindings = bound.remove(name)?.into_values().collect();
            let compiled = match compiled.get(name) {
                Some((of, compiled)) if of == spec => compiled.clone(),
                _ => {
                    let fresh = Arc::new((self.compile)(spec));
                    compiled.insert(name.to_owned(), (spec.clone(), fresh.clone()));
                    fresh
                }
            };
            let kind = &spec["paramKind"];
            Some(Policy {
                name: name.to_owned(),
                matching: Matching::of_policy(&spec["matchConstraints"]),
                param_kind: kind.is_object().then(|| {
                    GroupVersionKind::from_type_meta(text(kind, "/apiVersion"), text(kind, "/kind"))
                }),
                compiled,
                bindings,
            })
        };
        policies.iter().filter_map(policy).collect()
    }
}

impl Binding {
    fn read(name: &str, spec: &Value) -> Self {
        let there = |field: &str| spec.get(field).filter(|value| value.is_object());
        let actions = spec["validationActions"].as_array().into_iter().flatten();
        Self {
            name: name.to_owned(),
            matching: there("matchResources").map(Matching::of_policy),
            param_ref: there("paramRef").cloned(),
            actions: actions.filter_map(|action| action.as_str().map(str::to_owned)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    static COMPILED: AtomicUsize = AtomicUsize::new(0);

    #[test]
    fn a_policy_is_compiled_once() {
        let source = Source::new("p", "b", |spec| {
            COMPILED.fetch_add(1, Ordering::Relaxed);
            spec["v"].clone()
        });
        let policy = |name: &str, v: u8| Arc::new(json!({"metadata": {"name": name}, "spec": {"v": v}}));
        let binding = |name: &str, of: &str| {
            Arc::new(
                json!({"metadata": {"name": name}, "spec": {"policyName": of, "validationActions": ["Warn"]}}),
            )
        };
        let mut kept = BTreeMap::new();
        let mut read = |policies: Vec<Arc<Value>>, bindings: &[Arc<Value>]| {
            let found = source.read(policies, bindings, &mut kept);
            let names = |policy: &Policy<Value>| {
                let bindings: Vec<String> = policy.bindings.iter().map(|b| b.name.clone()).collect();
                format!("{}={}:{}", policy.name, policy.compiled, bindings.join(","))
            };
            (found.iter().map(names).collect::<Vec<_>>(), COMPILED.load(Ordering::Relaxed))
        };
        let bindings = [binding("y", "a"), binding("x", "a"), binding("z", "none"), binding("w", "b")];
        let both = || vec![policy("b", 2), policy("a", 1), policy("unbound", 3)];
        assert_eq!(read(both(), &bindings), (vec!["a=1:x,y".to_owned(), "b=2:w".to_owned()], 2));
        assert_eq!(read(both(), &bindings[..1]), (vec!["a=1:y".to_owned()], 2));
        assert_eq!(read(vec![policy("a", 4)], &bindings), (vec!["a=4:x,y".to_owned()], 3));
    }
}
