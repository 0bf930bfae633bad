//! Peers that are silent, or slow: they keep nobody out and hold nothing for long, and a slow one is not taken for a
//! stalled one.

use std::time::{Duration, Instant};

use esker_client::wire::SegmentInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UnixStream};

use crate::daemon::{TestDaemon, checkpoint};
use crate::process::Process;
use crate::raw::{Raw, ask, request};
use crate::support::pattern;

const PUT: &str = "/v1/jobs/j/segments?checkpoint=1";
const LIVE: &[u8] = b"GET /livez HTTP/1.1\r\nhost: esker\r\n\r\n";
/// HTTP/2's preface, and an empty SETTINGS frame: a whole client that never asks for anything.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Far below what any of these tests waits for something to happen by itself.
const AT_ONCE: Duration = Duration::from_millis(900);
/// Memory for six bodies of 1 MiB.
const LITTLE_MEMORY: [(&str, &str); 7] = [
    ("limits.memory", "8mb"),
    ("limits.multipart-memory", "1mb"),
    ("limits.multipart-part-in-memory-max", "256kb"),
    ("store.part-size", "1mb"),
    ("store.max-bytes-in-flight", "2mb"),
    ("execution.checkpointing.file-merging.max-file-size", "2mb"),
    ("merging.group-bytes-max", "1mb"),
];

async fn start(flags: &[(&str, &str)]) -> TestDaemon {
    let daemon = TestDaemon::start(flags).await;
    daemon.client.create_job("j").await.unwrap();
    daemon
}

async fn put(daemon: &TestDaemon, seed: u64, len: usize) -> SegmentInfo {
    daemon.client.put("j", &checkpoint(1), None, pattern(seed, len).into()).await.unwrap()
}

/// A put of `len` bytes that has sent none of them.
async fn begun_put(daemon: &TestDaemon, len: usize) -> Raw {
    let mut raw = Raw::connect(daemon.api()).await;
    raw.send(format!("POST {PUT} HTTP/1.1\r\nhost: esker\r\ncontent-length: {len}\r\n\r\n")).await;
    raw
}

/// A reader of a segment that takes no byte after this.
async fn stalled_get(daemon: &TestDaemon, info: &SegmentInfo) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut stream = socket.connect(daemon.api()).await.unwrap();
    let head = format!("GET /v1/segments/{} HTTP/1.1\r\nhost: esker\r\n\r\n", info.segment);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    stream
}

#[tokio::test]
async fn sockets_that_say_nothing_keep_nobody_out_and_are_cut() {
    for preface in [&b""[..], H2_PREFACE, b"PRI * HTTP/2.0", b"GET /livez HTTP/1.1\r\nx: "] {
        let daemon = TestDaemon::start(&[("limits.connections-max", "32"), ("limits.head-timeout", "1 s")]).await;
        let mut silent = vec![];
        for number in 0..32 {
            let mut raw = Raw::connect(if number % 2 == 0 { daemon.s3() } else { daemon.api() }).await;
            raw.send(preface).await;
            silent.push(raw);
        }

        let begun = Instant::now();
        let live = ask(daemon.api(), LIVE).await;
        assert!(live.status == 200 && begun.elapsed() < AT_ONCE, "{live:?} after {:?}", begun.elapsed());

        for raw in &mut silent {
            while raw.more().await {}
        }
        assert!(begun.elapsed() < Duration::from_secs(8), "they were there for {:?}", begun.elapsed());
        assert_eq!(ask(daemon.s3(), "GET / HTTP/1.1\r\nhost: esker\r\n\r\n").await.status, 200);
        assert!(daemon.client.metrics().await.is_ok());
        assert_eq!(daemon.metric("esker_rejected_total{reason=\"silent\"}").await, 32.0);
    }
}

#[tokio::test]
async fn newcomers_take_the_places_of_silent_sockets_before_these_are_cut() {
    let daemon = TestDaemon::start(&[("limits.connections-max", "8"), ("limits.head-timeout", "60 s")]).await;
    let mut silent = vec![];
    for _ in 0..40 {
        silent.push(Raw::connect(daemon.s3()).await);
    }

    let begun = Instant::now();
    while ask(daemon.s3(), "GET / HTTP/1.1\r\nhost: esker\r\n\r\n").await.status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(10), "no silent socket gives way");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn while_every_place_is_busy_health_is_answered_and_the_rest_is_told_to_come_back() {
    let daemon = start(&[("limits.connections-max", "4")]).await;
    // The client that created the job has the first place, until it gives way.
    let mut busy = vec![];
    for _ in 0..3 {
        busy.push(begun_put(&daemon, 9).await);
    }
    let mut all_busy = async || {
        busy.push(begun_put(&daemon, 9).await);
        ask(daemon.s3(), "GET / HTTP/1.1\r\nhost: esker\r\n\r\n").await
    };
    let mut refused = all_busy().await;
    let begun = Instant::now();
    while refused.status != 503 {
        assert!(begun.elapsed() < Duration::from_secs(10));
        refused = all_busy().await;
    }

    assert!(refused.text().contains("<Code>SlowDown</Code>"), "{}", refused.text());
    assert_eq!((refused.header("retry-after"), refused.header("connection")), (Some("1"), Some("close")));
    for path in ["livez", "readyz", "metrics"] {
        let answer = ask(daemon.api(), format!("GET /{path} HTTP/1.1\r\nhost: esker\r\n\r\n")).await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{path}");
    }
    let refused = ask(daemon.api(), request("POST", PUT, "", b"123")).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.error().0, "overloaded");

    for raw in &mut busy[..3] {
        raw.send(b"123456789").await;
        assert_eq!(raw.answer().await.unwrap().status, 201, "who had a place is served");
    }
    let begun = Instant::now();
    while ask(daemon.api(), request("POST", PUT, "", b"123")).await.status != 201 {
        assert!(begun.elapsed() < Duration::from_secs(10), "those that are served are idle now, and give way");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn connections_without_a_request_are_closed_on_the_unix_socket_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let socket = path.display().to_string();
    let flags = [("limits.idle-timeout", "600 ms"), ("limits.head-timeout", "600 ms")];
    let daemon = TestDaemon::start(&[&flags[..], &[("server.api-unix-socket", &socket)]].concat()).await;
    let mut idle = Raw::connect(daemon.api()).await;
    for _ in 0..4 {
        idle.send(LIVE).await;
        assert_eq!(idle.answer().await.unwrap().status, 200, "it is not idle for so long");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let mut silent = UnixStream::connect(&path).await.unwrap();

    assert!(idle.is_over().await);
    let mut rest = vec![];
    assert_eq!(silent.read_to_end(&mut rest).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_body_that_trickles_is_refused_and_a_slow_one_is_stored() {
    let flags = [("limits.rate-min", "4 kb"), ("limits.rate-window", "1 s"), ("limits.body-timeout", "60 s")];
    let daemon = start(&flags).await;
    let trickle = async |raw: &mut Raw| {
        let begun = Instant::now();
        for byte in [b'a'; 100].chunks(1) {
            raw.send(byte).await;
            if tokio::time::timeout(Duration::from_millis(100), raw.more()).await == Ok(true) {
                break;
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(8));
        raw.answer().await.unwrap()
    };

    let mut native = begun_put(&daemon, 100_000).await;
    let refused = trickle(&mut native).await;
    assert_eq!((refused.status, refused.header("connection")), (408, Some("close")));
    assert!(native.is_over().await);
    let mut s3 = Raw::connect(daemon.s3()).await;
    s3.send("PUT /checkpoints/k HTTP/1.1\r\nhost: esker\r\ncontent-length: 100000\r\n\r\n").await;
    let refused = trickle(&mut s3).await;
    assert!(refused.text().contains("<Code>RequestTimeout</Code>"), "{}", refused.text());
    assert!(s3.is_over().await);
    let mut json = Raw::connect(daemon.api()).await;
    json.send("POST /v1/jobs HTTP/1.1\r\nhost: esker\r\ncontent-length: 1000\r\n\r\n").await;
    assert_eq!(trickle(&mut json).await.status, 408);
    assert_eq!(daemon.metric("esker_rejected_total{reason=\"slow\"}").await, 3.0);

    // Half more than the least, in lumps, for several windows.
    let data = pattern(1, 18 << 10);
    let mut slow = begun_put(&daemon, data.len()).await;
    for lump in data.chunks(3 << 10) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        slow.send(lump).await;
    }
    assert_eq!(slow.answer().await.unwrap().status, 201);
}

#[tokio::test]
async fn an_answer_that_nobody_takes_is_cut_and_a_slow_reader_gets_its_bytes() {
    let daemon = start(&[("limits.rate-min", "16 kb"), ("limits.rate-window", "3 s")]).await;
    let info = put(&daemon, 1, 8 << 20).await;
    let mut stalled = stalled_get(&daemon, &info).await;
    assert!(daemon.metric("esker_in_flight_bytes").await > 0.0);

    daemon.metric_becomes("esker_rejected_total{reason=\"slow_reader\"}", 1.0).await;
    daemon.metric_becomes("esker_in_flight_bytes", 0.0).await;
    let mut got = vec![];
    drop(stalled.read_to_end(&mut got).await);
    assert!(got.len() < 8 << 20, "it was cut");

    let mut slow = stalled_get(&daemon, &info).await;
    let (begun, mut got) = (Instant::now(), vec![]);
    while begun.elapsed() < Duration::from_secs(8) {
        let mut lump = vec![0; 60 << 10];
        slow.read_exact(&mut lump).await.unwrap();
        got.extend_from_slice(&lump);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let head_len = got.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert!(pattern(1, 8 << 20).starts_with(&got[head_len..]), "it got the bytes");
}

#[tokio::test]
async fn readers_that_stall_refuse_no_writer() {
    // However long they stall.
    let daemon =
        start(&[&LITTLE_MEMORY[..], &[("limits.rate-min", "0"), ("limits.admission-timeout", "1 s")]].concat()).await;
    let info = put(&daemon, 1, 8 << 20).await;
    let mut stalled = vec![];
    for _ in 0..20 {
        let mut raw = Raw::connect(daemon.api()).await;
        raw.send(format!("GET /v1/segments/{} HTTP/1.1\r\nhost: esker\r\n\r\n", info.segment)).await;
        stalled.push(raw);
    }
    let gone = Instant::now();
    while daemon.metric("esker_in_flight_bytes").await < f64::from(3 << 20) {
        assert!(gone.elapsed() < Duration::from_secs(10), "the readers hold nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    for seed in 0..20 {
        put(&daemon, seed, 1 << 20).await;
    }
    let puts = (0..3).map(|seed| put(&daemon, seed, 1 << 20));
    futures::future::join_all(puts).await;
}

#[tokio::test]
async fn writers_that_send_next_to_nothing_hold_nothing() {
    let daemon = start(&LITTLE_MEMORY).await;
    let mut trickling = vec![];
    for number in 0..64 {
        let mut raw = begun_put(&daemon, 1 << 20).await;
        raw.send(&b"a"[..number % 2]).await;
        trickling.push(raw);
    }

    let begun = Instant::now();
    for seed in 0..10 {
        put(&daemon, seed, 1 << 20).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "they waited for the others");
    assert_eq!(daemon.metric("esker_in_flight_bytes").await, 0.0);
}

#[tokio::test]
async fn writers_that_stop_in_the_middle_give_way_to_others() {
    let daemon = start(&[&LITTLE_MEMORY[..], &[("limits.rate-window", "4 s")]].concat()).await;
    let mut stopped = vec![];
    for _ in 0..8 {
        let mut raw = begun_put(&daemon, 1 << 20).await;
        raw.send(pattern(1, 100 << 10)).await;
        stopped.push(raw);
    }
    let begun = Instant::now();
    // All there is but for what the connections themselves take.
    while daemon.metric("esker_in_flight_bytes").await < f64::from(5 << 20) {
        assert!(begun.elapsed() < Duration::from_secs(10), "they hold nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    for seed in 0..10 {
        put(&daemon, seed, 1 << 20).await;
    }
    assert!(daemon.metric("esker_rejected_total{reason=\"slow\"}").await >= 5.0, "they gave way");
}

#[tokio::test]
async fn an_http2_client_that_reads_one_answer_and_not_the_other_is_cut() {
    let daemon = start(&[("limits.rate-min", "16 kb"), ("limits.rate-window", "1 s")]).await;
    let info = put(&daemon, 1, 4 << 20).await;
    let io = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::connect(daemon.api()).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut h2, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let running = tokio::spawn(connection);
    let get = || {
        let uri = format!("http://esker/v1/segments/{}", info.segment);
        http::Request::get(uri).body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap()
    };

    let stalled = h2.send_request(get()).await.unwrap();
    let begun = Instant::now();
    while let Ok(read) = h2.send_request(get()).await {
        let whole = http_body_util::BodyExt::collect(read.into_body()).await;
        assert!(whole.is_err() || whole.unwrap().to_bytes().len() == 4 << 20);
        assert!(begun.elapsed() < Duration::from_secs(10), "a stalled answer may stay");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(stalled);
    drop(running.await);
    daemon.metric_becomes("esker_in_flight_bytes", 0.0).await;
    assert_eq!(daemon.metric("esker_rejected_total{reason=\"slow_reader\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_was_stopped_blames_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let limits = ["RATE_WINDOW", "HEAD_TIMEOUT", "IDLE_TIMEOUT"].map(|key| format!("ESKER__LIMITS__{key}"));
    let environment: Vec<_> = limits.iter().map(|key| (key.as_str(), "1 s".to_owned())).collect();
    let mut process = Process::spawn(folder.path(), &environment);
    let ready = process.wait_ready();
    let client = esker_client::Client::new(&ready.api, None).unwrap();
    client.create_job("j").await.unwrap();
    let api = ready.api.trim_start_matches("http://").parse().unwrap();
    let (data, half) = (pattern(1, 1000), 500);
    let mut body = Raw::connect(api).await;
    body.send(&request("POST", PUT, "", &data)[..half]).await;
    let mut head = Raw::connect(api).await;
    head.send(&LIVE[..10]).await;

    process.signal("STOP");
    tokio::time::sleep(Duration::from_secs(3)).await;
    process.signal("CONT");
    body.send(&request("POST", PUT, "", &data)[half..]).await;
    head.send(&LIVE[10..]).await;

    assert_eq!(body.answer().await.unwrap().status, 201);
    assert_eq!(head.answer().await.unwrap().status, 200);
}
