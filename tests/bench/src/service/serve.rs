//! The endpoint: says its name, or counts bytes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result};

use super::objects::ENDPOINT_PORT;
use super::{ASK_LENGTH, ASK_NAME, Processor};

/// Connections served at a time.
const AT_ONCE: usize = 64;

/// Where to answer.
#[derive(clap::Args)]
pub struct Args {
    /// Address to listen at.
    #[arg(long)]
    address: Ipv4Addr,
    /// What to answer: one letter.
    #[arg(long)]
    name: char,
}

/// Answers until killed.
pub fn run(args: &Args) -> Result<()> {
    Processor::Last.keep()?;
    let name = u8::try_from(args.name).context("the name is one ASCII letter")?;
    let here = (args.address, ENDPOINT_PORT);
    let listener = TcpListener::bind(here).with_context(|| format!("listen at {here:?}"))?;
    let datagrams = UdpSocket::bind(here).with_context(|| format!("listen at {here:?} for UDP"))?;
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    // A client that is gone before it is served is not the server's trouble.
                    let _ = listener.accept().and_then(|(stream, _)| answer(stream, name));
                }
            });
        }
        let mut buffer = [0; 2_048];
        loop {
            let Ok((length, from)) = datagrams.recv_from(&mut buffer) else { continue };
            if let Some(first) = buffer.first_mut() {
                *first = name;
            }
            // As above.
            let _ = datagrams.send_to(buffer.get(..length).unwrap_or_default(), from);
        }
    })
}

/// Serves a connection to its end.
fn answer(mut stream: TcpStream, name: u8) -> std::io::Result<()> {
    let mut asked = [0];
    stream.read_exact(&mut asked)?;
    match asked[0] {
        ASK_NAME => {
            stream.write_all(&[name])?;
            // Until the client closes.
            stream.read(&mut asked).map(drop)
        }
        ASK_LENGTH => {
            let mut buffer = vec![0; 256 << 10];
            let mut total: u64 = 0;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return stream.write_all(&total.to_le_bytes()),
                    length => total += u64::try_from(length).unwrap_or_default(),
                }
            }
        }
        _ => Ok(()),
    }
}
