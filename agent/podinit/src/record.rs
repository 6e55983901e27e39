//! The exit record: how podinit leaves a container's exit status where any later agent finds it.
//!
//! The file is opened by the agent and passed at registration; podinit writes the record with one `write(2)`, after
//! the last log line of the container, so that a record means that the log is whole.

/// First bytes of a record; the digit is the version of its layout.
pub const MAGIC: [u8; 4] = *b"KXR1";
/// Length of a record in bytes.
pub const LEN: usize = 16;

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitRecord {
    /// Status as `wait4(2)` gives it.
    pub wait_status: i32,
    /// Nanoseconds since the Unix epoch at which podinit reaped it.
    pub finished_ns: u64,
}

impl ExitRecord {
    /// The record as it is written.
    pub fn encode(self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&self.wait_status.to_le_bytes());
        out[8..].copy_from_slice(&self.finished_ns.to_le_bytes());
        out
    }

    /// Reads a record; none when the file is empty, short or not a record.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..LEN)?;
        if bytes[..4] != MAGIC {
            return None;
        }
        Some(Self {
            wait_status: i32::from_le_bytes(bytes[4..8].try_into().ok()?),
            finished_ns: u64::from_le_bytes(bytes[8..].try_into().ok()?),
        })
    }

    /// Exit code as Kubernetes reports it: the status of `exit(2)`, or 128 + the signal that ended it.
    pub fn exit_code(self) -> i32 {
        if libc::WIFSIGNALED(self.wait_status) {
            128 + libc::WTERMSIG(self.wait_status)
        } else {
            libc::WEXITSTATUS(self.wait_status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_codes() {
        let record = ExitRecord { wait_status: 3 << 8, finished_ns: 1_700_000_000_123_456_789 };
        assert_eq!(ExitRecord::decode(&record.encode()), Some(record));
        assert_eq!(record.exit_code(), 3);
        assert_eq!(ExitRecord { wait_status: libc::SIGKILL, finished_ns: 0 }.exit_code(), 137);
        assert_eq!(ExitRecord::decode(&record.encode()[..15]), None);
        assert_eq!(ExitRecord::decode(&[0; LEN]), None);
    }
}
