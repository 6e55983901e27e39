//! Structured merge and diff: who owns which field, and how configurations merge.
//!
//! A port of what `sigs.k8s.io/structured-merge-diff` v6 does, over our own types: sets of fields ([`Set`]), values
//! with types ([`Typed`]), and what an update or an apply makes of owners ([`update`]). Pure; who the owners are and
//! how they are written into objects is `managed_fields`' business.

mod custom;
mod element;
mod fields_v1;
mod set;
mod typed;
mod types;
pub mod update;
mod value;

pub use element::{ElementError, Path, PathElement, field_path, print_path};
pub use fields_v1::FieldsError;
pub use set::{Filter, Pattern, Set};
pub use typed::{Comparison, Typed, ValidationError, ValidationErrors, reconcile};
pub use types::{Atom, FieldType, List, MapType, Scalar, TypeId, Types};
pub use value::{equals, whole_numbers};
