//! keelson-cni: Keelson's CNI plugin, and the library with which its agent drives any CNI plugin.
//!
//! - [`plugin`]: the plugin itself, ADD to VERSION, for the binary and for use within a process;
//! - [`driver`]: the runtime's side of the protocol;
//! - [`netconf`]: network configurations in /etc/cni/net.d, and the default one;
//! - [`ipam`]: crash-safe address management;
//! - [`masquerade`], [`routes`], [`vxlan`], [`host`]: what a node needs around its pods, and [`reset`]: all of it taken
//!   back;
//! - [`types`]: the protocol's documents; [`net`]: the kernel's side of it.
//!
//! This crate never talks to the Kubernetes API, keeps no state but address records and cached results, and
//! touches no iptables rule, no foreign nftables table and no route that it did not make.

pub mod driver;
mod error;
pub mod host;
pub mod ipam;
pub mod net;
pub mod netconf;
mod nft;
pub mod plugin;
pub mod reset;
pub mod routes;
pub mod types;
pub mod vxlan;

pub use driver::{Attached, Attachment, Bandwidth, Driver, DriverConfig, DriverError};
pub use error::{Error, Result};
pub use net::netlink::Netlink;
pub use nft::{masquerade, services};
pub use routes::NodeRoute;
pub use types::config::{Mode, PortMapping, Protocol};
pub use types::invocation::Owner;
pub use types::result::AddResult;
