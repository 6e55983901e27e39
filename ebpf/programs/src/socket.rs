//! Service addresses are translated at the socket: connect and sendmsg see the Service, the kernel then sees the
//! endpoint, and recvmsg and getpeername show the Service again. There is no cost for a packet and no connection
//! tracking.
//!
//! Each program exists for AF_INET and for IPv4-mapped addresses of AF_INET6 sockets. A mapped UDP socket may send
//! through the IPv4 hooks and receive through the IPv6 ones, so reverse state is shared.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::btf_maps::{HashMap, LruHashMap};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_map, cgroup_sock_addr};
use aya_ebpf::programs::SockAddrContext;
use keelson_ebpf_abi::{
    Affinity, AffinityKey, Backend, Be16, Be32, Frontend, FrontendKey, NodePlace, Reverse, ReverseKey, SlotKey,
};

/// BPF_F_NO_PREALLOC: memory is taken as entries come.
const NO_PREALLOC: usize = 1;

/// Service ports.
#[btf_map]
static FRONTENDS: HashMap<FrontendKey, Frontend, 262144, NO_PREALLOC> = HashMap::new();

/// Endpoints of Service ports.
#[btf_map]
static SLOTS: HashMap<SlotKey, Backend, 1048576, NO_PREALLOC> = HashMap::new();

/// Sockets that were translated. Least recently used entries go first: a socket that lost its entry sees its
/// endpoint's address in getpeername and recvfrom.
#[btf_map]
static REVERSE: LruHashMap<ReverseKey, Reverse, 65536> = LruHashMap::new();

/// Clients of Services with session affinity.
#[btf_map]
static AFFINITY: LruHashMap<AffinityKey, Affinity, 65536> = LruHashMap::new();

/// The node's own network namespace: a constant that the agent sets before the programs are loaded. 0 is no cookie.
#[unsafe(no_mangle)]
static HOST_NETNS: u64 = 0;

/// Return values of cgroup socket address programs.
const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
/// `::ffff:0:0/96`, the third word of an IPv4-mapped address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// What a program does with what was decided.
#[derive(Clone, Copy, PartialEq)]
enum Call {
    /// connect(2): for UDP it only chooses addresses, which is how programs learn their own.
    Connect,
    /// sendto(2) or sendmsg(2) with an address.
    Send,
}

/// What was decided about a destination.
enum Verdict {
    /// Leave it: not a Service, or nothing that anybody could see fail yet.
    Pass,
    /// Go to this endpoint instead.
    To(Backend),
    /// A Service without endpoints, or a port it does not have.
    Refuse,
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, call: Call, address: Be32, port: Be16, protocol: u32) -> Verdict {
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return Verdict::Pass;
    }
    let protocol = protocol as u8;
    let key = FrontendKey { address, port, protocol, pad: 0 };
    // SAFETY: values are replaced whole by the agent; a torn read is impossible for an RCU-protected element.
    if let Some(frontend) = unsafe { FRONTENDS.get(key) } {
        return choose(ctx, key, frontend);
    }
    // SAFETY: as above.
    if unsafe { FRONTENDS.get(FrontendKey::any_port(address)) }.is_some() {
        // With kube-proxy a UDP socket can be connected to any port of a Service; what is sent is then rejected by
        // netfilter, here as there.
        let harmless = call == Call::Connect && u32::from(protocol) == IPPROTO_UDP;
        return if harmless { Verdict::Pass } else { Verdict::Refuse };
    }
    let Some(place) = node_place(ctx, address) else { return Verdict::Pass };
    let key = FrontendKey::node_port(place, port, protocol);
    // SAFETY: as above.
    match unsafe { FRONTENDS.get(key) } {
        Some(frontend) => choose(ctx, key, frontend),
        // Any other port of a node is the node's own.
        None => Verdict::Pass,
    }
}

/// Where the node is whose address that is, if it is one. The loopback is the node's only for processes in the node's own
/// network namespace, and so is 0.0.0.0, by which the kernel means the loopback.
#[inline(always)]
fn node_place(ctx: &SockAddrContext, address: Be32) -> Option<u32> {
    let first = address.octets()[0];
    if first == 127 || address.0 == 0 {
        // SAFETY: a volatile read, since the value is set when the program is loaded and not when it is built.
        let host = unsafe { core::ptr::read_volatile(&raw const HOST_NETNS) };
        return (netns(ctx) == host).then_some(NodePlace::Here as u32);
    }
    // SAFETY: as in decide.
    unsafe { FRONTENDS.get(FrontendKey::node(address)) }.map(|frontend| frontend.generation)
}

#[inline(always)]
fn choose(ctx: &SockAddrContext, key: FrontendKey, frontend: &Frontend) -> Verdict {
    let backend = if frontend.affinity_seconds == 0 { pick(frontend) } else { pick_sticky(ctx, frontend) };
    if let Some(backend) = backend {
        return Verdict::To(backend);
    }
    // Either there is no endpoint, or the agent replaced the frontend between the two look-ups and has already
    // removed the slots of the old generation: what the frontend says now decides.
    // SAFETY: as in decide.
    match unsafe { FRONTENDS.get(key) }.and_then(pick) {
        Some(backend) => Verdict::To(backend),
        None => Verdict::Refuse,
    }
}

#[inline(always)]
fn pick(frontend: &Frontend) -> Option<Backend> {
    if frontend.slots == 0 {
        return None;
    }
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    let slot =
        SlotKey { service: frontend.service, generation: frontend.generation, slot: random % frontend.slots };
    // SAFETY: slots of a generation are never changed, only removed after the frontend moved on.
    unsafe { SLOTS.get(slot) }.copied()
}

#[inline(always)]
fn pick_sticky(ctx: &SockAddrContext, frontend: &Frontend) -> Option<Backend> {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let key = AffinityKey { netns: netns(ctx), service: frontend.service, pad: 0 };
    // SAFETY: the value is copied at once.
    if let Some(known) = unsafe { AFFINITY.get(key) }.copied()
        && now.wrapping_sub(known.last_used_ns) < u64::from(frontend.affinity_seconds) * 1_000_000_000
    {
        // The agent removes entries of endpoints that are gone, so what is here is alive.
        let _ = AFFINITY.insert(key, Affinity { last_used_ns: now, backend: known.backend }, 0);
        return Some(known.backend);
    }
    let backend = pick(frontend)?;
    let _ = AFFINITY.insert(key, Affinity { last_used_ns: now, backend }, 0);
    Some(backend)
}

#[inline(always)]
fn netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: ctx is the program's own context, as the helper wants it.
    unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) }
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: ctx is the program's own context, as the helper wants it.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}

#[inline(always)]
fn remember(ctx: &SockAddrContext, backend: Backend, address: Be32, port: Be16) {
    let key = ReverseKey { cookie: cookie(ctx), address: backend.address, port: backend.port, pad: 0 };
    let _ = REVERSE.insert(key, Reverse { address, port, pad: 0 }, 0);
}

#[inline(always)]
fn refuse() -> i32 {
    // SAFETY: the helper only sets the system call's result (since 5.18).
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

#[inline(always)]
fn forward4(ctx: &SockAddrContext, call: Call) -> i32 {
    let addr: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: addr is the program's context; the verifier allows these fields to be read and written here.
    unsafe {
        let address = Be32((*addr).user_ip4);
        let port = Be16((*addr).user_port as u16);
        match decide(ctx, call, address, port, (*addr).protocol) {
            Verdict::Pass => ALLOW,
            Verdict::Refuse => refuse(),
            Verdict::To(backend) => {
                remember(ctx, backend, address, port);
                (*addr).user_ip4 = backend.address.0;
                (*addr).user_port = u32::from(backend.port.0);
                ALLOW
            }
        }
    }
}

#[inline(always)]
fn forward6(ctx: &SockAddrContext, call: Call) -> i32 {
    let addr: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: as in forward4.
    unsafe {
        if (*addr).user_ip6[0] != 0 || (*addr).user_ip6[1] != 0 || (*addr).user_ip6[2] != MAPPED {
            return ALLOW;
        }
        let address = Be32((*addr).user_ip6[3]);
        let port = Be16((*addr).user_port as u16);
        match decide(ctx, call, address, port, (*addr).protocol) {
            Verdict::Pass => ALLOW,
            Verdict::Refuse => refuse(),
            Verdict::To(backend) => {
                remember(ctx, backend, address, port);
                (*addr).user_ip6[3] = backend.address.0;
                (*addr).user_port = u32::from(backend.port.0);
                ALLOW
            }
        }
    }
}

/// The frontend behind an endpoint's address, for the socket that the context is about.
#[inline(always)]
fn reverse(ctx: &SockAddrContext, address: Be32, port: Be16) -> Option<Reverse> {
    let key = ReverseKey { cookie: cookie(ctx), address, port, pad: 0 };
    // SAFETY: the value is copied at once.
    unsafe { REVERSE.get(key) }.copied()
}

#[inline(always)]
fn back4(ctx: &SockAddrContext) -> i32 {
    let addr: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: as in forward4.
    unsafe {
        if let Some(frontend) = reverse(ctx, Be32((*addr).user_ip4), Be16((*addr).user_port as u16)) {
            (*addr).user_ip4 = frontend.address.0;
            (*addr).user_port = u32::from(frontend.port.0);
        }
    }
    ALLOW
}

#[inline(always)]
fn back6(ctx: &SockAddrContext) -> i32 {
    let addr: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: as in forward4.
    unsafe {
        if (*addr).user_ip6[0] != 0 || (*addr).user_ip6[1] != 0 || (*addr).user_ip6[2] != MAPPED {
            return ALLOW;
        }
        if let Some(frontend) = reverse(ctx, Be32((*addr).user_ip6[3]), Be16((*addr).user_port as u16)) {
            (*addr).user_ip6[3] = frontend.address.0;
            (*addr).user_port = u32::from(frontend.port.0);
        }
    }
    ALLOW
}

macro_rules! program {
    ($(#[$doc:meta])* $name:ident, $work:ident $(, $call:expr)?) => {
        $(#[$doc])*
        #[cgroup_sock_addr($name)]
        pub fn $name(ctx: SockAddrContext) -> i32 {
            $work(&ctx $(, $call)?)
        }
    };
}

program!(/// connect(2) on AF_INET.
    connect4, forward4, Call::Connect);
program!(/// connect(2) on AF_INET6.
    connect6, forward6, Call::Connect);
program!(/// sendto(2) and sendmsg(2) with an address, UDP on AF_INET.
    sendmsg4, forward4, Call::Send);
program!(/// sendto(2) and sendmsg(2) with an address, UDP on AF_INET6.
    sendmsg6, forward6, Call::Send);
program!(/// recvfrom(2) and recvmsg(2), UDP on AF_INET.
    recvmsg4, back4);
program!(/// recvfrom(2) and recvmsg(2), UDP on AF_INET6.
    recvmsg6, back6);
program!(/// getpeername(2) on AF_INET.
    getpeername4, back4);
program!(/// getpeername(2) on AF_INET6.
    getpeername6, back6);
