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
use keelson_api::custom::condition::{self, Outcome, Variables};
use keelson_api::meta::{GroupResource, GroupVersionKind};
use keelson_api::patch::json_patch;
use keelson_api::resources::{Resource, ResourceTable};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::authz::rule::go_quote;
use crate::core::LateCore;
use crate::extension::{
    Attributes, HookView, MutatingAdmission, ObjectReader, Operation, Result, StatusError,
    ValidatingAdmission,
};
use crate::handlers::{scale_of, set_at};
use crate::kubelet_proxy::Dialer;
use crate::negotiate::Form;
use crate::present::{IncludeObject, Presenter};
use crate::wire::{self, FieldValidation};
use crate::write::to_storage;
use client::Client;
use hook::{Asked, Hook, Place, hooks, labels};
use review::Answer;

const GROUP: &str = "admissionregistration.k8s.io";
/// Kinds that webhooks never get to see, or nobody could repair a broken one.
const EXEMPT: &[&str] = &[
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
];

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
    request: Value,
}

/// The request in the version that a webhook wants.
#[derive(Clone)]
struct Seen {
    /// The row of that version's resource, which holds the same objects.
    row: Arc<Resource>,
    version: String,
    object: Value,
    old: Value,
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
        let hidden = matches!(attributes.hooks.view, HookView::Hidden);
        let exempt = attributes.kind.group == GROUP && EXEMPT.contains(&attributes.kind.kind.as_str());
        if hidden || exempt { Arc::new([]) } else { source.hooks(&*self.reader) }
    }

    fn table(&self) -> Result<Arc<ResourceTable>> {
        let core = self.core.get().ok_or_else(|| StatusError::internal("the server is going down"))?;
        Ok(core.table())
    }

    /// Mutating and validating webhooks for a request that no write stands behind: a connect, or an object that is not
    /// stored. Returns the object as they leave it.
    ///
    /// # Errors
    /// When one refuses, or can't be asked and must be.
    pub async fn admit_all(&self, attributes: &mut Attributes) -> Result<()> {
        self.admit(attributes).await?;
        if attributes.hooks.begin_again() {
            self.admit(attributes).await?;
        }
        self.validate(attributes).await
    }

    /// Whether and as what a webhook is to see a request (`ShouldCallHook`).
    fn invocation(
        &self,
        hook: &Arc<Hook>,
        attributes: &Attributes,
        table: &ResourceTable,
    ) -> Result<Option<Invocation>> {
        let namespace = namespace(attributes);
        let by_namespace = self.by_namespace(hook, attributes, namespace);
        if matches!(by_namespace, Ok(false)) {
            return Ok(None);
        }
        let objects = [attributes.object.as_ref(), attributes.old_object.as_deref()];
        let none = json!({"metadata": {}});
        let by_object = match attributes.hooks.view {
            // A scale has no labels.
            HookView::Scale(_) => hook.wants_object([Some(&none), None]),
            _ => hook.wants_object(objects),
        };
        if matches!(by_object, Ok(false)) {
            return Ok(None);
        }
        let place = Place {
            group: attributes.resource.group.clone(),
            version: attributes.version.clone(),
            resource: attributes.resource.resource.clone(),
        };
        let subresource = attributes.hooks.subresource(&attributes.subresource);
        let asked = Asked { operation: attributes.operation, subresource, namespace };
        let Some(place) = hook.place(&place, asked, || equivalents(table, attributes)) else {
            return Ok(None);
        };
        by_namespace?;
        by_object.map_err(StatusError::internal)?;
        let seen = seen(table, attributes, &place)?;
        let kind = seen_kind(attributes, &seen);
        let kind = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
        let request = review::request(attributes, namespace, &place, &kind);
        let variables = Variables { object: &seen.object, old_object: &seen.old, request: &request };
        match condition::evaluate(&hook.conditions, variables) {
            Outcome::Met => Ok(Some(Invocation { hook: hook.clone(), seen, request })),
            Outcome::Unmet => Ok(None),
            Outcome::Failed(_) if hook.ignores_failure => Ok(None),
            Outcome::Failed(errors) => {
                let why = match errors.as_slice() {
                    [one] => one.clone(),
                    many => format!("[{}]", many.join(", ")),
                };
                Err(StatusError::forbidden(&attributes.resource, &attributes.name, why))
            }
        }
    }

    fn by_namespace(&self, hook: &Hook, attributes: &Attributes, namespace: &str) -> Result<bool> {
        let namespaces = GroupResource::new("", "namespaces");
        let is_namespace = attributes.resource == namespaces;
        if namespace.is_empty() && !is_namespace {
            return Ok(true);
        }
        let wanted = || {
            // The cache does not know yet what is being written.
            let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
            if is_namespace && attributes.subresource.is_empty() && writes {
                return Ok(attributes.object.as_ref().map(labels).unwrap_or_default());
            }
            let found = self.reader.get(&namespaces, None, namespace);
            let found = found.ok_or_else(|| StatusError::not_found(&namespaces, namespace))?;
            Ok(labels(&found))
        };
        hook.wants_namespace(wanted, |error| StatusError::internal(error))
    }

    /// Asks a webhook.
    async fn call(
        &self,
        invocation: &Invocation,
        attributes: &Attributes,
        mutating: bool,
    ) -> Result<Option<Value>, Stop> {
        let Invocation { hook, seen, request } = invocation;
        if attributes.dry_run && !hook.dry_run {
            let why = format!("admission webhook {} does not support dry run", go_quote(&hook.name));
            return Err(Stop::Refused(StatusError::bad_request(why)));
        }
        let version = hook.review.ok_or_else(|| {
            Stop::Failed("could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)".to_owned())
        })?;
        let uid = uuid::Uuid::new_v4().to_string();
        let review = review::review(version, &uid, request.clone(), &seen.object, &seen.old);
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

/// A namespace's own is its name.
fn namespace(attributes: &Attributes) -> &str {
    let is_namespace = attributes.resource.group.is_empty() && attributes.resource.resource == "namespaces";
    if is_namespace { &attributes.name } else { &attributes.namespace }
}

/// Every version of every resource that holds the same objects.
fn equivalents(table: &ResourceTable, attributes: &Attributes) -> Vec<Place> {
    let Some(own) = table.get(&attributes.resource) else { return Vec::new() };
    let rows = table.rows().iter().filter(|row| row.storage == own.storage);
    let places = rows.flat_map(|row| {
        row.versions.iter().map(|version| Place {
            group: row.group.clone(),
            version: version.clone(),
            resource: row.plural.clone(),
        })
    });
    places.collect()
}

/// Kind of what a webhook sees.
fn seen_kind(attributes: &Attributes, seen: &Seen) -> GroupVersionKind {
    match attributes.hooks.view {
        HookView::Row => seen.row.gvk(&seen.version),
        HookView::Scale(_) | HookView::Plain | HookView::Hidden => attributes.kind.clone(),
    }
}

/// The request as a place's webhooks see it.
fn seen(table: &ResourceTable, attributes: &Attributes, place: &Place) -> Result<Seen> {
    let row = table.find(&place.group, &place.version, &place.resource).cloned().ok_or_else(|| {
        let Place { group, version, resource } = place;
        StatusError::internal(format!(
            "unable to convert to {group}/{version}, Resource={resource}: unknown kind"
        ))
    })?;
    let shown = |object: Option<&Value>| match (object, &attributes.hooks.view) {
        (None, _) => Value::Null,
        (Some(object), HookView::Plain | HookView::Hidden) => object.clone(),
        (Some(object), HookView::Row) => view(&row, &place.version, object.clone()),
        (Some(object), HookView::Scale(paths)) => {
            scale_of(&view(&row, &place.version, object.clone()), paths)
        }
    };
    let (object, old) = (shown(attributes.object.as_ref()), shown(attributes.old_object.as_deref()));
    Ok(Seen { version: place.version.clone(), object, old, row })
}

/// A stored object in a version.
fn view(row: &Resource, version: &str, object: Value) -> Value {
    Presenter { row, version, form: Form::JSON, include: IncludeObject::Metadata }.convert(object)
}

/// What a webhook saw, patched, and back in the form in which it was given. `None` if the patch changes nothing.
fn patched(hook: &Hook, attributes: &Attributes, seen: &Seen, patch: &Value) -> Result<Option<Value>> {
    let is_connect = attributes.operation == Operation::Connect;
    if seen.object.is_null() || is_connect {
        return Err(StatusError::internal(format!(
            "admission webhook {} attempted to modify the object, which is not supported for this operation",
            go_quote(&hook.name)
        )));
    }
    let Seen { row, version, object, .. } = seen;
    let mut new = json_patch(object, patch).map_err(StatusError::internal)?;
    let kind = seen_kind(attributes, seen);
    match &attributes.hooks.view {
        HookView::Row => {
            wire::normalize_object(row, version, &mut new, FieldValidation::Ignore)?;
            wire::apply_defaults(&kind, &mut new);
            let mut stored = to_storage(row, version, new);
            row.strategy.default(&mut stored);
            Ok((view(row, version, stored.clone()) != *object).then_some(stored))
        }
        HookView::Scale(paths) => {
            wire::normalize(&kind, &mut new, FieldValidation::Ignore)?;
            let replicas = new["spec"]["replicas"].as_i64().unwrap_or(0);
            if replicas == object["spec"]["replicas"] {
                return Ok(None);
            }
            let mut whole = view(row, version, attributes.object.clone().unwrap_or_default());
            set_at(&mut whole, &paths.spec_replicas, replicas.into());
            Ok(Some(to_storage(row, version, whole)))
        }
        HookView::Plain | HookView::Hidden => {
            wire::normalize(&kind, &mut new, FieldValidation::Ignore)?;
            wire::apply_defaults(&kind, &mut new);
            Ok((new != *object).then_some(new))
        }
    }
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
