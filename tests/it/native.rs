//! The native API as a worker uses it.

use bytes::Bytes;
use esker_client::Client;
use esker_client::wire::{BatchAnswer, BatchHead, CheckpointState, PutParams};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::daemon::{TestDaemon, checkpoint};
use crate::raw::{ask, request};
use crate::support::pattern;

/// Inside the catalog, in a file with others, and streamed into one of its own.
const LENS: [usize; 5] = [1, 20 << 10, (20 << 10) + 1, 300_000, 2_500_000];

async fn daemon() -> TestDaemon {
    let daemon =
        TestDaemon::start(&[("store.part-size", "1mb"), ("reclaim.interval", "20 ms"), ("reclaim.delete-grace", "0")]);
    let daemon = daemon.await;
    daemon.client.create_job("j").await.unwrap();
    daemon
}

fn named(n: u64, name: &str) -> PutParams {
    PutParams { name: Some(name.to_owned()), ..checkpoint(n) }
}

#[tokio::test]
async fn a_segment_is_read_by_id_by_handle_and_in_ranges_also_after_a_restart() {
    let mut daemon = daemon().await;
    let mut stored = vec![];
    for (n, len) in LENS.into_iter().enumerate() {
        let data = pattern(n as u64, len);
        stored.push((daemon.client.put("j", &checkpoint(1), None, data.clone().into()).await.unwrap(), data));
    }
    for _ in 0..2 {
        for (info, data) in &stored {
            let len = data.len() as u64;
            assert_eq!(daemon.client.get(&info.segment).await.unwrap(), data);
            assert_eq!(daemon.client.get_handle(&info.handle).await.unwrap(), data);
            for range in [0..1, len / 2..len, len - 1..len + 1000] {
                let wanted = &data[range.start as usize..(range.end as usize).min(data.len())];
                assert_eq!(daemon.client.get_range(&info.segment, range).await.unwrap(), wanted);
            }
            let beyond = daemon.client.get_range(&info.segment, len..len + 1).await.unwrap_err();
            assert_eq!(beyond.status(), Some(StatusCode::RANGE_NOT_SATISFIABLE));
            let other = info.handle.replace(&info.crc32c, "00000000");
            let other = daemon.client.get_handle(&other).await.unwrap_err();
            assert_eq!(other.status(), Some(StatusCode::CONFLICT));
        }
        daemon = daemon.restart().await;
    }
}

#[tokio::test]
async fn a_repeat_with_the_same_key_gets_the_same_segment_also_after_a_restart() {
    let mut daemon = daemon().await;
    for len in LENS {
        let (key, data) = (format!("key-{len}"), Bytes::from(pattern(1, len)));
        let first = daemon.client.put("j", &checkpoint(1), Some(&key), data.clone()).await.unwrap();

        let again = daemon.client.put("j", &checkpoint(1), Some(&key), data.clone()).await.unwrap();
        assert_eq!(again.handle, first.handle);
        daemon = daemon.restart().await;
        let again = daemon.client.put("j", &checkpoint(1), Some(&key), data).await.unwrap();
        assert_eq!(again.handle, first.handle);

        let other = daemon.client.put("j", &checkpoint(1), Some(&key), pattern(2, len).into()).await.unwrap_err();
        assert_eq!(other.status(), Some(StatusCode::CONFLICT));
    }
    assert_eq!(daemon.client.segments("j", None, None).await.unwrap().segments.len(), LENS.len());
}

#[tokio::test]
async fn a_batch_is_answered_in_its_order() {
    let daemon = daemon().await;
    let batch: Vec<(BatchHead, Bytes)> = (0..50_u64)
        .map(|n| {
            let head = BatchHead { checkpoint: Some(1), name: Some(n.to_string()), ..BatchHead::default() };
            (head, Bytes::from(pattern(n, 1 + 1000 * n as usize)))
        })
        .collect();

    let answers = daemon.client.put_many("j", &batch).await.unwrap();

    assert_eq!(answers.len(), batch.len());
    for (answer, (_, data)) in answers.iter().zip(&batch) {
        let BatchAnswer::Stored(info) = answer else { panic!("{answer:?}") };
        assert_eq!(daemon.client.get(&info.segment).await.unwrap(), data);
    }
}

#[tokio::test]
async fn segments_are_listed_in_pages_and_by_checkpoint() {
    let daemon = daemon().await;
    let heads = |n: u64| {
        let head = BatchHead { checkpoint: Some(n), ..BatchHead::default() };
        vec![(head, Bytes::from_static(b"x")); 1200]
    };
    for n in [1, 2] {
        daemon.client.put_many("j", &heads(n)).await.unwrap();
    }

    let first = daemon.client.segments("j", Some(2), None).await.unwrap();
    let second = daemon.client.segments("j", Some(2), first.next.as_deref()).await.unwrap();

    assert_eq!((first.segments.len(), second.segments.len(), second.next), (1000, 200, None));
    assert!(first.segments.iter().chain(&second.segments).all(|segment| segment.checkpoint == Some(2)));
    let jobs = daemon.client.jobs().await.unwrap();
    assert_eq!((jobs.len(), jobs[0].segments), (1, 2400));
}

#[tokio::test]
async fn checkpoints_live_as_flink_says() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let mut segments = vec![];
    for n in 1..=4 {
        segments.push(client.put("j", &named(n, "state"), None, pattern(n, 100_000).into()).await.unwrap().segment);
    }
    assert_eq!(client.latest_checkpoint("j").await.unwrap_err().status(), Some(StatusCode::NOT_FOUND));

    client.complete("j", 1).await.unwrap();
    client.complete("j", 3).await.unwrap();
    client.complete("j", 3).await.unwrap();
    client.abort("j", 2).await.unwrap();
    client.abort("j", 2).await.unwrap();

    let states: Vec<_> =
        client.checkpoints("j").await.unwrap().iter().map(|info| (info.checkpoint, info.state)).collect();
    let (pending, completed, aborted) =
        (CheckpointState::Pending, CheckpointState::Completed, CheckpointState::Aborted);
    assert_eq!(states, [(1, completed), (2, aborted), (3, completed), (4, pending)]);
    assert_eq!(client.latest_checkpoint("j").await.unwrap().checkpoint, 3);
    assert_eq!(client.abort("j", 3).await.unwrap_err().status(), Some(StatusCode::CONFLICT));
    assert_eq!(client.complete("j", 2).await.unwrap_err().status(), Some(StatusCode::CONFLICT));

    client.subsume("j", 1).await.unwrap();

    let gone = |answer: Result<Bytes, esker_client::ClientError>| answer.unwrap_err().status();
    assert_eq!(gone(client.get(&segments[0]).await), Some(StatusCode::NOT_FOUND), "subsumed");
    assert_eq!(gone(client.get(&segments[1]).await), Some(StatusCode::NOT_FOUND), "aborted");
    assert_eq!(client.get(&segments[2]).await.unwrap(), pattern(3, 100_000));
    assert_eq!(client.get(&segments[3]).await.unwrap(), pattern(4, 100_000));
    client.subsume("j", 4).await.unwrap();
    daemon.metric_becomes("esker_physical_bytes", 0.0).await;
    assert_eq!(daemon.files().len(), 0);
}

#[tokio::test]
async fn flush_closes_the_files_of_the_job_and_no_others() {
    let daemon = daemon().await;
    daemon.client.create_job("other").await.unwrap();
    for job in ["j", "other"] {
        daemon.client.put(job, &checkpoint(1), None, pattern(1, 100_000).into()).await.unwrap();
    }
    daemon.metric_becomes("esker_physical_files{state=\"open\"}", 2.0).await;

    daemon.client.flush("j").await.unwrap();

    daemon.metric_becomes("esker_physical_files{state=\"open\"}", 1.0).await;
    daemon.metric_becomes("esker_physical_files{state=\"closed\"}", 1.0).await;
}

#[tokio::test]
async fn writers_that_come_together_share_files() {
    let daemon = daemon().await;
    let puts = (0..64).map(|n| {
        let client = daemon.client.clone();
        async move { client.put("j", &checkpoint(1), None, pattern(n, 30_000).into()).await.unwrap() }
    });

    let infos = futures::future::join_all(puts).await;

    let files: std::collections::BTreeSet<_> = infos.iter().map(|info| info.file.clone().unwrap()).collect();
    assert!(files.len() <= 2, "{files:?}");
    for (n, info) in infos.iter().enumerate() {
        assert_eq!(daemon.client.get(&info.segment).await.unwrap(), pattern(n as u64, 30_000));
    }
}

#[tokio::test]
async fn a_unix_socket_serves_the_same_api_and_goes_with_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let daemon = TestDaemon::start(&[("server.api-unix-socket", path.to_str().unwrap())]).await;
    let client = Client::new(&format!("unix:{}", path.display()), None).unwrap();

    client.create_job("j").await.unwrap();
    let info = client.put("j", &checkpoint(1), None, pattern(1, 100_000).into()).await.unwrap();

    assert_eq!(client.get(&info.segment).await.unwrap(), pattern(1, 100_000));
    assert_eq!(daemon.client.get(&info.segment).await.unwrap(), pattern(1, 100_000));
    let daemon = daemon.restart().await;
    assert_eq!(client.get(&info.segment).await.unwrap(), pattern(1, 100_000));
    drop(daemon.shut_down().await);
    assert!(!path.exists());
}

#[tokio::test]
async fn http_2_carries_many_puts_on_one_connection() {
    let daemon = daemon().await;
    let stream = tokio::net::TcpStream::connect(daemon.api()).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = handshake.unwrap();
    tokio::spawn(connection);
    let address = daemon.api();
    let send = |method: &str, path: String, body: Vec<u8>| {
        let mut sender = sender.clone();
        let request = Request::builder().method(method).uri(format!("http://{address}{path}"));
        let request = request.header("content-length", body.len()).body(Full::new(Bytes::from(body))).unwrap();
        async move {
            let (head, body) = sender.send_request(request).await.unwrap().into_parts();
            (head.status, body.collect().await.unwrap().to_bytes())
        }
    };

    let puts = (0..100).map(|n| send("POST", "/v1/jobs/j/segments?checkpoint=1".to_owned(), pattern(n, 50_000)));
    let answers = futures::future::join_all(puts).await;

    for (n, (status, body)) in answers.into_iter().enumerate() {
        assert_eq!(status, StatusCode::CREATED);
        let info: esker_client::wire::SegmentInfo = serde_json::from_slice(&body).unwrap();
        let (_, bytes) = send("GET", format!("/v1/segments/{}", info.segment), vec![]).await;
        assert_eq!(bytes, pattern(n as u64, 50_000));
    }
    // A refused one with a body ends its own stream alone.
    let (status, _) = send("POST", "/v1/jobs/nobody/segments?checkpoint=1".to_owned(), pattern(1, 1 << 20)).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(send("GET", "/livez".to_owned(), vec![]).await.0, StatusCode::OK);
}

#[tokio::test]
async fn with_tokens_only_their_bearers_come_in() {
    let daemon = TestDaemon::start(&[("auth.tokens", "secret-one, secret-two")]).await;
    let with =
        |token: Option<&str>| Client::new(&format!("http://{}", daemon.api()), token.map(str::to_owned)).unwrap();

    for token in [None, Some(""), Some("secret"), Some("secret-one,")] {
        assert_eq!(with(token).jobs().await.unwrap_err().status(), Some(StatusCode::UNAUTHORIZED), "{token:?}");
    }

    for token in ["secret-one", "secret-two"] {
        with(Some(token)).jobs().await.unwrap();
    }
    // Health and metrics are for everyone on the port.
    with(None).metrics().await.unwrap();
}

#[tokio::test]
async fn slashes_of_a_handle_may_be_raw_and_those_of_a_job_are_told_to_be_encoded() {
    let daemon = daemon().await;
    let info = daemon.client.put("j", &checkpoint(1), None, pattern(1, 100_000).into()).await.unwrap();
    assert!(info.handle.contains('/'), "{}", info.handle);

    for handle in [info.handle.clone(), info.handle.replace('/', "%2F")] {
        let answer = ask(daemon.api(), request("GET", &format!("/v1/handles/{handle}"), "", b"")).await;
        assert_eq!((answer.status, answer.body == pattern(1, 100_000)), (200, true), "{handle}");
    }

    daemon.client.create_job("team/count").await.unwrap();
    let encoded = ask(daemon.api(), request("GET", "/v1/jobs/team%2Fcount", "", b"")).await;
    assert_eq!(encoded.status, 200, "{}", encoded.text());
    let raw = ask(daemon.api(), request("GET", "/v1/jobs/team/count", "", b"")).await;
    assert_eq!((raw.status, raw.error()), (404, ("not_found".to_owned(), "path".to_owned())));
    assert!(raw.text().contains("%2F"), "{}", raw.text());
    let other = ask(daemon.api(), request("GET", "/v1/nothing", "", b"")).await;
    assert!(other.status == 404 && !other.text().contains("%2F"), "{}", other.text());
}
