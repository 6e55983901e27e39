//! CRI log format: `<RFC3339Nano> <stdout|stderr> <F|P> <content>\n`, as kubelet and `kubectl logs` read it
//! (kubernetes `pkg/kubelet/kuberuntime/logs`), split like containerd does.

/// Longest content of one line in bytes; a longer line becomes `P` chunks and a last `F`. containerd's and dockerd's
/// buffer has the same size.
pub const MAX_CONTENT: usize = 16 * 1024;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or everything from a tty.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// Splits one stream into log lines. Holds the bytes of a line that has not ended yet.
#[derive(Debug)]
pub struct Splitter {
    stream: Stream,
    pending: Vec<u8>,
}

impl Splitter {
    /// A splitter with nothing pending.
    pub const fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Takes bytes as they were read and appends each finished line (and each full chunk of an unfinished one) to
    /// `out`, stamped with `now_ns` (nanoseconds since the epoch).
    pub fn push(&mut self, mut bytes: &[u8], now_ns: u64, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = MAX_CONTENT - self.pending.len();
            match bytes.iter().take(room + 1).position(|&b| b == b'\n') {
                Some(end) => {
                    self.emit(&bytes[..end], b'F', now_ns, out);
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() > room => {
                    self.emit(&bytes[..room], b'P', now_ns, out);
                    bytes = &bytes[room..];
                }
                None => {
                    self.pending.extend_from_slice(bytes);
                    bytes = &[];
                }
            }
        }
    }

    /// The stream has ended: what is left without a newline becomes a partial line, as containerd writes it.
    pub fn finish(&mut self, now_ns: u64, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.emit(&[], b'P', now_ns, out);
        }
    }

    fn emit(&mut self, rest: &[u8], tag: u8, now_ns: u64, out: &mut Vec<u8>) {
        write_timestamp(now_ns, out);
        out.push(b' ');
        out.extend_from_slice(self.stream.name());
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.extend_from_slice(&self.pending);
        out.extend_from_slice(rest);
        out.push(b'\n');
        // Freed, not cleared: a pod that prints one long line a day shall not keep 16 KiB for it.
        self.pending = Vec::new();
    }
}

/// Appends `2026-11-21T03:58:59.000000001Z`. Nine digits always: a reader that sorts lines as text gets them in order.
pub fn write_timestamp(now_ns: u64, out: &mut Vec<u8>) {
    let (secs, nanos) = (now_ns / 1_000_000_000, now_ns % 1_000_000_000);
    let (days, day_secs) = (secs / 86_400, secs % 86_400);
    // Days to civil date, Howard Hinnant's algorithm, for days since 1970-01-01 that are never negative here.
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    digits(year, 4, out);
    out.push(b'-');
    digits(month, 2, out);
    out.push(b'-');
    digits(day, 2, out);
    out.push(b'T');
    digits(day_secs / 3600, 2, out);
    out.push(b':');
    digits(day_secs / 60 % 60, 2, out);
    out.push(b':');
    digits(day_secs % 60, 2, out);
    out.push(b'.');
    digits(nanos, 9, out);
    out.push(b'Z');
}

fn digits(value: u64, width: u32, out: &mut Vec<u8>) {
    for place in (0..width).rev() {
        let digit = value / 10u64.pow(place) % 10;
        out.push(b'0' + u8::try_from(digit).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn timestamps() {
        let check = |ns: u64, expected: &str| {
            let mut out = Vec::new();
            write_timestamp(ns, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        check(0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z");
        check(1_795_233_539_123_456_789, "2026-11-21T03:58:59.123456789Z");
        check(4_102_444_799_999_999_999, "2099-12-31T23:59:59.999999999Z");
    }

    /// Parses lines back into (tag, content), failing on any malformed one.
    fn parse(log: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut lines = Vec::new();
        let mut rest = log;
        while !rest.is_empty() {
            let end = rest.iter().position(|&b| b == b'\n').expect("log ends in a newline");
            let line = &rest[..end];
            assert_eq!(&line[30..38], b" stdout ");
            assert_eq!(line[39], b' ');
            lines.push((line[38], line[40..].to_vec()));
            rest = &rest[end + 1..];
        }
        lines
    }

    #[test]
    fn exact_limit_is_one_full_line() {
        let mut splitter = Splitter::new(Stream::Stdout);
        let mut out = Vec::new();
        let mut line = vec![b'x'; MAX_CONTENT];
        line.push(b'\n');
        splitter.push(&line, 0, &mut out);
        assert_eq!(parse(&out).iter().map(|(t, c)| (*t, c.len())).collect::<Vec<_>>(), [(b'F', MAX_CONTENT)]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_torn(
            lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40_000), 0..4),
            cut in 1usize..9000,
        ) {
            let input = lines.join(&b'\n');
            let mut splitter = Splitter::new(Stream::Stdout);
            let mut out = Vec::new();
            for chunk in input.chunks(cut) {
                splitter.push(chunk, 0, &mut out);
            }
            splitter.finish(0, &mut out);
            let mut back = Vec::new();
            for (tag, content) in parse(&out) {
                prop_assert!(content.len() <= MAX_CONTENT);
                back.extend_from_slice(&content);
                if tag == b'F' { back.push(b'\n'); }
            }
            prop_assert_eq!(back, input);
        }
    }
}
