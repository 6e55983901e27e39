//! gRPC health probe: `grpc.health.v1.Health/Check` over plain HTTP/2.
//!
//! The two messages have one field each, so they are written by hand: HealthCheckRequest `service = 1` (string),
//! HealthCheckResponse `status = 1` (enum, SERVING = 1).

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::Request;

use super::ProbeOutcome;

const SERVING: u8 = 1;
const MAX_ANSWER: usize = 4096;

/// Asks for the health of `service` (empty: the whole server).
pub async fn probe(host: &str, port: u16, service: &str, timeout: Duration) -> ProbeOutcome {
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match tokio::time::timeout(timeout, check(&authority, service)).await {
        Ok(outcome) => outcome.unwrap_or_else(ProbeOutcome::Failure),
        Err(_elapsed) => ProbeOutcome::Failure(format!(
            "timeout: failed to connect service {authority:?} within {timeout:?}: context deadline exceeded"
        )),
    }
}

async fn check(authority: &str, service: &str) -> Result<ProbeOutcome, String> {
    let failed = |e: &dyn std::fmt::Display| format!("error: health rpc probe failed: {e}");
    let tcp = tokio::net::TcpStream::connect(authority).await.map_err(|e| failed(&e))?;
    let (client, connection) = h2::client::handshake(tcp).await.map_err(|e| failed(&e))?;
    let driver = tokio::spawn(connection);
    let result = exchange(client, authority, service).await;
    driver.abort();
    result.map_err(|e| failed(&e))
}

async fn exchange(
    client: h2::client::SendRequest<Bytes>,
    authority: &str,
    service: &str,
) -> Result<ProbeOutcome, h2::Error> {
    let mut client = client.ready().await?;
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(());
    let Ok(request) = request else {
        return Ok(ProbeOutcome::Unknown(format!("bad address {authority:?}")));
    };
    let (response, mut body) = client.send_request(request, false)?;
    body.send_data(encode(service), true)?;
    let response = response.await?;
    let mut grpc_status = status_of(response.headers());
    let mut stream = response.into_body();
    let mut data = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        let _ = stream.flow_control().release_capacity(chunk.len());
        if data.len() + chunk.len() > MAX_ANSWER {
            break;
        }
        data.extend_from_slice(&chunk);
    }
    if let Some(trailers) = stream.trailers().await? {
        grpc_status = grpc_status.or_else(|| status_of(&trailers));
    }
    Ok(match grpc_status.as_deref() {
        Some("0") | None => match serving(&data) {
            Some(SERVING) => ProbeOutcome::Success,
            other => {
                let name = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
                let name = name.get(usize::from(other.unwrap_or(0))).copied().unwrap_or("UNKNOWN");
                ProbeOutcome::Failure(format!("service unhealthy (responded with {name:?})"))
            }
        },
        Some("12") => ProbeOutcome::Failure(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".into(),
        ),
        Some(code) => ProbeOutcome::Failure(format!("error: health rpc probe failed: grpc status {code}")),
    })
}

fn status_of(headers: &http::HeaderMap) -> Option<String> {
    headers.get("grpc-status").and_then(|v| v.to_str().ok()).map(str::to_owned)
}

/// One gRPC frame (flag, length, message) that holds the request.
fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(0));
    frame.put_slice(&message);
    frame.freeze()
}

/// The status in the first frame of an answer.
fn serving(data: &[u8]) -> Option<u8> {
    let message = data.get(5..)?;
    match message {
        [0x08, status, ..] => Some(*status),
        // A field that is 0 is left out.
        [] => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(&encode("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&encode("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(serving(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(serving(&[]), None);
    }
}
