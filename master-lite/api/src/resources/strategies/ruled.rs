//! Kinds whose own behaviour is defaults and rules, nothing else: one value a kind instead of one type.

use serde_json::Value;

use crate::field::FieldError;
use crate::resources::{Strategy, StrategyContext, metadata};

type Defaults = fn(&mut Value);
type Rules = fn(&Value) -> Vec<FieldError>;
/// Rules of a change: the new object, then the old one.
type ChangeRules = fn(&Value, &Value) -> Vec<FieldError>;

/// Such a kind.
#[derive(Clone, Copy)]
pub struct Ruled {
    defaults: Defaults,
    create: Rules,
    update: ChangeRules,
    status: ChangeRules,
    warnings: fn(&Value) -> Vec<String>,
    name: fn(&str) -> Result<(), String>,
    create_on_update: bool,
    unconditional_update: bool,
    /// A write to `status` leaves labels, annotations, finalizers and owners as they are.
    status_alone: bool,
    /// `metadata.generation` counts changes of `spec`, but is absent before the first.
    late_generation: bool,
}

impl Ruled {
    /// Rules of a new object and of a changed one. Names are DNS subdomains.
    pub(super) const fn new(create: Rules, update: ChangeRules) -> Self {
        Self {
            defaults: |_| {},
            create,
            update,
            status: |_, _| Vec::new(),
            warnings: |_| Vec::new(),
            name: metadata::dns_subdomain,
            create_on_update: false,
            unconditional_update: true,
            status_alone: false,
            late_generation: false,
        }
    }

    pub(super) const fn defaults(mut self, defaults: Defaults) -> Self {
        self.defaults = defaults;
        self
    }

    /// Rules of a write to `status`.
    pub(super) const fn status(mut self, status: ChangeRules) -> Self {
        self.status = status;
        self
    }

    /// A write to `status` changes nothing else (`metav1.ResetObjectMetaForStatus`).
    pub(super) const fn status_alone(mut self) -> Self {
        self.status_alone = true;
        self
    }

    pub(super) const fn late_generation(mut self) -> Self {
        self.late_generation = true;
        self
    }

    /// Warnings about a new object.
    pub(super) const fn warnings(mut self, warnings: fn(&Value) -> Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }

    pub(super) const fn name(mut self, name: fn(&str) -> Result<(), String>) -> Self {
        self.name = name;
        self
    }

    /// PUT of an absent name makes it.
    pub(super) const fn create_on_update(mut self) -> Self {
        self.create_on_update = true;
        self
    }

    /// PUT needs a resourceVersion.
    pub(super) const fn conditional(mut self) -> Self {
        self.unconditional_update = false;
        self
    }
}

/// Puts back what a write to `status` must not change of the metadata.
pub(super) fn keep_metadata(new: &mut Value, old: &Value) {
    let Some(meta) = new["metadata"].as_object_mut() else { return };
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        match &old["metadata"][field] {
            Value::Null => meta.remove(field),
            value => meta.insert(field.to_owned(), value.clone()),
        };
    }
}

impl Strategy for Ruled {
    fn default(&self, object: &mut Value) {
        (self.defaults)(object);
    }

    fn prepare_for_update(&self, context: &StrategyContext, new: &mut Value, old: &Value) {
        if self.late_generation && context.subresource.is_empty() && new["spec"] != old["spec"] {
            let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
            new["metadata"]["generation"] = (before + 1).into();
        }
        if !self.status_alone || context.subresource.is_empty() {
            return;
        }
        keep_metadata(new, old);
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        (self.create)(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        match context.subresource.as_str() {
            "" => (self.update)(new, old),
            _ => (self.status)(new, old),
        }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_none() { (self.warnings)(new) } else { Vec::new() }
    }

    fn allow_create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn allow_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn validate_name(&self, name: &str) -> Result<(), String> {
        (self.name)(name)
    }
}
