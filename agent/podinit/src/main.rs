//! keelson-podinit: PID 1 of a pod. See the library's documentation for what it is and how it is built.
//!
//! It starts with one descriptor, number 3: a bound Unix socket. Everything else comes over that.

mod process;
mod server;
mod sys;

/// Number of the inherited listener.
const LISTENER: i32 = 3;

fn main() {
    // No message may ever reach a descriptor that turns out to be a container's log.
    std::panic::set_hook(Box::new(|_| {}));
    let code = match server::Server::new(sys::inherited(LISTENER)) {
        Ok(mut server) => server.run(),
        Err(err) => err.raw_os_error().unwrap_or(1),
    };
    std::process::exit(code);
}
