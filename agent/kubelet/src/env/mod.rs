//! Environment of a container: `$(VAR)`, Services, the downward API, ConfigMaps and Secrets.

pub mod build;
pub mod expansion;
pub mod fieldref;
pub mod services;
