//! What a client can do wrong: it is told what, the daemon lives on, and nothing is left behind.

use bytes::Bytes;
use esker::model::crc32c;
use esker_client::ClientError;
use esker_client::wire::ErrorKind;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::daemon::{TestDaemon, checkpoint};
use crate::raw::{Answer, Raw, ask, request};
use crate::support::pattern;

/// A daemon that loses patience soon and deletes at once, with a job `j`.
async fn daemon() -> TestDaemon {
    let daemon = TestDaemon::start(&[
        ("limits.body-timeout", "300 ms"),
        ("limits.head-timeout", "300 ms"),
        ("limits.segment-size-max", "4mb"),
        ("limits.segments-per-request-max", "3"),
        ("store.part-size", "256kb"),
        ("reclaim.interval", "20 ms"),
        ("reclaim.delete-grace", "0"),
    ])
    .await;
    daemon.client.create_job("j").await.unwrap();
    daemon
}

/// No bytes are held, no segment is listed, no file is there, and the next segment is stored as ever.
async fn nothing_is_left(daemon: &TestDaemon) {
    daemon.metric_becomes("esker_in_flight_bytes", 0.0).await;
    assert_eq!(daemon.client.segments("j", None, None).await.unwrap().segments.len(), 0);
    for state in ["open", "closed", "forgotten"] {
        daemon.metric_becomes(&format!("esker_physical_files{{state=\"{state}\"}}"), 0.0).await;
    }
    assert_eq!(daemon.files(), Vec::<std::path::PathBuf>::new());
    let info = daemon.client.put("j", &checkpoint(99), None, pattern(1, 100).into()).await.unwrap();
    assert_eq!(daemon.client.get(&info.segment).await.unwrap(), pattern(1, 100));
}

async fn post(daemon: &TestDaemon, target: &str, headers: &str, body: &[u8]) -> Answer {
    ask(daemon.api(), request("POST", target, headers, body)).await
}

#[tokio::test]
async fn a_put_that_says_something_wrong_is_refused_by_field() {
    let daemon = daemon().await;
    let long = "x".repeat(5000);
    let cases = [
        ("segments", "", 400, "checkpoint"),
        ("segments?checkpoint=-1", "", 400, "query"),
        ("segments?checkpoint=18446744073709551616", "", 400, "query"),
        ("segments?checkpoint=1&colour=red", "", 400, "query"),
        ("segments?checkpoint=1&scope=private", "", 400, "scope"),
        ("segments?checkpoint=1&subtask=0", "", 400, "subtask"),
        ("segments?checkpoint=1&operator=map&subtask=2&parallelism=2", "", 400, "subtask"),
        ("segments?checkpoint=1&operator=map&subtask=0&parallelism=0", "", 400, "subtask"),
        ("segments?checkpoint=1&operator=%00&subtask=0&parallelism=1", "", 400, "operator"),
        ("segments?checkpoint=1&task_manager=", "", 400, "task_manager"),
        (&format!("segments?checkpoint=1&name={long}"), "", 400, "name"),
        ("segments?checkpoint=1", "x-esker-crc32c: 00000000\r\n", 400, "crc32c"),
        ("segments?checkpoint=1", "x-esker-crc32c: 0\r\n", 400, "crc32c"),
        ("segments?checkpoint=1", "x-esker-crc32c: +0000000\r\n", 400, "crc32c"),
        ("segments?checkpoint=1", "x-esker-crc32c: \u{e9}\r\n", 400, "x-esker-crc32c"),
        ("segments?checkpoint=1", &format!("idempotency-key: {long}\r\n"), 400, "idempotency-key"),
    ];
    for (rest, headers, status, field) in cases {
        let answer = post(&daemon, &format!("/v1/jobs/j/{rest}"), headers, b"some bytes").await;

        assert_eq!(answer.status, status, "{rest} {headers}: {}", answer.text());
        assert_eq!(answer.error(), ("invalid".to_owned(), field.to_owned()), "{rest} {headers}");
    }
    nothing_is_left(&daemon).await;
}

#[tokio::test]
async fn names_that_are_none_or_lead_elsewhere_are_refused() {
    let daemon = daemon().await;
    let id = "0".repeat(26);
    let cases = [
        ("/v1/jobs/..%2F..%2Fetc/segments?checkpoint=1", 400, "job"),
        ("/v1/jobs/%2e%2e/segments?checkpoint=1", 400, "job"),
        ("/v1/jobs/%00/segments?checkpoint=1", 400, "job"),
        ("/v1/jobs/nobody/segments?checkpoint=1", 404, "job"),
        ("/v1/jobs/nobody/segments/batch", 404, "job"),
        ("/v1/jobs/nobody/flush", 404, "job"),
        ("/v1/jobs/nobody/checkpoints/1", 404, "job"),
        ("/v1/jobs/j/checkpoints/first", 400, "checkpoint"),
        ("/v1/jobs/j/checkpoints/7/complete", 404, "checkpoint"),
        ("/v1/jobs/j/segments/1", 404, "path"),
        ("/v2/jobs", 404, "path"),
        ("/../../etc/passwd", 404, "path"),
    ];
    for (target, status, field) in cases {
        let body: &[u8] = if target.contains("/segments") { b"x" } else { b"" };
        let answer = post(&daemon, target, "", body).await;
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
        assert_eq!(answer.error().1, field, "{target}");
    }
    let reads = [
        ("/v1/segments/nonsense".to_owned(), 400),
        ("/v1/segments/..%2F..%2Fetc%2Fpasswd".to_owned(), 400),
        (format!("/v1/segments/{id}"), 404),
        ("/v1/handles/nonsense".to_owned(), 400),
        (format!("/v1/handles/esker1:{id}:data%2F..%2F..%2Fetc%2Fpasswd:0:10:00000000"), 400),
        (format!("/v1/handles/esker1:{id}:%2Fetc%2Fpasswd:0:10:00000000"), 400),
        (format!("/v1/handles/esker1:{id}:data%2Fj%2F00000001-{id}:0:10:00000000"), 404),
        (format!("/v1/handles/esker1:{id}:data%2Fj%2F00000001-{id}:18446744073709551615:10:00000000"), 400),
        ("/v1/jobs/j/segments?limit=0".to_owned(), 400),
        ("/v1/jobs/j/segments?limit=10001".to_owned(), 400),
        ("/v1/jobs/j/segments?after=x".to_owned(), 400),
        ("/v1/jobs/nobody/segments".to_owned(), 404),
        ("/v1/jobs/j/checkpoints/latest".to_owned(), 404),
        ("/v1/jobs/%ff".to_owned(), 400),
    ];
    for (target, status) in reads {
        let answer = ask(daemon.api(), request("GET", &target, "", b"")).await;
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
    }
    assert_eq!(ask(daemon.api(), request("DELETE", "/v1/jobs/j/segments", "", b"")).await.status, 405);
    nothing_is_left(&daemon).await;
}

#[tokio::test]
async fn a_body_of_another_length_than_it_may_have_is_refused() {
    let daemon = daemon().await;
    let target = "/v1/jobs/j/segments?checkpoint=1";
    assert_eq!(post(&daemon, target, "", b"").await.status, 400);
    assert_eq!(post(&daemon, target, "", &vec![0; (4 << 20) + 1]).await.status, 413);
    for (headers, status) in [
        ("content-length: 99999999999999999999999", 400),
        ("content-length: -1", 400),
        ("content-length: 4\r\ncontent-length: 5", 400),
        ("transfer-encoding: chunked", 411),
    ] {
        let head = format!("POST {target} HTTP/1.1\r\nhost: esker\r\n{headers}\r\n\r\n0\r\n\r\n");
        assert_eq!(ask(daemon.api(), head).await.status, status, "{headers}");
    }
    nothing_is_left(&daemon).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_or_stalls_leaves_nothing() {
    let daemon = daemon().await;
    // Inline, into a file, and streamed in parts.
    for len in [1000, 100_000, 2_000_000] {
        let whole = request("POST", "/v1/jobs/j/segments?checkpoint=1", "", &pattern(1, len));

        let mut broken = Raw::connect(daemon.api()).await;
        broken.send(&whole[..whole.len() - 10]).await;
        broken.finish().await;
        let answer = broken.answer().await;
        assert!(answer.is_none_or(|answer| answer.status == 400), "{len}");

        let mut slow = Raw::connect(daemon.api()).await;
        slow.send(&whole[..whole.len() - 10]).await;
        assert_eq!(slow.answer().await.unwrap().status, 408, "{len}");
    }
    nothing_is_left(&daemon).await;
}

#[tokio::test]
async fn a_streamed_segment_with_a_wrong_checksum_leaves_nothing() {
    let daemon = daemon().await;

    let (target, data) = ("/v1/jobs/j/segments?checkpoint=1", pattern(1, 2_000_000));

    let answer = post(&daemon, target, "x-esker-crc32c: 01020304\r\n", &data).await;

    assert_eq!((answer.status, answer.error().1.as_str()), (400, "crc32c"));
    nothing_is_left(&daemon).await;
}

#[tokio::test]
async fn a_segment_for_a_checkpoint_that_is_over_is_refused() {
    let daemon = daemon().await;
    for n in 1..=3 {
        daemon.client.begin("j", n).await.unwrap();
    }
    daemon.client.subsume("j", 1).await.unwrap();
    daemon.client.abort("j", 2).await.unwrap();
    daemon.client.complete("j", 3).await.unwrap();

    for n in 1..=3 {
        for len in [10, 100_000, 2_000_000] {
            let error = daemon.client.put("j", &checkpoint(n), None, pattern(1, len).into()).await.unwrap_err();

            let ClientError::Refused { status, kind, .. } = error else { panic!("{error}") };
            assert_eq!((status.as_u16(), kind), (409, ErrorKind::Conflict), "{n}");
        }
    }
    nothing_is_left(&daemon).await;
}

fn frame(head: &str, data: &[u8]) -> Vec<u8> {
    [&(head.len() as u32).to_le_bytes(), head.as_bytes(), data].concat()
}

#[tokio::test]
async fn a_batch_stops_where_it_cannot_be_read_and_goes_on_where_it_can() {
    let daemon = daemon().await;
    let good = |checkpoint: u64| frame(&format!(r#"{{"len":3,"checkpoint":{checkpoint}}}"#), b"abc");
    let unreadable: [Vec<u8>; 8] = [
        vec![1, 0, 0],
        vec![0; 4],
        vec![0xff; 4],
        frame("{}", b""),
        frame("not json", b""),
        frame(r#"{"len":0,"checkpoint":1}"#, b""),
        frame(r#"{"len":4000000,"checkpoint":1}"#, b"abc"),
        frame(r#"{"len":3000,"checkpoint":1}"#, b"abc"),
    ];
    for bytes in unreadable {
        let answer = post(&daemon, "/v1/jobs/j/segments/batch", "", &[good(1), bytes.clone(), good(1)].concat()).await;

        let text = answer.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((answer.status, lines.len()), (200, 2), "{bytes:?}: {lines:?}");
        assert!(lines[0].contains("\"handle\"") && lines[1].contains("\"invalid\""), "{lines:?}");
    }
    daemon.client.abort("j", 1).await.unwrap();

    let wrong = [
        frame(r#"{"len":3,"checkpoint":2,"crc32c":"00000000"}"#, b"abc"),
        frame(r#"{"len":3}"#, b"abc"),
        frame(r#"{"len":3,"checkpoint":1}"#, b"abc"),
    ];
    let answer = post(&daemon, "/v1/jobs/j/segments/batch", "", &wrong.concat()).await;
    let text = answer.text();
    let fields: Vec<_> = ["crc32c", "checkpoint", "checkpoint"].iter().zip(text.lines()).collect();
    assert_eq!(fields.len(), 3, "{text}");
    assert!(fields.iter().all(|(field, line)| line.contains(&format!("\"field\":\"{field}\""))), "{text}");

    let many = [good(3), good(3), good(3), good(3)].concat();
    let text = post(&daemon, "/v1/jobs/j/segments/batch", "", &many).await.text();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.lines().last().unwrap().contains("segments-per-request-max"), "{text}");
    daemon.client.abort("j", 3).await.unwrap();
    nothing_is_left(&daemon).await;
}

#[tokio::test]
async fn random_bytes_on_either_port_disturb_nobody() {
    let daemon = daemon().await;
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for n in 0..200 {
        let mut bytes: Vec<u8> = (0..rng.random_range(1..3000)).map(|_| rng.random()).collect();
        if n % 2 == 0 {
            // Something that looks like HTTP for a while.
            let start = request("POST", "/v1/jobs/j/segments?checkpoint=1", "x-some: header\r\n", &pattern(n, 300));
            let kept = rng.random_range(1..start.len());
            bytes = [&start[..kept], &bytes[..]].concat();
            bytes[rng.random_range(0..kept)] = rng.random();
        }
        let mut raw = Raw::connect(if n % 4 < 2 { daemon.api() } else { daemon.s3() }).await;
        raw.send(&bytes).await;
        raw.finish().await;
        while let Some(answer) = raw.answer().await {
            assert!(answer.status < 500 || matches!(answer.status, 501 | 503), "{}: {bytes:?}", answer.status);
        }
    }
    // A lucky one may have been a segment.
    daemon.client.subsume("j", 90).await.unwrap();
    nothing_is_left(&daemon).await;
}

#[tokio::test]
async fn a_head_that_is_slow_or_too_long_is_not_waited_for() {
    let daemon = daemon().await;
    for address in [daemon.api(), daemon.s3()] {
        let mut slow = Raw::connect(address).await;
        slow.send(b"GET /livez HTTP/1.1\r\nhost:").await;
        assert!(slow.answer().await.is_none_or(|answer| answer.status == 408));

        let mut long = Raw::connect(address).await;
        long.send(format!("GET /livez HTTP/1.1\r\nhost: esker\r\nx: {}\r\n\r\n", "y".repeat(200_000))).await;
        assert!(long.answer().await.is_none_or(|answer| answer.status == 431));
    }
    nothing_is_left(&daemon).await;
}

#[tokio::test]
async fn without_memory_a_writer_is_told_when_to_come_back() {
    let daemon = TestDaemon::start(&[
        ("limits.memory", "2mb"),
        ("limits.multipart-memory", "1mb"),
        ("limits.multipart-part-in-memory-max", "256kb"),
        ("store.part-size", "512kb"),
        ("store.max-bytes-in-flight", "1mb"),
        ("execution.checkpointing.file-merging.max-file-size", "1mb"),
        ("merging.group-bytes-max", "1mb"),
        ("limits.admission-timeout", "100 ms"),
    ])
    .await;
    daemon.client.create_job("j").await.unwrap();
    let target = "/v1/jobs/j/segments?checkpoint=1";
    let mut holders = vec![];
    // A sixteenth of the memory is for buffers that wait for the next body.
    for kib in [512, 512, 512, 384] {
        let mut holder = Raw::connect(daemon.api()).await;
        holder.send(format!("POST {target} HTTP/1.1\r\nhost: esker\r\ncontent-length: {}\r\n\r\n", kib << 10)).await;
        // Who sends next to nothing holds nothing.
        holder.send(vec![b'.'; 16 << 10]).await;
        holders.push(holder);
    }
    daemon.metric_becomes("esker_in_flight_bytes", f64::from(1920 << 10)).await;

    let answer = post(&daemon, target, "", b"one more").await;

    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(answer.error().0, "overloaded");
    drop(holders);
    daemon.metric_becomes("esker_in_flight_bytes", 0.0).await;
    assert_eq!(post(&daemon, target, "", b"one more").await.status, 201);
}

#[tokio::test]
async fn a_body_of_json_that_is_none_is_refused() {
    let daemon = daemon().await;
    let bodies = ["", "{", "[]", r#"{"job":7}"#, r#"{"job":"../x"}"#, r#"{"job":"x","colour":"red"}"#, r#"{"job":""}"#];
    for body in bodies {
        assert_eq!(post(&daemon, "/v1/jobs", "", body.as_bytes()).await.status, 400, "{body}");
    }
    let long = format!(r#"{{"job":"{}"}}"#, "x".repeat(100_000));
    assert_eq!(post(&daemon, "/v1/jobs", "", long.as_bytes()).await.status, 400);
    assert_eq!(daemon.client.jobs().await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_s3_door_leaves_nothing_of_what_it_refuses() {
    let daemon = daemon().await;
    assert_eq!(ask(daemon.s3(), request("PUT", "/bucket", "", b"")).await.status, 200);
    let body = pattern(1, 100_000);
    let put = |headers: &str| request("PUT", "/bucket/jobs/j/chk-1/key", headers, &body);
    let md5 = "content-md5: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let crc = "x-amz-checksum-crc32c: AAAAAA==\r\n";
    for headers in [
        md5,
        crc,
        "content-md5: nonsense\r\n",
        "if-match: \"nothing\"\r\n",
        "x-amz-decoded-content-length: x\r\n\
        x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\n",
    ] {
        let answer = ask(daemon.s3(), put(headers)).await;
        assert!((400..500).contains(&answer.status), "{headers}: {} {}", answer.status, answer.text());
        assert!(
            answer.text().contains("<Code>") && answer.text().contains("<Message>"),
            "{headers}: {}",
            answer.text()
        );
    }
    for target in ["/bucket/..%2F..%2Fetc%2Fpasswd?uploadId=x&partNumber=0", "/BUCKET/key", "/../../etc/passwd"] {
        let answer = ask(daemon.s3(), request("PUT", target, "", b"bytes")).await;
        assert!((400..500).contains(&answer.status), "{target}: {} {}", answer.status, answer.text());
    }
    let whole = put("");
    let mut broken = Raw::connect(daemon.s3()).await;
    broken.send(&whole[..whole.len() - 10]).await;
    broken.finish().await;
    assert!(broken.answer().await.is_none_or(|answer| answer.status == 400));
    let mut slow = Raw::connect(daemon.s3()).await;
    slow.send(&whole[..whole.len() - 10]).await;
    assert_eq!(slow.answer().await.unwrap().status, 400);

    assert_eq!(ask(daemon.s3(), request("GET", "/bucket/jobs/j/chk-1/key", "", b"")).await.status, 404);
    nothing_is_left(&daemon).await;
}

#[tokio::test]
async fn bytes_that_were_damaged_on_disk_are_never_handed_out() {
    let daemon = daemon().await;
    let data = Bytes::from(pattern(5, 3_000_000));
    let info = daemon.client.put("j", &checkpoint(1), None, data.clone()).await.unwrap();
    let path = daemon.folder().join(info.file.unwrap());
    let mut file = std::fs::read(&path).unwrap();
    file[info.offset as usize + 5] ^= 1;
    std::fs::write(&path, &file).unwrap();

    let error = daemon.client.get(&info.segment).await.unwrap_err();

    let ClientError::Refused { status, kind, .. } = error else { panic!("{error}") };
    assert_eq!((status.as_u16(), kind), (500, ErrorKind::Corrupt));
    assert_eq!(daemon.metric("esker_corrupt_reads_total").await, 1.0);
    // The damage is in the first block alone.
    let end = daemon.client.get_range(&info.segment, 2_500_000..3_000_000).await.unwrap();
    assert_eq!(crc32c(&end), crc32c(&data[2_500_000..]));
    // In the last block: what is before it may be sent, the answer must not look whole.
    file[info.offset as usize + 5] ^= 1;
    file[info.offset as usize + 2_999_999] ^= 1;
    std::fs::write(&path, &file).unwrap();
    let error = daemon.client.get(&info.segment).await.unwrap_err();
    assert!(matches!(error, ClientError::Connection { .. }), "{error}");
    assert_eq!(daemon.metric("esker_corrupt_reads_total").await, 2.0);
}

#[tokio::test]
async fn a_request_of_http_1_1_names_one_host() {
    let daemon = daemon().await;
    for host in ["", "host: a\r\nhost: b\r\n"] {
        let answer = ask(daemon.api(), format!("GET /v1/jobs HTTP/1.1\r\n{host}\r\n")).await;
        assert_eq!((answer.status, answer.error()), (400, ("invalid".to_owned(), "host".to_owned())));
        let answer = ask(daemon.s3(), format!("GET / HTTP/1.1\r\n{host}\r\n")).await;
        assert!(answer.status == 400 && answer.text().contains("<Code>InvalidRequest</Code>"), "{}", answer.text());
    }
    assert_eq!(ask(daemon.api(), "GET /v1/jobs HTTP/1.0\r\n\r\n").await.status, 200);
}

#[tokio::test]
async fn a_path_that_is_no_text_is_refused_like_everything_else() {
    let daemon = daemon().await;

    let answer = post(&daemon, "/v1/jobs/%ff/flush", "", b"").await;

    assert_eq!((answer.status, answer.error()), (400, ("invalid".to_owned(), "path".to_owned())));
}

#[tokio::test]
async fn what_a_body_says_that_nobody_reads_is_refused() {
    let daemon = daemon().await;
    daemon.client.begin("j", 1).await.unwrap();
    for target in ["/v1/gc", "/v1/reclaim", "/v1/jobs/j/checkpoints/1/complete", "/v1/jobs/j/checkpoints/1/abort"] {
        for body in [&b"{\"force\": true}"[..], b"x"] {
            let answer = post(&daemon, target, "", body).await;
            assert_eq!((answer.status, answer.error()), (400, ("invalid".to_owned(), "body".to_owned())), "{target}");
        }
    }
    assert_eq!(post(&daemon, "/v1/gc", "", b"{}").await.status, 200);
    assert_eq!(post(&daemon, "/v1/jobs/j/checkpoints/1/complete", "", b"").await.status, 200);
}

#[tokio::test]
async fn a_range_beyond_every_object_is_not_satisfiable() {
    let daemon = daemon().await;
    assert_eq!(ask(daemon.s3(), request("PUT", "/checkpoints/key", "", b"ten bytes.")).await.status, 200);
    let get = async |range: &str| {
        let answer = ask(daemon.s3(), request("GET", "/checkpoints/key", &format!("range: {range}\r\n"), b"")).await;
        (answer.status, answer.text())
    };

    for range in [
        "bytes=18446744073709551615-",
        "bytes=99999999999999999999999-",
        "bytes=9223372036854775808-9223372036854775809",
    ] {
        let (status, text) = get(range).await;
        assert!(status == 416 && text.contains("InvalidRange"), "{range}: {status} {text}");
    }
    assert_eq!(get("bytes=4-18446744073709551615").await, (206, "bytes.".to_owned()));
    assert_eq!(get("bytes=-18446744073709551616").await, (206, "ten bytes.".to_owned()));
    assert_eq!(get("bytes=5-1").await, (200, "ten bytes.".to_owned()), "it makes no sense, and the whole is read");
}
