//! DefaultTolerationSeconds: a pod stays five minutes on a node that is not ready or unreachable, unless it says
//! otherwise (`plugin/pkg/admission/defaulttolerationseconds`).

use serde_json::{Value, json};

use super::concerns;
use crate::extension::{Attributes, MutatingAdmission, Operation, Result};

const SECONDS: i64 = 300;
const KEYS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// The plug-in.
pub struct DefaultTolerationSeconds;

#[async_trait::async_trait]
impl MutatingAdmission for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn admit(&self, attributes: &mut Attributes) -> Result<()> {
        // On update too, as upstream: adding tolerations is one of the few changes that validation lets through.
        if !matches!(attributes.operation, Operation::Create | Operation::Update)
            || !concerns(attributes, "", "pods", "")
        {
            return Ok(());
        }
        let Some(spec) = attributes.object.as_mut().and_then(|o| o["spec"].as_object_mut()) else {
            return Ok(());
        };
        let list = spec.entry("tolerations").or_insert_with(|| json!([]));
        if list.is_null() {
            *list = json!([]);
        }
        let Some(list) = list.as_array_mut() else { return Ok(()) };
        let missing: Vec<&str> =
            KEYS.into_iter().filter(|key| !list.iter().any(|t| covers(t, key))).collect();
        for key in missing {
            list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}));
        }
        Ok(())
    }
}

/// Whether a toleration already speaks of the taint `key:NoExecute`.
fn covers(toleration: &Value, key: &str) -> bool {
    let field = |name: &str| toleration[name].as_str().unwrap_or_default();
    (field("key") == key || field("key").is_empty()) && matches!(field("effect"), "" | "NoExecute")
}

#[cfg(test)]
mod tests {
    use super::super::testing::create;
    use super::*;

    #[tokio::test]
    async fn what_a_pod_says_stays() {
        let check = async |tolerations: Value, want: usize| {
            let pod =
                json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"tolerations": tolerations}});
            let mut attributes = create("", "pods", pod);
            DefaultTolerationSeconds.admit(&mut attributes).await.unwrap();
            let got = attributes.object.unwrap();
            assert_eq!(got["spec"]["tolerations"].as_array().map(Vec::len), Some(want), "{got}");
        };
        check(json!(null), 2).await;
        check(json!([{"operator": "Exists"}]), 1).await;
        check(json!([{"key": KEYS[0], "operator": "Exists", "effect": "NoExecute"}]), 2).await;
        check(json!([{"key": KEYS[0], "operator": "Exists", "effect": "NoSchedule"}]), 3).await;
    }
}
