//! `metadata.managedFields`: who owns which field of an object (`k8s.io/apimachinery/pkg/util/managedfields`).
//!
//! [`FieldManager::update`] keeps it true in creates, updates and patches; [`FieldManager::apply`] is server-side
//! apply. Both are pure: objects are trees in the version of the request.

mod conflict;
mod entries;
mod last_applied;
mod scale;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

pub use conflict::ApplyConflict;
pub use entries::{EntriesError, Managed, ManagerId, keep_times};
pub use last_applied::LAST_APPLIED;
pub use scale::{SCALE_VERSION, ScaleOwners};

use crate::meta::GroupVersionKind;
use crate::smd::update::{Conflicts, UpdateError, Updater, VersionedSet, Versions};
use crate::smd::{Filter, Set, Typed, ValidationErrors, field_path};
use entries::{APPLY, UPDATE, entries_of, is_reset, set_entries};

/// Most owners by update that one object keeps; the oldest are merged beyond that.
const MAX_UPDATERS: usize = 10;
/// Owner of what the oldest updaters owned.
const ANCIENT: &str = "ancient-changes";
/// Owner of all that was there before the first apply, where nobody was known.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Stands for the manager while it is found out whether it changed anything.
const CURRENT: &str = "current-operation";

/// Fields that nobody owns, because a client has no choice about them.
static STRIPPED: LazyLock<Set> = LazyLock::new(|| {
    let metadata = [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ];
    Set::new(
        [field_path(&["apiVersion"]), field_path(&["kind"]), field_path(&["metadata"])]
            .into_iter()
            .chain(metadata.iter().map(|name| field_path(&["metadata", name]))),
    )
});

/// Keeps owners for one kind, version and subresource.
pub struct FieldManager<'a> {
    /// The versions of the kind.
    pub versions: &'a dyn Versions,
    /// The kind in the version of the request.
    pub gvk: &'a GroupVersionKind,
    /// Subresource of the request, or empty.
    pub subresource: &'a str,
    /// By `apiVersion`, which fields the request can change at all.
    pub filters: &'a BTreeMap<String, Filter>,
    /// What a new object is compared with: one of the kind in this version with nothing set.
    pub empty: &'a Value,
    /// RFC 3339, whole seconds, UTC.
    pub now: &'a str,
}

/// Why an apply was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplyError {
    /// 400.
    BadRequest(String),
    /// 409.
    Conflict(ApplyConflict),
    /// 500 with the bare message, as upstream has no class for it.
    Failed(String),
}

impl From<UpdateError> for ApplyError {
    fn from(error: UpdateError) -> Self {
        match error {
            UpdateError::Conflicts(conflicts) => Self::Conflict(ApplyConflict::new(&conflicts)),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl<'a> FieldManager<'a> {
    /// Sets the owners of `new`, which `manager` made out of `live` (`None`: out of nothing) and which may carry a
    /// client's own idea of owners. Where they can't be told, `new` gets none and the reason is returned: it says that
    /// the schema and the object don't fit, and is for a log.
    pub fn update(&self, live: Option<&Value>, new: &mut Value, manager: &str) -> Result<(), UpdateError> {
        let managed = self.decode_live_or_new(live, new);
        set_entries(new, None);
        // An object that lost its owners, or was made before there were any, gets them with the first apply.
        if managed.fields.is_empty() && live.is_some_and(has_uid) {
            return Ok(());
        }
        let managed = self.updated(live.unwrap_or(self.empty), new, managed, manager)?;
        set_entries(new, managed.encode());
        Ok(())
    }

    /// The object after `manager` has applied `config` to `live` (`None`: there is none yet), with its owners. The
    /// result is neither normalized nor defaulted. `config` is as the client sent it, but for numbers
    /// ([`crate::smd::whole_numbers`]).
    pub fn apply(
        &self,
        live: Option<&Value>,
        config: &Value,
        manager: &str,
        force: bool,
    ) -> Result<Value, ApplyError> {
        let text = |field: &str| config[field].as_str().unwrap_or_default();
        let gvk = GroupVersionKind::from_type_meta(text("apiVersion"), text("kind"));
        if gvk != *self.gvk {
            return Err(ApplyError::BadRequest(format!("invalid object type: {}", print_kind(&gvk))));
        }
        let live = live.unwrap_or(self.empty);
        let managed = Managed::decode(entries_of(live))
            .map_err(|error| ApplyError::Failed(format!("failed to decode managed fields: {error}")))?;
        let mut live = live.clone();
        set_entries(&mut live, None);
        let applied = self.applied(&live, config, managed.clone(), manager, force);
        let (mut object, managed) = match applied {
            // What client-side apply set is kubectl's own, though the owner goes by another name.
            Err(Applying::Update(UpdateError::Conflicts(conflicts))) if manager == last_applied::KUBECTL => {
                let version = self.gvk.api_version();
                if let Some(allowed) = last_applied::allowed_conflicts(self.versions, &version, &live) {
                    let left: Vec<_> =
                        conflicts.0.into_iter().filter(|conflict| !allowed.has(&conflict.path)).collect();
                    if !left.is_empty() {
                        return Err(UpdateError::Conflicts(Conflicts(left)).into());
                    }
                    self.applied(&live, config, managed, manager, true)?
                } else {
                    return Err(UpdateError::Conflicts(conflicts).into());
                }
            }
            other => other?,
        };
        if manager == last_applied::KUBECTL {
            last_applied::refresh(&mut object, config);
        }
        set_entries(&mut object, managed.encode());
        Ok(object)
    }

    /// Owners before a write. A client may set them on the resource itself; without a usable idea of its own, and
    /// always on subresources, those of the live object hold.
    fn decode_live_or_new(&self, live: Option<&Value>, new: &Value) -> Managed {
        let of_live = || Managed::decode(live.and_then(entries_of)).unwrap_or_default();
        if !self.subresource.is_empty() {
            return of_live();
        }
        let given = entries_of(new);
        if is_reset(given) {
            return Managed::default();
        }
        match Managed::decode(given) {
            Ok(managed) if !managed.fields.is_empty() => managed,
            _ => of_live(),
        }
    }

    fn updater(&self) -> Updater<'a> {
        Updater { versions: self.versions, filters: self.filters }
    }

    /// An object as a value of the kind's type in the request's version.
    fn typed<'o>(&self, object: Cow<'o, Value>, duplicates: bool) -> Result<Typed<'o>, ValidationErrors>
    where
        'a: 'o,
    {
        let version = self.gvk.api_version();
        match self.versions.type_of(&version) {
            Some((types, id)) => Typed::new(types, id, object, duplicates),
            None => Err(ValidationErrors::from_message(format!(
                "no corresponding type for {}",
                print_kind(self.gvk)
            ))),
        }
    }

    /// `namespace/name; apps/v1, Kind=Deployment`.
    fn print_object(&self, object: &Value) -> String {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        format!("{}/{}; {}", text("namespace"), text("name"), print_kind(self.gvk))
    }

    fn updated(
        &self,
        live: &Value,
        new: &Value,
        mut managed: Managed,
        manager: &str,
    ) -> Result<Managed, UpdateError> {
        let version = self.gvk.api_version();
        let id = ManagerId::new(manager, UPDATE, &version, self.subresource).encode();
        let typed = |object, which: &str| {
            self.typed(Cow::Borrowed(object), true).map_err(|errors| {
                let doing =
                    format!("failed to convert {which} object ({}) to smd typed", self.print_object(object));
                UpdateError::Invalid { doing: doing.into(), errors }
            })
        };
        let new = typed(new, "new")?;
        let live = typed(live, "live")?;
        managed.fields = self.updater().update(&live, &new, &version, managed.fields, CURRENT)?;
        if let Some(mut owned) = stripped(managed.fields.remove(CURRENT)) {
            if let Some(before) = managed.fields.remove(&id) {
                owned.set = owned.set.union(before.set);
            }
            managed.fields.insert(id.clone(), owned);
            managed.times.insert(id, self.now.to_owned());
        }
        cap_updaters(&mut managed);
        Ok(managed)
    }

    fn applied(
        &self,
        live: &Value,
        config: &Value,
        mut managed: Managed,
        manager: &str,
        force: bool,
    ) -> Result<(Value, Managed), Applying> {
        if managed.fields.is_empty() {
            managed = self.updated(self.empty, live, managed, BEFORE_FIRST_APPLY).map_err(|error| {
                ApplyError::Failed(format!("failed to create manager for existing fields: {error}"))
            })?;
        }
        if entries_of(config).is_some_and(Value::is_array) {
            return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()).into());
        }
        let version = self.gvk.api_version();
        let id = ManagerId::new(manager, APPLY, &version, self.subresource).encode();
        let typed = |object, duplicates, what: &str| {
            self.typed(Cow::Owned(object), duplicates).map_err(|errors| {
                ApplyError::Failed(format!(
                    "failed to create typed {what} object ({}): {errors}",
                    self.print_object(config)
                ))
            })
        };
        let config = typed(config.clone(), false, "patch")?;
        let live = typed(live.clone(), true, "live")?;
        let (object, fields) = self.updater().apply(&live, &config, &version, managed.fields, &id, force)?;
        managed.fields = fields;
        if let Some(owned) = stripped(managed.fields.remove(&id)) {
            managed.fields.insert(id.clone(), owned);
        }
        // An apply that changes nothing leaves the time as it was.
        let object = match object {
            Some(object) => {
                managed.times.insert(id, self.now.to_owned());
                object.into_value()
            }
            None => live.into_value(),
        };
        Ok((object, managed))
    }
}

/// What may come of applying: a conflict is looked at once more.
enum Applying {
    Update(UpdateError),
    Other(ApplyError),
}

impl From<UpdateError> for Applying {
    fn from(error: UpdateError) -> Self {
        Self::Update(error)
    }
}

impl From<ApplyError> for Applying {
    fn from(error: ApplyError) -> Self {
        Self::Other(error)
    }
}

impl From<Applying> for ApplyError {
    fn from(error: Applying) -> Self {
        match error {
            Applying::Update(error) => error.into(),
            Applying::Other(error) => error,
        }
    }
}

fn has_uid(object: &Value) -> bool {
    object["metadata"]["uid"].as_str().is_some_and(|uid| !uid.is_empty())
}

/// `apps/v1, Kind=Deployment`, as Go prints it; the core group is empty before its slash.
fn print_kind(gvk: &GroupVersionKind) -> String {
    format!("{}/{}, Kind={}", gvk.group, gvk.version, gvk.kind)
}

/// Without fields that nobody owns; `None` if nothing is left.
fn stripped(owned: Option<VersionedSet>) -> Option<VersionedSet> {
    let mut owned = owned?;
    owned.set = owned.set.difference(&STRIPPED);
    (!owned.set.is_empty()).then_some(owned)
}

/// Merges the oldest updaters, by version, until there are few enough.
fn cap_updaters(managed: &mut Managed) {
    let mut updaters: Vec<String> =
        managed.fields.iter().filter(|(_, owned)| !owned.applied).map(|(name, _)| name.clone()).collect();
    let mut count = updaters.len();
    if count <= MAX_UPDATERS {
        return;
    }
    // Stable, and times of one form sort as text.
    updaters.sort_by(|a, b| managed.times.get(a).cmp(&managed.times.get(b)));
    let mut first_of: BTreeMap<String, String> = BTreeMap::new();
    for name in updaters {
        if count <= MAX_UPDATERS {
            return;
        }
        let Some(version) = managed.fields.get(&name).map(|owned| owned.version.clone()) else { continue };
        let Some(first) = first_of.get(&version) else {
            first_of.insert(version, name);
            continue;
        };
        let bucket = ManagerId::new(ANCIENT, UPDATE, &version, "").encode();
        let mut merged = Set::default();
        // The bucket takes the place of the first of its version, unless it is there already.
        let before = match managed.fields.remove(&bucket) {
            Some(before) => Some(before),
            None => managed.fields.remove(first),
        };
        for owned in [before, managed.fields.remove(&name)].into_iter().flatten() {
            merged = merged.union(owned.set);
        }
        managed.fields.insert(bucket.clone(), VersionedSet { set: merged, version, applied: false });
        count -= 1;
        // The bucket is as young as the youngest in it.
        match managed.times.get(&name).cloned() {
            Some(time) => managed.times.insert(bucket, time),
            None => managed.times.remove(&bucket),
        };
    }
}
