//! Byte streams over queues of packets: what SPDY streams and WebSocket channels have in common.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

/// Largest packet that a writer makes.
const MAX_PACKET: usize = 32 * 1024;

/// Something kept alive as long as an end of a stream.
pub(crate) type Guard = Arc<dyn Any + Send + Sync>;

/// Reads the packets of a queue as one stream; the queue's end is the stream's.
pub(crate) struct ByteReader {
    queue: mpsc::Receiver<Bytes>,
    current: Bytes,
    _guard: Option<Guard>,
}

impl ByteReader {
    /// A reader of `queue`.
    pub(crate) fn new(queue: mpsc::Receiver<Bytes>, guard: Option<Guard>) -> Self {
        Self { queue, current: Bytes::new(), _guard: guard }
    }
}

impl AsyncRead for ByteReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.queue.poll_recv(cx)) {
                Some(packet) => self.current = packet,
                None => return Poll::Ready(Ok(())),
            }
        }
        let take = self.current.len().min(buffer.remaining());
        buffer.put_slice(&self.current[..take]);
        self.current.advance(take);
        Poll::Ready(Ok(()))
    }
}

type Make<T> = Box<dyn Fn(&[u8]) -> T + Send + Sync>;
type Fin<T> = Box<dyn FnOnce() -> T + Send + Sync>;

/// Writes a stream as packets into a queue; shutting it down sends the end.
pub(crate) struct PacketWriter<T> {
    queue: PollSender<T>,
    make: Make<T>,
    fin: Option<Fin<T>>,
    _guard: Option<Guard>,
}

impl<T: Send + 'static> PacketWriter<T> {
    /// A writer into `queue`: `make` makes a packet of bytes, `fin` the one that says "no more".
    pub(crate) fn new(
        queue: mpsc::Sender<T>,
        make: impl Fn(&[u8]) -> T + Send + Sync + 'static,
        fin: impl FnOnce() -> T + Send + Sync + 'static,
        guard: Option<Guard>,
    ) -> Self {
        Self { queue: PollSender::new(queue), make: Box::new(make), fin: Some(Box::new(fin)), _guard: guard }
    }
}

impl<T: Send + 'static> AsyncWrite for PacketWriter<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.fin.is_none() || ready!(self.queue.poll_reserve(cx)).is_err() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let take = bytes.len().min(MAX_PACKET);
        let packet = (self.make)(&bytes[..take]);
        match self.queue.send_item(packet) {
            Ok(()) => Poll::Ready(Ok(take)),
            Err(_closed) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.fin.is_none() {
            return Poll::Ready(Ok(()));
        }
        if ready!(self.queue.poll_reserve(cx)).is_err() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if let Some(fin) = self.fin.take() {
            // Fails only when the connection is gone, and then nobody waits for this.
            let _ = self.queue.send_item(fin());
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_pass_in_order_and_end() {
        let (sender, queue) = mpsc::channel(2);
        let mut writer = PacketWriter::new(sender, Bytes::copy_from_slice, Bytes::new, None);
        let mut reader = ByteReader::new(queue, None);
        let sent: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
        let copy = sent.clone();
        let writing = tokio::spawn(async move {
            writer.write_all(&copy).await.unwrap();
            writer.shutdown().await.unwrap();
            assert!(writer.write_all(b"x").await.is_err());
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        writing.await.unwrap();
        assert_eq!(got, sent);
    }
}
