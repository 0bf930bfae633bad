//! A connection stays in step, or ends: the rest of a refused body is never taken for the next request.

use crate::daemon::{TestDaemon, checkpoint};
use crate::raw::{Raw, ask, request};

const PUT: &str = "/v1/jobs/j/segments?checkpoint=1";
const AHEAD: &[u8] = b"GET /livez HTTP/1.1\r\nhost: esker\r\n\r\n";

/// A daemon with a job whose checkpoint 1 takes nothing more.
async fn daemon() -> TestDaemon {
    let daemon = TestDaemon::start(&[("limits.body-timeout", "300 ms")]).await;
    daemon.client.create_job("j").await.unwrap();
    daemon.client.put("j", &checkpoint(1), None, b"x".as_slice().into()).await.unwrap();
    daemon.client.abort("j", 1).await.unwrap();
    daemon
}

#[tokio::test]
async fn a_request_behind_a_refused_one_is_answered_on_the_same_connection() {
    let daemon = daemon().await;
    for len in [1, 10_000, 3 << 20] {
        let mut raw = Raw::connect(daemon.api()).await;

        raw.send(request("POST", PUT, "", &vec![b'G'; len])).await;
        raw.send(AHEAD).await;

        let refused = raw.answer().await.unwrap();
        assert_eq!((refused.status, refused.header("connection")), (409, None), "{len} bytes");
        assert_eq!(raw.answer().await.unwrap().text(), "ok\n", "{len} bytes");
    }
}

#[tokio::test]
async fn a_request_behind_a_refused_one_with_chunks_is_answered_on_the_same_connection() {
    let daemon = daemon().await;
    let mut raw = Raw::connect(daemon.api()).await;

    raw.send(format!("POST {PUT} HTTP/1.1\r\nhost: esker\r\ntransfer-encoding: chunked\r\n\r\n")).await;
    raw.send(b"5\r\nGET /\r\n0\r\n\r\n").await;
    raw.send(AHEAD).await;

    assert_eq!(raw.answer().await.unwrap().status, 411);
    assert_eq!(raw.answer().await.unwrap().text(), "ok\n");
}

#[tokio::test]
async fn a_refused_body_that_is_too_long_to_be_read_ends_the_connection() {
    let daemon = daemon().await;
    let mut raw = Raw::connect(daemon.api()).await;

    raw.send(format!("POST {PUT} HTTP/1.1\r\nhost: esker\r\ncontent-length: {}\r\n\r\n", 1_u64 << 30)).await;
    raw.send(AHEAD).await;

    let refused = raw.answer().await.unwrap();
    assert_eq!((refused.status, refused.header("connection")), (409, Some("close")));
    assert!(raw.is_over().await);
}

#[tokio::test]
async fn a_body_that_stalls_ends_the_connection() {
    let daemon = TestDaemon::start(&[("limits.body-timeout", "300 ms")]).await;
    daemon.client.create_job("j").await.unwrap();
    let targets =
        [PUT, "/v1/jobs", "/v1/jobs/j/checkpoints/1/reuse", "/v1/jobs/j/restore", "/v1/jobs/j/end", "/v1/restore"];
    for target in targets {
        let mut raw = Raw::connect(daemon.api()).await;

        raw.send(format!("POST {target} HTTP/1.1\r\nhost: esker\r\ncontent-length: 100\r\n\r\n{{\"a")).await;

        let refused = raw.answer().await.unwrap();
        assert_eq!((refused.status, refused.header("connection")), (408, Some("close")), "{target}");
        assert!(raw.is_over().await, "{target}");
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_is_refused_without_it() {
    let daemon = daemon().await;
    let mut raw = Raw::connect(daemon.api()).await;

    raw.send(format!("POST {PUT} HTTP/1.1\r\nhost: esker\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")).await;

    let refused = raw.answer().await.unwrap();
    assert_eq!((refused.status, refused.header("connection")), (409, Some("close")));
    assert!(raw.is_over().await);
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_is_told_to_go_on() {
    let daemon = daemon().await;
    let mut raw = Raw::connect(daemon.api()).await;
    let target = PUT.replace("checkpoint=1", "checkpoint=2");

    raw.send(format!("POST {target} HTTP/1.1\r\nhost: esker\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n"))
        .await;
    assert_eq!(raw.answer().await.unwrap().status, 100);
    raw.send(b"123456789").await;

    assert_eq!(raw.answer().await.unwrap().status, 201);
}

#[tokio::test]
async fn a_batch_that_cannot_be_read_is_read_to_its_end() {
    let daemon = daemon().await;
    let mut raw = Raw::connect(daemon.api()).await;

    raw.send(request("POST", "/v1/jobs/j/segments/batch", "", &vec![0; 2 << 20])).await;
    raw.send(AHEAD).await;

    let lines = raw.answer().await.unwrap();
    assert_eq!(lines.error(), ("invalid".to_owned(), "head".to_owned()));
    assert_eq!(raw.answer().await.unwrap().text(), "ok\n");
}

#[tokio::test]
async fn the_s3_door_keeps_in_step_too() {
    let daemon = daemon().await;
    for len in [10, 3 << 20] {
        let mut raw = Raw::connect(daemon.s3()).await;

        raw.send(request("PUT", "/no-such-bucket/key", "", &vec![b'G'; len])).await;
        raw.send(b"GET / HTTP/1.1\r\nhost: esker\r\n\r\n").await;

        let refused = raw.answer().await.unwrap();
        assert_eq!(refused.status, 404, "{}", refused.text());
        if refused.header("connection").is_none() {
            let buckets = raw.answer().await.unwrap();
            assert!(buckets.text().contains("ListAllMyBucketsResult"), "{}", buckets.text());
        }
    }
    let listed = ask(daemon.s3(), "GET / HTTP/1.1\r\nhost: esker\r\n\r\n").await;
    assert_eq!(listed.status, 200);
}
