//! Frames on the wire (SPDY protocol draft 3.1, section 2.2).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::headers::{BlockReader, BlockWriter};
use super::{Error, Headers, Result};

/// Most bytes of a control frame's payload.
const MAX_CONTROL: usize = 16 * 1024;
/// Data frames are handed on in pieces of at most this size, whatever length the peer announced.
const MAX_PIECE: usize = 32 * 1024;
const HEADER: usize = 8;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;
const ID_MASK: u32 = 0x7fff_ffff;

/// RST_STREAM status: the stream was opened where none may be.
pub(super) const PROTOCOL_ERROR: u32 = 1;
/// RST_STREAM status: no room for more streams.
pub(super) const REFUSED_STREAM: u32 = 3;
/// RST_STREAM status: not wanted any more.
pub(super) const CANCEL: u32 = 5;

/// One frame, or a piece of a data frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// Stream id: odd when the client opens it.
        id: u32,
        /// Stream that this one belongs to, or 0.
        associated: u32,
        /// 0 (highest) to 7.
        priority: u8,
        /// The sender will send no data.
        fin: bool,
        /// The receiver may send no data.
        unidirectional: bool,
        /// Headers of the stream.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// Stream id.
        id: u32,
        /// The sender will send no data.
        fin: bool,
        /// Headers of the reply.
        headers: Headers,
    },
    /// Ends a stream in both directions.
    RstStream {
        /// Stream id.
        id: u32,
        /// Why.
        status: u32,
    },
    /// Settings; nothing here depends on them.
    Settings,
    /// To be echoed.
    Ping {
        /// Id: odd when the client began.
        id: u32,
    },
    /// The sender accepts no more streams.
    GoAway {
        /// Last stream that it accepted.
        last: u32,
        /// Why.
        status: u32,
    },
    /// More headers of a stream.
    Headers {
        /// Stream id.
        id: u32,
        /// The sender will send no more data.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// More room at the sender.
    WindowUpdate {
        /// Stream id, or 0 for the connection.
        id: u32,
        /// Bytes.
        delta: u32,
    },
    /// Bytes of a stream.
    Data {
        /// Stream id.
        id: u32,
        /// These are the last.
        fin: bool,
        /// The bytes.
        data: Bytes,
    },
}

/// Takes frames out of a byte buffer.
pub struct Decoder {
    blocks: BlockReader,
    /// Rest of a data frame of which pieces were given already: stream, bytes left, FIN.
    data: Option<(u32, usize, bool)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the start of a connection.
    pub fn new() -> Self {
        Self { blocks: BlockReader::new(), data: None }
    }

    /// The next frame, or none when `buffer` holds no whole one. An error is final. `buffer` need never hold more
    /// than 32 KiB for this to go on.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>> {
        if let Some((id, left, fin)) = self.data {
            return Ok(self.piece(id, left, fin, buffer));
        }
        let Some(mut header) = buffer.get(..HEADER) else { return Ok(None) };
        let first = header.get_u32();
        let flags_and_length = header.get_u32();
        let flags = flags_and_length.to_be_bytes()[0];
        let length = (flags_and_length & 0x00ff_ffff) as usize;
        if first & !ID_MASK == 0 {
            buffer.advance(HEADER);
            if first == 0 {
                return Err(Error::Protocol("data on stream 0"));
            }
            return Ok(self.piece(first, length, flags & FLAG_FIN != 0, buffer));
        }
        let [_, _, kind_high, kind_low] = first.to_be_bytes();
        if (first & ID_MASK) >> 16 != u32::from(VERSION) {
            return Err(Error::Protocol("not SPDY version 3"));
        }
        if length > MAX_CONTROL {
            return Err(Error::Protocol("control frame too large"));
        }
        if buffer.len() < HEADER + length {
            return Ok(None);
        }
        buffer.advance(HEADER);
        let payload = buffer.split_to(length);
        self.control(u16::from_be_bytes([kind_high, kind_low]), flags, &payload).map(Some)
    }

    /// As much of a data frame as is there. A frame of no bytes is given for its FIN alone.
    fn piece(&mut self, id: u32, left: usize, fin: bool, buffer: &mut BytesMut) -> Option<Frame> {
        let take = left.min(buffer.len()).min(MAX_PIECE);
        let rest = left - take;
        self.data = (rest > 0).then_some((id, rest, fin));
        if take == 0 && rest > 0 {
            return None;
        }
        Some(Frame::Data { id, fin: fin && rest == 0, data: buffer.split_to(take).freeze() })
    }

    fn control(&mut self, kind: u16, flags: u8, mut payload: &[u8]) -> Result<Frame> {
        let fin = flags & FLAG_FIN != 0;
        let frame = match kind {
            1 => {
                let (id, associated) = (stream_id(&mut payload)?, take(&mut payload)? & ID_MASK);
                let rest = payload.split_off(..2).ok_or(SHORT)?;
                let headers = self.blocks.read(payload)?;
                let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
                return Ok(Frame::SynStream {
                    id,
                    associated,
                    priority: rest[0] >> 5,
                    fin,
                    unidirectional,
                    headers,
                });
            }
            2 => {
                let id = stream_id(&mut payload)?;
                return Ok(Frame::SynReply { id, fin, headers: self.blocks.read(payload)? });
            }
            3 => Frame::RstStream { id: stream_id(&mut payload)?, status: take(&mut payload)? },
            4 => return Ok(Frame::Settings),
            6 => Frame::Ping { id: take(&mut payload)? },
            7 => Frame::GoAway { last: take(&mut payload)? & ID_MASK, status: take(&mut payload)? },
            8 => {
                let id = stream_id(&mut payload)?;
                return Ok(Frame::Headers { id, fin, headers: self.blocks.read(payload)? });
            }
            9 => Frame::WindowUpdate {
                id: take(&mut payload)? & ID_MASK,
                delta: take(&mut payload)? & ID_MASK,
            },
            _ => return Err(Error::Protocol("unknown control frame")),
        };
        if payload.is_empty() { Ok(frame) } else { Err(Error::Protocol("control frame too long")) }
    }
}

const SHORT: Error = Error::Protocol("control frame too short");

fn take(payload: &mut &[u8]) -> Result<u32> {
    payload.try_get_u32().map_err(|_short| SHORT)
}

fn stream_id(payload: &mut &[u8]) -> Result<u32> {
    match take(payload)? & ID_MASK {
        0 => Err(Error::Protocol("stream 0")),
        id => Ok(id),
    }
}

/// Puts frames into a byte buffer.
pub struct Encoder {
    blocks: BlockWriter,
}

impl Encoder {
    /// An encoder at the start of a connection.
    pub fn new() -> Result<Self> {
        Ok(Self { blocks: BlockWriter::new()? })
    }

    /// Appends a frame.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<()> {
        let mut payload = BytesMut::new();
        let flag_fin = |fin: bool| if fin { FLAG_FIN } else { 0 };
        let (kind, flags) = match frame {
            Frame::Data { id, fin, data } => {
                out.put_u32(id & ID_MASK);
                put_flags_and_length(flag_fin(*fin), data.len(), out)?;
                out.put_slice(data);
                return Ok(());
            }
            Frame::SynStream { id, associated, priority, fin, unidirectional, headers } => {
                payload.put_u32(id & ID_MASK);
                payload.put_u32(associated & ID_MASK);
                payload.put_slice(&[priority << 5, 0]);
                self.blocks.write(headers, &mut payload)?;
                (1, flag_fin(*fin) | if *unidirectional { FLAG_UNIDIRECTIONAL } else { 0 })
            }
            Frame::SynReply { id, fin, headers } => {
                payload.put_u32(id & ID_MASK);
                self.blocks.write(headers, &mut payload)?;
                (2, flag_fin(*fin))
            }
            Frame::RstStream { id, status } => {
                payload.put_u32(id & ID_MASK);
                payload.put_u32(*status);
                (3, 0)
            }
            Frame::Settings => {
                payload.put_u32(0);
                (4, 0)
            }
            Frame::Ping { id } => {
                payload.put_u32(*id);
                (6, 0)
            }
            Frame::GoAway { last, status } => {
                payload.put_u32(last & ID_MASK);
                payload.put_u32(*status);
                (7, 0)
            }
            Frame::Headers { id, fin, headers } => {
                payload.put_u32(id & ID_MASK);
                self.blocks.write(headers, &mut payload)?;
                (8, flag_fin(*fin))
            }
            Frame::WindowUpdate { id, delta } => {
                payload.put_u32(id & ID_MASK);
                payload.put_u32(delta & ID_MASK);
                (9, 0)
            }
        };
        out.put_u16(0x8000 | VERSION);
        out.put_u16(kind);
        put_flags_and_length(flags, payload.len(), out)?;
        out.put_slice(&payload);
        Ok(())
    }
}

fn put_flags_and_length(flags: u8, length: usize, out: &mut BytesMut) -> Result<()> {
    let length = u32::try_from(length).ok().filter(|length| *length < 1 << 24);
    let length = length.ok_or(Error::Protocol("frame too large"))?;
    out.put_u32((u32::from(flags) << 24) | length);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(frames: &[Frame]) -> BytesMut {
        let (mut encoder, mut out) = (Encoder::new().unwrap(), BytesMut::new());
        for frame in frames {
            encoder.encode(frame, &mut out).unwrap();
        }
        out
    }

    /// Decodes bytes that arrive in steps; pieces of data frames are joined.
    fn decode(bytes: &[u8], step: usize) -> Result<Vec<Frame>> {
        let (mut decoder, mut buffer, mut frames) = (Decoder::new(), BytesMut::new(), Vec::<Frame>::new());
        for part in bytes.chunks(step) {
            buffer.extend_from_slice(part);
            while let Some(frame) = decoder.decode(&mut buffer)? {
                match (frames.last_mut(), frame) {
                    (
                        Some(Frame::Data { id, fin: fin @ false, data }),
                        Frame::Data { id: same, fin: end, data: more },
                    ) if *id == same => {
                        *data = [data.as_ref(), more.as_ref()].concat().into();
                        *fin = end;
                    }
                    (_, frame) => frames.push(frame),
                }
            }
        }
        Ok(frames)
    }

    fn headers(name: &str) -> Headers {
        Headers(vec![("streamtype".to_owned(), name.to_owned())])
    }

    #[test]
    fn frames_survive_any_split() {
        let frames = [
            Frame::SynStream {
                id: 1,
                associated: 0,
                priority: 3,
                fin: false,
                unidirectional: true,
                headers: headers("error"),
            },
            Frame::SynReply { id: 1, fin: false, headers: Headers::default() },
            Frame::Data { id: 1, fin: true, data: Bytes::from(vec![7; 100_000]) },
            Frame::Data { id: 3, fin: true, data: Bytes::new() },
            Frame::Headers { id: 3, fin: true, headers: headers("x") },
            Frame::RstStream { id: 3, status: CANCEL },
            Frame::Ping { id: 1 },
            Frame::Settings,
            Frame::WindowUpdate { id: 0, delta: 10 },
            Frame::GoAway { last: 3, status: 0 },
        ];
        let bytes = encode(&frames);
        for step in [1, 7, 4096, usize::MAX] {
            assert_eq!(decode(&bytes, step).unwrap(), frames);
        }
    }

    fn check_refused(bytes: &[u8]) {
        assert!(decode(bytes, usize::MAX).is_err(), "{bytes:02x?}");
    }

    #[test]
    fn broken_frames_are_refused() {
        check_refused(&[0x80, 2, 0, 1, 0, 0, 0, 0]); // version 2
        check_refused(&[0x80, 3, 0, 5, 0, 0, 0, 0]); // no such kind
        check_refused(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]); // control frame of 16 MiB
        check_refused(&[0x80, 3, 0, 6, 0, 0, 0, 1, 0]); // short ping
        check_refused(&[0, 0, 0, 0, 0, 0, 0, 1, 0]); // data on stream 0
        check_refused(&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]); // reset of stream 0
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..2048), step in 1_usize..64) {
            let _ = decode(&bytes, step);
        }

        #[test]
        fn any_control_frame_is_safe(kind in 0_u8..12, flags: u8, body in proptest::collection::vec(any::<u8>(), 0..256)) {
            let length = u8::try_from(body.len()).unwrap_or(255);
            let mut bytes = vec![0x80, 3, 0, kind, flags, 0, 0, length];
            bytes.extend(body);
            let _ = decode(&bytes, usize::MAX);
        }
    }
}
