//! A catalog that has no memory for more, as clients and operators see it.

use esker_client::ClientError;
use esker_client::wire::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{TestDaemon, checkpoint};
use crate::support::pattern;

const LIMIT_BYTES: u32 = 24 << 10;
const SEGMENT_BYTES: usize = 100;

/// What the S3 door answers to a request without a signature.
async fn s3(daemon: &TestDaemon, method: &str, key: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(daemon.s3()).await.unwrap();
    let request = format!(
        "{method} /checkpoints/{key} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        daemon.s3(),
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_start_with_a_full_catalog_makes_the_configured_buckets() {
    let limit = LIMIT_BYTES.to_string();
    let daemon = TestDaemon::start(&[("limits.catalog-memory", &limit)]).await;
    daemon.client.create_job("j").await.unwrap();
    assert!(s3(&daemon, "DELETE", "", "").await.starts_with("HTTP/1.1 204"));
    let mut puts = 0;
    while daemon.client.put("j", &checkpoint(1), None, pattern(puts, SEGMENT_BYTES).into()).await.is_ok() {
        puts += 1;
        assert!(puts < 1000, "there is no bound");
    }

    let daemon = daemon.restart().await;

    assert!(s3(&daemon, "HEAD", "", "").await.starts_with("HTTP/1.1 200"));
    assert!(s3(&daemon, "PUT", "folder/more", "bytes").await.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn a_full_catalog_refuses_what_is_new_at_both_doors_and_goes_on_with_the_rest() {
    let limit = LIMIT_BYTES.to_string();
    let daemon = TestDaemon::start(&[("limits.catalog-memory", &limit)]).await;
    daemon.client.create_job("j").await.unwrap();
    assert!(s3(&daemon, "PUT", "folder/before", "bytes").await.starts_with("HTTP/1.1 200"));

    let mut stored = vec![];
    let refused = loop {
        assert!(stored.len() < 1000, "there is no bound");
        let data = pattern(stored.len() as u64, SEGMENT_BYTES);
        match daemon.client.put("j", &checkpoint(1), None, data.into()).await {
            Ok(info) => stored.push(info),
            Err(error) => break error,
        }
    };

    let ClientError::Refused { status, kind, message, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!((status.as_u16(), *kind), (503, ErrorKind::Overloaded));
    assert!(message.contains("limits.catalog-memory"), "{message}");
    let answer = s3(&daemon, "PUT", "folder/more", "bytes").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("<Code>SlowDown</Code>"), "{answer}");
    assert!(answer.contains("limits.catalog-memory") && answer.to_lowercase().contains("retry-after: "), "{answer}");
    let limit = f64::from(LIMIT_BYTES);
    assert!(daemon.metric("esker_catalog_memory_bytes").await >= limit);
    assert_eq!(daemon.metric("esker_catalog_memory_limit_bytes").await, limit);

    // A start with too much goes on, and so does whatever needs no more.
    daemon.client.complete("j", 1).await.unwrap();
    let daemon = daemon.restart().await;
    for (info, seed) in stored.iter().zip(0..) {
        assert_eq!(daemon.client.get(&info.segment).await.unwrap(), pattern(seed, SEGMENT_BYTES));
    }
    assert!(s3(&daemon, "GET", "folder/before", "").await.ends_with("bytes"));
    assert!(s3(&daemon, "DELETE", "folder/before", "").await.starts_with("HTTP/1.1 204"));
    daemon.client.subsume("j", 1).await.unwrap();

    daemon.client.put("j", &checkpoint(2), None, pattern(0, SEGMENT_BYTES).into()).await.unwrap();
    assert!(s3(&daemon, "PUT", "folder/more", "bytes").await.starts_with("HTTP/1.1 200"));
}
