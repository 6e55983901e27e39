//! Header blocks: name/value pairs, zlib-compressed with one context for a whole connection and direction.

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;
use super::{Error, Result};

/// Most bytes of a block after decompression.
const MAX_BLOCK: usize = 16 * 1024;
/// Most pairs in a block.
const MAX_PAIRS: u32 = 64;

/// Headers of a stream, names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a header, its name without regard to case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let value = &self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?.1;
        // Several values of one name come in one pair, with NUL between.
        value.split('\0').next()
    }
}

/// Decompresses the blocks of one connection.
pub(super) struct BlockReader {
    zlib: Decompress,
}

impl BlockReader {
    pub(super) fn new() -> Self {
        Self { zlib: Decompress::new(true) }
    }

    pub(super) fn read(&mut self, compressed: &[u8]) -> Result<Headers> {
        let plain = self.inflate(compressed)?;
        parse(&plain)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>> {
        let mut plain = Vec::with_capacity(1024);
        let mut chunk = [0_u8; 1024];
        loop {
            let (read, written) = (self.zlib.total_in(), self.zlib.total_out());
            let status = match self.zlib.decompress(input, &mut chunk, FlushDecompress::Sync) {
                Ok(status) => status,
                Err(error) if error.needs_dictionary().is_some() => {
                    let read = usize::try_from(self.zlib.total_in() - read).unwrap_or(usize::MAX);
                    input = input.get(read..).unwrap_or_default();
                    self.zlib
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_error| Error::Compression("wrong dictionary"))?;
                    continue;
                }
                Err(_error) => return Err(Error::Compression("corrupt")),
            };
            let read = usize::try_from(self.zlib.total_in() - read).unwrap_or(usize::MAX);
            let written = usize::try_from(self.zlib.total_out() - written).unwrap_or(usize::MAX);
            input = input.get(read..).unwrap_or_default();
            plain.extend_from_slice(chunk.get(..written).unwrap_or_default());
            if plain.len() > MAX_BLOCK {
                return Err(Error::Compression("too large"));
            }
            match status {
                Status::StreamEnd => return Err(Error::Compression("ended before its connection")),
                // All input is in, and there was room to spare in the output: nothing is left inside.
                _ if input.is_empty() && written < chunk.len() => return Ok(plain),
                _ if read == 0 && written == 0 => return Err(Error::Compression("truncated")),
                _ => {}
            }
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers> {
    let count = take_u32(&mut block)?;
    if count > MAX_PAIRS {
        return Err(Error::Protocol("too many headers"));
    }
    let mut pairs = Vec::new();
    for _ in 0..count {
        let name = take_text(&mut block)?;
        let value = take_text(&mut block)?;
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Error::Protocol("header names must be lower case"));
        }
        if pairs.iter().any(|(known, _)| *known == name) {
            return Err(Error::Protocol("duplicate header"));
        }
        pairs.push((name, value));
    }
    if !block.is_empty() {
        return Err(Error::Protocol("bytes behind the headers"));
    }
    Ok(Headers(pairs))
}

fn take_u32(block: &mut &[u8]) -> Result<u32> {
    block.try_get_u32().map_err(|_short| Error::Protocol("short header block"))
}

fn take_text(block: &mut &[u8]) -> Result<String> {
    let length = usize::try_from(take_u32(block)?).map_err(|_large| Error::Protocol("short header block"))?;
    let (text, rest) = block.split_at_checked(length).ok_or(Error::Protocol("short header block"))?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_invalid| Error::Protocol("headers must be UTF-8"))
}

/// Compresses the blocks of one connection.
pub(super) struct BlockWriter {
    zlib: Compress,
}

impl BlockWriter {
    pub(super) fn new() -> Result<Self> {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(&DICTIONARY).map_err(|_error| Error::Compression("dictionary refused"))?;
        Ok(Self { zlib })
    }

    /// Appends the compressed block to `out`.
    pub(super) fn write(&mut self, headers: &Headers, out: &mut BytesMut) -> Result<()> {
        let mut plain = BytesMut::new();
        plain.put_u32(length(headers.0.len())?);
        for (name, value) in &headers.0 {
            for text in [name.to_ascii_lowercase().as_str(), value] {
                plain.put_u32(length(text.len())?);
                plain.put_slice(text.as_bytes());
            }
        }
        let mut input: &[u8] = &plain;
        let mut chunk = [0_u8; 1024];
        loop {
            let (read, written) = (self.zlib.total_in(), self.zlib.total_out());
            self.zlib
                .compress(input, &mut chunk, FlushCompress::Sync)
                .map_err(|_error| Error::Compression("could not compress"))?;
            let read = usize::try_from(self.zlib.total_in() - read).unwrap_or(usize::MAX);
            let written = usize::try_from(self.zlib.total_out() - written).unwrap_or(usize::MAX);
            input = input.get(read..).unwrap_or_default();
            out.extend_from_slice(chunk.get(..written).unwrap_or_default());
            if input.is_empty() && written < chunk.len() {
                return Ok(());
            }
        }
    }
}

fn length(length: usize) -> Result<u32> {
    u32::try_from(length).map_err(|_large| Error::Protocol("headers too large"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn context_lasts_for_the_connection() {
        let (mut writer, mut reader) = (BlockWriter::new().unwrap(), BlockReader::new());
        for round in 0..20 {
            let sent = headers(&[("streamtype", "data"), ("port", "80"), ("requestid", &round.to_string())]);
            let mut block = BytesMut::new();
            writer.write(&sent, &mut block).unwrap();
            let got = reader.read(&block).unwrap();
            assert_eq!(got, sent);
            assert_eq!(got.get("StreamType"), Some("data"));
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut writer = BlockWriter::new().unwrap();
        let mut block = BytesMut::new();
        writer.write(&headers(&[("a", &"x".repeat(10 << 20))]), &mut block).unwrap();
        assert!(matches!(BlockReader::new().read(&block), Err(Error::Compression("too large"))));
    }

    #[test]
    fn bad_blocks_are_refused() {
        assert!(BlockReader::new().read(b"no zlib at all").is_err());
        assert!(BlockReader::new().read(&[]).is_err());
        assert!(parse(&[0, 0, 1, 0]).is_err());
        assert!(parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(parse(&[0, 0, 0, 0, 9]).is_err());
        assert!(parse(&[0, 0, 0, 1, 0, 0, 0, 1, b'A', 0, 0, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn any_headers_survive(pairs in proptest::collection::btree_map("[a-z-]{1,20}", ".{0,200}", 0..20)) {
            let sent = Headers(pairs.into_iter().collect());
            let mut block = BytesMut::new();
            BlockWriter::new().unwrap().write(&sent, &mut block).unwrap();
            prop_assert_eq!(BlockReader::new().read(&block).unwrap(), sent);
        }

        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = BlockReader::new().read(&bytes);
            let _ = parse(&bytes);
        }
    }
}
