//! What a kind does beyond data.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::field::FieldError;

/// Who writes, and when.
#[derive(Debug, Clone, Default)]
pub struct StrategyContext {
    /// User's name.
    pub user: String,
    /// User's uid.
    pub uid: String,
    /// User's groups.
    pub groups: Vec<String>,
    /// User's extra.
    pub extra: BTreeMap<String, Vec<String>>,
    /// RFC 3339, whole seconds.
    pub now: String,
    /// Subresource that is written, or empty.
    pub subresource: String,
}

/// `DeleteOptions`, as far as a strategy may look at them.
#[derive(Debug, Clone, Default)]
pub struct DeletionRequest {
    /// `gracePeriodSeconds` as sent.
    pub grace_period_seconds: Option<i64>,
}

/// How an object without finalizers goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// At once.
    Immediate,
    /// It stays, marked, until someone deletes it again with a grace period of 0.
    Graceful {
        /// Seconds from now.
        seconds: i64,
    },
}

/// Hooks of a kind in the stages of a write. All are pure; trees are in the storage version and already
/// decoded, pruned and defaulted from the schema.
pub trait Strategy: Send + Sync + 'static {
    /// Defaults that a schema cannot state because they depend on other fields.
    fn default(&self, _object: &mut Value) {}

    /// Drops what a client may not set on create, and sets what the server decides.
    fn prepare_for_create(&self, _context: &StrategyContext, _object: &mut Value) {}

    /// The same for an update; `context.subresource` says which part is written. The server has already put
    /// back `status` (or everything but status, for the status subresource).
    fn prepare_for_update(&self, _context: &StrategyContext, _new: &mut Value, _old: &Value) {}

    /// Checks a new object. Metadata is checked by the server.
    fn validate_create(&self, _context: &StrategyContext, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Checks a change.
    fn validate_update(&self, _context: &StrategyContext, _new: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Warnings for the client, sent as `Warning` headers. `old` is there for a change.
    fn warnings(&self, _new: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// PUT of an absent name makes it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// PUT without a resourceVersion overwrites whatever is there.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// What becomes of an object that is asked to go for the first time: one that must not go before something is
    /// done gets a finalizer here. `now` is RFC 3339.
    fn prepare_for_delete(&self, _object: &mut Value, _now: &str) {}

    /// Decides on grace.
    fn deletion(&self, _object: &Value, _request: &DeletionRequest) -> Deletion {
        Deletion::Immediate
    }

    /// Whether what the object owns stays when it is deleted by one who does not say (upstream's way of the oldest
    /// kinds).
    fn orphans_dependents(&self) -> bool {
        false
    }

    /// What a client is told that deletes an object and does not say what becomes of what it owns.
    fn deletion_warning(&self) -> Option<&'static str> {
        None
    }

    /// What a name must look like.
    fn validate_name(&self, name: &str) -> Result<(), String> {
        super::metadata::dns_subdomain(name)
    }
}
