//! Connections, each with a question at a time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::load::{LOST, Outcome, Questions};
use super::message::{Query, Wrong, id};

/// Questions over one connection: fewer than after which a server closes it (128 at CoreDNS).
const QUESTIONS: usize = 100;

/// Asks over so many connections at a time, each from a thread of its own.
pub fn run(
    server: SocketAddr,
    connections: usize,
    time: Duration,
    questions: &(impl Fn(usize) -> Questions + Sync),
) -> Result<Outcome> {
    let began = Instant::now();
    let end = began + time;
    let outcomes = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..connections)
            .map(|client| scope.spawn(move || ask(server, end, &questions(client))))
            .collect();
        clients.into_iter().map(|client| client.join()).collect::<Vec<_>>()
    });
    let mut all = Outcome::default();
    for outcome in outcomes {
        all = all.join(outcome.map_err(|_panic| anyhow::anyhow!("a client panicked"))?);
    }
    all.took = began.elapsed();
    Ok(all)
}

fn ask(server: SocketAddr, end: Instant, questions: &Questions) -> Outcome {
    let mut outcome = Outcome::default();
    while Instant::now() < end {
        let Ok(mut connection) = Connection::open(server) else {
            outcome.lost += 1;
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        for number in 0..QUESTIONS {
            if Instant::now() >= end {
                break;
            }
            let Some(query) = questions.next() else { return outcome };
            match connection.exchange(&query, u16::try_from(number).unwrap_or_default()) {
                Ok(checked) => outcome.note(&query, checked, true),
                Err(_closed) => {
                    outcome.lost += 1;
                    break;
                }
            }
        }
    }
    outcome
}

struct Connection {
    stream: TcpStream,
    query: Vec<u8>,
    framed: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    fn open(server: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&server, LOST)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOST))?;
        stream.set_write_timeout(Some(LOST))?;
        Ok(Self { stream, query: Vec::new(), framed: Vec::new(), answer: Vec::new() })
    }

    fn exchange(&mut self, query: &Query, number: u16) -> std::io::Result<Result<(), Wrong>> {
        let bytes = query.with_id(number, &mut self.query);
        self.framed.clear();
        self.framed.extend(u16::try_from(bytes.len()).unwrap_or_default().to_be_bytes());
        self.framed.extend_from_slice(bytes);
        self.stream.write_all(&self.framed)?;
        let mut length = [0; 2];
        self.stream.read_exact(&mut length)?;
        self.answer.resize(usize::from(u16::from_be_bytes(length)), 0);
        self.stream.read_exact(&mut self.answer)?;
        if id(&self.answer) == Some(number) { Ok(query.check(&self.answer)) } else { Ok(Err(Wrong::Another)) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use crate::dns::load::run;
    use crate::dns::load::tests::args;
    use crate::dns::message::tests::answer;

    use super::*;

    /// A server that says this of every name.
    fn serve(code: u8) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    loop {
                        let mut length = [0; 2];
                        if stream.read_exact(&mut length).is_err() {
                            return;
                        }
                        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                        stream.read_exact(&mut query).unwrap();
                        let told = answer(&query, code, 0, &[]);
                        let mut framed = u16::try_from(told.len()).unwrap().to_be_bytes().to_vec();
                        framed.extend(told);
                        stream.write_all(&framed).unwrap();
                    }
                });
            }
        });
        address
    }

    #[test]
    fn answers_are_counted_and_wrong_ones_fail() {
        let words = ["--tcp", "--outstanding", "3", "--seconds", "0.2"];
        let asked = |server| run(&args(server, "nxdomain", &words));
        asked(serve(3)).unwrap();
        let error = asked(serve(0)).unwrap_err().to_string();
        assert!(error.contains("Code(0) for"), "{error}");
    }
}
