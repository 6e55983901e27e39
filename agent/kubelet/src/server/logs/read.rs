//! From log files to the bytes of an answer.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use keelson_cri::RuntimeService;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::entry::{Entry, Source};
use super::files::LineReader;
use super::watch::DirWatch;
use super::{DirWatcher, LogOptions, follow};
use crate::log_files;

/// Bytes that are gathered before they are sent, while there is more at hand.
const CHUNK: usize = 64 * 1024;
/// Longest line that is joined of parts.
const MAX_JOINED: usize = 1 << 20;
/// How often a followed log is looked at without being told of a change.
const LOOK: Duration = Duration::from_secs(1);
/// How long after its container's end a log must be quiet.
const QUIET: Duration = Duration::from_millis(100);

/// The answer's body: the log at `path` of container `id`. Reading stops when the client goes away.
pub(crate) fn stream(
    options: LogOptions,
    path: PathBuf,
    id: String,
    runtime: Arc<dyn RuntimeService>,
    watcher: &DirWatcher,
) -> Body {
    let (sender, receiver) = mpsc::channel(4);
    let watch = options.follow.then(|| watcher.watch(path.parent().unwrap_or(Path::new("/"))));
    tokio::spawn(async move {
        let mut reader = Reader { output: Output::new(&options, sender), options, path };
        let gone = reader.output.sender.clone();
        let work = async {
            reader.run(watch, follow::ended(runtime, id)).await?;
            reader.output.finish().await
        };
        tokio::select! {
            done = work => if let Err(Stop::Failed(error)) = done {
                tracing::warn!(%error, "could not read a container's log");
                let _ = gone.send(Err(error)).await;
            },
            () = gone.closed() => {}
        }
    });
    Body::from_stream(stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    }))
}

/// Why reading ends early.
#[derive(Debug)]
enum Stop {
    /// limitBytes is reached, or nobody reads any more.
    Enough,
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// What of the files is copied.
#[derive(Debug, Default)]
struct Window {
    /// Index of the file to begin with.
    first_file: usize,
    /// Lines that come before those that are wanted.
    skip: u64,
    /// Entries up to the end that the last lines were counted from; what is written meanwhile would be more than was asked for.
    left: Option<u64>,
}

struct Reader {
    options: LogOptions,
    path: PathBuf,
    output: Output,
}

impl Reader {
    async fn run(&mut self, watch: Option<DirWatch>, ended: impl Future<Output = ()>) -> Result<(), Stop> {
        let files = log_files::all(&self.path);
        let mut window = match self.options.tail_lines {
            Some(lines) => self.tail(&files, lines).await?,
            None => Window::default(),
        };
        let mut last = None;
        for path in files.get(window.first_file..).unwrap_or_default() {
            let mut reader = match LineReader::open(path).await {
                Ok(reader) => reader,
                // Removed by rotation in the meantime, or not written yet.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            self.copy(&mut reader, &mut window).await?;
            last = Some(reader);
        }
        match watch {
            Some(watch) => self.follow(last, watch, ended).await,
            None => Ok(()),
        }
    }

    /// Where the last `lines` lines are.
    async fn tail(&self, files: &[PathBuf], lines: u64) -> Result<Window, Stop> {
        let (mut left, mut entries) = (lines, 0);
        let window = |first_file, skip, entries| Window {
            first_file,
            skip,
            left: (!self.options.follow).then_some(entries),
        };
        for (index, path) in files.iter().enumerate().rev() {
            let mut reader = match LineReader::open(path).await {
                Ok(reader) => reader,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            let mut count = 0_u64;
            while let Some(line) = reader.next().await? {
                count += u64::from(self.counts(&line));
                entries += 1;
            }
            if count >= left {
                return Ok(window(index, count - left, entries));
            }
            left -= count;
        }
        Ok(window(0, 0, entries))
    }

    /// Whether an entry ends a line that is wanted.
    fn counts(&self, line: &[u8]) -> bool {
        Entry::parse(line).is_some_and(|entry| !entry.partial && self.wants(entry.source))
    }

    fn wants(&self, source: Source) -> bool {
        self.options.source.is_none_or(|wanted| wanted == source)
    }

    /// Copies what is there; true if there was anything.
    async fn copy(&mut self, reader: &mut LineReader, window: &mut Window) -> Result<bool, Stop> {
        let mut any = false;
        while window.left != Some(0)
            && let Some(line) = reader.next().await?
        {
            any = true;
            window.left = window.left.map(|left| left - 1);
            let Some(entry) = Entry::parse(&line) else {
                tracing::debug!("a line of a log is not in CRI's format");
                continue;
            };
            if !self.wants(entry.source) {
                continue;
            }
            // A part is kept while lines are skipped: its line may end after those that are.
            if window.skip > 0 && !entry.partial {
                window.skip -= 1;
                self.output.discard(entry.source);
                continue;
            }
            let old = match self.options.since {
                Some(since) => entry.timestamp().is_none_or(|time| time < since),
                None => false,
            };
            if !old {
                self.output.push(&entry).await?;
            }
        }
        self.output.flush().await?;
        Ok(any)
    }

    async fn follow(
        &mut self,
        mut reader: Option<LineReader>,
        mut watch: DirWatch,
        ended: impl Future<Output = ()>,
    ) -> Result<(), Stop> {
        tokio::pin!(ended);
        let mut over = false;
        let mut superseded: Option<Instant> = None;
        let mut window = Window::default();
        loop {
            let any = match &mut reader {
                Some(current) => self.copy(current, &mut window).await?,
                None => match LineReader::open(&self.path).await {
                    Ok(mut opened) => {
                        let any = self.copy(&mut opened, &mut window).await?;
                        reader = Some(opened);
                        any
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                    Err(error) => return Err(error.into()),
                },
            };
            if let Some(current) = &mut reader
                && let Some(next) = self.next_file(current.inode, &mut superseded, over)
            {
                // The first byte in the new file proves that the old one is complete; what came since is read here.
                self.copy(current, &mut window).await?;
                reader = LineReader::open(&next).await.ok();
                superseded = None;
                continue;
            }
            if over && !any {
                return Ok(());
            }
            tokio::select! {
                () = watch.changed() => {}
                () = tokio::time::sleep(if over { QUIET } else { LOOK }) => {}
                () = &mut ended, if !over => over = true,
            }
        }
    }

    /// The file to go on with, when the one being read was rotated and is complete.
    fn next_file(&self, inode: u64, superseded: &mut Option<Instant>, over: bool) -> Option<PathBuf> {
        let current = std::fs::metadata(&self.path).ok()?;
        if current.ino() == inode {
            *superseded = None;
            return None;
        }
        let since = superseded.get_or_insert_with(Instant::now);
        (current.size() > 0 || over || since.elapsed() >= LOOK)
            .then(|| log_files::successor(&self.path, inode))
    }
}

/// Joins parts to lines, lines to chunks, and counts bytes.
struct Output {
    sender: mpsc::Sender<io::Result<Bytes>>,
    chunk: BytesMut,
    /// Unfinished lines of stdout and stderr.
    parts: [BytesMut; 2],
    timestamps: bool,
    left: Option<u64>,
}

impl Output {
    fn new(options: &LogOptions, sender: mpsc::Sender<io::Result<Bytes>>) -> Self {
        let left = options.limit_bytes;
        Self {
            sender,
            chunk: BytesMut::new(),
            parts: Default::default(),
            timestamps: options.timestamps,
            left,
        }
    }

    async fn push(&mut self, entry: &Entry<'_>) -> Result<(), Stop> {
        let part = &mut self.parts[usize::from(entry.source == Source::Stderr)];
        if part.is_empty() && self.timestamps {
            part.put_slice(entry.time.as_bytes());
            part.put_u8(b' ');
        }
        part.put_slice(entry.content);
        if !entry.partial {
            part.put_u8(b'\n');
        }
        if !entry.partial || part.len() > MAX_JOINED {
            let line = part.split();
            self.put(&line).await?;
        }
        Ok(())
    }

    /// Drops the unfinished line of a source.
    fn discard(&mut self, source: Source) {
        self.parts[usize::from(source == Source::Stderr)].clear();
    }

    async fn put(&mut self, mut bytes: &[u8]) -> Result<(), Stop> {
        if let Some(left) = &mut self.left {
            bytes = &bytes[..bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX))];
            *left -= bytes.len() as u64;
        }
        self.chunk.put_slice(bytes);
        let enough = self.left == Some(0);
        if enough || self.chunk.len() >= CHUNK {
            self.flush().await?;
        }
        if enough { Err(Stop::Enough) } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.sender.send(Ok(self.chunk.split().freeze())).await.map_err(|_gone| Stop::Enough)
    }

    /// Sends lines that never got their end.
    async fn finish(&mut self) -> Result<(), Stop> {
        for index in 0..self.parts.len() {
            let part = self.parts[index].split();
            self.put(&part).await?;
        }
        self.flush().await
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use super::*;

    const LOG: &str = "2026-01-01T00:00:00.000000001Z stdout F one
2026-01-01T00:00:01.000000001Z stderr P tw
2026-01-01T00:00:02.000000001Z stdout F between
2026-01-01T00:00:03.000000001Z stderr F o
2026-01-01T00:00:04.000000001Z stdout F three
";

    fn reader(options: &LogOptions, path: &Path) -> (Reader, mpsc::Receiver<io::Result<Bytes>>) {
        let (sender, receiver) = mpsc::channel(1000);
        let output = Output::new(options, sender);
        (Reader { options: options.clone(), path: path.to_owned(), output }, receiver)
    }

    async fn text(mut receiver: mpsc::Receiver<io::Result<Bytes>>) -> String {
        let mut text = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    async fn check(options: LogOptions, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        // The first line was rotated away.
        let (first, rest) = LOG.split_at(LOG.find('\n').unwrap() + 1);
        std::fs::write(dir.path().join("0.log.20260101-000000"), first).unwrap();
        std::fs::write(&path, rest).unwrap();
        let (mut reader, receiver) = reader(&options, &path);
        if reader.run(None, std::future::pending()).await.is_ok() {
            let _ = reader.output.finish().await;
        }
        drop(reader);
        assert_eq!(text(receiver).await, expected, "{options:?}");
    }

    #[tokio::test]
    async fn what_is_asked_for() {
        let default = LogOptions::default;
        check(default(), "one\nbetween\ntwo\nthree\n").await;
        check(LogOptions { tail_lines: Some(2), ..default() }, "two\nthree\n").await;
        check(LogOptions { tail_lines: Some(4), ..default() }, "one\nbetween\ntwo\nthree\n").await;
        check(LogOptions { tail_lines: Some(99), ..default() }, "one\nbetween\ntwo\nthree\n").await;
        check(LogOptions { tail_lines: Some(0), ..default() }, "").await;
        check(LogOptions { limit_bytes: Some(6), ..default() }, "one\nbe").await;
        check(LogOptions { source: Some(Source::Stderr), ..default() }, "two\n").await;
        let since = Some("2026-01-01T00:00:04Z".parse().unwrap());
        check(LogOptions { since, ..default() }, "three\n").await;
        check(
            LogOptions { timestamps: true, source: Some(Source::Stderr), ..default() },
            "2026-01-01T00:00:01.000000001Z two\n",
        )
        .await;
    }

    fn append(path: &Path, text: &str) {
        let line = format!("2026-01-01T00:00:00Z stdout F {text}\n");
        OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(line.as_bytes()).unwrap();
    }

    #[tokio::test]
    async fn what_is_written_meanwhile_is_not_among_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for (follow, expected) in [(false, "two\n"), (true, "two\nthree\n")] {
            std::fs::write(&path, "").unwrap();
            append(&path, "one");
            append(&path, "two");
            let (mut reader, receiver) = reader(&LogOptions { follow, ..LogOptions::default() }, &path);
            let mut window = reader.tail(std::slice::from_ref(&path), 1).await.unwrap();
            append(&path, "three");
            reader.copy(&mut LineReader::open(&path).await.unwrap(), &mut window).await.unwrap();
            drop(reader);
            assert_eq!(text(receiver).await, expected);
        }
    }

    #[tokio::test]
    async fn following_across_rotation_loses_and_doubles_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        append(&path, "0");
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let watcher = DirWatcher::new();
        let watch = watcher.watch(dir.path());
        let (mut reader, receiver) = reader(&options, &path);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let following = tokio::spawn(async move {
            let ended = async { ended.await.unwrap() };
            reader.run(Some(watch), ended).await.unwrap();
            reader.output.finish().await.unwrap();
        });
        let mut expected = "0\n".to_owned();
        for n in 1..200 {
            if n % 20 == 0 {
                let old = dir.path().join(format!("0.log.20260101-{n:06}"));
                std::fs::rename(&path, &old).unwrap();
                // Still to the old file: the writer learns of the new one a little later.
                append(&old, &format!("late {n}"));
                expected += &format!("late {n}\n");
            }
            append(&path, &n.to_string());
            expected += &format!("{n}\n");
            if n % 7 == 0 {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
        end.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(20), following).await.unwrap().unwrap();
        assert_eq!(text(receiver).await, expected);
    }
}
