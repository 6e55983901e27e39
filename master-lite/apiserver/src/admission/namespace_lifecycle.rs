//! NamespaceLifecycle: nothing is made in a namespace that isn't there or is going away, and the namespaces that the
//! cluster can't do without are never deleted (`apiserver/pkg/admission/plugin/namespace/lifecycle`).

use std::sync::Arc;
use std::time::Duration;

use keelson_api::meta::GroupResource;
use serde_json::{Value, json};

use super::forbidden;
use crate::extension::{Attributes, MutatingAdmission, ObjectReader, Operation, Result, StatusError};

/// Namespaces that can't be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The cache may not have seen a namespace that was made just before: wait so long for it, so often.
const WAIT: Duration = Duration::from_millis(50);
const TRIES: usize = 4;

/// The plug-in.
pub struct NamespaceLifecycle {
    reader: Arc<dyn ObjectReader>,
}

impl NamespaceLifecycle {
    /// Looks namespaces up in this cache.
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    async fn namespace(&self, name: &str, patient: bool) -> Option<Arc<Value>> {
        let resource = GroupResource::new("", "namespaces");
        for _ in 1..if patient { TRIES } else { 1 } {
            if let Some(found) = self.reader.get(&resource, None, name) {
                return Some(found);
            }
            tokio::time::sleep(WAIT).await;
        }
        self.reader.get(&resource, None, name)
    }
}

#[async_trait::async_trait]
impl MutatingAdmission for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn admit(&self, attributes: &mut Attributes) -> Result<()> {
        let on_namespaces =
            attributes.resource.group.is_empty() && attributes.resource.resource == "namespaces";
        if on_namespaces {
            if attributes.operation == Operation::Delete && IMMORTAL.contains(&attributes.name.as_str()) {
                return Err(forbidden(attributes, "this namespace may not be deleted"));
            }
            return Ok(());
        }
        let review = attributes.resource.resource == "localsubjectaccessreviews";
        if attributes.namespace.is_empty() || attributes.operation == Operation::Delete || review {
            return Ok(());
        }
        let creating = attributes.operation == Operation::Create;
        let namespace = attributes.namespace.clone();
        let Some(found) = self.namespace(&namespace, creating).await else {
            return Err(StatusError::not_found(&GroupResource::new("", "namespaces"), &namespace));
        };
        let going =
            found["status"]["phase"] == "Terminating" || found["metadata"]["deletionTimestamp"].is_string();
        if creating && going {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            let mut error = forbidden(attributes, why);
            let mut details = error.details.take().unwrap_or_else(|| json!({}));
            // Controllers tell this refusal from others by the cause.
            details["causes"] = json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }]);
            return Err(error.with_details(details));
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
    async fn writes_need_a_living_namespace() {
        let plugin = NamespaceLifecycle::new(Arc::new(FakeReader::new(vec![
            ("", "namespaces", json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}})),
            ("", "namespaces", json!({"metadata": {"name": "dying"}, "status": {"phase": "Terminating"}})),
        ])));
        let check = async |operation: Operation, resource: &str, namespace: &str, want: &str| {
            let object = json!({"metadata": {"name": "x", "namespace": namespace}});
            let mut attributes = Attributes { operation, ..create("", resource, object) };
            if resource == "namespaces" {
                attributes.name = namespace.to_owned();
                attributes.namespace = namespace.to_owned();
            }
            let got = plugin.admit(&mut attributes).await.err().map(|e| e.message).unwrap_or_default();
            assert_eq!(got, want);
        };
        check(Operation::Create, "pods", "a", "").await;
        check(Operation::Create, "nodes", "", "").await;
        check(Operation::Create, "pods", "none", "namespaces \"none\" not found").await;
        check(
            Operation::Create,
            "pods",
            "dying",
            "pods \"x\" is forbidden: unable to create new content in namespace dying because it is being terminated",
        )
        .await;
        check(Operation::Update, "pods", "dying", "").await;
        check(Operation::Delete, "pods", "none", "").await;
        check(
            Operation::Delete,
            "namespaces",
            "default",
            "namespaces \"default\" is forbidden: this namespace may not be deleted",
        )
        .await;
        check(Operation::Delete, "namespaces", "a", "").await;
        check(Operation::Create, "namespaces", "new", "").await;
    }
}
