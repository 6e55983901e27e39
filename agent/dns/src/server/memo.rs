//! Answers as they were sent, so that a question that comes again costs a look-up and a copy.
//!
//! An answer out of the zone follows from the zone, from the query's bytes behind its id, whatever the case of its name, and
//! from its id, which says with which of several records the answer begins. Under those bytes it is kept, until the zone changes.

use std::collections::HashMap;

use hickory_proto::rr::RecordType;

/// The most bytes that are kept; when there would be more, all are forgotten.
const ROOM: usize = 2 << 20;
/// About what is kept with each answer besides its bytes and its query's.
const OVERHEAD: usize = 160;
/// The longest query whose answer is kept: a name of any length and a few options.
const MAX_QUERY: usize = 512;
/// Of records that can't be put in another order as bytes, the most that an answer may have to be kept, once for each order.
const MAX_TURNS: usize = 8;
/// Length of a message's header, where the question begins.
const HEADER: usize = 12;

/// What is kept of one state of the zone.
#[derive(Debug, Default)]
pub(super) struct Memo {
    /// Which state.
    serial: u32,
    answers: HashMap<Box<[u8]>, Kept>,
    bytes: usize,
    /// Room for the key of a query.
    key: Vec<u8>,
}

#[derive(Debug)]
enum Kept {
    /// An answer whose records are all as long, and can be put in any order.
    Alike { answer: Box<[u8]>, records: Alike },
    /// An answer for each record with which it may begin, as far as it was given.
    Turns(Box<[Option<Box<[u8]>>]>),
}

/// Where records are that are all as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Alike {
    start: usize,
    size: usize,
    count: usize,
}

impl Memo {
    /// Writes the answer to a query into `out`, if it was given out of this state of the zone.
    pub(super) fn find(&mut self, query: &[u8], serial: u32, out: &mut Vec<u8>) -> bool {
        if serial != self.serial {
            return false;
        }
        let Some(end) = self.set_key(query) else { return false };
        let Some(kept) = self.answers.get(self.key.as_slice()) else { return false };
        out.clear();
        match kept {
            Kept::Alike { answer, records } => records.turned(answer, id(query), out),
            Kept::Turns(turns) => match turns.get(id(query) % turns.len().max(1)) {
                Some(Some(answer)) => out.extend_from_slice(answer),
                Some(None) | None => return false,
            },
        }
        // The asker's id, and the name as it wrote it.
        for own in [0..2, HEADER..end] {
            let (Some(to), Some(from)) = (out.get_mut(own.clone()), query.get(own)) else { return false };
            to.copy_from_slice(from);
        }
        true
    }

    /// Keeps what was answered out of a state of the zone.
    pub(super) fn keep(&mut self, query: &[u8], answer: &[u8], serial: u32) {
        if serial != self.serial {
            self.forget();
            self.serial = serial;
        }
        let Some(end) = self.set_key(query) else { return };
        let [_, _, flags, _, _, questions, high, low, ..] = *answer else { return };
        let same_name = answer.get(HEADER..end).is_some_and(|name| query.get(HEADER..end) == Some(name));
        // One that was cut short may hold others next time.
        if questions != 1 || !same_name || flags & 0x02 != 0 {
            return;
        }
        let count = usize::from(u16::from_be_bytes([high, low])).max(1);
        let records = Alike::of(answer, end + 4, count);
        if records.is_none() && count > MAX_TURNS {
            return;
        }
        if self.bytes + self.key.len() + answer.len() + OVERHEAD > ROOM {
            self.forget();
        }
        self.bytes += answer.len();
        let kept = match records {
            Some(records) => Kept::Alike { answer: answer.into(), records },
            None => {
                let turn = id(query) % count;
                if let Some(Kept::Turns(turns)) = self.answers.get_mut(self.key.as_slice())
                    && let Some(turn) = turns.get_mut(turn)
                {
                    *turn = Some(answer.into());
                    return;
                }
                Kept::Turns((0..count).map(|n| (n == turn).then(|| answer.into())).collect())
            }
        };
        self.bytes += self.key.len() + OVERHEAD;
        self.answers.insert(self.key.as_slice().into(), kept);
    }

    fn forget(&mut self) {
        self.answers.clear();
        self.bytes = 0;
    }

    /// Makes the key of a query; gives where its name ends. None for what isn't one question in plain form.
    fn set_key(&mut self, query: &[u8]) -> Option<usize> {
        let [_, _, flags, _, 0, 1, ..] = *query else { return None };
        if query.len() > MAX_QUERY || flags & 0x80 != 0 {
            return None;
        }
        let mut end = HEADER;
        loop {
            match *query.get(end)? {
                0 => break,
                length @ 1..=63 => end += 1 + usize::from(length),
                // No name begins with a pointer, and there are no other labels.
                _ => return None,
            }
        }
        end += 1;
        self.key.clear();
        self.key.extend_from_slice(query.get(2..)?);
        // Lengths are below the letters.
        self.key.get_mut(HEADER - 2..end - 2)?.make_ascii_lowercase();
        Some(end)
    }
}

impl Alike {
    /// The records of an answer that begin there, if they are addresses of the question's name.
    fn of(answer: &[u8], start: usize, count: usize) -> Option<Self> {
        let kind = u16::from_be_bytes([*answer.get(start + 2)?, *answer.get(start + 3)?]);
        let length = match RecordType::from(kind) {
            RecordType::A => 4,
            RecordType::AAAA => 16,
            _ => return None,
        };
        let size = 12 + length;
        let records = answer.get(start..start + size * count)?;
        let alike = |record: &[u8]| {
            // The name of the question; the type; the length of what follows.
            record.starts_with(&[0xc0, 12])
                && record.get(2..4) == Some(&kind.to_be_bytes())
                && record.get(10..12).is_some_and(|own| own == [0, u8::try_from(length).unwrap_or_default()])
        };
        records.chunks(size).all(alike).then_some(Self { start, size, count })
    }

    /// The answer beginning with the record that an id says.
    fn turned(self, answer: &[u8], id: usize, out: &mut Vec<u8>) {
        let (before, rest) = answer.split_at_checked(self.start).unwrap_or((answer, &[]));
        let (records, after) = rest.split_at_checked(self.size * self.count).unwrap_or((&[], rest));
        let (last, first) =
            records.split_at_checked(self.size * (id % self.count.max(1))).unwrap_or((&[], records));
        [before, first, last, after].iter().for_each(|part| out.extend_from_slice(part));
    }
}

fn id(query: &[u8]) -> usize {
    match *query {
        [high, low, ..] => usize::from(u16::from_be_bytes([high, low])),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A query for addresses of a name, and its answer with these.
    fn exchange(id: u16, name: &str, kind: u8, data: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
        let mut query = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        let mut answer = query.clone();
        (answer[2], answer[7]) = (0x85, u8::try_from(data.len()).unwrap());
        for data in data {
            answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 5, 0, u8::try_from(data.len()).unwrap()]);
            answer.extend(*data);
        }
        (query, answer)
    }

    fn found(memo: &mut Memo, query: &[u8], serial: u32) -> Option<Vec<u8>> {
        let mut out = b"what was here before".to_vec();
        memo.find(query, serial, &mut out).then_some(out)
    }

    #[test]
    fn an_answer_comes_with_the_askers_id_and_letters() {
        let mut memo = Memo::default();
        let (query, answer) = exchange(7, "web.x", 1, &[&[10, 0, 0, 1]]);
        assert_eq!(found(&mut memo, &query, 0), None);
        memo.keep(&query, &answer, 0);
        assert_eq!(found(&mut memo, &query, 0), Some(answer));
        let (query, answer) = exchange(8, "wEb.X", 1, &[&[10, 0, 0, 1]]);
        assert_eq!(found(&mut memo, &query, 0), Some(answer));
        // Another type, another name, another flag, an option more.
        assert_eq!(found(&mut memo, &exchange(8, "web.x", 28, &[]).0, 0), None);
        assert_eq!(found(&mut memo, &exchange(8, "web.y", 1, &[]).0, 0), None);
        let mut other = query.clone();
        other[3] = 0x10;
        assert_eq!(found(&mut memo, &other, 0), None);
        assert_eq!(found(&mut memo, &[query, vec![0]].concat(), 0), None);
    }

    #[test]
    fn what_was_true_of_another_zone_is_forgotten() {
        let mut memo = Memo::default();
        let (query, answer) = exchange(7, "web.x", 1, &[&[10, 0, 0, 1]]);
        memo.keep(&query, &answer, 1);
        assert_eq!(found(&mut memo, &query, 2), None);
        let (other, _) = exchange(7, "db.x", 1, &[]);
        memo.keep(&other, &other, 2);
        assert_eq!(found(&mut memo, &query, 2), None);
        assert_eq!(found(&mut memo, &query, 1), None);
    }

    #[test]
    fn addresses_take_turns_by_id() {
        let mut memo = Memo::default();
        let data: [&[u8]; 3] = [&[10, 0, 0, 0], &[10, 0, 0, 1], &[10, 0, 0, 2]];
        let turned = |id: u16| {
            let mut data = data;
            data.rotate_left(usize::from(id) % 3);
            exchange(id, "db.x", 1, &data)
        };
        let (query, answer) = turned(0);
        memo.keep(&query, &answer, 0);
        for id in 0..7 {
            let (query, answer) = turned(id);
            assert_eq!(found(&mut memo, &query, 0), Some(answer), "{id}");
        }
    }

    #[test]
    fn other_records_are_kept_in_each_order() {
        let mut memo = Memo::default();
        let (query, answer) = exchange(2, "db.x", 33, &[b"longer", b"one"]);
        memo.keep(&query, &answer, 0);
        let (odd, turned) = exchange(3, "db.x", 33, &[b"one", b"longer"]);
        assert_eq!(found(&mut memo, &odd, 0), None);
        memo.keep(&odd, &turned, 0);
        assert_eq!((found(&mut memo, &odd, 0), found(&mut memo, &query, 0)), (Some(turned), Some(answer)));
        let many: Vec<&[u8]> = vec![b"x"; MAX_TURNS + 1];
        let (query, answer) = exchange(2, "many.x", 33, &many);
        memo.keep(&query, &answer, 0);
        assert_eq!(found(&mut memo, &query, 0), None);
    }

    #[test]
    fn what_is_no_plain_question_is_not_kept() {
        let mut memo = Memo::default();
        let (query, answer) = exchange(7, "web.x", 1, &[&[10, 0, 0, 1]]);
        let mut check = |query: &[u8], answer: &[u8]| {
            memo.keep(query, answer, 0);
            assert_eq!(found(&mut memo, query, 0), None);
        };
        for (at, value) in [(5, 2), (2, 0x81), (12, 0xc0)] {
            let mut other = query.clone();
            other[at] = value;
            check(&other, &answer);
        }
        (0..query.len() - 4).for_each(|length| check(&query[..length], &answer));
        (0..answer.len())
            .filter(|&length| length < 12 + 7)
            .for_each(|length| check(&query, &answer[..length]));
        let mut cut = answer.clone();
        cut[2] |= 2;
        check(&query, &cut);
        let (_, other) = exchange(7, "weB.x", 1, &[&[10, 0, 0, 1]]);
        check(&query, &other);
        check(&[query.clone(), vec![0; 600]].concat(), &answer);
    }

    #[test]
    fn room_is_bounded() {
        let mut memo = Memo::default();
        for n in 0..20_000_u32 {
            let (query, answer) = exchange(7, &format!("name-{n}.x"), 1, &[&n.to_be_bytes()]);
            memo.keep(&query, &answer, 0);
            assert_eq!(found(&mut memo, &query, 0), Some(answer));
            assert!(memo.bytes <= ROOM);
        }
        let sum: usize = memo
            .answers
            .iter()
            .map(|(key, kept)| match kept {
                Kept::Alike { answer, .. } => key.len() + answer.len() + OVERHEAD,
                Kept::Turns(turns) => {
                    key.len() + OVERHEAD + turns.iter().flatten().map(|turn| turn.len()).sum::<usize>()
                }
            })
            .sum();
        assert_eq!(memo.bytes, sum);
    }
}
