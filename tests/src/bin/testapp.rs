//! The application that tests run in pods: a small HTTP server, and a client that counts what fails.
//!
//! - `testapp serve [--port 8080]`: answers every request with `<version> <hostname>`; on SIGTERM it goes on
//!   answering for two seconds (as a server does that waits for load balancers), then ends with 0.
//! - `testapp client URL_HOST:PORT [--seconds N]`: one new connection a request; prints `ok=… failed=…` each second
//!   and at the end, and ends with 1 when one failed.
//! - `testapp ask HOST:PORT [--seconds N] [--every-ms M]`: the same, but prints each answer: milliseconds since 1970, and
//!   the answer, or `error` and why; always ends with 0.
//! - `testapp hold HOST:PORT --seconds N`: one connection that sends a request every 100 ms; fails if it is cut.
//! - `testapp count --per-second N --seconds S`: prints numbered lines.
//! - `testapp udp-serve`/`udp-client HOST:PORT`: the same over UDP.
//! - `testapp sockets HOST:PORT HOST:PORT`: asks a TCP and a UDP server over each kind of socket that can reach an IPv4
//!   address, and fails where one does not see as its peer what it asked.
//! - `testapp resolve NAME [--seconds N]`: looks a name up again and again; prints `ok=… failed=… slowest_ms=…`.
//! - `testapp once NAME DIR [--seconds N] [--code C]`: says in DIR that it started, and if it runs twice; ends with C.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static STOPPING: AtomicBool = AtomicBool::new(false);

extern "C" fn on_term(_: libc::c_int) {
    STOPPING.store(true, Ordering::SeqCst);
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let handler: extern "C" fn(libc::c_int) = on_term;
    // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
    unsafe { libc::signal(libc::SIGTERM, handler as libc::sighandler_t) };
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let option = |name: &str, default: u64| {
        words
            .iter()
            .position(|word| *word == name)
            .and_then(|at| words.get(at + 1)?.parse().ok())
            .unwrap_or(default)
    };
    let seconds = Duration::from_secs(option("--seconds", 10));
    let result = match words.first() {
        Some(&"serve") => serve(option("--port", 8080) as u16),
        Some(&"client") if words.len() > 1 => client(words[1], seconds),
        Some(&"ask") if words.len() > 1 => {
            ask(words[1], seconds, Duration::from_millis(option("--every-ms", 100)))
        }
        Some(&"hold") if words.len() > 1 => hold(words[1], seconds),
        Some(&"count") => count(option("--per-second", 1000), seconds),
        Some(&"resolve") if words.len() > 1 => look_up(words[1], seconds),
        Some(&"once") if words.len() > 2 => match once(words[1], words[2], seconds) {
            Ok(()) => return ExitCode::from(option("--code", 0) as u8),
            failed => failed,
        },
        Some(&"udp-serve") => udp_serve(option("--port", 8081) as u16),
        Some(&"udp-client") if words.len() > 1 => udp_client(words[1]),
        Some(&"sockets") if words.len() > 2 => sockets(words[1], words[2]),
        _ => {
            Err("usage: testapp serve|client|ask|hold|count|resolve|once|udp-serve|udp-client|sockets …"
                .into())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testapp: {error}");
            ExitCode::FAILURE
        }
    }
}

type Res = Result<(), Box<dyn std::error::Error>>;

fn identity() -> String {
    let version = std::fs::read_to_string("/version").unwrap_or_default();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} {}", version.trim(), host.trim())
}

fn serve(port: u16) -> Res {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    listener.set_nonblocking(true)?;
    println!("serving {} on {port}", identity());
    let mut stop_at = None;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                std::thread::spawn(move || {
                    let _ = answer(stream);
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(2))
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        if STOPPING.load(Ordering::SeqCst) {
            let at = *stop_at.get_or_insert_with(|| Instant::now() + Duration::from_secs(2));
            if Instant::now() >= at {
                println!("stopped");
                return Ok(());
            }
        }
    }
}

fn answer(stream: TcpStream) -> Res {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        let mut first = true;
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() && !first {
                break;
            }
            first = false;
        }
        let body = identity() + "\n";
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
}

fn resolve(target: &str) -> Result<SocketAddr, Box<dyn std::error::Error>> {
    Ok(target.to_socket_addrs()?.next().ok_or("the name has no address")?)
}

fn request(stream: &mut TcpStream, close: bool) -> Result<String, Box<dyn std::error::Error>> {
    let connection = if close { "close" } else { "keep-alive" };
    write!(stream, "GET / HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let read = match stream.read(&mut buffer) {
            // SIGTERM came: a read with a timeout is not restarted by the kernel.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if read == 0 {
            return Err("connection closed early".into());
        }
        answer.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && body.ends_with('\n')
        {
            return Ok(body.trim().to_owned());
        }
    }
}

/// One request over a connection of its own.
fn ask_once(target: &str) -> Result<String, Box<dyn std::error::Error>> {
    let mut stream = TcpStream::connect_timeout(&resolve(target)?, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    request(&mut stream, true)
}

fn ask(target: &str, seconds: Duration, every: Duration) -> Res {
    let start = Instant::now();
    while start.elapsed() < seconds && !STOPPING.load(Ordering::SeqCst) {
        let answer = ask_once(target).unwrap_or_else(|error| format!("error {error}"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        println!("{} {answer}", now.as_millis());
        std::thread::sleep(every);
    }
    Ok(())
}

fn client(target: &str, seconds: Duration) -> Res {
    let start = Instant::now();
    let (mut ok, mut failed) = (0u64, 0u64);
    let mut report = Instant::now();
    while start.elapsed() < seconds && !STOPPING.load(Ordering::SeqCst) {
        match ask_once(target) {
            Ok(_) => ok += 1,
            Err(error) => {
                failed += 1;
                println!("error {error}");
            }
        }
        if report.elapsed() > Duration::from_secs(1) {
            println!("ok={ok} failed={failed}");
            report = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("done ok={ok} failed={failed}");
    if failed > 0 || ok == 0 { Err("requests failed".into()) } else { Ok(()) }
}

fn hold(target: &str, seconds: Duration) -> Res {
    let mut stream = TcpStream::connect_timeout(&resolve(target)?, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let start = Instant::now();
    let mut answers = 0u64;
    while start.elapsed() < seconds && !STOPPING.load(Ordering::SeqCst) {
        request(&mut stream, false)?;
        answers += 1;
        if answers % 10 == 1 {
            println!("held answers={answers}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("done answers={answers}");
    Ok(())
}

fn count(per_second: u64, seconds: Duration) -> Res {
    let start = Instant::now();
    let out = std::io::stdout();
    let mut next = 0u64;
    while start.elapsed() < seconds && !STOPPING.load(Ordering::SeqCst) {
        let due = (start.elapsed().as_secs_f64() * per_second as f64) as u64;
        let mut out = out.lock();
        while next < due {
            writeln!(out, "line {next}")?;
            next += 1;
        }
        drop(out);
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("end {next}");
    Ok(())
}

fn look_up(name: &str, seconds: Duration) -> Res {
    let start = Instant::now();
    let (mut ok, mut failed, mut slowest) = (0u64, 0u64, Duration::ZERO);
    while start.elapsed() < seconds && !STOPPING.load(Ordering::SeqCst) {
        let asked = Instant::now();
        match resolve(&format!("{name}:80")) {
            Ok(_) => ok += 1,
            Err(error) => {
                failed += 1;
                println!("error {error}");
            }
        }
        slowest = slowest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("done ok={ok} failed={failed} slowest_ms={}", slowest.as_millis());
    Ok(())
}

/// Leaves a line with its name in `DIR/starts`, and one in `DIR/twice` when another one of that name runs.
fn once(name: &str, dir: &str, seconds: Duration) -> Res {
    use std::os::fd::AsRawFd;
    let append = |file: &str| -> Res {
        let mut file = std::fs::File::options().create(true).append(true).open(format!("{dir}/{file}"))?;
        Ok(file.write_all(format!("{name}\n").as_bytes())?)
    };
    append("starts")?;
    let lock = std::fs::File::options().create(true).append(true).open(format!("{dir}/{name}.lock"))?;
    // SAFETY: the descriptor is open. The lock ends with this process, however that ends.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } < 0 {
        append("twice")?;
    }
    let start = Instant::now();
    while start.elapsed() < seconds && !STOPPING.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn udp_serve(port: u16) -> Res {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    println!("serving UDP on {port}");
    let mut buffer = [0; 1500];
    while !STOPPING.load(Ordering::SeqCst) {
        if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            socket.send_to(identity().as_bytes(), peer)?;
        }
    }
    Ok(())
}

fn udp_client(target: &str) -> Res {
    println!("{}", udp_ask("0.0.0.0:0", resolve(target)?, false)?);
    Ok(())
}

/// Asks over UDP, with an address for each datagram or with one for the socket.
fn udp_ask(local: &str, peer: SocketAddr, connected: bool) -> Result<String, Box<dyn std::error::Error>> {
    let socket = UdpSocket::bind(local)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut buffer = [0; 1500];
    let (read, from) = if connected {
        socket.connect(peer)?;
        socket.send(b"hello")?;
        (socket.recv(&mut buffer)?, socket.peer_addr()?)
    } else {
        // The answer's source must be the address that was asked.
        socket.send_to(b"hello", peer)?;
        socket.recv_from(&mut buffer)?
    };
    same_peer(peer, from)?;
    Ok(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

fn same_peer(asked: SocketAddr, seen: SocketAddr) -> Res {
    if asked == seen { Ok(()) } else { Err(format!("asked {asked}, answered by {seen}").into()) }
}

fn sockets(tcp: &str, udp: &str) -> Res {
    let (tcp, udp) = (resolve(tcp)?, resolve(udp)?);
    for mapped in [false, true] {
        // As a program has it that knows sockets of AF_INET6 only.
        let address = |peer: SocketAddr| match peer {
            SocketAddr::V4(v4) if mapped => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            peer => peer,
        };
        let mut stream = TcpStream::connect_timeout(&address(tcp), Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        same_peer(address(tcp), stream.peer_addr()?)?;
        request(&mut stream, true)?;
        for connected in [false, true] {
            udp_ask(if mapped { "[::]:0" } else { "0.0.0.0:0" }, address(udp), connected)?;
        }
    }
    println!("ok");
    Ok(())
}
