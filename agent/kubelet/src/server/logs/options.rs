//! PodLogOptions, as the query carries them.

use http::Uri;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::entry::Source;
use crate::server::stream::query_pairs;

/// What of a log is wanted, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// Of the container before this one.
    pub previous: bool,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// Only so many lines from the end.
    pub tail_lines: Option<u64>,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// Only one of the streams.
    pub(super) source: Option<Source>,
}

impl LogOptions {
    /// Reads the query of `uri`.
    pub(crate) fn from_uri(uri: &Uri) -> Result<Self, String> {
        Self::from_pairs(&query_pairs(uri), Timestamp::now())
    }

    fn from_pairs(pairs: &[(String, String)], now: Timestamp) -> Result<Self, String> {
        let mut options = Self::default();
        let mut since_seconds = false;
        for (name, value) in pairs {
            let bad = |what: &str| format!("invalid {name} {value:?}: must be {what}");
            let flag = || match value.as_str() {
                // An empty value means true, as in the API machinery's conversion.
                "" | "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
                "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
                _ => Err(bad("a boolean")),
            };
            match name.as_str() {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => {
                    let lines = value.parse().map_err(|_invalid| bad("greater than or equal to 0"))?;
                    options.tail_lines = Some(lines);
                }
                "limitBytes" => {
                    let bytes = value.parse().ok().filter(|bytes| *bytes > 0);
                    options.limit_bytes = Some(bytes.ok_or_else(|| bad("greater than 0"))?);
                }
                "sinceSeconds" => {
                    let seconds = value.parse::<i64>().ok().filter(|seconds| *seconds > 0);
                    let seconds = seconds.ok_or_else(|| bad("greater than 0"))?;
                    // Longer ago than time began is the same as everything.
                    options.since = now.checked_sub(SignedDuration::from_secs(seconds)).ok();
                    since_seconds = true;
                }
                "sinceTime" => {
                    if since_seconds {
                        return Err("at most one of sinceTime or sinceSeconds may be specified".to_owned());
                    }
                    options.since = Some(value.parse().map_err(|_invalid| bad("a time in RFC 3339"))?);
                }
                "stream" => {
                    options.source = match value.as_str() {
                        "All" | "" => None,
                        "Stdout" => Some(Source::Stdout),
                        "Stderr" => Some(Source::Stderr),
                        _ => return Err(bad("All, Stdout or Stderr")),
                    };
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pairs: &[(&str, &str)], expected: Option<LogOptions>) {
        let pairs: Vec<_> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let now = Timestamp::from_second(1000).unwrap();
        assert_eq!(LogOptions::from_pairs(&pairs, now).ok(), expected, "{pairs:?}");
    }

    #[test]
    fn queries() {
        check(&[], Some(LogOptions::default()));
        check(
            &[("follow", "true"), ("tailLines", "0"), ("timestamps", "")],
            Some(LogOptions { follow: true, tail_lines: Some(0), timestamps: true, ..LogOptions::default() }),
        );
        let since = Some(Timestamp::from_second(940).unwrap());
        check(&[("sinceSeconds", "60")], Some(LogOptions { since, ..LogOptions::default() }));
        check(&[("sinceTime", "1970-01-01T00:15:40Z")], Some(LogOptions { since, ..LogOptions::default() }));
        check(
            &[("stream", "Stderr")],
            Some(LogOptions { source: Some(Source::Stderr), ..LogOptions::default() }),
        );
        check(&[("tailLines", "-1")], None);
        check(&[("limitBytes", "0")], None);
        check(&[("sinceSeconds", "1"), ("sinceTime", "1970-01-01T00:15:40Z")], None);
        check(&[("follow", "maybe")], None);
    }
}
