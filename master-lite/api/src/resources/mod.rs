//! The table of resources: every API resource is one row of data.
//!
//! Discovery, printing, RBAC names, watch caches, short names and the stages of a write all derive from the rows.
//! Nothing in the request path names a kind; what a kind needs beyond data is its row's [`Strategy`].

mod builtin;
pub mod columns;
pub mod flow_control;
pub mod metadata;
mod priorities;
mod reset;
mod row;
pub mod selector;
pub mod strategies;
mod strategy;
mod table;
mod validation;

pub use columns::{Cell, Column, Printer};
pub use priorities::{CUSTOM_PRIORITY, Priority, REGISTRATION_GROUP, priority};
pub use reset::reset_filter;
pub use row::{Converter, Resource, ScalePaths, SelectableField, Subresource};
pub use strategy::{Deletion, DeletionRequest, Strategy, StrategyContext};
pub use table::ResourceTable;
