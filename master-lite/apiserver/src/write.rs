//! Every write, in named stages that are the same for all kinds and verbs:
//!
//! 1. **decode** the body ([`wire::decode`]);
//! 2. **patch**: PATCH applies to the current object, PUT replaces it;
//! 3. **strict/prune** against the schema ([`wire::normalize`]);
//! 4. **default** from the schema and then from the kind's strategy;
//! 5. **mutate**: admission that changes;
//! 6. **prepare** what the server decides (status, generation, uid ...), then **validate**, then admission that
//!    only refuses;
//! 7. **allocate** addresses and ports, **encode**, **commit** in one transaction that compares the revision.
//!
//! Between 4 and 5 stand the **managed fields**: what a client sent has an owner, what the server adds later has none.
//! Server-side apply has found the owners in stage 2 already.
//!
//! An update that loses the race for the revision starts again at stage 2.

use std::sync::Arc;

use keelson_api::managed_fields::keep_times;
use keelson_api::meta::GroupVersionKind;
use keelson_api::resources::{Resource, StrategyContext, metadata};
use keelson_store::{KeyValue, Txn};
use serde_json::{Value, json};

use crate::admission;
use crate::authz::forbidden;
use crate::core::Core;
use crate::extension::{Attributes, AuthorizerAttributes, Decision, HookView, Hooks, Operation, UserInfo};
use crate::keys;
use crate::options::WriteOptions;
use crate::owners::Owners;
use crate::status::{Result, StatusError};
use crate::stored::{self, metadata_mut};
use crate::wire::{self, FieldValidation};

/// Who owns what the server itself writes like a client of its own.
pub const SERVER: &str = "kube-apiserver";
/// How often a write that loses the race starts again.
const RETRIES: usize = 16;
/// Characters of generated names: no vowels and nothing that looks like another (upstream's `rand.String`).
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Longest base of a generated name, so that name and suffix fit into a label.
const GENERATED_BASE: usize = 58;

/// One write: who, what, how.
pub struct Write<'a> {
    /// The server.
    pub core: &'a Core,
    /// The view that the request used.
    pub row: &'a Arc<Resource>,
    /// Version in the request.
    pub version: &'a str,
    /// Namespace or empty.
    pub namespace: &'a str,
    /// Subresource or empty.
    pub subresource: &'a str,
    /// Who writes.
    pub user: UserInfo,
    /// Who comes to own what this write changes.
    pub manager: String,
    /// Dry run, field validation.
    pub options: WriteOptions,
    /// What webhooks see of it.
    pub view: HookView,
}

/// A configuration to be applied.
pub struct Configuration {
    /// As the client sent it, but for numbers without a fraction, which are integers.
    pub object: Value,
    /// Take what others own.
    pub force: bool,
    /// Duplicate keys, as upstream words them: an error under strict validation, a warning by default.
    pub duplicates: Option<String>,
}

/// How a write finds the owners of fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// What differs from the current object has a new owner.
    Compare,
    /// The new object carries the owners: it was applied, or the server itself made it.
    Given,
}

/// A write that was done (or would have been).
#[derive(Debug)]
pub struct Written {
    /// The object in storage form, with its resourceVersion.
    pub object: Value,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
    /// It did not exist before.
    pub created: bool,
}

/// Where an update's new object comes from: given the current one in the request's version, the new one.
pub type Make<'m> = &'m (dyn Fn(&Value) -> Result<(Value, Vec<String>)> + Send + Sync);

/// Now, as in `metav1.Time`.
pub fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// An object of a row's version in the form in which it is stored.
pub(crate) fn to_storage(row: &Resource, version: &str, mut object: Value) -> Value {
    if version != row.storage_version {
        object["apiVersion"] = row.storage_gvk().api_version().into();
    }
    match row.converter {
        Some(converter) => (converter.to_storage)(object),
        None => object,
    }
}

impl Write<'_> {
    fn gvk(&self) -> GroupVersionKind {
        self.row.gvk(self.version)
    }

    fn key(&self, name: &str) -> String {
        keys::object(&self.row.storage, self.row.namespaced.then_some(self.namespace), name)
    }

    fn to_storage(&self, object: Value) -> Value {
        to_storage(self.row, self.version, object)
    }

    fn to_view(&self, object: Value) -> Value {
        self.core.presenter(self.row, self.version).convert(object)
    }

    fn owners(&self) -> Owners<'_> {
        Owners::new(self.core.table(), self.row, self.version, self.subresource, now())
    }

    /// Managed fields of what a client sent. Objects are in storage form; owners speak of the request's version.
    fn manage(&self, live: Option<&Value>, new: &mut Value) {
        let owners = self.owners();
        if self.row.converter.is_none() && self.version == self.row.storage_version {
            owners.update(live, new, &self.manager);
            return;
        }
        let live = live.map(|live| self.to_view(live.clone()));
        let mut view = self.to_view(new.clone());
        owners.update(live.as_ref(), &mut view, &self.manager);
        if let Some(metadata) = metadata_mut(new) {
            // No conversion touches these.
            match view["metadata"].get_mut("managedFields") {
                Some(entries) => metadata.insert("managedFields".to_owned(), entries.take()),
                None => metadata.remove("managedFields"),
            };
        }
    }

    fn strategy_context(&self) -> StrategyContext {
        StrategyContext {
            user: self.user.name.clone(),
            uid: self.user.uid.clone(),
            groups: self.user.groups.clone(),
            extra: self.user.extra.clone(),
            now: now(),
            subresource: self.subresource.to_owned(),
        }
    }

    fn attributes(&self, operation: Operation, name: &str) -> Attributes {
        let options = if operation == Operation::Create { "CreateOptions" } else { "UpdateOptions" };
        let kind = match self.view {
            HookView::Scale(_) => GroupVersionKind::new("autoscaling", "v1", "Scale"),
            _ => self.gvk(),
        };
        Attributes {
            operation,
            kind,
            resource: self.row.group_resource(),
            version: self.version.to_owned(),
            subresource: self.subresource.to_owned(),
            namespace: self.namespace.to_owned(),
            name: name.to_owned(),
            user: self.user.clone(),
            object: None,
            old_object: None,
            dry_run: self.options.dry_run,
            options: self.options.to_value(options),
            hooks: Hooks::new(self.view.clone()),
        }
    }

    /// Stage 4. `object` is in the request's version; the result is in storage form.
    fn default(&self, mut object: Value) -> Value {
        wire::apply_defaults(&self.gvk(), &mut object);
        let mut object = self.to_storage(object);
        self.row.strategy.default(&mut object);
        object
    }

    /// Stage 5: returns the object as admission left it.
    async fn mutate(&self, attributes: &mut Attributes, object: Value) -> Result<Value> {
        attributes.object = Some(object);
        admission::mutate(&self.core.extensions().mutating, attributes).await?;
        let mut object = attributes.object.take().unwrap_or(Value::Null);
        // What admission added (volumes, tolerations) gets its defaults too.
        self.row.strategy.default(&mut object);
        Ok(object)
    }

    /// The name of a new object after admission, which may change it, but not where it is.
    fn identity_kept(&self, object: &Value, before: String) -> Result<String> {
        let meta = &object["metadata"];
        if self.row.namespaced && meta["namespace"] != self.namespace {
            return Err(StatusError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        Ok(meta["name"].as_str().map_or(before, str::to_owned))
    }

    /// Second half of stage 6.
    async fn admit(&self, attributes: &mut Attributes, object: &Value) -> Result<()> {
        attributes.object = Some(object.clone());
        for plugin in &self.core.extensions().validating {
            plugin.validate(attributes).await?;
        }
        Ok(())
    }

    /// POST of an object that was decoded and pruned.
    pub async fn create(
        &self,
        object: Value,
        ownership: Ownership,
        mut warnings: Vec<String>,
    ) -> Result<Written> {
        let gvk = self.gvk();
        let resource = self.row.group_resource();
        let mut object = self.default(object);
        wipe_system_fields(&mut object);
        if ownership == Ownership::Compare {
            self.manage(None, &mut object);
        }
        let generated = fill_identity(&mut object, self.row.namespaced, self.namespace)?;
        self.row.strategy.default(&mut object);
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();

        let mut attributes = self.attributes(Operation::Create, &name);
        let mut object = self.mutate(&mut attributes, object).await?;
        let name = self.identity_kept(&object, name)?;

        let context = self.strategy_context();
        if let Some(map) = object.as_object_mut()
            && self.row.has_status()
            && self.row.reset_status_on_create
        {
            map.insert("status".to_owned(), json!({}));
        }
        fill_system_fields(&mut object, self.row.tracks_generation, &context.now);
        self.row.strategy.prepare_for_create(&context, &mut object);
        let mut errors =
            metadata::validate(&object, self.row.namespaced, |name| self.row.strategy.validate_name(name));
        errors.extend(self.row.strategy.validate_create(&context, &object));
        if !errors.is_empty() {
            return Err(StatusError::invalid(&gvk, &name, &errors));
        }
        self.admit(&mut attributes, &object).await?;
        warnings.extend(attributes.hooks.take_warnings());
        warnings.extend(self.row.strategy.warnings(&object, None));

        let reservation = self.core.allocators().assign(&self.row.storage, &mut object, None)?;
        let bytes = stored::encode(&object).map_err(StatusError::internal)?;
        if self.options.dry_run {
            let there =
                self.core.store().get(&self.key(&name), None).await.map_err(crate::cache::store_error)?;
            if there.is_some() {
                return Err(StatusError::already_exists(&resource, &name));
            }
            return Ok(Written { object, warnings, created: true });
        }
        let txn = Txn::put_if(&self.key(&name), 0, bytes, self.row.ttl);
        let response = self.core.store().txn(txn).await.map_err(crate::cache::store_error)?;
        if !response.succeeded {
            if generated {
                return Err(StatusError::new(
                    409,
                    "AlreadyExists",
                    format!(
                        "{resource} \"{name}\" already exists, the server was not able to generate a unique name for the object"
                    ),
                ));
            }
            return Err(StatusError::already_exists(&resource, &name));
        }
        reservation.keep();
        stored::set_revision(&mut object, response.revision);
        Ok(Written { object, warnings, created: true })
    }

    /// PUT or PATCH of the object or a subresource.
    pub async fn update(&self, name: &str, ownership: Ownership, make: Make<'_>) -> Result<Written> {
        let key = self.key(name);
        for _ in 0..RETRIES {
            let current = self.core.store().get(&key, None).await.map_err(crate::cache::store_error)?;
            let Some(current) = current else {
                return Err(StatusError::not_found(&self.row.group_resource(), name));
            };
            if let Some(written) = self.update_once(name, &current, ownership, make).await? {
                return Ok(written);
            }
        }
        Err(StatusError::modified(&self.row.group_resource(), name))
    }

    /// Server-side apply to the object or a subresource. An object that is not there is made.
    pub async fn apply(&self, name: &str, config: &Configuration) -> Result<Written> {
        let key = self.key(name);
        let make = |current: &Value| self.applied(Some(current), config);
        for _ in 0..RETRIES {
            let current = self.core.store().get(&key, None).await.map_err(crate::cache::store_error)?;
            let Some(current) = current else {
                if !self.subresource.is_empty() {
                    return Err(StatusError::not_found(&self.row.group_resource(), name));
                }
                match self.create_applied(name, config).await {
                    // Another write came first.
                    Err(error) if error.reason == "AlreadyExists" => continue,
                    other => return other,
                }
            };
            if let Some(written) = self.update_once(name, &current, Ownership::Given, &make).await? {
                return Ok(written);
            }
        }
        Err(StatusError::modified(&self.row.group_resource(), name))
    }

    /// A configuration merged into the current object (in the request's version), decoded and pruned.
    fn applied(&self, current: Option<&Value>, config: &Configuration) -> Result<(Value, Vec<String>)> {
        let gvk = self.gvk();
        let mut object = self.owners().apply(current, &config.object, &self.manager, config.force)?;
        let warnings = wire::check_duplicates(config.duplicates.as_deref(), self.options.validation)?;
        // What the schema does not know, merging has refused.
        wire::normalize_object(self.row, self.version, &mut object, FieldValidation::Ignore).map_err(
            |error| {
                let text =
                    |field: &str| config.object["metadata"][field].as_str().unwrap_or_default().to_owned();
                let place = format!("({}/{}; {gvk})", text("namespace"), text("name"));
                let version = gvk.api_version();
                let message = error.message;
                StatusError::new(
                    500,
                    "",
                    format!("failed to convert new object {place} to proper version ({version}): {message}"),
                )
            },
        )?;
        Ok((object, warnings))
    }

    async fn create_applied(&self, name: &str, config: &Configuration) -> Result<Written> {
        let (mut object, warnings) = self.applied(None, config)?;
        let meta = &object["metadata"];
        if let Some(uid) = meta["uid"].as_str().filter(|uid| !uid.is_empty()) {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(StatusError::conflict(&self.row.group_resource(), name, why));
        }
        match meta["name"].as_str().unwrap_or_default() {
            "" => {
                return Err(StatusError::bad_request(format!(
                    "the name of the object ({name} based on URL) was undeterminable: name must be provided"
                )));
            }
            given if given != name => {
                return Err(StatusError::bad_request(format!(
                    "the name of the object ({given}) does not match the name on the URL ({name})"
                )));
            }
            _ => {}
        }
        if let Some(meta) = metadata_mut(&mut object) {
            meta.remove("resourceVersion");
        }
        self.authorize_create(name).await?;
        self.create(object, Ownership::Given, warnings).await
    }

    /// A write that may make what is not there needs the right to.
    pub async fn authorize_create(&self, name: &str) -> Result<()> {
        let attributes = AuthorizerAttributes {
            user: self.user.clone(),
            verb: "create".to_owned(),
            group: self.row.group.clone(),
            version: self.version.to_owned(),
            resource: self.row.plural.clone(),
            subresource: self.subresource.to_owned(),
            namespace: self.namespace.to_owned(),
            name: name.to_owned(),
            resource_request: true,
            ..AuthorizerAttributes::default()
        };
        match self.core.extensions().authorizer.authorize(&attributes).await {
            Decision::Allow => Ok(()),
            Decision::Deny(why) | Decision::NoOpinion(why) => Err(forbidden(&attributes, &why)),
        }
    }

    /// One try of an update; `None` if another write came first.
    async fn update_once(
        &self,
        name: &str,
        current: &KeyValue,
        ownership: Ownership,
        make: Make<'_>,
    ) -> Result<Option<Written>> {
        let gvk = self.gvk();
        let resource = self.row.group_resource();
        let mut old = stored::decode(&current.value, current.mod_revision).map_err(StatusError::internal)?;
        // Compared and changed is what a client sees; stored it may still be in the form of an older definition.
        let stored = self.row.custom.is_some().then(|| old.clone());
        if stored.is_some() {
            old = self.to_storage(self.to_view(old));
        }
        let (new, mut warnings) = make(&self.to_view(old.clone()))?;
        let mut new = self.default(new);
        check_identity(&new, &old, name, self.namespace)?;
        let version = new["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !version.is_empty() && version != "0" && version != current.mod_revision.to_string() {
            return Err(StatusError::modified(&resource, name));
        }
        if version.is_empty() && !self.row.strategy.allow_unconditional_update() {
            return Err(StatusError::new(
                422,
                "Invalid",
                format!(
                    "{}.{} \"{name}\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update",
                    gvk.kind, gvk.group
                ),
            ));
        }
        if let Some(uid) = new["metadata"]["uid"].as_str()
            && old["metadata"]["uid"] != uid
        {
            let have = old["metadata"]["uid"].as_str().unwrap_or_default();
            return Err(StatusError::conflict(
                &resource,
                name,
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {have}"),
            ));
        }
        if ownership == Ownership::Compare {
            self.manage(Some(&old), &mut new);
        }
        carry_over(&mut new, &old, self.row, self.subresource);

        let mut attributes = self.attributes(Operation::Update, name);
        attributes.old_object = Some(Arc::new(old.clone()));
        let mut new = self.mutate(&mut attributes, new).await?;
        if attributes.hooks.is_changed() {
            // Webhooks and policies may write no more than the request may.
            carry_over(&mut new, &old, self.row, self.subresource);
        }

        let context = self.strategy_context();
        self.row.strategy.prepare_for_update(&context, &mut new, &old);
        if self.row.tracks_generation && self.subresource != "binding" && spec_changed(&new, &old, self.row) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            new["metadata"]["generation"] = generation.into();
        }
        keep_times(&mut new, &old);
        let mut errors = metadata::validate_update(&new, &old);
        if new["metadata"] != old["metadata"] {
            errors.extend(metadata::validate(&new, self.row.namespaced, |_| Ok(())));
        }
        errors.extend(self.row.strategy.validate_update(&context, &new, &old));
        if !errors.is_empty() {
            return Err(StatusError::invalid(&gvk, name, &errors));
        }
        self.admit(&mut attributes, &new).await?;
        warnings.extend(attributes.hooks.take_warnings());
        warnings.extend(self.row.strategy.warnings(&new, Some(&old)));

        // An object that was only waiting for its finalizers goes with the last of them.
        if finished(&new, &old, self.row) {
            if !self.options.dry_run {
                let response = self
                    .core
                    .store()
                    .txn(Txn::delete_if(&current.key, current.mod_revision))
                    .await
                    .map_err(crate::cache::store_error)?;
                if !response.succeeded {
                    return Ok(None);
                }
                self.core.allocators().release(&self.row.storage, &old);
                stored::set_revision(&mut new, response.revision);
            }
            return Ok(Some(Written { object: new, warnings, created: false }));
        }
        let reservation = self.core.allocators().assign(&self.row.storage, &mut new, Some(&old))?;
        stored::set_revision(&mut new, current.mod_revision);
        // A write that changes nothing brings an object into the form that is stored now.
        if new == *stored.as_ref().unwrap_or(&old) || self.options.dry_run {
            return Ok(Some(Written { object: new, warnings, created: false }));
        }
        let bytes = stored::encode(&new).map_err(StatusError::internal)?;
        let txn = Txn::put_if(&current.key, current.mod_revision, bytes, self.row.ttl);
        let response = self.core.store().txn(txn).await.map_err(crate::cache::store_error)?;
        if !response.succeeded {
            return Ok(None);
        }
        reservation.keep();
        stored::set_revision(&mut new, response.revision);
        Ok(Some(Written { object: new, warnings, created: false }))
    }
}

/// Namespace and name, generated if need be; true if it was.
fn fill_identity(object: &mut Value, namespaced: bool, namespace: &str) -> Result<bool> {
    let Some(meta) = metadata_mut(object) else {
        return Err(StatusError::bad_request("the body is no object"));
    };
    if namespaced {
        let given = meta.get("namespace").and_then(Value::as_str).unwrap_or_default();
        if !given.is_empty() && given != namespace {
            return Err(StatusError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        meta.insert("namespace".to_owned(), namespace.into());
    } else if meta.get("namespace").is_some_and(|n| n == "") {
        meta.remove("namespace");
    }
    if !meta.get("resourceVersion").and_then(Value::as_str).unwrap_or_default().is_empty() {
        return Err(StatusError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    if !meta.get("name").and_then(Value::as_str).unwrap_or_default().is_empty() {
        return Ok(false);
    }
    let base = meta.get("generateName").and_then(Value::as_str).unwrap_or_default();
    if base.is_empty() {
        return Ok(false);
    }
    let base: String = base.chars().take(GENERATED_BASE).collect();
    meta.insert("name".to_owned(), format!("{base}{}", random_suffix()).into());
    Ok(true)
}

fn random_suffix() -> String {
    (0..5).map(|_| char::from(NAME_ALPHABET[rand::random_range(0..NAME_ALPHABET.len())])).collect()
}

/// Drops what only the server sets, before anybody could come to own it.
fn wipe_system_fields(object: &mut Value) {
    let Some(meta) = metadata_mut(object) else { return };
    for field in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "uid"] {
        meta.remove(field);
    }
}

/// What only the server sets on a new object.
fn fill_system_fields(object: &mut Value, generation: bool, now: &str) {
    let Some(meta) = metadata_mut(object) else { return };
    meta.remove("resourceVersion");
    meta.remove("generation");
    meta.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    meta.insert("creationTimestamp".to_owned(), now.into());
    if generation {
        meta.insert("generation".to_owned(), 1.into());
    }
}

/// Name and namespace in the body must be those of the request.
fn check_identity(new: &Value, old: &Value, name: &str, namespace: &str) -> Result<()> {
    let given = new["metadata"]["name"].as_str().unwrap_or_default();
    if given != name {
        return Err(StatusError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let given = new["metadata"]["namespace"].as_str().unwrap_or_default();
    if !given.is_empty() && given != namespace && !old["metadata"]["namespace"].is_null() {
        return Err(StatusError::bad_request(format!(
            "the namespace of the object ({given}) does not match the namespace on the request ({namespace})"
        )));
    }
    Ok(())
}

/// Puts back what the request may not write: system metadata always; status on the resource itself; everything
/// else on a subresource.
fn carry_over(new: &mut Value, old: &Value, row: &Resource, subresource: &str) {
    match subresource {
        "" => {
            if row.has_status()
                && let (Some(new), Some(old)) = (new.as_object_mut(), old.as_object())
            {
                match old.get("status") {
                    Some(status) => new.insert("status".to_owned(), status.clone()),
                    None => new.remove("status"),
                };
            }
        }
        "status" if row.custom.is_some() => {
            let mut base = old.clone();
            copy_or_remove(&mut base, new, "status");
            if let Some(version) = new["metadata"].get("resourceVersion") {
                base["metadata"]["resourceVersion"] = version.clone();
            }
            copy_or_remove(&mut base["metadata"], &new["metadata"], "managedFields");
            *new = base;
        }
        "status" | "approval" => {
            let mut base = old.clone();
            base["status"] = new["status"].clone();
            base["metadata"] = new["metadata"].clone();
            if matches!(row.group.as_str(), "apps" | "batch") {
                copy_or_remove(&mut base["metadata"], &old["metadata"], "labels");
            }
            copy_or_remove(&mut base["metadata"], &old["metadata"], "ownerReferences");
            *new = base;
        }
        "ephemeralcontainers" => {
            let mut base = old.clone();
            base["spec"]["ephemeralContainers"] = new["spec"]["ephemeralContainers"].clone();
            copy_or_remove(&mut base["metadata"], &new["metadata"], "managedFields");
            *new = base;
        }
        "resize" => *new = resized(new, old),
        // A binding writes the node's name and a condition, both made by the server itself.
        "binding" => {}
        // namespaces/finalize writes spec, never status.
        _ => new["status"] = old["status"].clone(),
    }
    if let (Some(new), Some(old)) = (metadata_mut(new), old["metadata"].as_object()) {
        for field in [
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "selfLink",
            "generateName",
        ] {
            match old.get(field) {
                Some(value) => new.insert(field.to_owned(), value.clone()),
                None => new.remove(field),
            };
        }
    }
}

/// The old pod with the new one's resources and resize policies (upstream's `dropNonResizeUpdates`). Containers that do
/// not match are passed on for validation to refuse.
fn resized(new: &Value, old: &Value) -> Value {
    let mut base = old.clone();
    copy_or_remove(&mut base["metadata"], &new["metadata"], "managedFields");
    copy_or_remove(&mut base["spec"], &new["spec"], "resources");
    let lists = ["containers", "initContainers"];
    let items = |pod: &Value, list: &str| pod["spec"][list].as_array().cloned().unwrap_or_default();
    if lists.iter().any(|list| items(new, list).len() != items(old, list).len()) {
        for list in lists {
            copy_or_remove(&mut base["spec"], &new["spec"], list);
        }
        return base;
    }
    for list in lists {
        let wanted = items(new, list);
        if wanted.iter().zip(&items(old, list)).any(|(new, old)| new["name"] != old["name"]) {
            copy_or_remove(&mut base["spec"], &new["spec"], list);
            continue;
        }
        // Not by index, which would put a null where there is no such list.
        let containers = base["spec"].get_mut(list).and_then(Value::as_array_mut);
        for (container, wanted) in containers.into_iter().flatten().zip(&wanted) {
            copy_or_remove(container, wanted, "resources");
            copy_or_remove(container, wanted, "resizePolicy");
        }
    }
    base
}

fn copy_or_remove(target: &mut Value, source: &Value, field: &str) {
    if let Some(map) = target.as_object_mut() {
        match source.get(field).filter(|v| !v.is_null()) {
            Some(value) => map.insert(field.to_owned(), value.clone()),
            None => map.remove(field),
        };
    }
}

/// True if anything but metadata and status differs; the status of a custom resource counts unless it is a
/// subresource.
fn spec_changed(new: &Value, old: &Value, row: &Resource) -> bool {
    let strip = |object: &Value| {
        let mut map = object.as_object().cloned().unwrap_or_default();
        map.remove("metadata");
        if row.custom.is_none() || row.has_status() {
            map.remove("status");
        }
        map
    };
    strip(new) != strip(old)
}

/// True if an update took away the last thing that held a deleted object.
fn finished(new: &Value, old: &Value, row: &Resource) -> bool {
    let empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    let meta = &new["metadata"];
    if meta["deletionTimestamp"].is_null() || !empty(&meta["finalizers"]) {
        return false;
    }
    if row.storage.group.is_empty() && row.plural == "namespaces" {
        return empty(&new["spec"]["finalizers"]);
    }
    let held = !empty(&old["metadata"]["finalizers"]);
    held && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit() {
        let mut object = json!({"metadata": {"generateName": "x".repeat(80)}});
        assert!(fill_identity(&mut object, true, "ns").unwrap());
        assert_eq!(object["metadata"]["name"].as_str().unwrap().len(), 63);
        assert_eq!(object["metadata"]["namespace"], "ns");
    }

    #[test]
    fn a_resize_writes_resources_only() {
        let pod = |cpu: &str, image: &str, names: &[&str]| {
            let containers: Vec<Value> = names
                .iter()
                .map(|n| json!({"name": n, "image": image, "resources": {"requests": {"cpu": cpu}}}))
                .collect();
            json!({"metadata": {"name": "p"}, "spec": {"containers": containers}, "status": {"phase": "Running"}})
        };
        let old = pod("1", "i", &["a", "b"]);
        assert_eq!(resized(&pod("2", "j", &["a", "b"]), &old), pod("2", "i", &["a", "b"]));
        // What does not match goes on as it is, for validation to refuse.
        assert_eq!(resized(&pod("2", "j", &["b", "a"]), &old), pod("2", "j", &["b", "a"]));
        assert_eq!(resized(&pod("2", "j", &["a"]), &old), pod("2", "j", &["a"]));
    }

    #[test]
    fn the_last_finalizer_finishes() {
        let row = keelson_api::resources::ResourceTable::builtin();
        let row = row.find("", "v1", "configmaps").unwrap();
        let old = json!({"metadata": {"deletionTimestamp": "t", "finalizers": ["a/b"]}});
        let new = json!({"metadata": {"deletionTimestamp": "t", "deletionGracePeriodSeconds": 0}});
        assert!(finished(&new, &old, row));
        assert!(!finished(&old, &old, row));
    }
}
