//! What a daemon asks of a store before it answers anything.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::faults::{Fault, Gate, Op, Rule, any};
use crate::s3_server::{Conditions, S3Server};
use crate::support::{Running, Threads, assert_exactly, create_job, put, settings};

async fn refusal_on(conditions: Conditions) -> (S3Server, String) {
    let server = S3Server::start_with(conditions).await;
    let started = Running::try_start(settings(&server, &[]), Threads::Two).await;
    let reason = started.err().expect("the daemon started on a store that breaks its word");
    (server, reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_ignores_if_none_match_is_refused_with_the_reason() {
    let (server, reason) = refusal_on(Conditions::CreateIgnored).await;

    assert!(reason.contains("If-None-Match"), "{reason}");
    assert!(reason.contains("s3://state/esker"), "{reason}");
    assert_eq!(server.objects().keys(""), Vec::<String>::new(), "something was left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_ignores_if_match_is_refused_with_the_reason() {
    let (server, reason) = refusal_on(Conditions::UpdateIgnored).await;

    assert!(reason.contains("If-Match"), "{reason}");
    assert_eq!(server.objects().keys(""), Vec::<String>::new(), "something was left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_the_credentials_is_named_in_the_error() {
    let server = S3Server::start().await;

    let started = Running::try_start(settings(&server, &[("store.secret-key", "wrong")]), Threads::Two).await;

    let reason = started.err().unwrap();
    assert!(reason.contains("s3://state/esker"), "{reason}");
    assert_eq!(server.objects().keys(""), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_rides_out_a_store_that_refuses_every_third_request() {
    let server = S3Server::start().await;
    server.faults().seed(3);
    let hiccups = server.faults().add(Rule::everything(any).chance(0.33), Fault::Refused);

    let daemon = Running::start(settings(&server, &[("store.retry-timeout", "5 s")])).await;

    assert!(hiccups.hits() > 0);
    hiccups.lift();
    create_job(&daemon.client).await;
    let written = put(&daemon.client, 1, 1000).await.unwrap();
    assert_exactly(&server, &daemon, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_read_the_catalog_fails_and_the_next_one_loses_nothing() {
    let server = S3Server::start().await;
    let daemon = Running::start(settings(&server, &[])).await;
    create_job(&daemon.client).await;
    let written = put(&daemon.client, 1, 1000).await.unwrap();
    daemon.kill().await;
    // The file is uncertain after a crash: it cannot be looked up, so the daemon must not answer.
    let outage = server.faults().add(Rule::on(Op::Put, crate::faults::data), Fault::Refused);

    let failed = Running::try_start(settings(&server, &[]), Threads::Two).await;

    assert!(failed.is_err() && outage.hits() > 0);
    outage.lift();
    let daemon = Running::start(settings(&server, &[])).await;
    assert_exactly(&server, &daemon, &[written]).await;
}

/// A connection of HTTP/1.1 that stays open.
struct Connection(TcpStream);

impl Connection {
    /// As soon as somebody listens.
    async fn to(address: &str) -> Self {
        let begun = Instant::now();
        loop {
            match TcpStream::connect(address).await {
                Ok(stream) => return Self(stream),
                Err(error) => {
                    assert!(begun.elapsed() < Duration::from_secs(30), "nobody listens at {address}: {error}")
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The head of the answer in lower case, and its body.
    async fn ask(&mut self, method: &str, target: &str) -> (String, String) {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: esker\r\nContent-Length: 5\r\n\r\nbytes");
        self.0.write_all(request.as_bytes()).await.unwrap();
        let mut came = vec![];
        loop {
            let read = tokio::time::timeout(Duration::from_secs(20), self.0.read_buf(&mut came)).await;
            assert!(read.expect("no answer comes").unwrap() > 0, "the connection was closed");
            let text = String::from_utf8_lossy(&came).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let head = head.to_lowercase();
            let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
            if body.len() == len.parse::<usize>().unwrap() {
                return (head, body.to_owned());
            }
        }
    }
}

/// An address that was free a moment ago.
fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doors_answer_while_a_start_waits_and_their_connections_go_on_with_the_daemon() {
    let server = S3Server::start().await;
    let gate = Gate::closed();
    server.faults().add(Rule::everything(any), Fault::Held(gate.clone()));
    let (s3, api) = (free_address(), free_address());
    let changed =
        [("server.s3", s3.as_str()), ("server.api", &api), ("store.request-timeout", "60 s"), ("auth.access-key", "a")];
    let settings = settings(&server, &[&changed[..], &[("auth.secret-key", "b")]].concat());
    let starting = tokio::spawn(Running::start(settings));

    let (mut health, mut native, mut client) =
        (Connection::to(&api).await, Connection::to(&api).await, Connection::to(&s3).await);
    gate.arrived(1).await;
    let (head, body) = health.ask("GET", "/livez").await;
    assert!(head.starts_with("http/1.1 200") && body == "ok\n", "{head} {body}");
    let (head, body) = health.ask("GET", "/readyz").await;
    assert!(head.starts_with("http/1.1 503"), "{head}");
    assert!(body.starts_with("starting: looking which store is at s3://state/esker, for "), "{body}");
    let (head, body) = health.ask("GET", "/metrics").await;
    assert!(head.starts_with("http/1.1 200") && body.contains("esker_connections{door=\"native\"} 2"), "{head} {body}");
    let (head, body) = native.ask("POST", "/v1/jobs/j/segments?checkpoint=1").await;
    assert!(head.starts_with("http/1.1 503") && head.contains("retry-after: "), "{head}");
    assert!(body.contains("\"unavailable\"") && body.contains("starting"), "{body}");
    let (head, body) = client.ask("PUT", "/bucket/key").await;
    assert!(head.starts_with("http/1.1 503") && head.contains("retry-after: "), "{head}");
    assert!(body.contains("<Code>ServiceUnavailable</Code>") && body.contains("<RequestId>"), "{body}");

    gate.open();
    let daemon = starting.await.unwrap();

    let (head, body) = health.ask("GET", "/readyz").await;
    assert!(head.starts_with("http/1.1 200") && body == "ready\n", "{head} {body}");
    let (head, _) = native.ask("POST", "/v1/jobs/j/segments?checkpoint=1").await;
    assert!(head.starts_with("http/1.1 404"), "it knows no job: {head}");
    let (head, body) = client.ask("PUT", "/bucket/key").await;
    assert!(head.starts_with("http/1.1 403") && body.contains("AccessDenied"), "nothing was signed: {head} {body}");
    daemon.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_lets_go_of_its_addresses_and_cuts_who_waited() {
    let server = S3Server::start_with(Conditions::CreateIgnored).await;
    let gate = Gate::closed();
    server.faults().add(Rule::everything(any), Fault::Held(gate.clone()));
    let (s3, api) = (free_address(), free_address());
    let changed = [("server.s3", s3.as_str()), ("server.api", &api), ("store.request-timeout", "60 s")];
    let starting = tokio::spawn(Running::try_start(settings(&server, &changed), Threads::Two));
    let mut health = Connection::to(&api).await;
    assert!(health.ask("GET", "/readyz").await.1.starts_with("starting"));

    gate.open();
    let refused = starting.await.unwrap().err().expect("the store breaks its word");

    assert!(refused.contains("If-None-Match"), "{refused}");
    let ended = health.0.read(&mut [0; 16]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "the connection is still served");
    for address in [s3, api] {
        std::net::TcpListener::bind(address).unwrap();
    }
}
