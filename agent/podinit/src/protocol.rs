//! The protocol between the agent and podinit: one datagram a message on a Unix `SOCK_SEQPACKET` socket, descriptors
//! beside it by `SCM_RIGHTS`.
//!
//! - A request is `op u8, seq u32, body`; its answer is `op | 0x80, seq, errno i32, body`.
//! - An event is `0xE0, body` and comes unasked on every connection that has said hello.
//! - Integers are little-endian; a string is `len u16, bytes`.
//!
//! Versions: the first message is [`Request::Hello`] with the range that the agent speaks; podinit takes the highest
//! version that both know or answers `EPROTO`. Within a version fields are only ever added at the end of a body: a
//! reader ignores bytes behind what it knows, and an unknown op is answered `ENOSYS`, so either side may be older.

/// Version of this protocol.
pub const VERSION: u16 = 1;
/// Oldest version still understood.
pub const MIN_VERSION: u16 = 1;
/// No message is longer than this.
pub const MAX_MESSAGE: usize = 4096;
/// Largest packet on an attach socket: a kind byte and data.
pub const MAX_ATTACH_PACKET: usize = 1 + 16 * 1024;
/// At most this many descriptors come with a message.
pub const MAX_FDS: usize = 8;

/// Registration: standard streams are one pty master.
pub const FLAG_TTY: u8 = 1;
/// Registration: stdin of the process is among the descriptors (or the pty takes input).
pub const FLAG_STDIN: u8 = 2;
/// Registration: close stdin when the first attach session that had stdin ends.
pub const FLAG_STDIN_ONCE: u8 = 4;
/// Registration: an exec'd process. Its streams are the agent's; only its exit is reported.
pub const FLAG_EXEC: u8 = 8;

/// First byte of a packet on an attach socket.
pub mod attach {
    /// Input for the process (agent to podinit).
    pub const STDIN: u8 = 0;
    /// Output of the process.
    pub const STDOUT: u8 = 1;
    /// Error output of the process.
    pub const STDERR: u8 = 2;
    /// The agent's client closed its input.
    pub const STDIN_EOF: u8 = 3;
}

/// What the agent asks. Descriptors that come along are listed with each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// First message. No descriptors.
    Hello { min: u16, max: u16 },
    /// Take over a process that is about to run. Descriptors: exit record; unless `FLAG_EXEC` then the log, and with
    /// `FLAG_TTY` the pty master, else stdout, stderr and, with `FLAG_STDIN`, stdin's write end.
    Register { id: String, pid: i32, flags: u8 },
    /// Forget a process: closes its descriptors. Idempotent.
    Release { id: String },
    /// Write the log to another file from now on. Descriptor: the new log.
    ReopenLog { id: String },
    /// Copy output to a `SOCK_SEQPACKET` socket and take stdin from it. Descriptor: the socket.
    Attach { id: String, stdin: bool },
    /// Set the size of the pty.
    Resize { id: String, rows: u16, cols: u16 },
    /// Tell about every registered process: one answer for each, then one with no body.
    List,
    /// End podinit, and with it everything in its PID namespace.
    Shutdown,
}

/// State of one registered process, as [`Request::List`] answers and as [`Event::Exited`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessState {
    /// Id that it was registered with.
    pub id: String,
    /// Pid in podinit's PID namespace.
    pub pid: i32,
    /// Wait status and time in nanoseconds since the epoch, once it was reaped.
    pub exit: Option<(i32, u64)>,
    /// Log lines that could not be written (such as for a full disk).
    pub lost_lines: u32,
}

/// What podinit tells unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A registered process was reaped; its record is written and its log holds all it wrote.
    Exited(ProcessState),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Number of the request.
    pub seq: u32,
    /// 0, or why it failed.
    pub errno: i32,
    /// Body.
    pub body: ReplyBody,
}

/// Body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyBody {
    /// Nothing to say.
    Empty,
    /// To hello: the version chosen.
    Hello { version: u16 },
    /// To list: one process.
    Process(ProcessState),
}

/// What arrives at the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromPodinit {
    /// An answer.
    Reply(Reply),
    /// An event.
    Event(Event),
}

/// A message that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// It ends too early or holds a value out of range.
    Malformed,
    /// Well-formed as far as known, but of an op that this side doesn't know; the number is its `seq`.
    UnknownOp(u8, u32),
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed => f.write_str("malformed podinit message"),
            Self::UnknownOp(op, _) => write!(f, "unknown podinit message {op:#x}"),
        }
    }
}

impl std::error::Error for DecodeError {}

const REPLY: u8 = 0x80;
const EVENT_EXITED: u8 = 0xE0;

impl Request {
    /// Number of this request on the wire.
    pub fn op(&self) -> u8 {
        match self {
            Self::Hello { .. } => 1,
            Self::Register { .. } => 2,
            Self::Release { .. } => 3,
            Self::ReopenLog { .. } => 4,
            Self::Attach { .. } => 5,
            Self::Resize { .. } => 6,
            Self::List => 7,
            Self::Shutdown => 8,
        }
    }

    /// As it goes out.
    pub fn encode(&self, seq: u32) -> Vec<u8> {
        let mut w = Writer(vec![self.op()]);
        w.u32(seq);
        match self {
            Self::Hello { min, max } => {
                w.u16(*min);
                w.u16(*max);
            }
            Self::Register { id, pid, flags } => {
                w.str(id);
                w.u32(pid.cast_unsigned());
                w.0.push(*flags);
            }
            Self::Release { id } | Self::ReopenLog { id } => w.str(id),
            Self::Attach { id, stdin } => {
                w.str(id);
                w.0.push(u8::from(*stdin));
            }
            Self::Resize { id, rows, cols } => {
                w.str(id);
                w.u16(*rows);
                w.u16(*cols);
            }
            Self::List | Self::Shutdown => {}
        }
        w.0
    }

    /// Reads a request: its number and itself.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), DecodeError> {
        let mut r = Reader(bytes);
        let op = r.u8()?;
        let seq = r.u32()?;
        let request = match op {
            1 => Self::Hello { min: r.u16()?, max: r.u16()? },
            2 => Self::Register { id: r.str()?, pid: r.u32()?.cast_signed(), flags: r.u8()? },
            3 => Self::Release { id: r.str()? },
            4 => Self::ReopenLog { id: r.str()? },
            5 => Self::Attach { id: r.str()?, stdin: r.u8()? != 0 },
            6 => Self::Resize { id: r.str()?, rows: r.u16()?, cols: r.u16()? },
            7 => Self::List,
            8 => Self::Shutdown,
            other => return Err(DecodeError::UnknownOp(other, seq)),
        };
        Ok((seq, request))
    }
}

impl Reply {
    /// As it goes out, in answer to a request of number `op`.
    pub fn encode(&self, op: u8) -> Vec<u8> {
        let mut w = Writer(vec![op | REPLY]);
        w.u32(self.seq);
        w.u32(self.errno.cast_unsigned());
        match &self.body {
            ReplyBody::Empty => {}
            ReplyBody::Hello { version } => w.u16(*version),
            ReplyBody::Process(state) => w.state(state),
        }
        w.0
    }
}

impl Event {
    /// As it goes out.
    pub fn encode(&self) -> Vec<u8> {
        let Self::Exited(state) = self;
        let mut w = Writer(vec![EVENT_EXITED]);
        w.state(state);
        w.0
    }
}

impl FromPodinit {
    /// Reads what came from podinit.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader(bytes);
        let op = r.u8()?;
        if op == EVENT_EXITED {
            return Ok(Self::Event(Event::Exited(r.state()?)));
        }
        if op & REPLY == 0 {
            return Err(DecodeError::UnknownOp(op, 0));
        }
        let seq = r.u32()?;
        let errno = r.u32()?.cast_signed();
        let body = match op & !REPLY {
            1 if errno == 0 => ReplyBody::Hello { version: r.u16()? },
            7 if !r.0.is_empty() => ReplyBody::Process(r.state()?),
            _ => ReplyBody::Empty,
        };
        Ok(Self::Reply(Reply { seq, errno, body }))
    }
}

/// The version for a client that speaks `min..=max`; none when there is none in common.
pub fn negotiate(min: u16, max: u16) -> Option<u16> {
    let version = max.min(VERSION);
    (version >= min && version >= MIN_VERSION).then_some(version)
}

struct Writer(Vec<u8>);

impl Writer {
    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn str(&mut self, value: &str) {
        // Ids are 64 bytes; anything over the limit is cut, which the other side answers with ENOENT.
        let bytes = &value.as_bytes()[..value.len().min(256)];
        self.u16(u16::try_from(bytes.len()).unwrap_or(0));
        self.0.extend_from_slice(bytes);
    }
    fn state(&mut self, state: &ProcessState) {
        self.str(&state.id);
        self.u32(state.pid.cast_unsigned());
        self.0.push(u8::from(state.exit.is_some()));
        let (status, time) = state.exit.unwrap_or_default();
        self.u32(status.cast_unsigned());
        self.0.extend_from_slice(&time.to_le_bytes());
        self.u32(state.lost_lines);
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Malformed)?;
        self.0 = rest;
        Ok(*head)
    }
    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take::<1>()?[0])
    }
    fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.take()?))
    }
    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.take()?))
    }
    fn str(&mut self) -> Result<String, DecodeError> {
        let len = usize::from(self.u16()?);
        if len > 256 || len > self.0.len() {
            return Err(DecodeError::Malformed);
        }
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        String::from_utf8(head.to_vec()).or(Err(DecodeError::Malformed))
    }
    fn state(&mut self) -> Result<ProcessState, DecodeError> {
        let id = self.str()?;
        let pid = self.u32()?.cast_signed();
        let exited = self.u8()? != 0;
        let status = self.u32()?.cast_signed();
        let time = u64::from_le_bytes(self.take()?);
        let lost_lines = self.u32()?;
        Ok(ProcessState { id, pid, exit: exited.then_some((status, time)), lost_lines })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn requests() -> impl Strategy<Value = Request> {
        let id = "[0-9a-f]{0,64}";
        prop_oneof![
            any::<(u16, u16)>().prop_map(|(min, max)| Request::Hello { min, max }),
            (id, any::<i32>(), any::<u8>()).prop_map(|(id, pid, flags)| Request::Register { id, pid, flags }),
            id.prop_map(|id| Request::Release { id }),
            id.prop_map(|id| Request::ReopenLog { id }),
            (id, any::<bool>()).prop_map(|(id, stdin)| Request::Attach { id, stdin }),
            (id, any::<u16>(), any::<u16>()).prop_map(|(id, rows, cols)| Request::Resize { id, rows, cols }),
            Just(Request::List),
            Just(Request::Shutdown),
        ]
    }

    proptest! {
        #[test]
        fn requests_round_trip(request in requests(), seq: u32, newer in proptest::collection::vec(any::<u8>(), 0..9)) {
            let mut bytes = request.encode(seq);
            prop_assert!(bytes.len() < MAX_MESSAGE);
            // A newer peer may append fields.
            bytes.extend_from_slice(&newer);
            prop_assert_eq!(Request::decode(&bytes), Ok((seq, request)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::decode(&bytes);
            let _ = FromPodinit::decode(&bytes);
        }

        #[test]
        fn states_round_trip(id in "[0-9a-f]{64}", pid: i32, exit: Option<(i32, u64)>, lost_lines: u32, seq: u32) {
            let state = ProcessState { id, pid, exit, lost_lines };
            let event = Event::Exited(state.clone());
            prop_assert_eq!(FromPodinit::decode(&event.encode()), Ok(FromPodinit::Event(event)));
            let reply = Reply { seq, errno: 0, body: ReplyBody::Process(state) };
            prop_assert_eq!(FromPodinit::decode(&reply.encode(7)), Ok(FromPodinit::Reply(reply)));
        }
    }

    #[test]
    fn versions() {
        assert_eq!(negotiate(1, 1), Some(1));
        assert_eq!(negotiate(1, 7), Some(VERSION));
        assert_eq!(negotiate(VERSION + 1, VERSION + 3), None);
        assert_eq!(Request::decode(&[99, 5, 0, 0, 0]), Err(DecodeError::UnknownOp(99, 5)));
    }
}
