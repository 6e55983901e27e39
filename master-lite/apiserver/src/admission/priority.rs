//! Priority: resolves a pod's class into its priority and preemption policy (`plugin/pkg/admission/priority`).

use std::sync::Arc;

use keelson_api::meta::GroupResource;
use serde_json::{Value, json};

use super::{concerns, forbidden, new_pod_spec};
use crate::authz::rbac::text;
use crate::extension::{Attributes, MutatingAdmission, ObjectReader, Operation, Result, ValidatingAdmission};

const GROUP: &str = "scheduling.k8s.io";

/// Classes that exist from the beginning.
pub const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// The plug-in.
pub struct Priority {
    reader: Arc<dyn ObjectReader>,
}

/// What a class says.
#[derive(Debug, PartialEq, Eq)]
struct Resolved {
    class: String,
    value: i64,
    policy: String,
}

impl Priority {
    /// Looks classes up in this cache.
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    fn default_class(&self) -> Option<Arc<Value>> {
        let classes = self.reader.list(&GroupResource::new(GROUP, "priorityclasses"), None);
        classes
            .into_iter()
            .filter(|c| c["globalDefault"] == true)
            .min_by_key(|c| c["value"].as_i64().unwrap_or(0))
    }

    fn resolve(&self, class: &str) -> Option<Resolved> {
        if class.is_empty() {
            return Some(match self.default_class() {
                Some(class) => read(&class),
                None => Resolved { class: String::new(), value: 0, policy: "PreemptLowerPriority".into() },
            });
        }
        if let Some(found) = self.reader.get(&GroupResource::new(GROUP, "priorityclasses"), None, class) {
            return Some(read(&found));
        }
        let (name, value) = SYSTEM_CLASSES.into_iter().find(|(name, _)| *name == class)?;
        Some(Resolved { class: name.into(), value, policy: "PreemptLowerPriority".into() })
    }
}

fn read(class: &Value) -> Resolved {
    Resolved {
        class: text(class, "/metadata/name").to_owned(),
        value: class["value"].as_i64().unwrap_or(0),
        policy: class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority").to_owned(),
    }
}

#[async_trait::async_trait]
impl MutatingAdmission for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn admit(&self, attributes: &mut Attributes) -> Result<()> {
        if attributes.operation == Operation::Update && concerns(attributes, "", "pods", "") {
            keep_on_update(attributes);
            return Ok(());
        }
        let Some(spec) = new_pod_spec(attributes) else { return Ok(()) };
        let class = spec.get("priorityClassName").and_then(Value::as_str).unwrap_or_default().to_owned();
        let given = spec.get("priority").and_then(Value::as_i64);
        let given_policy = spec.get("preemptionPolicy").and_then(Value::as_str).map(str::to_owned);
        let Some(resolved) = self.resolve(&class) else {
            return Err(forbidden(attributes, format!("no PriorityClass with name {class} was found")));
        };
        if let Some(given) = given.filter(|g| *g != resolved.value) {
            return Err(forbidden(
                attributes,
                format!(
                    "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {} from the given PriorityClass name",
                    resolved.value
                ),
            ));
        }
        if let Some(given) = given_policy.filter(|g| *g != resolved.policy) {
            return Err(forbidden(
                attributes,
                format!(
                    "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {} from the given PriorityClass name",
                    resolved.policy
                ),
            ));
        }
        if let Some(spec) = new_pod_spec(attributes) {
            if !resolved.class.is_empty() {
                spec.insert("priorityClassName".into(), json!(resolved.class));
            }
            spec.insert("priority".into(), json!(resolved.value));
            spec.insert("preemptionPolicy".into(), json!(resolved.policy));
        }
        Ok(())
    }
}

/// A client that doesn't know the fields must not unset them by an update.
fn keep_on_update(attributes: &mut Attributes) {
    let Some(old) = attributes.old_object.clone() else { return };
    let Some(spec) = attributes.object.as_mut().and_then(|o| o["spec"].as_object_mut()) else { return };
    for field in ["priority", "preemptionPolicy"] {
        let value = &old["spec"][field];
        if !value.is_null() && spec.get(field).is_none_or(Value::is_null) {
            spec.insert(field.into(), value.clone());
        }
    }
}

#[async_trait::async_trait]
impl ValidatingAdmission for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn validate(&self, attributes: &Attributes) -> Result<()> {
        if !concerns(attributes, GROUP, "priorityclasses", "") {
            return Ok(());
        }
        let Some(object) = attributes.object.as_ref().filter(|o| o["globalDefault"] == true) else {
            return Ok(());
        };
        let Some(default) = self.default_class() else { return Ok(()) };
        let other = text(&default, "/metadata/name");
        let clash = match attributes.operation {
            Operation::Create => true,
            Operation::Update => other != text(object, "/metadata/name"),
            _ => false,
        };
        if clash {
            let why =
                format!("PriorityClass {other} is already marked as default. Only one default can exist");
            return Err(forbidden(attributes, why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::create;
    use super::*;
    use crate::authz::fake::FakeReader;

    #[tokio::test]
    async fn classes_resolve() {
        let classes = [
            (
                GROUP,
                "priorityclasses",
                json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"}),
            ),
            (
                GROUP,
                "priorityclasses",
                json!({"metadata": {"name": "usual"}, "value": 10, "globalDefault": true}),
            ),
        ];
        let check = async |with_default: bool, spec: Value, want: Result<(&str, i64, &str), &str>| {
            let count = if with_default { 2 } else { 1 };
            let plugin = Priority::new(Arc::new(FakeReader::new(classes[..count].to_vec())));
            let mut attributes =
                create("", "pods", json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec}));
            let got = plugin.admit(&mut attributes).await.map_err(|e| e.message);
            let spec = attributes.object.unwrap()["spec"].take();
            match want {
                Err(why) => assert!(got.unwrap_err().contains(why)),
                Ok((class, value, policy)) => {
                    got.unwrap();
                    assert_eq!(spec["priorityClassName"].as_str().unwrap_or_default(), class);
                    assert_eq!(spec["priority"], value);
                    assert_eq!(spec["preemptionPolicy"], policy);
                }
            }
        };
        const LOWER: &str = "PreemptLowerPriority";
        check(false, json!({}), Ok(("", 0, LOWER))).await;
        check(true, json!({}), Ok(("usual", 10, LOWER))).await;
        check(false, json!({"priorityClassName": "high"}), Ok(("high", 1000, "Never"))).await;
        check(false, json!({"priorityClassName": "high", "priority": 1000}), Ok(("high", 1000, "Never")))
            .await;
        check(
            false,
            json!({"priorityClassName": "high", "priority": 1}),
            Err("the integer value of priority (1) must not be provided"),
        )
        .await;
        check(
            false,
            json!({"priorityClassName": "system-node-critical"}),
            Ok(("system-node-critical", 2_000_001_000, LOWER)),
        )
        .await;
        check(
            false,
            json!({"priorityClassName": "none"}),
            Err("pods \"p\" is forbidden: no PriorityClass with name none was found"),
        )
        .await;
    }
}
