//! Services on a node: compiled to the content of BPF maps, and kept there.
//!
//! - [`compile`] is pure: Services, EndpointSlices and Nodes to a [`MapImage`].
//! - [`diff`] is pure: what the kernel holds and the image wanted to an ordered list of [`MapOp`]s, such that no
//!   connection ever sees half a Service.
//! - `changes` notes what the API changed; where that was endpoints alone, `refresh` compiles just those Services.
//! - [`kernel`] loads and attaches the programs and executes the operations. Everything is pinned: a restarted agent
//!   takes over what it finds, and traffic never stops.
//! - `outside` is pure: what clients that are not in the cluster may ask this node for.
//! - `health` answers load balancers on `healthCheckNodePort`s.
//! - [`run`] ties them to the API.

mod changes;
mod compile;
mod diff;
mod error;
mod health;
pub mod kernel;
mod outside;
mod refresh;
mod run;

pub use compile::{MapImage, NodeContext, Target, compile};
pub use diff::{Installed, MapOp, diff};
pub use error::ProxyError;
pub use run::{ProxyConfig, run};
