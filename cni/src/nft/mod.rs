//! nftables without the nft program: the few messages that this crate needs, built by hand.
//!
//! The maintained crates either need the nft binary (`nftables`) or carry a licence that does not go with
//! this project's (`rustables`, GPL-3.0-or-later). Everything lives in one table, `inet keelson`, beside
//! whatever Docker, firewalld or networkd keep in theirs; a base chain of another table may still drop what
//! is accepted here, which is the administrator's right.

pub mod hostport;
pub mod masquerade;
mod message;
pub mod services;
mod socket;
mod table;

pub use table::remove as remove_table;
