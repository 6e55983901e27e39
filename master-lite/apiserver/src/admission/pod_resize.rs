//! PodResizeValidator: a resize must fit on the pod's node at all (`plugin/pkg/admission/podresize`).

use std::sync::Arc;

use keelson_api::meta::GroupResource;
use keelson_api::quota::amounts::{Kind, pod_total, read};
use serde_json::{Value, json};

use super::{concerns, forbidden};
use crate::extension::{Attributes, ObjectReader, Operation, Result, StatusError, ValidatingAdmission};

/// The plug-in.
pub struct PodResizeValidator {
    reader: Arc<dyn ObjectReader>,
}

impl PodResizeValidator {
    /// Looks nodes up in this cache.
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }
}

#[async_trait::async_trait]
impl ValidatingAdmission for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    async fn validate(&self, attributes: &Attributes) -> Result<()> {
        if attributes.operation != Operation::Update || !concerns(attributes, "", "pods", "resize") {
            return Ok(());
        }
        let (Some(pod), Some(old)) = (&attributes.object, &attributes.old_object) else { return Ok(()) };
        let node_name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if node_name.is_empty() || pod["metadata"]["generation"] == old["metadata"]["generation"] {
            return Ok(());
        }
        let Some(node) = self.reader.get(&GroupResource::new("", "nodes"), None, node_name) else {
            return Err(forbidden(attributes, format!("node {node_name:?} not found")));
        };
        if let Some(os) = node["metadata"]["labels"]["kubernetes.io/os"].as_str().filter(|os| *os != "linux")
        {
            let why = format!("pod resize is only supported on linux nodes, node {node_name:?} is {os:?}");
            return Err(refused(attributes, why, "UnsupportedPlatform"));
        }
        match lacking(pod, &node["status"]["allocatable"]) {
            None => Ok(()),
            Some(why) => Err(refused(attributes, why, "NodeCapacity")),
        }
    }
}

fn refused(attributes: &Attributes, why: String, cause: &str) -> StatusError {
    let mut error = forbidden(attributes, why);
    let mut details = error.details.take().unwrap_or_else(|| json!({}));
    details["causes"] = json!([{"reason": cause}]);
    error.with_details(details)
}

/// What the node could not give even if the pod were alone on it.
fn lacking(pod: &Value, allocatable: &Value) -> Option<String> {
    let (requests, room) = (pod_total(pod, Kind::Requests, false), read(allocatable));
    let mut lacks = Vec::new();
    for name in ["cpu", "memory"] {
        let requested = requests.get(name).copied().unwrap_or_default();
        let has = room.get(name).copied().unwrap_or_default();
        if requested > has {
            let number =
                |q: keelson_quantity::Quantity| if name == "cpu" { q.milli_value() } else { q.value() };
            lacks.push(format!("{name}, requested: {}, allocatable: {}", number(requested), number(has)));
        }
    }
    (!lacks.is_empty())
        .then(|| format!("node didn't have enough allocatable resources: {}", lacks.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::super::testing::update;
    use super::*;
    use crate::authz::fake::FakeReader;

    #[tokio::test]
    async fn a_resize_must_fit_the_node() {
        let plugin = PodResizeValidator::new(Arc::new(FakeReader::new(vec![(
            "",
            "nodes",
            json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi"}}}),
        )])));
        let pod = |generation: i64, cpu: &str, node: &str| {
            json!({"metadata": {"name": "p", "namespace": "a", "generation": generation}, "spec": {
                "nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
        };
        let check = async |generation: i64, cpu: &str, node: &str, want: Option<&str>| {
            let attributes = update("", "pods/resize", pod(1, "1", node), pod(generation, cpu, node));
            let got = plugin.validate(&attributes).await.err().map(|error| error.message);
            assert_eq!(got, want.map(|why| format!("pods \"p\" is forbidden: {why}")));
        };
        check(2, "2", "n", None).await;
        let why = "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000";
        check(2, "3", "n", Some(why)).await;
        check(1, "3", "n", None).await;
        check(2, "3", "", None).await;
        check(2, "2", "x", Some("node \"x\" not found")).await;
    }
}
