//! The server's end of a SPDY connection: one task reads, one writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::frame::{CANCEL, PROTOCOL_ERROR, REFUSED_STREAM};
use super::{Decoder, Encoder, Error, Frame, Headers, Result};
use crate::server::stream::{ByteReader, PacketWriter};

/// Packets of one stream that wait for its reader. When they are full, the connection is not read.
const STREAM_QUEUE: usize = 16;
/// Frames that wait for the connection's writer.
const WRITE_QUEUE: usize = 16;
/// How long a closed connection may take to flush, and its peer to close its side.
const LINGER: Duration = Duration::from_secs(5);

/// What one connection may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams open at a time; more are refused.
    pub max_streams: usize,
    /// The connection ends when nothing was read or written for so long.
    pub idle: Duration,
}

/// One stream that the client opened. It has been accepted already.
pub struct Stream {
    /// Headers that it was opened with.
    pub headers: Headers,
    /// What the client sends.
    pub reader: ByteReader,
    /// To the client; shut it down to send FIN.
    pub writer: PacketWriter<Out>,
}

/// Work of the writing task.
pub enum Out {
    /// Send a frame.
    Frame(Frame),
    /// Flush and close.
    Close,
}

/// A connection of which this is the server.
pub struct Connection {
    incoming: mpsc::Receiver<Stream>,
    out: mpsc::Sender<Out>,
    closed: CancellationToken,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Connection {
    /// Takes over an upgraded connection.
    pub fn start<T>(io: T, limits: Limits) -> Result<Self>
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (out, frames) = mpsc::channel(WRITE_QUEUE);
        let (accepted, incoming) = mpsc::channel(limits.max_streams.max(1));
        let closed = CancellationToken::new();
        let activity = Arc::new(Activity::new());
        let writer =
            tokio::spawn(write_frames(write, Encoder::new()?, frames, closed.clone(), activity.clone()));
        let (dropped_tx, dropped) = mpsc::unbounded_channel();
        let state = Reader {
            streams: HashMap::new(),
            live: 0,
            last_id: 0,
            limits,
            accepted,
            out: out.clone(),
            dropped_tx,
            activity,
        };
        let token = closed.clone();
        let reader = tokio::spawn(async move {
            let ended = tokio::select! {
                ended = state.run(read, dropped) => ended,
                () = token.cancelled() => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(error = &error as &dyn std::error::Error, "spdy connection ended");
            }
            token.cancel();
        });
        Ok(Self { incoming, out, closed, reader, writer })
    }

    /// The next stream that the client opens; none when the connection is over.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Cancelled when the connection is over.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// Says goodbye, flushes all that was written and closes.
    pub async fn close(mut self) {
        let goodbye = async {
            self.out.send(Out::Frame(Frame::GoAway { last: 0, status: 0 })).await.ok()?;
            self.out.send(Out::Close).await.ok()
        };
        // The peer closes its side when it has seen all; cutting it off sooner could lose bytes on their way.
        let _ = tokio::time::timeout(LINGER, async {
            goodbye.await;
            let _ = (&mut self.writer).await;
            let _ = (&mut self.reader).await;
        })
        .await;
        self.closed.cancel();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// When something last passed, for the idle timeout.
struct Activity {
    start: Instant,
    millis: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { start: Instant::now(), millis: AtomicU64::new(0) }
    }

    fn touch(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }
}

/// Held by both ends of a stream: when both are gone, so is the stream.
struct StreamGuard {
    id: u32,
    /// FIN was queued.
    finished: AtomicBool,
    dropped: mpsc::UnboundedSender<(u32, bool)>,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        // Unbounded, but each stream sends once and streams are limited. Fails when the connection is over.
        let _ = self.dropped.send((self.id, self.finished.load(Ordering::Relaxed)));
    }
}

struct Reader {
    /// Streams of which the client may still send.
    streams: HashMap<u32, mpsc::Sender<Bytes>>,
    /// Streams that somebody here still holds.
    live: usize,
    last_id: u32,
    limits: Limits,
    accepted: mpsc::Sender<Stream>,
    out: mpsc::Sender<Out>,
    dropped_tx: mpsc::UnboundedSender<(u32, bool)>,
    activity: Arc<Activity>,
}

impl Reader {
    async fn run<T: AsyncRead>(
        mut self,
        mut io: ReadHalf<T>,
        mut dropped: mpsc::UnboundedReceiver<(u32, bool)>,
    ) -> Result<()> {
        let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::new());
        loop {
            while let Some(frame) = decoder.decode(&mut buffer)? {
                self.handle(frame).await?;
            }
            buffer.reserve(32 * 1024);
            tokio::select! {
                read = io.read_buf(&mut buffer) => match read? {
                    0 => return Ok(()),
                    _ => self.activity.touch(),
                },
                Some((id, finished)) = dropped.recv() => self.stream_dropped(id, finished).await,
                () = tokio::time::sleep_until(self.activity.last() + self.limits.idle) => {
                    if self.activity.last().elapsed() >= self.limits.idle {
                        return Err(Error::Idle);
                    }
                }
            }
        }
    }

    async fn handle(&mut self, frame: Frame) -> Result<()> {
        match frame {
            Frame::SynStream { id, fin, headers, .. } => self.open(id, fin, headers).await,
            Frame::Data { id, fin, data } => {
                if !data.is_empty()
                    && let Some(stream) = self.streams.get(&id)
                {
                    // Fails when nobody reads it any more: the bytes are dropped, as in upstream.
                    let _ = stream.send(data).await;
                }
                if fin {
                    self.streams.remove(&id);
                }
                Ok(())
            }
            Frame::Headers { id, fin, .. } | Frame::SynReply { id, fin, .. } => {
                if fin {
                    self.streams.remove(&id);
                }
                Ok(())
            }
            Frame::RstStream { id, .. } => {
                self.streams.remove(&id);
                Ok(())
            }
            // Even ids would be answers to pings of ours, and there are none.
            Frame::Ping { id } if id % 2 == 1 => self.send(Frame::Ping { id }).await,
            Frame::Ping { .. } | Frame::Settings | Frame::WindowUpdate { .. } | Frame::GoAway { .. } => {
                Ok(())
            }
        }
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> Result<()> {
        if id.is_multiple_of(2) || id <= self.last_id {
            return self.send(Frame::RstStream { id, status: PROTOCOL_ERROR }).await;
        }
        self.last_id = id;
        if self.live >= self.limits.max_streams {
            return self.send(Frame::RstStream { id, status: REFUSED_STREAM }).await;
        }
        let (packets, queue) = mpsc::channel(STREAM_QUEUE);
        let guard =
            Arc::new(StreamGuard { id, finished: AtomicBool::new(false), dropped: self.dropped_tx.clone() });
        self.live += 1;
        if !fin {
            self.streams.insert(id, packets);
        }
        let finishing = Arc::downgrade(&guard);
        let writer = PacketWriter::new(
            self.out.clone(),
            move |bytes| Out::Frame(Frame::Data { id, fin: false, data: Bytes::copy_from_slice(bytes) }),
            move || {
                if let Some(guard) = finishing.upgrade() {
                    guard.finished.store(true, Ordering::Relaxed);
                }
                Out::Frame(Frame::Data { id, fin: true, data: Bytes::new() })
            },
            Some(guard.clone()),
        );
        let stream = Stream { headers, reader: ByteReader::new(queue, Some(guard)), writer };
        self.send(Frame::SynReply { id, fin: false, headers: Headers::default() }).await?;
        // There is room for as many as may be live. Fails when nobody accepts any more; then the guard resets it.
        let _ = self.accepted.try_send(stream);
        Ok(())
    }

    async fn stream_dropped(&mut self, id: u32, finished: bool) {
        self.live = self.live.saturating_sub(1);
        let open = self.streams.remove(&id).is_some();
        if open || !finished {
            let _ = self.send(Frame::RstStream { id, status: CANCEL }).await;
        }
    }

    async fn send(&self, frame: Frame) -> Result<()> {
        self.out.send(Out::Frame(frame)).await.map_err(|_closed| Error::Protocol("connection closed"))
    }
}

async fn write_frames<T: AsyncWrite>(
    mut io: WriteHalf<T>,
    mut encoder: Encoder,
    mut frames: mpsc::Receiver<Out>,
    closed: CancellationToken,
    activity: Arc<Activity>,
) {
    let write = async {
        let mut buffer = BytesMut::new();
        while let Some(first) = frames.recv().await {
            let mut next = Some(first);
            let mut closing = false;
            // What has queued up goes out in one write.
            while let Some(out) = next {
                match out {
                    Out::Frame(frame) => encoder.encode(&frame, &mut buffer)?,
                    Out::Close => {
                        closing = true;
                        break;
                    }
                }
                next = if buffer.len() < 64 * 1024 { frames.try_recv().ok() } else { None };
            }
            io.write_all(&buffer).await?;
            io.flush().await?;
            buffer.clear();
            activity.touch();
            if closing {
                io.shutdown().await?;
                return Ok(());
            }
        }
        Ok::<(), Error>(())
    };
    tokio::select! {
        written = write => if let Err(error) = written {
            tracing::debug!(error = &error as &dyn std::error::Error, "spdy connection could not be written");
            closed.cancel();
        },
        () = closed.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;

    const LIMITS: Limits = Limits { max_streams: 4, idle: Duration::from_secs(60) };

    /// A client that sends frames and collects what comes back.
    struct Client {
        io: DuplexStream,
        encoder: Encoder,
        decoder: Decoder,
        buffer: BytesMut,
    }

    impl Client {
        fn connect(limits: Limits) -> (Self, Connection) {
            let (io, server) = tokio::io::duplex(64 * 1024);
            let client = Self {
                io,
                encoder: Encoder::new().unwrap(),
                decoder: Decoder::new(),
                buffer: BytesMut::new(),
            };
            (client, Connection::start(server, limits).unwrap())
        }

        async fn send(&mut self, frame: Frame) {
            let mut bytes = BytesMut::new();
            self.encoder.encode(&frame, &mut bytes).unwrap();
            self.io.write_all(&bytes).await.unwrap();
        }

        async fn open(&mut self, id: u32) {
            let headers = Headers(vec![("streamtype".to_owned(), "data".to_owned())]);
            self.send(Frame::SynStream {
                id,
                associated: 0,
                priority: 0,
                fin: false,
                unidirectional: false,
                headers,
            })
            .await;
        }

        async fn receive(&mut self) -> Option<Frame> {
            loop {
                if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                    return Some(frame);
                }
                if self.io.read_buf(&mut self.buffer).await.unwrap() == 0 {
                    return None;
                }
            }
        }
    }

    fn data(id: u32, fin: bool, data: &'static [u8]) -> Frame {
        Frame::Data { id, fin, data: Bytes::from_static(data) }
    }

    #[tokio::test]
    async fn a_stream_carries_both_ways_and_half_closes() {
        let (mut client, mut server) = Client::connect(LIMITS);
        client.open(1).await;
        assert!(matches!(client.receive().await, Some(Frame::SynReply { id: 1, .. })));
        let mut stream = server.accept().await.unwrap();
        assert_eq!(stream.headers.get("Streamtype"), Some("data"));
        client.send(data(1, true, b"hello")).await;
        let mut got = String::new();
        stream.reader.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "hello");
        stream.writer.write_all(b"world").await.unwrap();
        stream.writer.shutdown().await.unwrap();
        assert_eq!(client.receive().await, Some(data(1, false, b"world")));
        assert_eq!(client.receive().await, Some(data(1, true, b"")));
        drop(stream);
        let closing = tokio::spawn(server.close());
        assert!(matches!(client.receive().await, Some(Frame::GoAway { .. })));
        assert_eq!(client.receive().await, None);
        drop(client);
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn pings_are_echoed() {
        let (mut client, _server) = Client::connect(LIMITS);
        client.send(Frame::Ping { id: 7 }).await;
        assert_eq!(client.receive().await, Some(Frame::Ping { id: 7 }));
    }

    #[tokio::test]
    async fn streams_are_counted_and_ids_grow() {
        let (mut client, mut server) = Client::connect(Limits { max_streams: 1, ..LIMITS });
        client.open(1).await;
        client.open(3).await;
        client.open(3).await;
        assert!(matches!(client.receive().await, Some(Frame::SynReply { id: 1, .. })));
        assert_eq!(client.receive().await, Some(Frame::RstStream { id: 3, status: REFUSED_STREAM }));
        assert_eq!(client.receive().await, Some(Frame::RstStream { id: 3, status: PROTOCOL_ERROR }));
        // A dropped stream is reset and makes room.
        drop(server.accept().await.unwrap());
        assert_eq!(client.receive().await, Some(Frame::RstStream { id: 1, status: CANCEL }));
        client.open(5).await;
        assert!(matches!(client.receive().await, Some(Frame::SynReply { id: 5, .. })));
    }

    #[tokio::test]
    async fn a_gone_client_ends_everything() {
        let (mut client, mut server) = Client::connect(LIMITS);
        client.open(1).await;
        let mut stream = server.accept().await.unwrap();
        let closed = server.closed();
        drop(client);
        closed.cancelled().await;
        assert_eq!(stream.reader.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        assert!(server.accept().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_end() {
        let (_client, server) = Client::connect(LIMITS);
        tokio::time::timeout(Duration::from_secs(61), server.closed().cancelled()).await.unwrap();
    }
}
