//! The documents of the CNI protocol: versions, results, errors, plugin configuration, parameters.

pub mod config;
pub mod invocation;
pub mod report;
pub mod result;
pub mod version;
