//! Reading a file of a container's log line by line.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

/// Longest line that is kept together; podinit splits lines long before.
const MAX_LINE: usize = 1 << 20;
/// Bytes that are read at once.
const READ: usize = 64 * 1024;

enum Content {
    File(File),
    Packed(Box<MultiGzDecoder<std::fs::File>>),
}

/// Reads a log file line by line; what comes behind the last newline is kept until there is more.
pub(super) struct LineReader {
    content: Content,
    buffer: BytesMut,
    /// The inode, which tells a rotated file from its successor.
    pub inode: u64,
    /// Where in `buffer` the search for a newline goes on.
    searched: usize,
}

impl LineReader {
    /// Opens a file; one that ends in `.gz` is unpacked.
    pub(super) async fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path).await?;
        let inode = file.metadata().await?.ino();
        let content = if path.extension().is_some_and(|extension| extension == "gz") {
            Content::Packed(Box::new(MultiGzDecoder::new(file.into_std().await)))
        } else {
            Content::File(file)
        };
        Ok(Self { content, buffer: BytesMut::new(), inode, searched: 0 })
    }

    /// The next whole line, without newline; none at the end of what is there now.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let newline = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            if let Some(at) = newline {
                let mut line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                line.truncate(line.len() - 1);
                return Ok(Some(line.freeze()));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                // Not a line that podinit wrote: give it up in parts rather than grow.
                self.searched = 0;
                return Ok(Some(self.buffer.split().freeze()));
            }
            self.buffer.reserve(READ);
            let read = match &mut self.content {
                Content::File(file) => file.read_buf(&mut self.buffer).await?,
                Content::Packed(decoder) => {
                    // Less than a millisecond of work, after which others have their turn.
                    tokio::task::consume_budget().await;
                    let kept = self.buffer.len();
                    self.buffer.resize(kept + READ, 0);
                    let read = decoder.read(&mut self.buffer[kept..]);
                    self.buffer.truncate(kept + read.as_ref().copied().unwrap_or(0));
                    read?
                }
            };
            if read == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn lines_are_whole_or_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        let mut reader = LineReader::open(&path).await.unwrap();
        assert_eq!(reader.next().await.unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(reader.next().await.unwrap(), None);
        file.write_all(b"o\n\n").unwrap();
        assert_eq!(reader.next().await.unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(reader.next().await.unwrap().as_deref(), Some(&b""[..]));
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn packed_files_are_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let packed = dir.path().join("0.log.20260101-000000.gz");
        let mut encoder = flate2::write::GzEncoder::new(
            std::fs::File::create(&packed).unwrap(),
            flate2::Compression::fast(),
        );
        encoder.write_all(b"old\n").unwrap();
        encoder.finish().unwrap();
        let mut reader = LineReader::open(&packed).await.unwrap();
        assert_eq!(reader.next().await.unwrap().as_deref(), Some(&b"old"[..]));
        assert_eq!(reader.next().await.unwrap(), None);
    }
}
