//! Terminal sizes, sent as JSON objects one after another.

use keelson_cri::TerminalSize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::mpsc;

use super::ByteReader;

/// Longest line that may be a size.
const MAX_LINE: u64 = 1024;

/// Parses what the resize stream brings. Go's encoder ends each object with a newline; WebSocket clients may not, so
/// each packet is given one by the transport.
pub(super) fn sizes(reader: ByteReader) -> mpsc::Receiver<TerminalSize> {
    let (sender, sizes) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let text = line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            match serde_json::from_slice::<TerminalSize>(text) {
                Ok(size) if sender.send(size).await.is_err() => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "unreadable terminal size");
                    return;
                }
            }
        }
    });
    sizes
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn sizes_are_parsed() {
        let (sender, queue) = mpsc::channel(4);
        let mut sizes = sizes(ByteReader::new(queue, None));
        sender.send(Bytes::from_static(b"{\"Width\":80,\"He")).await.unwrap();
        sender.send(Bytes::from_static(b"ight\":24}\n\n{\"Width\":1,\"Height\":2}\n")).await.unwrap();
        assert_eq!(sizes.recv().await, Some(TerminalSize { width: 80, height: 24 }));
        assert_eq!(sizes.recv().await, Some(TerminalSize { width: 1, height: 2 }));
        sender.send(Bytes::from_static(b"nonsense\n")).await.unwrap();
        assert_eq!(sizes.recv().await, None);
    }
}
