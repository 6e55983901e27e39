//! Queries as bytes, and whether an answer is right (RFC 1035, section 4). By hand, since the load maker shares the machine with
//! whom it measures.

use super::cast::{A, Question};

/// Length of the header.
const HEADER: usize = 12;
/// Class IN.
const IN: u16 = 1;
/// What a resolver with EDNS takes (DNS Flag Day 2020).
const PAYLOAD: u16 = 1232;

/// A query, whole but for its id.
#[derive(Debug)]
pub struct Query {
    bytes: Vec<u8>,
    /// Where the question ends.
    end: usize,
    question: Question,
}

/// Why an answer is not right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// No answer to this question.
    Another,
    /// Cut short, with TC.
    Truncated,
    /// Another response code.
    Code(u8),
    /// Another number of answers.
    Count(u16),
    /// An answer of another type, with another address, or one that can't be read.
    Record,
}

impl Query {
    /// Of a question.
    pub fn new(question: Question) -> Self {
        let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(question.edns)];
        for label in question.name.split('.') {
            bytes.push(u8::try_from(label.len()).unwrap_or_default());
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend(question.kind.to_be_bytes().into_iter().chain(IN.to_be_bytes()));
        let end = bytes.len();
        if question.edns {
            // The root, OPT, the payload, and no flags or options (RFC 6891, section 6.1.2).
            bytes.extend([0, 0, 41]);
            bytes.extend(PAYLOAD.to_be_bytes());
            bytes.extend([0; 6]);
        }
        Self { bytes, end, question }
    }

    /// The question.
    pub fn question(&self) -> &Question {
        &self.question
    }

    /// The query with an id, in a buffer.
    pub fn with_id<'a>(&self, id: u16, buffer: &'a mut Vec<u8>) -> &'a [u8] {
        buffer.clear();
        buffer.extend_from_slice(&self.bytes);
        buffer.splice(..2, id.to_be_bytes());
        buffer
    }

    /// Whether an answer is right. Its id is the caller's business.
    pub fn check(&self, answer: &[u8]) -> Result<(), Wrong> {
        let [_, _, flags, code, _, questions, ..] = *answer else { return Err(Wrong::Another) };
        if flags & 0x80 == 0
            || questions != 1
            || answer.get(HEADER..self.end) != self.bytes.get(HEADER..self.end)
        {
            return Err(Wrong::Another);
        }
        if flags & 0x02 != 0 {
            return Err(Wrong::Truncated);
        }
        let code = code & 0x0f;
        if code != self.question.code {
            return Err(Wrong::Code(code));
        }
        let count = number(answer, 6).unwrap_or_default();
        if count != self.question.answers {
            return Err(Wrong::Count(count));
        }
        let mut at = self.end;
        for _ in 0..count {
            at = self.record(answer, at).ok_or(Wrong::Record)?;
        }
        Ok(())
    }

    /// Where the right record ends that begins there.
    fn record(&self, answer: &[u8], at: usize) -> Option<usize> {
        let at = name_end(answer, at)?;
        let kind = number(answer, at)?;
        let data = at + 10;
        let end = data + usize::from(number(answer, at + 8)?);
        let bytes = answer.get(data..end)?;
        let right = kind == self.question.kind
            && (kind != A || self.question.addresses.contains(&u32::from_be_bytes(bytes.try_into().ok()?)));
        right.then_some(end)
    }
}

/// The id of a message.
pub fn id(message: &[u8]) -> Option<u16> {
    number(message, 0)
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Where the name ends that begins there.
pub fn name_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            // The rest is elsewhere.
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::dns::cast::Workload;

    /// The answer to a query: that many records of its type with this data.
    pub fn answer(query: &[u8], code: u8, count: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = query.to_vec();
        bytes.truncate(name_end(&bytes, HEADER).unwrap() + 4);
        let kind = bytes[bytes.len() - 4..].to_vec();
        (bytes[2], bytes[3], bytes[7], bytes[11]) = (0x81, 0x80 | code, count, 0);
        for _ in 0..count {
            bytes.extend([0xc0, 12]);
            bytes.extend(&kind);
            bytes.extend([0, 0, 0, 30, 0, u8::try_from(data.len()).unwrap()]);
            bytes.extend(data);
        }
        bytes
    }

    fn query(workload: Workload) -> (Query, Vec<u8>) {
        let query = Query::new(workload.question(10, 0, 0));
        let bytes = query.with_id(7, &mut Vec::new()).to_vec();
        (query, bytes)
    }

    #[test]
    fn a_right_answer_is_right() {
        let (asked, bytes) = query(Workload::ClusterIp);
        let address = Ipv4Addr::from(*asked.question().addresses.start()).octets();
        let right = answer(&bytes, 0, 1, &address);
        assert_eq!((asked.check(&right), id(&right)), (Ok(()), Some(7)));
        let (asked, bytes) = query(Workload::Nxdomain);
        assert_eq!(asked.check(&answer(&bytes, 3, 0, &[])), Ok(()));
        let (asked, bytes) = query(Workload::Srv);
        assert_eq!(asked.check(&answer(&bytes, 0, 4, b"\0\0\0\x64\x1f\x90\0")), Ok(()));
    }

    #[test]
    fn a_wrong_answer_is_wrong() {
        let (asked, bytes) = query(Workload::ClusterIp);
        let address = Ipv4Addr::from(*asked.question().addresses.start()).octets();
        let right = answer(&bytes, 0, 1, &address);
        let check = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = right.clone();
            change(&mut bytes);
            asked.check(&bytes)
        };
        assert_eq!(check(&|bytes| bytes[3] |= 3), Err(Wrong::Code(3)));
        assert_eq!(check(&|bytes| bytes[7] = 0), Err(Wrong::Count(0)));
        assert_eq!(check(&|bytes| bytes[7] = 2), Err(Wrong::Count(2)));
        assert_eq!(check(&|bytes| bytes[2] |= 2), Err(Wrong::Truncated));
        assert_eq!(check(&|bytes| bytes[2] = 1), Err(Wrong::Another));
        assert_eq!(check(&|bytes| bytes[13] ^= 1), Err(Wrong::Another));
        assert_eq!(check(&|bytes| *bytes.last_mut().unwrap() ^= 1), Err(Wrong::Record));
        assert_eq!(check(&|bytes| bytes.truncate(bytes.len() - 1)), Err(Wrong::Record));
        assert_eq!(check(&|bytes| bytes.truncate(5)), Err(Wrong::Another));
        // Right but for the type, which is the one that was not asked for.
        let mut other = right.clone();
        let at = right.len() - 14 + 1;
        other[at] = 28;
        assert_eq!(asked.check(&other), Err(Wrong::Record));
    }

    #[test]
    fn a_query_is_as_resolvers_write_it() {
        let question = Question { name: "a.bc".into(), ..Workload::Srv.question(10, 0, 0) };
        let query = Query::new(question);
        assert_eq!(
            query.with_id(0x102, &mut Vec::new()),
            b"\x01\x02\x01\0\0\x01\0\0\0\0\0\x01\x01a\x02bc\0\0\x21\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0"
        );
    }
}
