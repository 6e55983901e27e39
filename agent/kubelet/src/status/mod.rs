//! From what the runtime says to `pod.status`: pure functions, and the writer that sends the result.

pub mod conditions;
pub mod containers;
pub mod generate;
pub mod phase;
pub mod writer;
