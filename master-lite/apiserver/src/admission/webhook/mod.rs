//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: programs elsewhere that change or refuse writes
//! (`k8s.io/apiserver/pkg/admission/plugin/webhook`).
//!
//! Configurations are read out of the watch cache and kept in a form that can be matched until one changes, so a write
//! costs a look at a number where there are none. Audit annotations of answers go nowhere, for there is no audit log.

mod client;
mod hook;
mod review;

use std::sync::Arc;

use futures::future::join_all;
use keelson_api::expressions::condition::{self, Outcome, Variables};
use keelson_api::meta::GroupResource;
use keelson_api::patch::json_patch;
use keelson_api::resources::ResourceTable;
use parking_lot::Mutex;
use serde_json::Value;

use super::matching::{GROUP, is_exempt};
use super::seen::Seen;
use crate::authz::rule::go_quote;
use crate::core::LateCore;
use crate::extension::{
    Attributes, MutatingAdmission, ObjectReader, Result, StatusError, ValidatingAdmission,
};
use crate::kubelet_proxy::Dialer;
use crate::wire::FieldValidation;
use client::Client;
use hook::{Hook, hooks};
use review::Answer;

/// Webhooks, and as of which version of the configurations; of none before the first read.
type AsOf = (Option<u64>, Arc<[Arc<Hook>]>);

/// The webhooks of one kind of configuration.
struct Source {
    resource: GroupResource,
    read: Mutex<AsOf>,
}

impl Source {
    fn new(plural: &str) -> Self {
        Self { resource: GroupResource::new(GROUP, plural), read: Mutex::new((None, Arc::new([]))) }
    }

    fn hooks(&self, reader: &dyn ObjectReader) -> Arc<[Arc<Hook>]> {
        let version = Some(reader.resource_version(&self.resource));
        let mut read = self.read.lock();
        if read.0 != version {
            *read = (version, hooks(reader.list(&self.resource, None)).into());
        }
        read.1.clone()
    }
}

/// Both plug-ins.
pub struct Webhooks {
    reader: Arc<dyn ObjectReader>,
    core: LateCore,
    client: Client,
    mutating: Source,
    validating: Source,
}

/// One webhook that is to be called, and as what it sees the request.
struct Invocation {
    hook: Arc<Hook>,
    seen: Seen,
}

/// Why a webhook stops a request.
enum Stop {
    /// It could not be asked.
    Failed(String),
    /// It, or something else, refuses.
    Refused(StatusError),
}

impl Webhooks {
    /// Reads configurations and namespaces from this cache and reaches services through this dialer.
    pub fn new(reader: Arc<dyn ObjectReader>, core: LateCore, dialer: Arc<Dialer>) -> Self {
        Self {
            reader,
            core,
            client: Client::new(dialer),
            mutating: Source::new("mutatingwebhookconfigurations"),
            validating: Source::new("validatingwebhookconfigurations"),
        }
    }

    /// The webhooks that a request may have to do with; mostly none.
    fn source(&self, source: &Source, attributes: &Attributes) -> Arc<[Arc<Hook>]> {
        if is_exempt(attributes) { Arc::new([]) } else { source.hooks(&*self.reader) }
    }

    fn table(&self) -> Result<Arc<ResourceTable>> {
        let core = self.core.get().ok_or_else(|| StatusError::internal("the server is going down"))?;
        Ok(core.table())
    }

    /// Whether and as what a webhook is to see a request (`ShouldCallHook`).
    fn invocation(
        &self,
        hook: &Arc<Hook>,
        attributes: &Attributes,
        table: &ResourceTable,
    ) -> Result<Option<Invocation>> {
        let Some(place) = hook.matching.find(attributes, table, &*self.reader)? else { return Ok(None) };
        let seen = Seen::new(table, attributes, &place)?;
        let variables = Variables {
            object: &seen.object,
            old_object: &seen.old,
            request: &seen.request,
            params: &Value::Null,
        };
        match condition::evaluate(&hook.conditions, variables) {
            Outcome::Met => Ok(Some(Invocation { hook: hook.clone(), seen })),
            Outcome::Unmet => Ok(None),
            Outcome::Failed(_) if hook.ignores_failure => Ok(None),
            Outcome::Failed(errors) => {
                let why = condition::aggregate(&errors);
                Err(StatusError::forbidden(&attributes.resource, &attributes.name, why))
            }
        }
    }

    /// Asks a webhook.
    async fn call(
        &self,
        invocation: &Invocation,
        attributes: &Attributes,
        mutating: bool,
    ) -> Result<Option<Value>, Stop> {
        let Invocation { hook, seen } = invocation;
        if attributes.dry_run && !hook.dry_run {
            let why = format!("admission webhook {} does not support dry run", go_quote(&hook.name));
            return Err(Stop::Refused(StatusError::bad_request(why)));
        }
        let version = hook.review.ok_or_else(|| {
            Stop::Failed("could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)".to_owned())
        })?;
        let uid = uuid::Uuid::new_v4().to_string();
        let review = review::review(version, &uid, seen.request.clone(), &seen.object, &seen.old);
        let body = self.client.call(hook, review.to_string().into_bytes()).await.map_err(Stop::Failed)?;
        let (answer, warnings) =
            review::answer(&hook.name, version, &uid, mutating, &body).map_err(Stop::Failed)?;
        attributes.hooks.warnings.lock().extend(warnings);
        match answer {
            Answer::Allowed(patch) => Ok(patch),
            Answer::Denied(error) => Err(Stop::Refused(error)),
        }
    }

    /// What comes of a failed call: nothing where failures are ignored.
    fn stopped(hook: &Hook, stop: Stop) -> Result<()> {
        match stop {
            Stop::Refused(error) => Err(error),
            Stop::Failed(reason) => {
                let error = format!("failed calling webhook {}: {reason}", go_quote(&hook.name));
                if hook.ignores_failure {
                    tracing::warn!(%error, "failing open");
                    return Ok(());
                }
                tracing::warn!(%error, "failing closed");
                Err(StatusError::internal(error))
            }
        }
    }
}

/// What a webhook saw, patched, and back in the form in which it was given. `None` if the patch changes nothing.
fn patched(hook: &Hook, attributes: &Attributes, seen: &Seen, patch: &Value) -> Result<Option<Value>> {
    if !seen.is_mutable(attributes) {
        return Err(StatusError::internal(format!(
            "admission webhook {} attempted to modify the object, which is not supported for this operation",
            go_quote(&hook.name)
        )));
    }
    let new = json_patch(&seen.object, patch).map_err(StatusError::internal)?;
    seen.changed(attributes, new, FieldValidation::Ignore)
}

#[async_trait::async_trait]
impl MutatingAdmission for Webhooks {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    async fn admit(&self, attributes: &mut Attributes) -> Result<()> {
        let hooks = self.source(&self.mutating, attributes);
        if hooks.is_empty() {
            return Ok(());
        }
        let table = self.table()?;
        attributes.hooks.begin_round(attributes.object.as_ref());
        for hook in hooks.iter() {
            let Some(invocation) = self.invocation(hook, attributes, &table)? else { continue };
            if !attributes.hooks.may_call(&hook.uid) {
                continue;
            }
            let outcome = self.call(&invocation, attributes, true).await;
            let patch = match outcome {
                Ok(patch) => patch,
                Err(stop) => {
                    Self::stopped(hook, stop)?;
                    None
                }
            };
            let new = match &patch {
                Some(patch) => patched(hook, attributes, &invocation.seen, patch)?,
                None => None,
            };
            if let Some(new) = new {
                attributes.object = Some(new);
                attributes.hooks.changed();
            }
            if hook.again {
                attributes.hooks.called(&hook.uid);
            }
        }
        attributes.hooks.end_round(attributes.object.as_ref());
        Ok(())
    }
}

#[async_trait::async_trait]
impl ValidatingAdmission for Webhooks {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    async fn validate(&self, attributes: &Attributes) -> Result<()> {
        let hooks = self.source(&self.validating, attributes);
        if hooks.is_empty() {
            return Ok(());
        }
        let table = self.table()?;
        let mut invocations = Vec::new();
        for hook in hooks.iter() {
            invocations.extend(self.invocation(hook, attributes, &table)?);
        }
        let calls = invocations.iter().map(|invocation| self.call(invocation, attributes, false));
        let outcomes = join_all(calls).await;
        for (invocation, outcome) in invocations.iter().zip(outcomes) {
            if let Err(stop) = outcome {
                Self::stopped(&invocation.hook, stop)?;
            }
        }
        Ok(())
    }
}
