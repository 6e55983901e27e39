//! Datagrams. Cluster names are answered in the loop; what must wait for an upstream gets a task, of which
//! the forwarder bounds the number that really waits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

use super::{Service, Step};
use crate::respond::Transport;

/// The longest query that is read, in bytes; real ones are far shorter.
const MAX_QUERY: usize = 4096;

/// The most queries of one socket that may wait; more are dropped, as by a full queue.
const MAX_WAITING: usize = 2048;

pub(super) async fn serve(service: Arc<Service>, socket: Arc<UdpSocket>) {
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    let mut buffer = vec![0u8; MAX_QUERY];
    loop {
        let received = tokio::select! {
            biased;
            () = service.end.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, peer) = match received {
            Ok(received) => received,
            Err(error) => {
                // Port-unreachable messages of earlier answers come up here as errors.
                tracing::debug!(%error, "receiving a query failed");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        match service.step(&buffer[..length], Transport::Udp) {
            Step::Silence => {}
            Step::Answer(answer) => send(&socket, peer, answer).await,
            Step::Wait(pending) => {
                let Ok(permit) = Arc::clone(&waiting).try_acquire_owned() else { continue };
                let (service, socket) = (Arc::clone(&service), Arc::clone(&socket));
                service.tasks.clone().spawn(async move {
                    let answer = service.finish(*pending).await;
                    send(&socket, peer, answer).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, peer: SocketAddr, answer: Option<Vec<u8>>) {
    let Some(answer) = answer else { return };
    if let Err(error) = socket.send_to(&answer, peer).await {
        tracing::debug!(%peer, %error, "sending an answer failed");
    }
}
