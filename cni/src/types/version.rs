//! Versions of the CNI specification that are spoken here.

use std::fmt;

use crate::error::{Error, Result};

/// A version of the specification, ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.1: rich results with a `version` in each address.
    V0_3_1,
    /// 0.4.0: CHECK, prevResult on DEL.
    V0_4_0,
    /// 1.0.0: no `version` in addresses.
    V1_0_0,
    /// 1.1.0: GC, STATUS, mtu in interfaces, more in routes.
    V1_1_0,
}

impl Version {
    /// Every version spoken here, oldest first.
    pub const ALL: [Version; 4] = [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];

    /// The text used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// Parses the text used on the wire.
    ///
    /// # Errors
    /// [`Error::IncompatibleVersion`] for a version that is not spoken here.
    pub fn parse(text: &str) -> Result<Version> {
        Version::ALL.into_iter().find(|v| v.as_str() == text).ok_or_else(|| Error::IncompatibleVersion {
            config: text.to_owned(),
            supported: Version::ALL.iter().map(ToString::to_string).collect(),
        })
    }

    /// Picks the highest version spoken here from a configuration's `cniVersion` and `cniVersions`
    /// (specification section 1, "Version considerations").
    ///
    /// # Errors
    /// [`Error::IncompatibleVersion`] when none is spoken here.
    pub fn select<'a>(offered: impl IntoIterator<Item = &'a str>) -> Result<Version> {
        let offered: Vec<&str> = offered.into_iter().collect();
        offered.iter().filter_map(|text| Version::parse(text).ok()).max().ok_or_else(|| {
            Error::IncompatibleVersion {
                config: offered.join(", "),
                supported: Version::ALL.iter().map(ToString::to_string).collect(),
            }
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_known_version_wins() {
        assert_eq!(Version::select(["0.3.1", "1.0.0", "7.0.0"]).unwrap(), Version::V1_0_0);
        assert_eq!(Version::select(["9.9.9", "0.2.0"]).unwrap_err().code(), 1);
        assert_eq!(Version::select([]).unwrap_err().code(), 1);
    }
}
