//! Building nfnetlink messages and rule expressions (linux/netfilter/nf_tables.h). Pure.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// Message types of the nf_tables subsystem.
pub const NEW_TABLE: u16 = 0;
pub const DEL_TABLE: u16 = 2;
pub const NEW_CHAIN: u16 = 3;
pub const NEW_RULE: u16 = 6;
pub const GET_RULE: u16 = 7;
pub const DEL_RULE: u16 = 8;

pub const RULE_TABLE: u16 = 1;
pub const RULE_CHAIN: u16 = 2;
pub const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
pub const RULE_USERDATA: u16 = 7;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NLA_F_NESTED: u16 = 0x8000;

/// The first 128-bit registers; register 0 holds the verdict.
const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const REG_2: u32 = 2;

/// A growing list of attributes.
#[derive(Debug, Default, Clone)]
pub struct Attrs(pub Vec<u8>);

impl Attrs {
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Attrs {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub fn text(self, kind: u16, value: &str) -> Attrs {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub fn be32(self, kind: u16, value: u32) -> Attrs {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn be64(self, kind: u16, value: u64) -> Attrs {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn nested(self, kind: u16, value: Attrs) -> Attrs {
        self.bytes(kind | NLA_F_NESTED, &value.0)
    }
}

/// One netlink message without its sequence number.
#[derive(Debug, Clone)]
pub struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    /// A message of the nf_tables subsystem for the inet family.
    pub fn table(kind: u16, flags: u16, attrs: Attrs) -> Message {
        Message { kind: NFNL_SUBSYS_NFTABLES << 8 | kind, flags, body: body(NFPROTO_INET, 0, &attrs.0) }
    }

    /// NFNL_MSG_BATCH_BEGIN or _END: everything between them is one transaction.
    pub fn batch(begin: bool) -> Message {
        let kind = if begin { 0x10 } else { 0x11 };
        Message { kind, flags: 0, body: body(0, NFNL_SUBSYS_NFTABLES, &[]) }
    }

    /// The same message with more netlink flags.
    pub fn with_flags(mut self, flags: u16) -> Message {
        self.flags |= flags;
        self
    }

    /// The bytes on the wire.
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(16 + self.body.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(16 + self.body.len());
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(&(self.flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

const NLM_F_REQUEST: u16 = 1;

/// `struct nfgenmsg` and what follows.
fn body(family: u8, resource: u16, attrs: &[u8]) -> Vec<u8> {
    let mut bytes = vec![family, 0];
    bytes.extend_from_slice(&resource.to_be_bytes());
    bytes.extend_from_slice(attrs);
    bytes
}

/// A rule under construction: its expressions in order.
#[derive(Debug, Default, Clone)]
pub struct Expressions(Attrs);

impl Expressions {
    fn push(self, name: &str, data: Attrs) -> Expressions {
        let element = Attrs::default().text(1, name).nested(2, data);
        Expressions(self.0.nested(1, element))
    }

    fn compare(self, equal: bool, value: &[u8]) -> Expressions {
        let data = Attrs::default()
            .be32(1, REG_1)
            .be32(2, u32::from(!equal))
            .nested(3, Attrs::default().bytes(1, value));
        self.push("cmp", data)
    }

    fn payload(self, base: u32, offset: u32, length: u32) -> Expressions {
        self.push("payload", Attrs::default().be32(1, REG_1).be32(2, base).be32(3, offset).be32(4, length))
    }

    /// `meta nfproto ipv4|ipv6`.
    fn family(self, v4: bool) -> Expressions {
        let proto = if v4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 };
        self.push("meta", Attrs::default().be32(1, REG_1).be32(2, 15)).compare(true, &[proto])
    }

    /// `ip[6] saddr|daddr == net` behind a check of the family.
    fn address(self, source: bool, net: IpNet) -> Expressions {
        let (bytes, mask, offset) = match net.trunc() {
            IpNet::V4(net) => {
                (net.addr().octets().to_vec(), net.netmask().octets().to_vec(), if source { 12 } else { 16 })
            }
            IpNet::V6(net) => {
                (net.addr().octets().to_vec(), net.netmask().octets().to_vec(), if source { 8 } else { 24 })
            }
        };
        let length = u32::try_from(bytes.len()).unwrap_or(16);
        let loaded = self.family(net.addr().is_ipv4()).payload(1, offset, length);
        let masked = if net.prefix_len() == net.max_prefix_len() {
            loaded
        } else {
            let data = Attrs::default()
                .be32(1, REG_1)
                .be32(2, REG_1)
                .be32(3, length)
                .nested(4, Attrs::default().bytes(1, &mask))
                .nested(5, Attrs::default().bytes(1, &vec![0; mask.len()]));
            loaded.push("bitwise", data)
        };
        masked.compare(true, &bytes)
    }

    /// The source is within `net`.
    pub fn source(self, net: IpNet) -> Expressions {
        self.address(true, net)
    }

    /// The destination is within `net`.
    pub fn destination(self, net: IpNet) -> Expressions {
        self.address(false, net)
    }

    /// `meta l4proto == protocol` and `th dport == port`.
    pub fn port(self, protocol: u8, port: u16) -> Expressions {
        self.push("meta", Attrs::default().be32(1, REG_1).be32(2, 16))
            .compare(true, &[protocol])
            .payload(2, 2, 2)
            .compare(true, &port.to_be_bytes())
    }

    /// `fib daddr type local`.
    pub fn destined_locally(self) -> Expressions {
        const RTN_LOCAL: u32 = 2;
        self.push("fib", Attrs::default().be32(1, REG_1).be32(2, 3).be32(3, 1 << 1))
            .compare(true, &RTN_LOCAL.to_ne_bytes())
    }

    /// `numgen random mod count == 0`: one connection of `count`.
    pub fn one_of(self, count: u32) -> Expressions {
        const NFT_NG_RANDOM: u32 = 1;
        if count <= 1 {
            return self;
        }
        let data = Attrs::default().be32(1, REG_1).be32(2, count).be32(3, NFT_NG_RANDOM);
        self.push("numgen", data).compare(true, &0u32.to_ne_bytes())
    }

    /// `jhash ip saddr mod count seed 1 == number`: the clients of one share, always the same.
    pub fn source_share(self, count: u32, number: u32) -> Expressions {
        if count <= 1 {
            return self;
        }
        let data = Attrs::default().be32(1, REG_1).be32(2, REG_1).be32(3, 4).be32(4, count).be32(5, 1);
        self.family(true).payload(1, 12, 4).push("hash", data).compare(true, &number.to_ne_bytes())
    }

    /// `ct status dnat`, and `ct original proto-dst == port`: a connection whose destination was translated, and the
    /// port that was asked for.
    pub fn translated_from(self, protocol: u8, port: u16) -> Expressions {
        const NFT_CT_STATUS: u32 = 2;
        const NFT_CT_PROTO_DST: u32 = 12;
        const IPS_DST_NAT: u32 = 1 << 5;
        let mask = Attrs::default()
            .be32(1, REG_1)
            .be32(2, REG_1)
            .be32(3, 4)
            .nested(4, Attrs::default().bytes(1, &IPS_DST_NAT.to_ne_bytes()))
            .nested(5, Attrs::default().bytes(1, &[0; 4]));
        self.push("meta", Attrs::default().be32(1, REG_1).be32(2, 16))
            .compare(true, &[protocol])
            .push("ct", Attrs::default().be32(1, REG_1).be32(2, NFT_CT_STATUS))
            .push("bitwise", mask)
            .compare(false, &[0; 4])
            .push("ct", Attrs::default().be32(1, REG_1).be32(2, NFT_CT_PROTO_DST).bytes(3, &[0]))
            .compare(true, &port.to_be_bytes())
    }

    /// `ct original ip daddr == address`.
    pub fn asked_for(self, address: Ipv4Addr) -> Expressions {
        const NFT_CT_DST_IP: u32 = 20;
        self.push("ct", Attrs::default().be32(1, REG_1).be32(2, NFT_CT_DST_IP).bytes(3, &[0]))
            .compare(true, &address.octets())
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Expressions {
        let mut verdict = Attrs::default().bytes(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            verdict = verdict.text(2, chain);
        }
        let data = Attrs::default().be32(1, REG_VERDICT).nested(2, Attrs::default().nested(2, verdict));
        self.push("immediate", data)
    }

    /// `return`.
    pub fn leave(self) -> Expressions {
        self.verdict(-5, None)
    }

    /// `jump chain`.
    pub fn jump(self, chain: &str) -> Expressions {
        self.verdict(-3, Some(chain))
    }

    /// `reject with icmpx port-unreachable`, which is ECONNREFUSED to the sender, TCP included.
    pub fn reject(self) -> Expressions {
        const NFT_REJECT_ICMPX_UNREACH: u32 = 2;
        const NFT_REJECT_ICMPX_PORT_UNREACH: u8 = 1;
        let data =
            Attrs::default().be32(1, NFT_REJECT_ICMPX_UNREACH).bytes(2, &[NFT_REJECT_ICMPX_PORT_UNREACH]);
        self.push("reject", data)
    }

    /// `masquerade fully-random`: a random source port avoids the insertion races of conntrack that drop
    /// parallel DNS queries.
    pub fn masquerade(self) -> Expressions {
        const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
        self.push("masq", Attrs::default().be32(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY))
    }

    /// `dnat to ip:port`.
    pub fn dnat(self, ip: IpAddr, port: u16) -> Expressions {
        const NF_NAT_DNAT: u32 = 1;
        let (address, family) = match ip {
            IpAddr::V4(ip) => (ip.octets().to_vec(), NFPROTO_IPV4),
            IpAddr::V6(ip) => (ip.octets().to_vec(), NFPROTO_IPV6),
        };
        let load = |register: u32, value: &[u8]| {
            Attrs::default().be32(1, register).nested(2, Attrs::default().bytes(1, value))
        };
        let nat =
            Attrs::default().be32(1, NF_NAT_DNAT).be32(2, u32::from(family)).be32(3, REG_1).be32(5, REG_2);
        self.push("immediate", load(REG_1, &address))
            .push("immediate", load(REG_2, &port.to_be_bytes()))
            .push("nat", nat)
    }

    /// The message body's attributes for a rule in `chain`, tagged by `comment` (which `nft list` shows).
    pub fn into_rule(self, table: &str, chain: &str, comment: &str) -> Attrs {
        // A comment is a type-length-value of libnftnl's: type 0, length with the final NUL.
        let mut userdata = vec![0, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
        userdata.extend_from_slice(comment.as_bytes());
        userdata.push(0);
        Attrs::default()
            .text(RULE_TABLE, table)
            .text(RULE_CHAIN, chain)
            .nested(RULE_EXPRESSIONS, self.0)
            .bytes(RULE_USERDATA, &userdata)
    }
}

/// Reads attributes as (type without flags, value). Stops at the first that makes no sense.
pub fn read_attrs(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let [l0, l1, k0, k1, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if length < 4 || length > bytes.len() {
            break;
        }
        found.push((u16::from_ne_bytes([k0, k1]) & 0x3fff, &bytes[4..length]));
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

/// The comment inside a rule's user data.
pub fn read_comment(userdata: &[u8]) -> Option<String> {
    let [0, length, text @ ..] = userdata else { return None };
    let text = text.get(..usize::from(*length).checked_sub(1)?)?;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn comment_survives_a_round_trip() {
        let rule = Expressions::default().masquerade().into_rule("keelson", "chain", "keelson: egress");
        let attrs = read_attrs(&rule.0);
        let userdata = attrs.iter().find(|(kind, _)| *kind == RULE_USERDATA).unwrap().1;
        assert_eq!(read_comment(userdata).as_deref(), Some("keelson: egress"));
    }

    #[test]
    fn message_has_netlink_layout() {
        let bytes = Message::table(NEW_TABLE, 4, Attrs::default().text(1, "x")).encode(7);
        assert_eq!(bytes.len(), 16 + 4 + 8);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
        assert_eq!(u16::from_ne_bytes([bytes[4], bytes[5]]), 0x0a00);
        assert_eq!(bytes[16], NFPROTO_INET);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for (_, value) in read_attrs(&bytes) {
                let _ = read_comment(value);
            }
        }
    }
}
