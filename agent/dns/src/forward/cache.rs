//! Answers of upstream servers, kept for as long as their records say (RFC 1035, section 3.2.1; RFC 2308, section 5).

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::Question;

/// The longest time that an answer is kept, whatever its records say: that of the Corefile which Kubernetes is usually set up
/// with (`cache 30`).
const LONGEST: Duration = Duration::from_secs(30);
/// The most bytes that are kept.
const ROOM: usize = 1 << 20;
/// About what is kept with each answer besides its bytes.
const OVERHEAD: usize = 400;

/// What is kept.
#[derive(Debug, Default)]
pub(super) struct Cache {
    answers: HashMap<Question, Kept>,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    answer: Vec<u8>,
    /// Where its records say how long they last.
    ttls: Vec<usize>,
    since: Instant,
    until: Instant,
}

impl Cache {
    /// The answer to a question, with records that last as much shorter as it has been here.
    pub(super) fn find(&self, question: &Question, now: Instant) -> Option<Vec<u8>> {
        let kept = self.answers.get(question).filter(|kept| now < kept.until)?;
        let mut answer = kept.answer.clone();
        let age = u32::try_from(now.saturating_duration_since(kept.since).as_secs()).ok()?;
        for &at in &kept.ttls {
            let left = ttl(&answer, at)?.saturating_sub(age);
            answer.get_mut(at..at + 4)?.copy_from_slice(&left.to_be_bytes());
        }
        Some(answer)
    }

    /// Keeps an answer, if it says for how long.
    pub(super) fn keep(&mut self, question: Question, answer: &[u8], now: Instant) {
        let Some((ttls, lasts)) = lasting(answer) else { return };
        if self.bytes + answer.len() + OVERHEAD > ROOM {
            self.answers.retain(|_, kept| now < kept.until);
            self.bytes = self.answers.values().map(|kept| kept.answer.len() + OVERHEAD).sum();
            // Still more than half of it: what goes would have to be chosen each time.
            if self.bytes > ROOM / 2 {
                self.answers.clear();
                self.bytes = 0;
            }
        }
        let kept = Kept { answer: answer.to_vec(), ttls, since: now, until: now + lasts.min(LONGEST) };
        self.bytes += answer.len() + OVERHEAD;
        if let Some(old) = self.answers.insert(question, kept) {
            self.bytes -= old.answer.len() + OVERHEAD;
        }
    }
}

/// Type of the SOA record.
const SOA: u16 = 6;
/// Type of the OPT record, which has something else in place of a TTL.
const OPT: u16 = 41;

/// Where an answer's records say how long they last, and how long all of it does. None for what may not be kept: what is cut
/// short, what fails, what denies without saying for how long, and what can't be read.
fn lasting(answer: &[u8]) -> Option<(Vec<usize>, Duration)> {
    let [_, _, flags, code, ..] = *answer else { return None };
    let [questions, answers, authorities, additionals] = [4, 6, 8, 10].map(|at| number(answer, at));
    if flags & 0x02 != 0 {
        return None;
    }
    let denies = match code & 0x0f {
        0 => answers? == 0,
        3 => true,
        _ => return None,
    };
    let mut at = 12;
    for _ in 0..questions? {
        at = name_end(answer, at)? + 4;
    }
    let (mut ttls, mut lasts, mut denied_for) = (Vec::new(), u32::MAX, None);
    for _ in 0..u32::from(answers?) + u32::from(authorities?) + u32::from(additionals?) {
        let fields = name_end(answer, at)?;
        let kind = number(answer, fields)?;
        let data = fields + 10;
        at = data + usize::from(number(answer, fields + 8)?);
        if kind == OPT {
            continue;
        }
        let own = ttl(answer, fields + 4)?;
        // One with the highest bit is taken for zero (RFC 2181, section 8).
        lasts = lasts.min(if own > i32::MAX.unsigned_abs() { 0 } else { own });
        ttls.push(fields + 4);
        if kind == SOA {
            denied_for = Some(ttl(answer, at.checked_sub(4).filter(|&at| at >= data)?)?);
        }
    }
    if denies {
        lasts = lasts.min(denied_for?);
    }
    (at <= answer.len() && lasts > 0 && !ttls.is_empty()).then(|| (ttls, Duration::from_secs(lasts.into())))
}

fn bytes<const N: usize>(message: &[u8], at: usize) -> Option<[u8; N]> {
    let range: Range<usize> = at..at + N;
    message.get(range)?.try_into().ok()
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    bytes(message, at).map(u16::from_be_bytes)
}

fn ttl(message: &[u8], at: usize) -> Option<u32> {
    bytes(message, at).map(u32::from_be_bytes)
}

/// Where the name ends that begins there.
fn name_end(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            // The rest is elsewhere.
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Edns, Message, Query, ResponseCode};
    use hickory_proto::rr::rdata::{A, SOA as Soa};
    use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
    use proptest::prelude::*;

    use super::*;

    fn question(name: &str) -> Question {
        Question {
            name: name.split('.').map(|label| label.as_bytes().to_vec()).collect(),
            kind: RecordType::A,
            class: DNSClass::IN,
            checking_disabled: false,
            edns: None,
            tcp: false,
        }
    }

    /// An answer with addresses that last so long, and a SOA record that lasts and denies so long.
    fn answer(code: ResponseCode, addresses: &[u32], soa: Option<(u32, u32)>) -> Message {
        let name = Name::from_ascii("host.example.org.").unwrap();
        let mut message = Message::query().into_response();
        message.metadata.response_code = code;
        message.add_query(Query::query(name.clone(), RecordType::A));
        for &ttl in addresses {
            message.add_answer(Record::from_rdata(name.clone(), ttl, RData::A(A::new(192, 0, 2, 7))));
        }
        if let Some((ttl, minimum)) = soa {
            let data = Soa::new(name.clone(), name.clone(), 1, 2, 3, 4, minimum);
            message.add_authority(Record::from_rdata(name, ttl, RData::SOA(data)));
        }
        message.set_edns(Edns::new());
        message
    }

    fn lasts(message: &Message) -> Option<u64> {
        lasting(&message.to_vec().unwrap()).map(|(_, lasts)| lasts.as_secs())
    }

    #[test]
    fn the_shortest_record_counts() {
        use ResponseCode::{NXDomain, NoError, ServFail};
        assert_eq!(lasts(&answer(NoError, &[60, 20, 40], None)), Some(20));
        assert_eq!(lasts(&answer(NoError, &[60], Some((10, 5)))), Some(10));
        assert_eq!(lasts(&answer(NoError, &[60, 0], None)), None);
        assert_eq!(lasts(&answer(NoError, &[u32::MAX], None)), None);
        // Denied: as long as the SOA record says, in whichever way.
        assert_eq!(lasts(&answer(NoError, &[], Some((10, 5)))), Some(5));
        assert_eq!(lasts(&answer(NXDomain, &[], Some((10, 50)))), Some(10));
        assert_eq!(lasts(&answer(NXDomain, &[], None)), None);
        assert_eq!(lasts(&answer(NoError, &[], None)), None);
        assert_eq!(lasts(&answer(ServFail, &[60], Some((10, 5)))), None);
        let mut cut = answer(NoError, &[60], None);
        cut.metadata.truncation = true;
        assert_eq!(lasts(&cut), None);
    }

    #[test]
    fn what_is_kept_gets_older_and_ends() {
        let mut cache = Cache::default();
        let began = Instant::now();
        let told = answer(ResponseCode::NoError, &[20, 60], None).to_vec().unwrap();
        cache.keep(question("a"), &told, began);
        let ttls = |cache: &Cache, name: &str, seconds: f64| {
            let found = cache.find(&question(name), began + Duration::from_secs_f64(seconds))?;
            let message = Message::from_vec(&found).unwrap();
            assert!(message.edns.is_some());
            Some(message.answers.iter().map(|record| record.ttl).collect::<Vec<_>>())
        };
        assert_eq!(ttls(&cache, "a", 0.0), Some(vec![20, 60]));
        assert_eq!(ttls(&cache, "a", 7.9), Some(vec![13, 53]));
        assert_eq!(ttls(&cache, "a", 20.0), None);
        assert_eq!(ttls(&cache, "b", 0.0), None);
        let told = answer(ResponseCode::NoError, &[3600], None).to_vec().unwrap();
        cache.keep(question("a"), &told, began);
        assert_eq!(ttls(&cache, "a", 29.9), Some(vec![3571]));
        assert_eq!(ttls(&cache, "a", 30.0), None);
        assert_eq!(cache.bytes, told.len() + OVERHEAD);
    }

    #[test]
    fn room_is_bounded() {
        let mut cache = Cache::default();
        let now = Instant::now();
        let told = answer(ResponseCode::NoError, &[20], None).to_vec().unwrap();
        for n in 0..10_000_u64 {
            let now = now + Duration::from_millis(n);
            let question = question(&format!("host-{n}"));
            cache.keep(question.clone(), &told, now);
            assert!(cache.find(&question, now).is_some());
            assert!(cache.bytes <= ROOM);
            assert_eq!(cache.bytes, cache.answers.len() * (told.len() + OVERHEAD));
        }
    }

    proptest! {
        #[test]
        fn damaged_answers_never_panic(at in 0usize..120, value in any::<u8>(), cut in 0usize..130) {
            let mut bytes = answer(ResponseCode::NXDomain, &[20], Some((10, 5))).to_vec().unwrap();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(cut);
            let mut cache = Cache::default();
            let now = Instant::now();
            cache.keep(question("a"), &bytes, now);
            let _ = cache.find(&question("a"), now + Duration::from_secs(1));
        }
    }
}
