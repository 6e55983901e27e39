//! Connections: length-prefixed queries, one after the other (RFC 7766).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Service, Step};
use crate::respond::Transport;

/// How long a connection may be idle, or take for one query or answer.
const IDLE: Duration = Duration::from_secs(10);

/// How long a connection is still read from once the server is to end.
const GRACE: Duration = Duration::from_millis(500);

/// Queries on one connection, after which it is closed: a connection slot isn't for ever.
const MAX_QUERIES: usize = 1000;

/// Bytes that are read at once: a query with its length, or several.
const READ: usize = 1024;

pub(super) async fn serve(service: Arc<Service>, listener: TcpListener, connections: Arc<Semaphore>) {
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = service.end.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let service = Arc::clone(&service);
                service.tasks.clone().spawn(async move {
                    if let Err(error) = converse(&service, stream).await {
                        tracing::debug!(%peer, %error, "DNS connection ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: going round at once would only burn time.
                tracing::warn!(%error, "accepting a DNS connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(service: &Service, stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(READ, stream);
    let mut answer = Vec::new();
    for _ in 0..MAX_QUERIES {
        let read = tokio::select! {
            read = timeout(IDLE, read_query(&mut stream)) => read,
            () = ending(service) => return Ok(()),
        };
        let query = match read {
            Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(query) => query?,
            Err(_elapsed) => return Ok(()),
        };
        let known = service.connections.lock().find(&query, service.serial(), &mut answer);
        if !known {
            answer = match service.step(&query, Transport::Tcp) {
                Step::Silence | Step::Answer(None, _) => return Ok(()),
                Step::Answer(Some(answer), serial) => {
                    if let Some(serial) = serial {
                        service.connections.lock().keep(&query, &answer, serial);
                    }
                    answer
                }
                Step::Wait(pending) => match service.finish(*pending).await {
                    Some(answer) => answer,
                    None => return Ok(()),
                },
            };
        }
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        // One write: a length in a packet of its own confuses some resolvers and wakes all of them twice.
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

/// The end, and time for what was on its way when it came.
async fn ending(service: &Service) {
    service.end.cancelled().await;
    tokio::time::sleep(GRACE).await;
}

async fn read_query(stream: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    // A peer that announces 64 kB and sends nothing holds no more than it has sent.
    let mut query = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut query).await?;
    if query.len() < usize::from(length) { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(query) }
}
