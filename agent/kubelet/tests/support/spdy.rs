//! A SPDY client, written against the protocol rather than the server's code: its header blocks are compressed by
//! flate2 with the dictionary as bytes, not as the server spells it.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use futures::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::{Kubelet, connect_websocket};

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The client's end of a connection.
pub struct Spdy {
    io: Box<dyn Io>,
    zlib: Compress,
    buffer: BytesMut,
    data: BTreeMap<u32, (Vec<u8>, bool)>,
}

impl Spdy {
    /// Upgrades a connection to SPDY; or gives the status of the refusal.
    pub async fn connect(kubelet: &Kubelet, protocol: &str, path: &str) -> Result<Self, StatusCode> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(kubelet.connect().await)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let request = Request::post(path)
            .header("host", "localhost")
            .header("authorization", "Bearer admin")
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .header("x-stream-protocol-version", protocol)
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(response.status());
        }
        assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
        assert_eq!(response.headers()["x-stream-protocol-version"], protocol);
        let upgraded = hyper::upgrade::on(response).await.unwrap();
        Ok(Self::over(TokioIo::new(upgraded)))
    }

    /// The same inside a WebSocket.
    pub async fn tunnel(kubelet: &Kubelet, path: &str) -> Self {
        let (socket, _) = connect_websocket(kubelet, "SPDY/3.1+portforward.k8s.io", path).await.unwrap();
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (mut read, mut write) = tokio::io::split(theirs);
        let (mut sink, mut source) = socket.split();
        tokio::spawn(async move {
            let mut chunk = vec![0; 4096];
            while let Ok(count @ 1..) = read.read(&mut chunk).await {
                sink.send(Message::Binary(chunk[..count].to_vec().into())).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Some(Ok(message)) = source.next().await {
                if let Message::Binary(data) = message {
                    write.write_all(&data).await.unwrap();
                }
            }
        });
        Self::over(ours)
    }

    fn over(io: impl Io + 'static) -> Self {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(include_bytes!("spdy3.dictionary")).unwrap();
        Self { io: Box::new(io), zlib, buffer: BytesMut::new(), data: BTreeMap::new() }
    }

    /// Opens a stream.
    pub async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut block = Vec::new();
        block.put_u32(u32::try_from(headers.len()).unwrap());
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.put_u32(u32::try_from(text.len()).unwrap());
            block.put_slice(text.as_bytes());
        }
        let mut compressed = Vec::with_capacity(4096);
        self.zlib.compress_vec(&block, &mut compressed, FlushCompress::Sync).unwrap();
        let mut frame = BytesMut::new();
        frame.put_slice(&[0x80, 3, 0, 1]);
        frame.put_u32(u32::try_from(10 + compressed.len()).unwrap());
        frame.put_u32(id);
        frame.put_u32(0);
        frame.put_u16(0);
        frame.put_slice(&compressed);
        self.io.write_all(&frame).await.unwrap();
    }

    /// Sends data.
    pub async fn send(&mut self, id: u32, data: &[u8], fin: bool) {
        let mut frame = BytesMut::new();
        frame.put_u32(id);
        frame.put_u32(u32::from(fin) << 24 | u32::try_from(data.len()).unwrap());
        frame.put_slice(data);
        self.io.write_all(&frame).await.unwrap();
    }

    /// All bytes of a stream, to its FIN.
    pub async fn read_stream(&mut self, id: u32) -> Vec<u8> {
        while !self.data.get(&id).is_some_and(|(_, fin)| *fin) {
            assert!(self.receive().await, "the connection ended before stream {id}");
        }
        self.data.remove(&id).unwrap().0
    }

    /// All bytes of all streams, to the end of the connection.
    pub async fn collect(&mut self) -> BTreeMap<u32, Vec<u8>> {
        while self.receive().await {}
        std::mem::take(&mut self.data).into_iter().map(|(id, (data, _))| (id, data)).collect()
    }

    /// Takes one frame in; false at the end of the connection.
    async fn receive(&mut self) -> bool {
        loop {
            if self.buffer.len() >= 8 {
                let mut header = &self.buffer[..8];
                let (first, second) = (header.get_u32(), header.get_u32());
                let length = (second & 0x00ff_ffff) as usize;
                if self.buffer.len() >= 8 + length {
                    self.buffer.advance(8);
                    let payload = self.buffer.split_to(length);
                    if first >> 31 == 0 {
                        let (data, fin) = self.data.entry(first).or_default();
                        data.extend_from_slice(&payload);
                        *fin |= second >> 24 & 1 == 1;
                    }
                    return true;
                }
            }
            if self.io.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return false;
            }
        }
    }
}
