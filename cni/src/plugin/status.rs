//! STATUS: would an ADD work now?

use super::open_ipam;
use crate::error::{Error, Result};
use crate::types::config::Config;

pub(super) fn status(config: &Config) -> Result<()> {
    let exhausted = open_ipam(config)
        .and_then(|ipam| ipam.exhausted_range())
        .map_err(|error| Error::Unavailable(error.to_string()))?;
    match exhausted {
        Some(range) => Err(Error::Unavailable(format!(
            "no IP addresses available in range {} of network {:?}",
            range.net(),
            config.name
        ))),
        None => Ok(()),
    }
}
