//! Address management: which address to give is pure ([`range`]), remembering it is a folder ([`store`]).

pub mod range;
pub mod store;

pub use store::Ipam;
