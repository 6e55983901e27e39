//! Why a controller could not finish an item; the item is tried again.

use keelson_client::meta;
use keelson_client::selector::SelectorError;

/// What went wrong with an item.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused, or could not be reached.
    #[error("{}", meta::message(.0))]
    Api(#[from] kube::Error),
    /// An object's selector cannot be read.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// The cache is known to be behind our own writes.
    #[error("the cache is behind the controller's own writes")]
    Stale,
    /// There is more to do, later.
    #[error("{0}")]
    Pending(String),
}

impl Error {
    /// Whether the cause is a namespace that is going away, which no retry will change.
    pub fn is_namespace_terminating(&self) -> bool {
        matches!(self, Error::Api(error) if meta::is_namespace_terminating(error))
    }
}

/// The outcome of working on an item.
pub type Result<T = ()> = std::result::Result<T, Error>;
