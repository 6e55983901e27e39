//! What to do with a query: answer, ask someone else, or stay silent. Pure.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::zone::reverse::zone_of;
use crate::zone::{Area, Found, TTL, Zone};

/// The largest UDP answer, in bytes: what crosses any network unfragmented (DNS Flag Day 2020).
pub const MAX_UDP: u16 = 1232;

/// The longest chain of aliases that is followed.
const MAX_ALIASES: usize = 8;

/// How a query came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A datagram: answers are bounded by what the asker takes.
    Udp,
    /// A connection.
    Tcp,
}

/// What to do with a query.
#[derive(Debug)]
pub enum Decision {
    /// Send this.
    Reply(Box<Message>),
    /// Ask an upstream server, and send what it says.
    Forward,
    /// Ask an upstream server for the addresses of an alias' target and send them behind this.
    Complete {
        /// The answer so far.
        reply: Box<Message>,
        /// The name to ask for.
        target: Name,
    },
}

/// What the bytes of a packet are.
#[derive(Debug)]
pub enum Received {
    /// Not a query: it gets no answer, so that two servers can't keep each other busy.
    Noise,
    /// A query that can't be read: this is the answer.
    Malformed(Box<Message>),
    /// A query.
    Query(Box<Message>),
}

/// Reads a packet.
pub fn read(bytes: &[u8]) -> Received {
    let [id0, id1, flags, ..] = *bytes else { return Received::Noise };
    // Shorter than a header, or a response.
    if bytes.len() < 12 || flags & 0x80 != 0 {
        return Received::Noise;
    }
    match Message::from_vec(bytes) {
        Ok(request) if request.metadata.message_type == MessageType::Query => {
            Received::Query(Box::new(request))
        }
        Ok(_response) => Received::Noise,
        Err(_undecodable) => {
            let id = u16::from_be_bytes([id0, id1]);
            Received::Malformed(Box::new(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)))
        }
    }
}

/// Decides about one query. `recursive` tells whether there are upstream servers.
pub fn decide(zone: &Zone, request: &Message, recursive: bool) -> Decision {
    let refuse = |code| Decision::Reply(Box::new(reply_to(request, code)));
    if request.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let [query] = request.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return refuse(ResponseCode::BADVERS);
    }
    if !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY)
        || matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR)
    {
        return refuse(ResponseCode::Refused);
    }
    match zone.area(query.name()) {
        Area::Outside if recursive && request.metadata.recursion_desired => Decision::Forward,
        Area::Outside => refuse(ResponseCode::Refused),
        // What was not listed yet may exist: the asker shall try again, not believe that it doesn't.
        _ if !zone.is_synced() => refuse(ResponseCode::ServFail),
        area => resolve(zone, request, query, area, recursive),
    }
}

fn resolve(zone: &Zone, request: &Message, query: &Query, area: Area, recursive: bool) -> Decision {
    let mut reply = reply_to(request, ResponseCode::NoError);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_available = recursive;
    let kind = query.query_type();
    // The name as the asker wrote it: it may check the case of every letter (0x20).
    let mut owner = query.name().clone();
    let mut area = area;
    for _ in 0..=MAX_ALIASES {
        let (found, authority) = match &area {
            Area::Cluster(labels) => (zone.lookup(labels, kind), zone.domain().clone()),
            Area::Reverse(ip) => (zone.lookup_reverse(*ip, kind), zone_of(&owner)),
            Area::Outside => {
                let completes = recursive && request.metadata.recursion_desired;
                let addresses = matches!(kind, RecordType::A | RecordType::AAAA);
                return if completes && addresses {
                    Decision::Complete { reply: Box::new(reply), target: owner }
                } else {
                    Decision::Reply(Box::new(reply))
                };
            }
        };
        match found {
            Found::Records { mut answers, additionals } => {
                // Spreads clients over the addresses; the id is as good as random.
                let start = usize::from(request.metadata.id) % answers.len().max(1);
                answers.rotate_left(start);
                for data in answers {
                    reply.add_answer(Record::from_rdata(owner.clone(), TTL, data));
                }
                reply.add_additionals(additionals);
                return Decision::Reply(Box::new(reply));
            }
            Found::Alias(target) => {
                reply.add_answer(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(target.clone()))));
                if matches!(kind, RecordType::CNAME | RecordType::ANY) {
                    return Decision::Reply(Box::new(reply));
                }
                area = zone.area(&target);
                owner = target;
            }
            negative @ (Found::NoData | Found::NoName) => {
                if negative == Found::NoName {
                    reply.metadata.response_code = ResponseCode::NXDomain;
                }
                reply.add_authority(zone.soa(authority));
                return Decision::Reply(Box::new(reply));
            }
        }
    }
    // Aliases that lead in a circle.
    Decision::Reply(Box::new(reply_to(request, ResponseCode::ServFail)))
}

/// An empty response to `request`.
pub fn reply_to(request: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
    reply.metadata.recursion_desired = request.metadata.recursion_desired;
    reply.metadata.checking_disabled = request.metadata.checking_disabled;
    reply.metadata.response_code = code;
    // A request with several questions is malformed and isn't worth repeating.
    reply.add_queries(request.queries.iter().take(1).cloned());
    if let Some(asked) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        reply.set_edns(edns);
    }
    reply
}

/// The size that an answer may have, in bytes.
pub fn limit(request_payload: u16, transport: Transport) -> usize {
    match transport {
        Transport::Udp => usize::from(request_payload.clamp(512, MAX_UDP)),
        Transport::Tcp => usize::from(u16::MAX),
    }
}

/// The bytes of a response of at most `limit` bytes. What is merely helpful goes first; when answers must
/// go too, as many stay as fit, and TC is set (RFC 2181, section 9): old musl does not ask again over TCP.
pub fn encode(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    let mut bytes = message.to_vec().ok()?;
    if bytes.len() > limit {
        message.additionals.clear();
        bytes = message.to_vec().ok()?;
    }
    if bytes.len() > limit && !message.answers.is_empty() {
        message.metadata.truncation = true;
        bytes = keep_what_fits(&mut message, limit)?;
    }
    if bytes.len() > limit {
        message.metadata.truncation = true;
        message.authorities.clear();
        bytes = message.to_vec().ok()?;
    }
    (bytes.len() <= limit).then_some(bytes)
}

/// Keeps the largest number of answers with which the message fits: a search, since the size of a record
/// depends on how well its name compresses.
fn keep_what_fits(message: &mut Message, limit: usize) -> Option<Vec<u8>> {
    /// A pointer for the name, type, class, TTL and the length of the data.
    const SMALLEST_RECORD: usize = 12;
    message.answers.truncate(limit / SMALLEST_RECORD);
    let all = std::mem::take(&mut message.answers);
    let mut best = message.to_vec().ok()?;
    let (mut fits, mut fails) = (0, all.len() + 1);
    while fits + 1 < fails {
        let count = fits.midpoint(fails);
        message.answers = all[..count].to_vec();
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= limit {
            (fits, best) = (count, bytes);
        } else {
            fails = count;
        }
    }
    message.answers = all;
    message.answers.truncate(fits);
    Some(best)
}
