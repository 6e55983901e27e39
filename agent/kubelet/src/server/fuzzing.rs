//! Doors for fuzz targets (tests/fuzz) into what has no other.

use bytes::BytesMut;

use super::spdy::{Decoder, Encoder};

/// Decodes a connection's bytes as they come in pieces of this size, and encodes each frame again.
pub fn spdy_frames(bytes: &[u8], piece: usize) {
    let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::new());
    let Ok(mut encoder) = Encoder::new() else { return };
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => {
                    // A frame that can't be sent is an error, never more.
                    let _ = encoder.encode(&frame, &mut BytesMut::new());
                }
                Ok(None) => break,
                Err(_final) => return,
            }
        }
    }
}
