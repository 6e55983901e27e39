//! TaintNodesByCondition: a new node takes no pods until it is known to be ready (`plugin/pkg/admission/nodetaint`).

use serde_json::json;

use super::concerns;
use crate::extension::{Attributes, MutatingAdmission, Operation, Result};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// The plug-in.
pub struct TaintNodesByCondition;

#[async_trait::async_trait]
impl MutatingAdmission for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    async fn admit(&self, attributes: &mut Attributes) -> Result<()> {
        if attributes.operation != Operation::Create || !concerns(attributes, "", "nodes", "") {
            return Ok(());
        }
        let Some(node) = attributes.object.as_mut().filter(|o| o.is_object()) else { return Ok(()) };
        if !node["spec"].is_object() {
            node["spec"] = json!({});
        }
        let taints = &mut node["spec"]["taints"];
        if !taints.is_array() {
            *taints = json!([]);
        }
        if let Some(taints) = taints.as_array_mut()
            && !taints.iter().any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule")
        {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::create;
    use super::*;

    #[tokio::test]
    async fn new_nodes_are_tainted_once() {
        for spec in [json!(null), json!({}), json!({"taints": [{"key": NOT_READY, "effect": "NoSchedule"}]})]
        {
            let mut attributes = create("", "nodes", json!({"metadata": {"name": "n"}, "spec": spec}));
            TaintNodesByCondition.admit(&mut attributes).await.unwrap();
            let node = attributes.object.unwrap();
            assert_eq!(node["spec"]["taints"], json!([{"key": NOT_READY, "effect": "NoSchedule"}]));
        }
    }
}
