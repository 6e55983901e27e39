//! The event loop: one thread, one epoll instance.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use keelson_podinit::protocol::{
    self, DecodeError, Event, MAX_ATTACH_PACKET, MAX_MESSAGE, Reply, ReplyBody, Request, attach,
};

use crate::process::{Attached, Process};
use crate::sys;

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
/// Connections at once: the agent has one; a second lets a new agent in before the old one's socket has closed.
const MAX_CONNECTIONS: usize = 4;
/// Input buffered for a process that does not read it, before the session is no longer read.
const MAX_INPUT: usize = 64 * 1024;
/// A session that takes nothing for this long while it holds the output back is dropped.
const ATTACH_STALL_NS: u64 = 10_000_000_000;

/// How long processes have after a SIGTERM to podinit, as containers have by default (`terminationGracePeriodSeconds`).
const TERM_GRACE_NS: u64 = 30_000_000_000;

const IN: u32 = libc::EPOLLIN.cast_unsigned();
const OUT: u32 = libc::EPOLLOUT.cast_unsigned();

struct Connection {
    fd: OwnedFd,
    token: u64,
    hello: bool,
    open: bool,
}

/// What a token names.
enum Place {
    Connection(usize),
    Output(usize, usize),
    Stdin(usize),
    Session(usize, usize),
}

/// podinit's state.
pub struct Server {
    listener: OwnedFd,
    epoll: OwnedFd,
    signals: OwnedFd,
    connections: Vec<Connection>,
    processes: Vec<Process>,
    next_token: u64,
    buf: Vec<u8>,
    lines: Vec<u8>,
    exit: Option<i32>,
    /// When to end at the latest, since the machine goes down: every process has had its SIGTERM as podinit has.
    ending_at_ns: Option<u64>,
}

impl Server {
    /// Gives rights up and starts listening. Descriptors 0, 1 and 2 become the three that podinit always has, so that
    /// nothing else can ever land there.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        sys::harden()?;
        sys::become_subreaper()?;
        let listener = sys::move_to(listener, 0)?;
        let epoll = sys::move_to(sys::epoll()?, 1)?;
        let signals = sys::move_to(sys::signalfd()?, 2)?;
        sys::epoll_set(epoll.as_raw_fd(), listener.as_raw_fd(), true, IN, LISTENER)?;
        sys::epoll_set(epoll.as_raw_fd(), signals.as_raw_fd(), true, IN, SIGNALS)?;
        sys::set_nonblocking(&listener)?;
        sys::listen(&listener)?;
        Ok(Self {
            listener,
            epoll,
            signals,
            connections: Vec::new(),
            processes: Vec::new(),
            next_token: 16,
            buf: Vec::new(),
            lines: Vec::new(),
            exit: None,
            ending_at_ns: None,
        })
    }

    /// Runs until told to shut down, or the machine goes down (SIGTERM) and no process is left; gives the exit code.
    pub fn run(&mut self) -> i32 {
        loop {
            let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
            let watchful = self.ending_at_ns.is_some() || self.processes.iter().any(Process::blocked);
            let timeout = if watchful { 1000 } else { -1 };
            let n = match sys::epoll_wait(self.epoll.as_raw_fd(), &mut events, timeout) {
                Ok(n) => n,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => return err.raw_os_error().unwrap_or(1),
            };
            for event in &events[..n] {
                self.dispatch(event.u64, event.events);
                if let Some(code) = self.exit {
                    return code;
                }
            }
            self.sweep();
            if self.ending_at_ns.is_some_and(|at| self.idle() || sys::now_ns() >= at) {
                return 0;
            }
        }
    }

    /// Whether every process has ended and all that it said is written.
    fn idle(&self) -> bool {
        self.processes.iter().all(|process| process.state.exit.is_some() && process.drained())
    }

    fn dispatch(&mut self, token: u64, events: u32) {
        match token {
            LISTENER => self.accept(),
            SIGNALS => self.reap(),
            token => match self.find(token) {
                Some(Place::Connection(i)) => self.receive(i),
                Some(Place::Output(p, o)) => {
                    if !self.processes[p].blocked() {
                        self.processes[p].pump(o, &mut self.buf, &mut self.lines);
                    }
                    self.interest(p);
                }
                Some(Place::Stdin(p)) => {
                    // The process closed its end: an error is reported for ever, so the pipe goes.
                    if events & libc::EPOLLERR.cast_unsigned() != 0 {
                        self.processes[p].input = Vec::new();
                        self.processes[p].stdin = None;
                    }
                    self.processes[p].flush_input();
                    self.interest(p);
                }
                Some(Place::Session(p, s)) => self.session(p, s),
                None => {}
            },
        }
    }

    fn find(&self, token: u64) -> Option<Place> {
        if let Some(i) = self.connections.iter().position(|c| c.token == token) {
            return Some(Place::Connection(i));
        }
        for (p, process) in self.processes.iter().enumerate() {
            if process.stdin_token == token {
                return Some(Place::Stdin(p));
            }
            if let Some(o) = process.outputs.iter().position(|o| o.token == token) {
                return Some(Place::Output(p, o));
            }
            if let Some(s) = process.attached.iter().position(|a| a.token == token) {
                return Some(Place::Session(p, s));
            }
        }
        None
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn accept(&mut self) {
        let Ok((fd, uid)) = sys::accept(&self.listener) else { return };
        if uid != 0 || self.connections.len() >= MAX_CONNECTIONS {
            return;
        }
        let token = self.token();
        if sys::epoll_set(self.epoll.as_raw_fd(), fd.as_raw_fd(), true, IN, token).is_ok() {
            self.connections.push(Connection { fd, token, hello: false, open: true });
        }
    }

    fn reap(&mut self) {
        if sys::take_signals(&self.signals) && self.ending_at_ns.is_none() {
            self.ending_at_ns = Some(sys::now_ns() + TERM_GRACE_NS);
        }
        while let Some((pid, status)) = sys::reap() {
            // A pid that nobody registered was an orphan of some container: reaping it is all there is to do.
            let found = self.processes.iter().position(|p| p.state.pid == pid && p.state.exit.is_none());
            if let Some(p) = found {
                self.processes[p].exited(status, &mut self.buf, &mut self.lines);
                let event = Event::Exited(self.processes[p].state.clone()).encode();
                for connection in self.connections.iter_mut().filter(|c| c.hello) {
                    // An agent that does not read its events is cut off; it connects again and lists.
                    connection.open &= sys::send(&connection.fd, &event).is_ok();
                }
                self.interest(p);
            }
        }
    }

    fn receive(&mut self, i: usize) {
        let mut buf = [0u8; MAX_MESSAGE];
        let (len, fds) = match sys::recv(&self.connections[i].fd, &mut buf) {
            Ok((len, fds)) if len > 0 => (len, fds),
            Err(err) if matches!(err.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => return,
            _ => {
                self.connections[i].open = false;
                return;
            }
        };
        match Request::decode(&buf[..len]) {
            Ok((seq, request)) => {
                let op = request.op();
                let result = if self.connections[i].hello || matches!(request, Request::Hello { .. }) {
                    self.handle(i, seq, request, fds)
                } else {
                    Err(libc::EPROTO)
                };
                let (errno, body) = match result {
                    Ok(body) => (0, body),
                    Err(errno) => (errno, ReplyBody::Empty),
                };
                self.reply(i, op, &Reply { seq, errno, body });
            }
            Err(DecodeError::UnknownOp(op, seq)) => {
                self.reply(i, op, &Reply { seq, errno: libc::ENOSYS, body: ReplyBody::Empty });
            }
            Err(DecodeError::Malformed) => self.connections[i].open = false,
        }
    }

    fn reply(&mut self, i: usize, op: u8, reply: &Reply) {
        let connection = &mut self.connections[i];
        connection.open &= sys::send(&connection.fd, &reply.encode(op)).is_ok();
    }

    fn handle(&mut self, i: usize, seq: u32, request: Request, fds: Vec<OwnedFd>) -> Result<ReplyBody, i32> {
        let op = request.op();
        match request {
            Request::Hello { min, max } => {
                let version = protocol::negotiate(min, max).ok_or(libc::EPROTO)?;
                self.connections[i].hello = true;
                return Ok(ReplyBody::Hello { version });
            }
            Request::Register { id, pid, flags } => self.register(id, pid, flags, fds)?,
            Request::Release { id } => self.processes.retain(|p| p.state.id != id),
            Request::ReopenLog { id } => {
                let log = fds.into_iter().next().ok_or(libc::EINVAL)?;
                let p = self.by_id(&id)?;
                self.processes[p].reopen(log);
            }
            Request::Attach { id, stdin } => {
                let fd = fds.into_iter().next().ok_or(libc::EINVAL)?;
                self.attach(&id, stdin, fd)?;
            }
            Request::Resize { id, rows, cols } => {
                let p = self.by_id(&id)?;
                let process = &self.processes[p];
                let master = process.outputs.first().filter(|_| process.flags & protocol::FLAG_TTY != 0);
                sys::resize(&master.ok_or(libc::ENOTTY)?.fd, rows, cols).map_err(errno)?;
            }
            Request::List => {
                for p in 0..self.processes.len() {
                    let state = self.processes[p].state.clone();
                    self.reply(i, op, &Reply { seq, errno: 0, body: ReplyBody::Process(state) });
                }
            }
            Request::Shutdown => self.exit = Some(0),
        }
        Ok(ReplyBody::Empty)
    }

    fn by_id(&self, id: &str) -> Result<usize, i32> {
        self.processes.iter().position(|p| p.state.id == id).ok_or(libc::ENOENT)
    }

    fn register(&mut self, id: String, pid: i32, flags: u8, fds: Vec<OwnedFd>) -> Result<(), i32> {
        if self.by_id(&id).is_ok() {
            return Err(libc::EEXIST);
        }
        let mut process = Process::new(id, pid, flags, fds).map_err(errno)?;
        let epoll = self.epoll.as_raw_fd();
        for output in &mut process.outputs {
            output.token = self.token();
            sys::epoll_set(epoll, output.fd.as_raw_fd(), true, IN, output.token).map_err(errno)?;
        }
        process.stdin_token = self.token();
        if let Some(stdin) = &process.stdin {
            sys::epoll_set(epoll, stdin.as_raw_fd(), true, 0, process.stdin_token).map_err(errno)?;
        }
        self.processes.push(process);
        Ok(())
    }

    fn attach(&mut self, id: &str, stdin: bool, fd: OwnedFd) -> Result<(), i32> {
        let p = self.by_id(id)?;
        let token = self.token();
        sys::set_nonblocking(&fd).map_err(errno)?;
        sys::epoll_set(self.epoll.as_raw_fd(), fd.as_raw_fd(), true, IN, token).map_err(errno)?;
        let (backlog, progress_ns) = (std::collections::VecDeque::new(), sys::now_ns());
        let session = Attached { fd, token, stdin, backlog, backlog_bytes: 0, progress_ns, open: true };
        self.processes[p].attached.push(session);
        Ok(())
    }

    /// A session's socket is readable or writable.
    fn session(&mut self, p: usize, s: usize) {
        let process = &mut self.processes[p];
        process.attached[s].flush();
        if process.input.len() < MAX_INPUT {
            self.buf.resize(MAX_ATTACH_PACKET, 0);
            match sys::recv(&process.attached[s].fd, &mut self.buf) {
                Ok((0, _)) => process.attached[s].open = false,
                Ok((len, _)) if process.attached[s].stdin => match self.buf[0] {
                    attach::STDIN if process.input_fd().is_some() => {
                        process.input.extend_from_slice(&self.buf[1..len]);
                        process.flush_input();
                    }
                    attach::STDIN_EOF => self.end_input(p, s),
                    _ => {}
                },
                Ok(_) => {}
                Err(err) if matches!(err.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
                Err(_) => process.attached[s].open = false,
            }
        }
        self.interest(p);
    }

    /// The client has no more input: with stdinOnce the process's stdin ends too.
    fn end_input(&mut self, p: usize, s: usize) {
        let process = &mut self.processes[p];
        process.attached[s].stdin = false;
        if process.flags & protocol::FLAG_STDIN_ONCE != 0 {
            // A pty can't be half closed: the terminal's own end-of-file character stands for it.
            if process.flags & protocol::FLAG_TTY != 0 {
                process.input.push(4);
                process.flush_input();
            } else {
                process.flush_input();
                // What the process has not taken by now is lost with the pipe only if it never reads; keep it open
                // until the input is gone.
                if process.input.is_empty() {
                    process.stdin = None;
                } else {
                    process.flags |= CLOSE_WHEN_FLUSHED;
                }
            }
        }
    }

    /// Sets what epoll waits for on a process's descriptors from its state.
    fn interest(&mut self, p: usize) {
        let epoll = self.epoll.as_raw_fd();
        let process = &mut self.processes[p];
        if process.flags & CLOSE_WHEN_FLUSHED != 0 && process.input.is_empty() {
            process.stdin = None;
        }
        let blocked = process.blocked();
        let waiting = !process.input.is_empty();
        let tty = process.flags & protocol::FLAG_TTY != 0;
        for output in &process.outputs {
            // A hang-up is reported whether asked for or not, so an ended stream leaves the set.
            let mut events = if blocked { 0 } else { IN };
            if tty && waiting {
                events |= OUT;
            }
            if output.open && (events != 0) {
                if sys::epoll_set(epoll, output.fd.as_raw_fd(), false, events, output.token).is_err() {
                    let _ = sys::epoll_set(epoll, output.fd.as_raw_fd(), true, events, output.token);
                }
            } else {
                sys::epoll_del(epoll, output.fd.as_raw_fd());
            }
        }
        if let Some(stdin) = &process.stdin {
            let events = if waiting { OUT } else { 0 };
            let _ = sys::epoll_set(epoll, stdin.as_raw_fd(), false, events, process.stdin_token);
        }
        let room = process.input.len() < MAX_INPUT;
        for session in &process.attached {
            let events = if room { IN } else { 0 } | if session.backlog.is_empty() { 0 } else { OUT };
            let _ = sys::epoll_set(epoll, session.fd.as_raw_fd(), false, events, session.token);
        }
    }

    /// Drops what has ended since the last round.
    fn sweep(&mut self) {
        self.connections.retain(|c| c.open);
        let now = sys::now_ns();
        for p in 0..self.processes.len() {
            let process = &mut self.processes[p];
            if process.attached.is_empty() {
                continue;
            }
            let (ended, once) =
                (process.state.exit.is_some() && process.drained(), protocol::FLAG_STDIN_ONCE);
            let before = process.attached.len();
            let mut had_stdin = false;
            process.attached.retain(|a| {
                let stalled = !a.backlog.is_empty() && now.saturating_sub(a.progress_ns) > ATTACH_STALL_NS;
                let keep = a.open && !stalled && !(ended && a.backlog.is_empty());
                had_stdin |= !keep && a.stdin;
                keep
            });
            if process.attached.len() != before {
                if had_stdin && process.flags & once != 0 && process.flags & protocol::FLAG_TTY == 0 {
                    process.flags |= CLOSE_WHEN_FLUSHED;
                }
                self.interest(p);
            }
        }
        // The read buffer is given back when nothing is attached to anything: an idle pod keeps no pages dirty.
        if self.buf.len() > 4096 && self.processes.iter().all(|p| p.attached.is_empty()) {
            self.lines = Vec::new();
        }
    }
}

/// Internal flag beside the protocol's: stdin ends as soon as the process has taken what waits.
const CLOSE_WHEN_FLUSHED: u8 = 0x80;

fn errno(err: io::Error) -> i32 {
    err.raw_os_error().unwrap_or(libc::EIO)
}
