//! The files of one container's log: `0.log`, and what rotation moved aside (`0.log.20261121-040000`, later `.gz`).

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

/// Longest line that is kept together; podinit splits lines long before.
const MAX_LINE: usize = 1 << 20;
/// Most bytes that a compressed file may hold.
const MAX_UNPACKED: u64 = 256 << 20;

/// The log's files, oldest first; the last is `path` itself, there or not.
pub(super) fn all(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    if let (Some(dir), Some(name)) = (path.parent(), path.file_name().map(|name| name.to_string_lossy())) {
        let prefix = format!("{name}.2");
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // `.tmp` is a compression under way; its original is still there.
            if name.starts_with(&prefix) && !name.ends_with(".tmp") {
                files.push(entry.path());
            }
        }
    }
    // The time in the name sorts as text.
    files.sort();
    files.push(path.to_owned());
    files
}

/// The file that follows the one with this inode; `path` itself when that one is gone or the last.
pub(super) fn successor(path: &Path, inode: u64) -> PathBuf {
    let files = all(path);
    let ours = files.iter().position(|file| std::fs::metadata(file).is_ok_and(|meta| meta.ino() == inode));
    ours.and_then(|index| files.get(index + 1)).unwrap_or(&files[files.len() - 1]).clone()
}

enum Content {
    File(File),
    Unpacked(io::Cursor<Vec<u8>>),
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
            let file = file.into_std().await;
            let unpacked = tokio::task::spawn_blocking(move || {
                let mut unpacked = Vec::new();
                MultiGzDecoder::new(file).take(MAX_UNPACKED).read_to_end(&mut unpacked).map(|_| unpacked)
            });
            Content::Unpacked(io::Cursor::new(unpacked.await.map_err(io::Error::other)??))
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
            self.buffer.reserve(64 * 1024);
            let read = match &mut self.content {
                Content::File(file) => file.read_buf(&mut self.buffer).await?,
                Content::Unpacked(bytes) => AsyncReadExt::read_buf(bytes, &mut self.buffer).await?,
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
    async fn rotated_files_come_first_and_are_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for name in ["0.log", "0.log.20260102-000000", "10.log", "0.log.20260101-000000.gz.tmp"] {
            std::fs::write(dir.path().join(name), "x\n").unwrap();
        }
        let packed = dir.path().join("0.log.20260101-000000.gz");
        let mut encoder = flate2::write::GzEncoder::new(
            std::fs::File::create(&packed).unwrap(),
            flate2::Compression::fast(),
        );
        encoder.write_all(b"old\n").unwrap();
        encoder.finish().unwrap();
        let names: Vec<_> =
            all(&path).iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["0.log.20260101-000000.gz", "0.log.20260102-000000", "0.log"]);
        let mut reader = LineReader::open(&packed).await.unwrap();
        assert_eq!(reader.next().await.unwrap().as_deref(), Some(&b"old"[..]));
        assert_eq!(successor(&path, reader.inode), dir.path().join("0.log.20260102-000000"));
    }
}
