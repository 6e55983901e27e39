//! GC: remove what belongs to no valid attachment. An attachment's address record is made first and removed
//! last, so the records tell of every attachment that may have left something.

use super::{del, open_ipam};
use crate::error::{Error, Result};
use crate::types::config::Config;

pub(super) async fn gc(config: &Config) -> Result<()> {
    let Some(valid) = &config.valid_attachments else {
        // Without the list, everything would be stale: surely not what a runtime means.
        return Err(Error::InvalidConfig("GC without cni.dev/valid-attachments".into()));
    };
    let mut errors = Vec::new();
    let mut keep = valid.clone();
    let stale = open_ipam(config)?.stale_owners(valid)?;
    for owner in stale {
        let failures = del::detach(&owner).await;
        if !failures.is_empty() {
            errors.extend(failures);
            keep.insert(owner);
        }
    }
    if let Err(error) = open_ipam(config).and_then(|ipam| ipam.release_stale(&keep)) {
        errors.push(error);
    }
    Error::collect(errors)
}
