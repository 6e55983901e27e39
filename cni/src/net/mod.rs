//! The effects on the kernel's network: namespaces, links, addresses, routes, sysctls.

pub mod naming;
pub mod netlink;
pub mod netns;
pub mod sysctl;
pub(crate) mod thread;
