//! Classes of storage and of ingress: DefaultStorageClass, DefaultIngressClass and PersistentVolumeClaimResize
//! (`plugin/pkg/admission/{storage,network}`).

use std::cmp::Reverse;
use std::sync::Arc;

use keelson_api::meta::GroupResource;
use keelson_api::quota::amounts;
use serde_json::Value;

use super::{concerns, forbidden};
use crate::authz::rbac::text;
use crate::extension::{Attributes, MutatingAdmission, ObjectReader, Operation, Result, ValidatingAdmission};

const STORAGE: &str = "storage.k8s.io";
const NETWORK: &str = "networking.k8s.io";
/// Where a claim's class was said before there was a field for it.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// Of several default classes, the newest.
fn default_class(
    reader: &dyn ObjectReader,
    group: &str,
    plural: &str,
    annotations: &[&str],
) -> Option<String> {
    let classes = reader.list(&GroupResource::new(group, plural), None);
    let is_default = |class: &&Arc<Value>| {
        annotations.iter().any(|annotation| class["metadata"]["annotations"][annotation] == "true")
    };
    classes
        .iter()
        .filter(is_default)
        .min_by_key(|class| {
            (Reverse(text(class, "/metadata/creationTimestamp")), text(class, "/metadata/name"))
        })
        .map(|class| text(class, "/metadata/name").to_owned())
}

/// Gives claims and Ingresses without a class the default one.
pub struct DefaultClasses {
    reader: Arc<dyn ObjectReader>,
}

impl DefaultClasses {
    /// Looks classes up in this cache.
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }
}

#[async_trait::async_trait]
impl MutatingAdmission for DefaultClasses {
    fn name(&self) -> &'static str {
        "DefaultClasses"
    }

    async fn admit(&self, attributes: &mut Attributes) -> Result<()> {
        if attributes.operation != Operation::Create {
            return Ok(());
        }
        let (field, annotation, class) = if concerns(attributes, "", "persistentvolumeclaims", "") {
            let annotations = [
                "storageclass.kubernetes.io/is-default-class",
                "storageclass.beta.kubernetes.io/is-default-class",
            ];
            let class = default_class(&*self.reader, STORAGE, "storageclasses", &annotations);
            ("storageClassName", CLASS_ANNOTATION, class)
        } else if concerns(attributes, NETWORK, "ingresses", "") {
            let annotations = ["ingressclass.kubernetes.io/is-default-class"];
            let class = default_class(&*self.reader, NETWORK, "ingressclasses", &annotations);
            ("ingressClassName", "kubernetes.io/ingress.class", class)
        } else {
            return Ok(());
        };
        if let (Some(object), Some(class)) = (&mut attributes.object, class)
            && object["spec"][field].is_null()
            && object["metadata"]["annotations"][annotation].is_null()
            && object["spec"].is_object()
        {
            object["spec"][field] = class.into();
        }
        Ok(())
    }
}

/// A claim grows only once it is bound, and only if its class allows that.
pub struct ClaimResize {
    reader: Arc<dyn ObjectReader>,
}

impl ClaimResize {
    /// Looks classes up in this cache.
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    fn may_grow(&self, new: &Value, old: &Value) -> bool {
        let class = class_of(new);
        let found = || self.reader.get(&GroupResource::new(STORAGE, "storageclasses"), None, class);
        !class.is_empty()
            && class == class_of(old)
            && found().is_some_and(|class| class["allowVolumeExpansion"] == true)
    }
}

fn class_of(claim: &Value) -> &str {
    let annotation = claim["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
    annotation.or_else(|| claim["spec"]["storageClassName"].as_str()).unwrap_or_default()
}

#[async_trait::async_trait]
impl ValidatingAdmission for ClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    async fn validate(&self, attributes: &Attributes) -> Result<()> {
        let (Operation::Update, Some(new), Some(old)) =
            (attributes.operation, &attributes.object, &attributes.old_object)
        else {
            return Ok(());
        };
        let size = |claim: &Value| amounts::read(&claim["spec"]["resources"]["requests"]).remove("storage");
        if !concerns(attributes, "", "persistentvolumeclaims", "") || size(new) <= size(old) {
            return Ok(());
        }
        if old["status"]["phase"] != "Bound" {
            return Err(forbidden(attributes, "Only bound persistent volume claims can be expanded"));
        }
        if !self.may_grow(new, old) {
            return Err(forbidden(
                attributes,
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{create, update};
    use super::*;
    use crate::authz::fake::FakeReader;
    use serde_json::json;

    fn reader() -> Arc<FakeReader> {
        let class = |name: &str, created: &str| {
            json!({
                "metadata": {
                    "name": name, "creationTimestamp": created,
                    "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
                },
                "allowVolumeExpansion": name == "new",
            })
        };
        Arc::new(FakeReader::new(vec![
            (STORAGE, "storageclasses", class("old", "2026-01-01T00:00:00Z")),
            (STORAGE, "storageclasses", class("new", "2026-01-02T00:00:00Z")),
        ]))
    }

    fn claim(class: Value, size: &str, phase: &str) -> Value {
        json!({
            "metadata": {"name": "c", "namespace": "a"},
            "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}},
            "status": {"phase": phase},
        })
    }

    #[tokio::test]
    async fn the_newest_default_is_taken() {
        let plugin = DefaultClasses::new(reader());
        let check = async |given: Value, want: &str| {
            let mut attributes = create("", "persistentvolumeclaims", claim(given, "1Gi", ""));
            plugin.admit(&mut attributes).await.unwrap();
            assert_eq!(attributes.object.unwrap()["spec"]["storageClassName"], want);
        };
        check(Value::Null, "new").await;
        check(json!("old"), "old").await;
        check(json!(""), "").await;
    }

    #[tokio::test]
    async fn claims_grow_where_they_may() {
        let plugin = ClaimResize::new(reader());
        let check = async |class: &str, phase: &str, size: &str, allowed: bool| {
            let old = claim(json!(class), "1Gi", phase);
            let new = claim(json!(class), size, phase);
            let got = plugin.validate(&update("", "persistentvolumeclaims", old, new)).await;
            assert_eq!(got.is_ok(), allowed, "{class} {phase} {size}");
        };
        check("new", "Bound", "2Gi", true).await;
        check("new", "Pending", "2Gi", false).await;
        check("old", "Bound", "2Gi", false).await;
        check("old", "Bound", "1Gi", true).await;
    }
}
