//! Everything about API objects that needs no server: the schema tree and what it drives (decoding, strict
//! validation, pruning, defaulting, patching, protobuf, OpenAPI), and the table of resources (names, scopes,
//! columns, subresources, strategies).
//!
//! Objects are trees ([`serde_json::Value`]); nothing here does IO.

pub mod codec;
pub mod custom;
pub mod defaults;
pub mod expressions;
pub mod field;
pub mod managed_fields;
pub mod meta;
pub mod openapi;
pub mod patch;
pub mod policy;
pub mod quota;
pub mod resources;
pub mod schema;
pub mod smd;
pub mod time;
