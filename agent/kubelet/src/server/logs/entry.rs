//! One line of a CRI log: `<RFC 3339 time> <stdout|stderr> <F|P>[:…] <bytes>`.

use k8s_openapi::jiff::Timestamp;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Stdout,
    Stderr,
}

/// A parsed line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// The time as it is written.
    pub time: &'a str,
    pub source: Source,
    /// More of the same line follows in the next entry of this source.
    pub partial: bool,
    /// The bytes, without newline.
    pub content: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Parses a line without its newline; none when it is not in the format.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?;
        let source = match fields.next()? {
            b"stdout" => Source::Stdout,
            b"stderr" => Source::Stderr,
            _ => return None,
        };
        // Tags are separated by colons; the first says whether the line is whole.
        let partial = match fields.next()?.split(|byte| *byte == b':').next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        (!time.is_empty()).then(|| Self { time, source, partial, content: fields.next().unwrap_or_default() })
    }

    /// The time, parsed.
    pub(super) fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(line: &str, expected: Option<(Source, bool, &str)>) {
        let got =
            Entry::parse(line.as_bytes()).map(|entry| (entry.source, entry.partial, entry.content.to_vec()));
        assert_eq!(
            got,
            expected.map(|(source, partial, text)| (source, partial, text.as_bytes().to_vec())),
            "{line}"
        );
    }

    #[test]
    fn lines() {
        check("2016-10-06T00:17:09.669794202Z stdout F a b  c", Some((Source::Stdout, false, "a b  c")));
        check("2016-10-06T00:17:09.669794202Z stderr P x", Some((Source::Stderr, true, "x")));
        check("2016-10-06T00:17:09.669794202Z stdout F:tag x", Some((Source::Stdout, false, "x")));
        check("2016-10-06T00:17:09.669794202Z stdout F ", Some((Source::Stdout, false, "")));
        check("2016-10-06T00:17:09.669794202Z stdout F", Some((Source::Stdout, false, "")));
        check("2016-10-06T00:17:09.669794202Z stdin F x", None);
        check("2016-10-06T00:17:09.669794202Z stdout X x", None);
        check("", None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Entry::parse(&line);
        }
    }
}
