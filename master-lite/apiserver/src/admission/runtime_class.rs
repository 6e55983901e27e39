//! RuntimeClass: a pod's class must exist; its overhead and scheduling go into the pod
//! (`plugin/pkg/admission/runtimeclass`).

use std::sync::Arc;

use keelson_api::meta::GroupResource;
use serde_json::{Value, json};

use super::{forbidden, new_pod_spec};
use crate::authz::rule::go_quote;
use crate::extension::{Attributes, MutatingAdmission, ObjectReader, Result};

/// The plug-in.
pub struct RuntimeClass {
    reader: Arc<dyn ObjectReader>,
}

impl RuntimeClass {
    /// Looks classes up in this cache.
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }
}

#[async_trait::async_trait]
impl MutatingAdmission for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    async fn admit(&self, attributes: &mut Attributes) -> Result<()> {
        let Some(spec) = new_pod_spec(attributes) else { return Ok(()) };
        let name = spec.get("runtimeClassName").and_then(Value::as_str).unwrap_or_default().to_owned();
        let given = spec.get("overhead").filter(|o| o.as_object().is_some_and(|o| !o.is_empty())).cloned();
        if name.is_empty() {
            return match given {
                None => Ok(()),
                Some(_) => Err(forbidden(
                    attributes,
                    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
                )),
            };
        }
        let Some(class) = self.reader.get(&GroupResource::new("node.k8s.io", "runtimeclasses"), None, &name)
        else {
            return Err(forbidden(
                attributes,
                format!("pod rejected: RuntimeClass {} not found", go_quote(&name)),
            ));
        };
        let overhead = class["overhead"]["podFixed"].as_object().filter(|o| !o.is_empty());
        match (overhead, given) {
            (Some(fixed), Some(given)) if given != Value::Object(fixed.clone()) => {
                let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
                return Err(forbidden(attributes, why));
            }
            (None, Some(_)) => {
                let why =
                    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
                return Err(forbidden(attributes, why));
            }
            _ => {}
        }
        let Some(spec) = new_pod_spec(attributes) else { return Ok(()) };
        if let Some(fixed) = overhead {
            spec.insert("overhead".into(), Value::Object(fixed.clone()));
        }
        if let Err(why) = schedule(spec, &class["scheduling"]) {
            return Err(forbidden(attributes, why));
        }
        Ok(())
    }
}

/// Adds the class's node selector and tolerations.
fn schedule(spec: &mut serde_json::Map<String, Value>, scheduling: &Value) -> Result<(), String> {
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let selector = spec.entry("nodeSelector").or_insert_with(|| json!({}));
        if selector.is_null() {
            *selector = json!({});
        }
        match selector.get(key) {
            Some(have) if have != value => {
                let (have, value) = (have.as_str().unwrap_or_default(), value.as_str().unwrap_or_default());
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {have}"
                ));
            }
            Some(_) => {}
            None => selector[key] = value.clone(),
        }
    }
    for toleration in scheduling["tolerations"].as_array().into_iter().flatten() {
        let list = spec.entry("tolerations").or_insert_with(|| json!([]));
        if list.is_null() {
            *list = json!([]);
        }
        if let Some(list) = list.as_array_mut()
            && !list.contains(toleration)
        {
            list.push(toleration.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::create;
    use super::*;
    use crate::authz::fake::FakeReader;

    #[tokio::test]
    async fn classes_are_honoured() {
        let plugin = RuntimeClass::new(Arc::new(FakeReader::new(vec![(
            "node.k8s.io",
            "runtimeclasses",
            json!({"metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"cpu": "100m"}},
                "scheduling": {"nodeSelector": {"vm": "yes"}}}),
        )])));
        let check = async |spec: Value, want: Result<Value, &str>| {
            let mut attributes =
                create("", "pods", json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec}));
            let got = plugin.admit(&mut attributes).await.map(|()| attributes.object.unwrap()["spec"].take());
            assert_eq!(got.map_err(|e| e.message), want.map_err(|w| format!("pods \"p\" is forbidden: {w}")));
        };
        check(json!({}), Ok(json!({}))).await;
        let full =
            json!({"runtimeClassName": "vm", "overhead": {"cpu": "100m"}, "nodeSelector": {"vm": "yes"}});
        check(json!({"runtimeClassName": "vm"}), Ok(full.clone())).await;
        check(full.clone(), Ok(full)).await;
        check(json!({"runtimeClassName": "x"}), Err("pod rejected: RuntimeClass \"x\" not found")).await;
        let conflict =
            "conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no";
        check(json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}}), Err(conflict)).await;
    }
}
