//! sha256 digests and a reader that computes one on the way.

use std::io::Read;

use sha2::{Digest as _, Sha256};

use crate::ImageError;

/// A digest `sha256:<64 hexadecimal digits>`, checked: safe to use as a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Digest(String);

impl Digest {
    /// Parses; other algorithms are refused (the OCI image specification requires sha256 only).
    pub(crate) fn parse(text: &str) -> Result<Self, ImageError> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        let valid = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ImageError::Malformed {
                what: format!("digest \"{text}\""),
                reason: "not sha256 in lower case".into(),
            })
        }
    }

    /// Digest of some bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::from_hash(&Sha256::digest(bytes))
    }

    fn from_hash(hash: &[u8]) -> Self {
        use std::fmt::Write;
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in hash {
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// `sha256:…`
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The hexadecimal digits alone.
    pub(crate) fn hex(&self) -> &str {
        self.0.trim_start_matches("sha256:")
    }
}

/// Passes bytes through, hashing and counting them.
pub(crate) struct HashingReader<R> {
    inner: R,
    hash: Sha256,
    count: u64,
    /// Why reading failed, if it did: the digest of a part says nothing then.
    broken: Option<String>,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), count: 0, broken: None }
    }

    /// Reads what is left, then gives the digest and the number of bytes of all that was read. An error of an earlier
    /// read is given again.
    pub(crate) fn finish(mut self) -> std::io::Result<(Digest, u64)> {
        if let Some(broken) = self.broken.take() {
            return Err(std::io::Error::other(broken));
        }
        std::io::copy(&mut self, &mut std::io::sink())?;
        Ok((Digest::from_hash(&self.hash.finalize()), self.count))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer).inspect_err(|error| {
            if error.kind() != std::io::ErrorKind::Interrupted {
                self.broken = Some(error.to_string());
            }
        })?;
        self.hash.update(&buffer[..read]);
        self.count += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_checked() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        assert!(Digest::parse(empty).is_ok());
        for bad in
            ["", "sha256:", "sha256:../../etc/passwd", &empty.to_uppercase(), "sha512:00", &empty[..70]]
        {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }
}
