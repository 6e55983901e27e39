//! The name server of names outside of the cluster: every name has one address.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result};

use super::cast::{A, OUTSIDE};
use super::message::name_end;

/// Where it listens.
#[derive(clap::Args)]
pub struct Args {
    /// Address and port.
    #[arg(long)]
    listen: SocketAddr,
}

/// Answers until it is ended.
pub fn run(args: &Args) -> Result<()> {
    let socket = UdpSocket::bind(args.listen).with_context(|| format!("listen on {}", args.listen))?;
    let mut buffer = [0; 4096];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer)?;
        if let Some(answer) = buffer.get(..length).and_then(answer) {
            // Who does not listen any more needs none.
            let _ = socket.send_to(&answer, peer);
        }
    }
}

/// The answer to a query; none to what is none.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let end = name_end(query, 12)? + 4;
    let (head, question) = (query.get(..12)?, query.get(12..end)?);
    let is_query = head.get(2)? & 0x80 == 0;
    let [.., high, low, _, _] = question else { return None };
    let count = u8::from(u16::from_be_bytes([*high, *low]) == A);
    // QR, RD, RA; one question, and what there is to answer.
    let mut bytes = vec![*head.first()?, *head.get(1)?, 0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0];
    bytes.extend_from_slice(question);
    if count == 1 {
        // The name of the question, A, IN, 30 seconds, four bytes.
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
        bytes.extend(OUTSIDE.octets());
    }
    is_query.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::cast::Workload;
    use crate::dns::message::Query;

    #[test]
    fn its_answers_are_right() {
        for workload in [Workload::Once, Workload::Repeated] {
            let query = Query::new(workload.question(10, 3, 9));
            let told = answer(query.with_id(7, &mut Vec::new())).unwrap();
            assert_eq!(query.check(&told), Ok(()));
            assert_eq!(answer(&told), None, "what answers is not answered");
        }
        let nodata = Query::new(Workload::Nodata.question(10, 3, 9));
        assert_eq!(nodata.check(&answer(nodata.with_id(7, &mut Vec::new())).unwrap()), Ok(()));
        assert_eq!(answer(b"short"), None);
    }
}
