//! The kubelet's HTTPS API over real TLS connections, with a made-up runtime behind it: who is let in, and what exec,
//! attach, port-forward and logs say on the wire.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{SinkExt, StreamExt};
use http::StatusCode;
use serde_json::Value;
use support::{Kubelet, Spdy, Who, connect_websocket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn nobody_is_anonymous() {
    let kubelet = Kubelet::start().await;
    assert_eq!(kubelet.get_as(None, "/pods").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(kubelet.get_as(Some("wrong"), "/pods").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(kubelet.get_as(Some("reader"), "/stats/summary").await.0, StatusCode::OK);
    let (status, body) = kubelet.get_as(Some("reader"), "/containerLogs/default/web/app").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(body.contains("subresource(s)=[proxy]"), "{body}");
    assert_eq!(kubelet.get("/healthz").await, (StatusCode::OK, "ok".to_owned()));
}

#[tokio::test]
async fn pods_logs_and_stats() {
    let kubelet = Kubelet::start().await;
    let (_, pods) = kubelet.get("/pods").await;
    let pods: Value = serde_json::from_str(&pods).unwrap();
    assert_eq!(pods["items"][0]["metadata"]["name"], "web");
    assert_eq!(kubelet.get("/containerLogs/default/web/app?tailLines=1").await.1, "two\n");
    assert_eq!(kubelet.get("/containerLogs/default/none/app").await.0, StatusCode::NOT_FOUND);
    assert_eq!(kubelet.get("/containerLogs/default/web/none").await.0, StatusCode::NOT_FOUND);
    let (status, body) = kubelet.get("/containerLogs/default/web/app?previous=true").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("previous terminated container"), "{body}");
    let (_, summary) = kubelet.get("/stats/summary").await;
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["pods"][0]["containers"][0]["memory"]["workingSetBytes"], 4096);
    let (_, metrics) = kubelet.get("/metrics/resource").await;
    assert!(metrics.contains(
        "container_memory_working_set_bytes{container=\"app\",namespace=\"default\",pod=\"web\"} 4096"
    ));
    let (_, metrics) = kubelet.get("/metrics").await;
    assert!(metrics.contains("kubelet_running_pods 1"), "{metrics}");
}

/// Sends messages, closes stdin, and collects what comes back by channel.
async fn websocket_exec(kubelet: &Kubelet, protocol: &str, path: &str, sent: Vec<Vec<u8>>) -> [Vec<u8>; 5] {
    let (mut socket, chosen) = connect_websocket(kubelet, protocol, path).await.unwrap();
    assert_eq!(chosen, protocol);
    for message in sent {
        socket.send(Message::Binary(message.into())).await.unwrap();
    }
    let mut channels: [Vec<u8>; 5] = Default::default();
    while let Some(message) = socket.next().await {
        match message.unwrap() {
            Message::Binary(data) => channels[usize::from(data[0])].extend_from_slice(&data[1..]),
            Message::Close(frame) => {
                assert_eq!(u16::from(frame.unwrap().code), 1000);
                break;
            }
            _ => {}
        }
    }
    channels
}

#[tokio::test]
async fn exec_over_websocket() {
    let kubelet = Kubelet::start().await;
    let path = "/exec/default/web/app?command=cat&input=1&output=1&error=1";
    let sent = vec![b"\0hello ".to_vec(), b"\0world".to_vec(), vec![255, 0]];
    let [_, stdout, stderr, error, _] = websocket_exec(&kubelet, "v5.channel.k8s.io", path, sent).await;
    assert_eq!(String::from_utf8(stdout).unwrap(), "hello world");
    assert_eq!(String::from_utf8(stderr).unwrap(), "11 bytes\n");
    assert_eq!(serde_json::from_slice::<Value>(&error).unwrap()["status"], "Success");
}

#[tokio::test]
async fn every_protocol_of_a_websocket() {
    let kubelet = Kubelet::start().await;
    let failure = "command terminated with non-zero exit code: command terminated with exit code 3";
    for protocol in ["", "channel.k8s.io", "base64.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        for (command, want_error) in [("other", failure), ("size", "")] {
            let path = format!("/exec/default/web/app?command={command}&input=1&output=1&tty=1");
            let (mut socket, chosen) = connect_websocket(&kubelet, protocol, &path).await.unwrap();
            assert_eq!(chosen, protocol);
            let base64 = protocol.contains("base64");
            let resize = r#"{"Width":132,"Height":43}"#;
            let message = if base64 {
                Message::text(format!("4{}", STANDARD.encode(resize)))
            } else {
                Message::binary(format!("\x04{resize}").into_bytes())
            };
            // What is no channel is ignored.
            socket.send(Message::text("9AAAA")).await.unwrap();
            socket.send(message).await.unwrap();
            let mut channels: [Vec<u8>; 5] = Default::default();
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Text(text) => {
                        assert!(base64);
                        let (channel, data) = text.split_at(1);
                        channels[channel.parse::<usize>().unwrap()].extend(STANDARD.decode(data).unwrap());
                    }
                    Message::Binary(data) => {
                        assert!(!base64);
                        channels[usize::from(data[0])].extend_from_slice(&data[1..]);
                    }
                    _ => {}
                }
            }
            let text = |channel: usize| String::from_utf8(channels[channel].clone()).unwrap();
            assert_eq!(text(1), if command == "size" { "132x43" } else { "attached" }, "{protocol}");
            if protocol.starts_with("v4") {
                let status: Value = serde_json::from_str(&text(3)).unwrap();
                assert_eq!(status["status"], if want_error.is_empty() { "Success" } else { "Failure" });
            } else {
                assert_eq!(text(3), want_error, "{protocol}");
            }
        }
    }
}

#[tokio::test]
async fn exit_codes_reach_the_error_channel() {
    let kubelet = Kubelet::start().await;
    let path = "/exec/default/web/app?command=exit&command=7&output=1";
    let [_, _, _, error, _] = websocket_exec(&kubelet, "v4.channel.k8s.io", path, Vec::new()).await;
    let status: Value = serde_json::from_slice(&error).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["reason"], "ExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "7");
    let path = "/exec/default/web/app?command=missing&output=1";
    let [_, _, _, error, _] = websocket_exec(&kubelet, "v4.channel.k8s.io", path, Vec::new()).await;
    let status: Value = serde_json::from_slice(&error).unwrap();
    assert_eq!(status["reason"], "InternalError");
}

#[tokio::test]
async fn a_terminal_is_resized() {
    let kubelet = Kubelet::start().await;
    let path = "/exec/default/web/app?command=size&input=1&output=1&tty=1";
    let sent = vec![b"\x04{\"Width\":132,\"Height\":43}".to_vec()];
    let [_, stdout, _, _, _] = websocket_exec(&kubelet, "v5.channel.k8s.io", path, sent).await;
    assert_eq!(String::from_utf8(stdout).unwrap(), "132x43");
}

#[tokio::test]
async fn unknown_protocols_are_refused() {
    let kubelet = Kubelet::start().await;
    let path = "/exec/default/web/app?command=cat&output=1";
    assert_eq!(
        connect_websocket(&kubelet, "v9.channel.k8s.io", path).await.err(),
        Some(StatusCode::BAD_REQUEST)
    );
    let refused = Spdy::connect(&kubelet, "v9.channel.k8s.io", path).await.err();
    assert_eq!(refused, Some(StatusCode::FORBIDDEN));
    let path = "/exec/default/none/app?command=cat&output=1";
    assert_eq!(
        connect_websocket(&kubelet, "v5.channel.k8s.io", path).await.err(),
        Some(StatusCode::NOT_FOUND)
    );
}

#[tokio::test]
async fn exec_over_spdy() {
    let kubelet = Kubelet::start().await;
    let path = "/exec/default/web/app?command=cat&input=1&output=1&error=1";
    let mut spdy = Spdy::connect(&kubelet, "v4.channel.k8s.io", path).await.unwrap();
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        spdy.open(id, &[("streamtype", kind)]).await;
    }
    spdy.send(3, b"half closed", true).await;
    let streams = spdy.collect().await;
    assert_eq!(streams[&5], b"half closed");
    assert_eq!(streams[&7], b"11 bytes\n");
    assert_eq!(serde_json::from_slice::<Value>(&streams[&1]).unwrap()["status"], "Success");
}

#[tokio::test]
async fn attach_over_spdy_succeeds_whatever_the_exit_code() {
    let kubelet = Kubelet::start().await;
    let mut spdy =
        Spdy::connect(&kubelet, "v4.channel.k8s.io", "/attach/default/web/app?output=1").await.unwrap();
    spdy.open(1, &[("streamtype", "error")]).await;
    spdy.open(3, &[("streamtype", "stdout")]).await;
    let streams = spdy.collect().await;
    assert_eq!(streams[&3], b"attached");
    assert_eq!(serde_json::from_slice::<Value>(&streams[&1]).unwrap()["status"], "Success");
}

/// Sends a line through one forwarded connection and reads the echo.
async fn echo_through(spdy: &mut Spdy, first_id: u32, port: u16) {
    let port = port.to_string();
    let request = first_id.to_string();
    for (id, kind) in [(first_id, "error"), (first_id + 2, "data")] {
        spdy.open(id, &[("streamtype", kind), ("port", &port), ("requestid", &request)]).await;
    }
    spdy.send(first_id + 2, b"ping", true).await;
    assert_eq!(spdy.read_stream(first_id + 2).await, b"ping");
    assert_eq!(spdy.read_stream(first_id).await, b"");
}

#[tokio::test]
async fn port_forward_over_spdy_and_in_a_websocket() {
    let kubelet = Kubelet::start().await;
    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = echo.accept().await.unwrap();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            });
        }
    });
    let mut plain = Spdy::connect(&kubelet, "portforward.k8s.io", "/portForward/default/web").await.unwrap();
    echo_through(&mut plain, 1, port).await;
    echo_through(&mut plain, 5, port).await;
    let mut tunnelled = Spdy::tunnel(&kubelet, "/portForward/default/web").await;
    echo_through(&mut tunnelled, 1, port).await;
    // A port where nobody listens is said on the error stream, and the connection goes on.
    tunnelled.open(9, &[("streamtype", "error"), ("port", "1"), ("requestid", "9")]).await;
    tunnelled.open(11, &[("streamtype", "data"), ("port", "1"), ("requestid", "9")]).await;
    let message = String::from_utf8(tunnelled.read_stream(9).await).unwrap();
    assert!(message.starts_with("error forwarding port 1 to pod"), "{message}");
    echo_through(&mut tunnelled, 13, port).await;
}

#[tokio::test]
async fn pods_of_this_node_can_be_reached() {
    let kubelet = Kubelet::start().await;
    // The pod's address is 127.0.0.1.
    let pod = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = pod.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = pod.accept().await.unwrap();
        let mut asked = Vec::new();
        stream.read_to_end(&mut asked).await.unwrap();
        asked.reverse();
        stream.write_all(&asked).await.unwrap();
    });
    let mut tunnel = kubelet.tunnel(Who::Certificate("admin"), &to).await.unwrap();
    tunnel.write_all(b"hello").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut answer = String::new();
    tunnel.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "olleh");

    let refused = async |who: Who<'_>, to: &str| kubelet.tunnel(who, to).await.err().unwrap();
    let admin = Who::Certificate("admin");
    assert_eq!(refused(Who::Certificate("reader"), &to).await.0, StatusCode::FORBIDDEN);
    assert_eq!(refused(Who::Token("wrong"), &to).await.0, StatusCode::UNAUTHORIZED);
    let no_certificate = (StatusCode::FORBIDDEN, "CONNECT takes a client certificate\n".to_owned());
    assert_eq!(refused(Who::Token("admin"), &to).await, no_certificate);
    let elsewhere = (StatusCode::FORBIDDEN, "no pod of this node has the address 127.0.0.9\n".to_owned());
    assert_eq!(refused(admin, "127.0.0.9:80").await, elsewhere);
    assert_eq!(refused(admin, "localhost:80").await.0, StatusCode::BAD_REQUEST);
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (status, why) = refused(admin, &closed.to_string()).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(why.contains("Connection refused"), "{why}");
    assert_eq!(kubelet.get("/nothing").await, (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()));
}
