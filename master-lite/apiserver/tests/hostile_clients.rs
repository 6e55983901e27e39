//! Clients at the server's socket that speak plain HTTP, are slow, or never read.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/socket.rs"]
mod socket;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use keelson_apiserver::{Server, Timeouts};
use serde_json::{Value, json};
use socket::{Connection, Fixture};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_told_so() {
    let f = Fixture::new(Timeouts::default()).await;
    for request in ["GET /api HTTP/1.1\r\nhost: x\r\n\r\n", "POST /api/v1/pods HTTP/1.1\r\nhost: x\r\n\r\n{}"]
    {
        let mut stream = TcpStream::connect(f.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(5), read).await.unwrap().unwrap();
        assert_eq!(
            answer,
            "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
        );
    }
    // Neither the one nor the other: no answer, no harm.
    let mut stream = TcpStream::connect(f.address).await.unwrap();
    stream.write_all(&[0; 64]).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok() && !answer.starts_with(b"HTTP"));
    assert_eq!(f.connect(None).await.send("GET", "/version", "", Value::Null).await.0, 200);
}

/// Until the server has hung up; panics if it doesn't.
async fn hung_up(stream: &mut (impl tokio::io::AsyncRead + Unpin), what: &str) -> Duration {
    let started = Instant::now();
    let mut bytes = Vec::new();
    // An error or an end: gone either way.
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes))
        .await
        .unwrap_or_else(|_| panic!("{what}: still connected"));
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_not_waited_for() {
    let limit = Duration::from_secs(1);
    let f = Fixture::new(Timeouts { handshake: limit, headers: limit }).await;
    let silent = async {
        let mut stream = TcpStream::connect(f.address).await.unwrap();
        hung_up(&mut stream, "no handshake").await
    };
    let halting = async {
        let mut stream = TcpStream::connect(f.address).await.unwrap();
        stream.write_all(b"GE").await.unwrap();
        hung_up(&mut stream, "half a word").await
    };
    let mute = async {
        let mut stream = f.tls(None).await;
        hung_up(&mut stream, "no request").await
    };
    let slow = async {
        let mut stream = f.tls(None).await;
        stream.write_all(b"GET /version HTTP/1.1\r\n").await.unwrap();
        hung_up(&mut stream, "headers without an end").await
    };
    let trickle = async {
        let stream = f.tls(None).await;
        let (mut read, mut write) = tokio::io::split(stream);
        let feed = async {
            write.write_all(b"GET /version HTTP/1.1\r\n").await.unwrap();
            while write.write_all(b"a: b\r\n").await.is_ok() && write.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            took = hung_up(&mut read, "a header now and then") => took,
            () = feed => unreachable!(),
        }
    };
    let ends = futures::future::join_all([
        Box::pin(silent) as std::pin::Pin<Box<dyn Future<Output = Duration> + Send>>,
        Box::pin(halting),
        Box::pin(mute),
        Box::pin(slow),
        Box::pin(trickle),
    ])
    .await;
    assert!(ends.iter().all(|took| *took >= limit / 2), "{ends:?}: a client that is merely slow was cut off");
    // Who sends requests is not cut off between them by the time for the first.
    let mut client = f.connect(None).await;
    assert_eq!(client.send("GET", "/version", "", Value::Null).await.0, 200);
    let mut watch = f.connect(Some(f.pki.admin())).await;
    let mut events = watch.open("GET", &format!("{MAPS}?watch=1"), "", Value::Null).await.into_body();
    tokio::time::sleep(2 * limit).await;
    let mut admin = f.connect(Some(f.pki.admin())).await;
    admin.make(MAPS, json!({"metadata": {"name": "x"}})).await;
    let frame = tokio::time::timeout(Duration::from_secs(5), events.frame()).await.unwrap().unwrap();
    assert!(frame.unwrap().data_ref().is_some_and(|data| data.starts_with(b"{\"type\":\"ADDED\"")));
}

/// Counts the events of a watch, up to `most` or its end.
async fn count(body: &mut Incoming, most: usize) -> usize {
    let mut seen = 0;
    while seen < most
        && let Some(Ok(frame)) = body.frame().await
    {
        seen += frame.data_ref().unwrap().iter().filter(|byte| **byte == b'\n').count();
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_never_reads_is_dropped_and_slows_nobody() {
    const WRITERS: usize = 16;
    const EACH: usize = 100;
    let f = Fixture::new(Timeouts::default()).await;
    let admin = f.pki.admin();
    let mut client = f.connect(Some(admin)).await;
    let (_, list) = client.send("GET", MAPS, "", Value::Null).await;
    let path =
        format!("{MAPS}?watch=1&resourceVersion={}", list["metadata"]["resourceVersion"].as_str().unwrap());
    // A small window. The kernel may keep 4 MiB for it all the same: a quarter of a thousand events.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let stream = f.tls_over(socket.connect(f.address).await.unwrap(), Some(admin)).await;
    let mut stuck = Connection::over(stream).await;
    let mut reading = f.connect(Some(admin)).await;
    let mut stuck = stuck.open("GET", &path, "", Value::Null).await.into_body();
    let mut reading = reading.open("GET", &path, "", Value::Null).await.into_body();
    let reader = tokio::spawn(async move { count(&mut reading, WRITERS * EACH).await });
    let text = "x".repeat(16 << 10);
    let write = async |writer: usize| {
        let mut client = f.connect(Some(admin)).await;
        for n in 0..EACH {
            let name = format!("x{writer}");
            let object = json!({"metadata": {"name": name}, "data": {"n": n.to_string(), "text": text}});
            let (method, path, code) =
                if n == 0 { ("POST", MAPS.to_owned(), 201) } else { ("PUT", format!("{MAPS}/{name}"), 200) };
            let answer = client.send(method, &path, "", object).await;
            assert_eq!(answer.0, code, "{answer:?}");
        }
    };
    futures::future::join_all((0..WRITERS).map(write)).await;
    let seen = tokio::time::timeout(Duration::from_secs(10), reader).await.unwrap().unwrap();
    assert_eq!(seen, WRITERS * EACH, "the one that reads sees everything, and at once");
    // What was kept for the other: the sockets' buffers and a bounded queue, and then comes the end.
    let seen = tokio::time::timeout(Duration::from_secs(30), count(&mut stuck, usize::MAX)).await.unwrap();
    assert!((1..WRITERS * EACH).contains(&seen), "{seen} events were kept for a client that didn't read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_waits_for_no_watch() {
    let mut f = Fixture::new(Timeouts::default()).await;
    let mut client = f.connect(Some(f.pki.admin())).await;
    let mut watch = f.connect(Some(f.pki.admin())).await;
    let mut events = watch.open("GET", &format!("{MAPS}?watch=1"), "", Value::Null).await.into_body();
    client.make(MAPS, json!({"metadata": {"name": "x"}})).await;
    assert_eq!(count(&mut events, 1).await, 1);
    let started = Instant::now();
    f.shut_down().await;
    assert!(events.frame().await.is_none(), "the watch has an end and no error");
    // Running requests would have ten seconds.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_in_time_also_if_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    let store = keelson_store::EmbeddedStore::open(keelson_store::Options::new(dir.path().join("s"))).await;
    let server = Server::for_tests(Arc::new(store.unwrap()), "10.96.0.0/16".parse().unwrap()).await.unwrap();
    let send = async |method: &str, path: &str, body: String| {
        let body = keelson_apiserver::extension::full_body(body);
        let request = Request::builder().method(method).uri(path).body(body).unwrap();
        server.handle(request).await
    };
    let unread = send("GET", &format!("{MAPS}?watch=1&timeoutSeconds=1"), String::new()).await;
    for n in 0..200 {
        let object = json!({"metadata": {"name": format!("x{n}")}}).to_string();
        assert_eq!(send("POST", MAPS, object).await.status(), 201);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let metrics = send("GET", "/metrics", String::new()).await.into_body().collect().await.unwrap();
        let metrics = String::from_utf8(metrics.to_bytes().to_vec()).unwrap();
        if metrics.lines().any(|line| line == "apiserver_longrunning_requests 0") {
            break;
        }
        assert!(Instant::now() < deadline, "the watch still holds its queue:\n{metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(unread);
}
