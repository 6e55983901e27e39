//! ResourceQuota: what a namespace may hold (`k8s.io/apiserver/pkg/admission/plugin/resourcequota`).
//!
//! What a change costs is added to the quotas' status before the change is committed, in writes that compare the
//! quota's revision, so that changes at the same time can't both take the last of something. What is charged for a
//! change that fails afterwards the quota controller gives back.

use std::collections::HashMap;
use std::sync::Arc;

use keelson_api::meta::GroupResource;
use keelson_api::quota::{self, Change, Evaluator};
use parking_lot::Mutex;
use serde_json::Value;

use super::forbidden;
use crate::core::{Core, LateCore};
use crate::extension::{
    Attributes, HookView, ObjectReader, Operation, Result, UserInfo, ValidatingAdmission,
};
use crate::options::WriteOptions;
use crate::write::{Ownership, SERVER, Write};

/// The plug-in.
pub struct ResourceQuota {
    reader: Arc<dyn ObjectReader>,
    core: LateCore,
    /// One at a time in a namespace: others would only lose the race for the quota's revision.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl ResourceQuota {
    /// Reads quotas from this cache, and writes their status through the server.
    pub fn new(reader: Arc<dyn ObjectReader>, core: LateCore) -> Self {
        Self { reader, core, turns: Mutex::default() }
    }

    fn quotas(&self, namespace: &str) -> Vec<Arc<Value>> {
        self.reader.list(&quotas(), Some(namespace))
    }

    fn turn(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock();
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(namespace.to_owned()).or_default().clone()
    }

    /// Charges one quota, as it is stored now.
    async fn charge(
        &self,
        core: &Core,
        attributes: &Attributes,
        name: &str,
        evaluator: &Evaluator,
    ) -> Result<()> {
        let table = core.table();
        let Some(row) = table.get(&quotas()) else { return Ok(()) };
        let write = Write {
            core,
            row,
            version: "v1",
            namespace: &attributes.namespace,
            subresource: "status",
            user: UserInfo::apiserver(),
            manager: SERVER.to_owned(),
            options: WriteOptions::own(),
            view: HookView::Row,
        };
        let make = |current: &Value| {
            let mut new = current.clone();
            if let Some(used) = cost(attributes, current, evaluator)? {
                quota::set_used(&mut new, &used);
            }
            Ok((new, Vec::new()))
        };
        match write.update(name, Ownership::Compare, &make).await {
            // It was deleted meanwhile, and limits nothing any more.
            Err(error) if error.code == 404 => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

fn quotas() -> GroupResource {
    GroupResource::new("", "resourcequotas")
}

fn change(attributes: &Attributes) -> Change<'_> {
    Change {
        is_update: attributes.operation == Operation::Update,
        subresource: &attributes.subresource,
        new: attributes.object.as_ref().unwrap_or(&Value::Null),
        old: attributes.old_object.as_deref().unwrap_or(&Value::Null),
    }
}

/// What is used after the change, if it costs this quota anything.
fn cost(attributes: &Attributes, quota: &Value, evaluator: &Evaluator) -> Result<Option<quota::Amounts>> {
    let now = chrono::Utc::now().timestamp();
    quota::charge(quota, evaluator, &change(attributes), now).map_err(|why| forbidden(attributes, why))
}

#[async_trait::async_trait]
impl ValidatingAdmission for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    async fn validate(&self, attributes: &Attributes) -> Result<()> {
        if attributes.namespace.is_empty()
            || !matches!(attributes.operation, Operation::Create | Operation::Update)
            || attributes.resource == GroupResource::new("", "namespaces")
        {
            return Ok(());
        }
        let Some(evaluator) = Evaluator::of(&attributes.resource) else { return Ok(()) };
        // Most writes cost nothing, those of a quota's own status among them: they must not wait for a turn, which
        // may be the one that writes them.
        if !evaluator.handles(&change(attributes)) || self.quotas(&attributes.namespace).is_empty() {
            return Ok(());
        }
        let turn = self.turn(&attributes.namespace);
        let _turn = turn.lock().await;
        let core = self.core.get();
        if let Some(core) = &core {
            // What the one before us charged must be seen.
            core.cache().wait_newest().await?;
        }
        let mut charged = Vec::new();
        for quota in self.quotas(&attributes.namespace) {
            if cost(attributes, &quota, &evaluator)?.is_some() {
                charged.push(quota["metadata"]["name"].as_str().unwrap_or_default().to_owned());
            }
        }
        if attributes.dry_run {
            return Ok(());
        }
        let Some(core) = core else { return Ok(()) };
        for name in charged {
            self.charge(&core, attributes, &name, &evaluator).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::create;
    use super::*;
    use crate::authz::fake::FakeReader;
    use serde_json::json;

    #[tokio::test]
    async fn what_does_not_fit_is_refused() {
        let quota = json!({
            "metadata": {"name": "q", "namespace": "a"},
            "status": {"hard": {"configmaps": "1", "secrets": "1"}, "used": {"configmaps": "1", "secrets": "0"}},
        });
        let reader = Arc::new(FakeReader::new(vec![("", "resourcequotas", quota)]));
        let plugin = ResourceQuota::new(reader, LateCore::default());
        let check = async |resource: &str, namespace: &str, want: Option<&str>| {
            let object = json!({"metadata": {"name": "x", "namespace": namespace}});
            let got = plugin.validate(&create("", resource, object)).await;
            assert_eq!(got.err().map(|error| error.message).as_deref(), want, "{resource} {namespace}");
        };
        let full = "configmaps \"x\" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: configmaps=1";
        check("configmaps", "a", Some(full)).await;
        check("secrets", "a", None).await;
        check("events", "a", None).await;
        check("configmaps", "b", None).await;
    }
}
