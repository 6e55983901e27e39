//! The table `inet keelson` and its chains.

use super::message::{
    Attrs, DEL_RULE, DEL_TABLE, Expressions, GET_RULE, Message, NEW_CHAIN, NEW_RULE, NEW_TABLE, RULE_CHAIN,
    RULE_HANDLE, RULE_TABLE, RULE_USERDATA, read_attrs, read_comment,
};
use super::socket::Socket;
use crate::error::{Error, Result};

/// The table's name; its family is inet.
pub const TABLE: &str = "keelson";
/// Egress masquerade (nat, postrouting).
pub const MASQUERADE: &str = "masquerade";
/// Entry for packets that arrive (nat, prerouting).
pub const PREROUTING: &str = "prerouting";
/// Entry for packets that the host itself sends (nat, output).
pub const OUTPUT: &str = "output";
/// The port mappings; both entries jump here.
pub const HOSTPORTS: &str = "hostports";
/// Masquerade of mapped connections that would come back past the translation (nat, postrouting).
pub const HOSTPORTS_MASQUERADE: &str = "hostports_masquerade";
/// Entry for packets that arrive for a Service (nat, prerouting).
pub const SERVICES: &str = "services";
/// Node ports; `services` jumps here for the node's own addresses.
pub const NODE_PORTS: &str = "node_ports";
/// Masquerade of connections from outside that another node may answer (nat, postrouting).
pub const SERVICES_MASQUERADE: &str = "services_masquerade";
/// What is sent through this host to an address of Services (filter, forward).
pub const SERVICE_RANGES_FORWARD: &str = "service_ranges_forward";
/// What this host itself sends to one (filter, output).
pub const SERVICE_RANGES_OUTPUT: &str = "service_ranges_output";

const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// A rule as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub handle: u64,
    pub comment: String,
}

/// A connection to the table.
#[derive(Debug)]
pub struct Table {
    socket: Socket,
}

impl Table {
    pub fn open() -> Result<Table> {
        let socket =
            Socket::open().map_err(|source| Error::Netfilter { what: "open socket".into(), source })?;
        Ok(Table { socket })
    }

    /// The commented rules of `chain`, in order; none when chain or table do not exist.
    pub fn list(&self, chain: &str) -> Result<Vec<Listed>> {
        let attrs = Attrs::default().text(RULE_TABLE, TABLE).text(RULE_CHAIN, chain);
        let bodies = match self.socket.dump(Message::table(GET_RULE, 0, attrs)) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
            Err(source) => return Err(Error::Netfilter { what: format!("list chain {chain}"), source }),
            Ok(bodies) => bodies,
        };
        let read = |body: &Vec<u8>| {
            let attrs = read_attrs(body);
            let get = |kind: u16| attrs.iter().find(|(k, _)| *k == kind).map(|(_, value)| *value);
            // The kernel before 5.17 ignores the chain in a dump request, some the table too.
            let is =
                |kind, name: &str| get(kind).is_some_and(|v| v.strip_suffix(b"\0") == Some(name.as_bytes()));
            (is(RULE_TABLE, TABLE) && is(RULE_CHAIN, chain)).then_some(())?;
            Some(Listed {
                handle: u64::from_be_bytes(get(RULE_HANDLE)?.try_into().ok()?),
                comment: read_comment(get(RULE_USERDATA)?)?,
            })
        };
        Ok(bodies.iter().filter_map(read).collect())
    }

    /// Commits a transaction.
    pub fn commit(&self, what: &str, messages: Vec<Message>) -> Result<()> {
        self.socket.commit(messages).map_err(|source| Error::Netfilter { what: what.to_owned(), source })
    }
}

/// Creates the table if it is missing.
pub fn new_table() -> Message {
    Message::table(NEW_TABLE, NLM_F_CREATE, Attrs::default().text(1, TABLE))
}

/// Removes the table with all that is in it; that there is none is success. It works in the calling thread's network
/// namespace.
///
/// # Errors
/// [`Error::Netfilter`].
pub fn remove() -> Result<()> {
    let message = Message::table(DEL_TABLE, 0, Attrs::default().text(1, TABLE));
    match Table::open()?.commit("remove the table", vec![message]) {
        Err(Error::Netfilter { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Creates a chain without a hook if it is missing.
pub fn new_chain(name: &str) -> Message {
    Message::table(NEW_CHAIN, NLM_F_CREATE, Attrs::default().text(1, TABLE).text(3, name))
}

/// Where a base chain hooks in.
#[derive(Debug, Clone, Copy)]
pub enum Hook {
    Prerouting,
    Forward,
    Output,
    Postrouting,
}

/// Creates a nat base chain if it is missing.
pub fn new_base_chain(name: &str, hook: Hook, priority: i32) -> Message {
    base_chain(name, "nat", hook, priority)
}

/// Creates a filter base chain, of that type's own priority, if it is missing.
pub fn new_filter_chain(name: &str, hook: Hook) -> Message {
    base_chain(name, "filter", hook, 0)
}

fn base_chain(name: &str, kind: &str, hook: Hook, priority: i32) -> Message {
    let number = match hook {
        Hook::Prerouting => 0,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    };
    let hook = Attrs::default().be32(1, number).bytes(2, &priority.to_be_bytes());
    let attrs = Attrs::default().text(1, TABLE).text(3, name).nested(4, hook).text(7, kind);
    Message::table(NEW_CHAIN, NLM_F_CREATE, attrs)
}

/// Appends a rule.
pub fn new_rule(chain: &str, comment: &str, expressions: Expressions) -> Message {
    Message::table(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, expressions.into_rule(TABLE, chain, comment))
}

/// Deletes one rule.
pub fn delete_rule(chain: &str, handle: u64) -> Message {
    let attrs = Attrs::default().text(RULE_TABLE, TABLE).text(RULE_CHAIN, chain).be64(RULE_HANDLE, handle);
    Message::table(DEL_RULE, 0, attrs)
}
