//! Reads of large objects: they cost the same however large the object is, and they keep no more than they read.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker::catalog::command::Command;
use esker::config::Config;
use esker::daemon::Daemon;
use esker_client::wire::{BatchAnswer, BatchHead, PutParams, RestoreRequest, SegmentInfo};
use esker_client::{ClientError, Restore};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ClientOptions, MultipartUpload, ObjectStoreExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{TestDaemon, checkpoint};
use crate::process::Process;
use crate::support::pattern;
use crate::zeros::Zeros;

const MIB: u64 = 1 << 20;
const BUCKET: &str = "zeros";
const READERS: usize = 8;
/// What allocators and caches of one process differ by from read to read.
const NOISE_BYTES: u64 = 16 * MIB;

const SMALL: Zeros = Zeros { key: "small", segments: 1, segment_bytes: 64 * MIB, files: 1, number: 1 };
/// Its checksums alone are 256 KiB.
const LARGE: Zeros = Zeros { key: "large", segments: 1, segment_bytes: 64 << 30, files: 1, number: 2 };
/// As many parts as S3 allows.
const MANY: Zeros = Zeros { key: "many", segments: 10_000, segment_bytes: 8 * MIB, files: 20, number: 3 };

type Body = BoxStream<'static, object_store::Result<Bytes>>;

/// Objects in a store on which nothing runs afterwards.
async fn prepare(folder: &Path) {
    let flags = [
        ("store.url", format!("file:{}", folder.display())),
        ("server.s3", "127.0.0.1:0".to_owned()),
        ("server.api", "127.0.0.1:0".to_owned()),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value));
    let daemon = Daemon::start(Config::load_with(None, [], &flags).unwrap().settings().unwrap()).await.unwrap();
    daemon
        .running()
        .expect("a daemon by itself")
        .catalog()
        .execute(Command::CreateBucket(BUCKET.to_owned()))
        .await
        .unwrap();
    for object in [SMALL, LARGE, MANY] {
        object.put(daemon.running().expect("a daemon by itself").catalog(), folder, BUCKET).await;
    }
    daemon.shut_down().await.unwrap();
}

/// Begins reads of a whole object, and takes the first megabytes of each.
async fn begin(store: &AmazonS3, object: Zeros) -> Vec<Body> {
    let mut bodies = vec![];
    for _ in 0..READERS {
        let mut body = store.get(&Key::from(object.key)).await.unwrap().into_stream();
        let mut taken = 0;
        while taken < 4 * MIB {
            taken += body.next().await.unwrap().unwrap().len() as u64;
        }
        bodies.push(body);
    }
    bodies
}

fn resident_bytes(daemon: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_the_first_byte_of_a_read_do_not_depend_on_how_large_its_object_is() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    prepare(&folder.path().join("data")).await;
    let mut daemon = Process::spawn(folder.path(), &[]);
    let ready = daemon.wait_ready();
    let store = ready.s3_builder(ClientOptions::new()).with_bucket_name(BUCKET).build().unwrap();
    let small = begin(&store, SMALL).await;
    let before = resident_bytes(&daemon);

    for object in [LARGE, MANY] {
        let begun = Instant::now();
        let held = begin(&store, object).await;
        let (took, grown) = (begun.elapsed(), resident_bytes(&daemon).saturating_sub(before));
        println!("{}: {READERS} reads begun in {took:?}, {} KiB more", object.key, grown >> 10);
        // A block and what was found of 10,000 segments, each.
        assert!(grown <= READERS as u64 * 4 * MIB + NOISE_BYTES, "{}: {} MiB", object.key, grown / MIB);
        assert!(took < Duration::from_secs(10), "{}: {took:?}", object.key);
        drop(held);
        for end in [object.len(), object.len() / 2 + 77] {
            let range = end - MIB - 5..end;
            let bytes = store.get_range(&Key::from(object.key), range).await.unwrap();
            assert!(bytes.len() as u64 == MIB + 5 && bytes.iter().all(|byte| *byte == 0));
        }
    }
    // The daemon would wait for its readers.
    drop(small);
    daemon.terminate();
}

/// A read that has taken its first bytes, and then nothing.
struct Stalled {
    stream: TcpStream,
    taken: Vec<u8>,
}

impl Stalled {
    async fn begin(daemon: &TestDaemon, segment: &str) -> Self {
        let mut stream = TcpStream::connect(daemon.api()).await.unwrap();
        let request = format!("GET /v1/segments/{segment} HTTP/1.1\r\nhost: esker\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut taken = vec![0; 1000];
        stream.read_exact(&mut taken).await.unwrap();
        Self { stream, taken }
    }

    /// Takes the rest of the body, as much as comes.
    async fn go_on(mut self) -> Vec<u8> {
        // A connection that is cut may end in an error.
        drop(tokio::time::timeout(Duration::from_secs(20), self.stream.read_to_end(&mut self.taken)).await.unwrap());
        let head = self.taken.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        self.taken.split_off(head)
    }
}

/// More than the buffers of a connection take.
const STALLED_BYTES: usize = 60 << 20;
const QUICK: [(&str, &str); 2] = [("reclaim.interval", "50 ms"), ("reclaim.delete-grace", "0 ms")];

fn bytes_on_disk(daemon: &TestDaemon) -> u64 {
    // One may be deleted while they are counted.
    let blocks = |path| Some(std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).ok()?) * 512);
    daemon.files().iter().filter_map(blocks).sum()
}

/// Waits until no more than this is on disk.
async fn shrinks_to(daemon: &TestDaemon, bytes_max: u64) {
    let begun = Instant::now();
    while bytes_on_disk(daemon) > bytes_max {
        assert!(begun.elapsed() < Duration::from_secs(20), "{} bytes, not {bytes_max}", bytes_on_disk(daemon));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Checkpoint `n` of a job that keeps one checkpoint: 20 segments in files that die with the next one. Returns its bytes.
async fn churn(daemon: &TestDaemon, n: u64) -> u64 {
    const LEN: usize = 50_000;
    let head = BatchHead { len: LEN as u64, checkpoint: Some(n), ..BatchHead::default() };
    let segments: Vec<_> = (0..20).map(|seed| (head.clone(), pattern(n * 20 + seed, LEN).into())).collect();
    let answers = daemon.client.put_many("churn", &segments).await.unwrap();
    assert!(answers.iter().all(|answer| matches!(answer, BatchAnswer::Stored(_))));
    daemon.client.complete("churn", n).await.unwrap();
    daemon.client.flush("churn").await.unwrap();
    daemon.client.subsume("churn", n - 1).await.unwrap();
    20 * LEN as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_read_keeps_its_own_file_and_none_of_the_others() {
    let daemon = TestDaemon::start(&QUICK).await;
    for job in ["j", "churn"] {
        daemon.client.create_job(job).await.unwrap();
    }
    let data = pattern(1, STALLED_BYTES);
    let info = daemon.client.put("j", &checkpoint(1), None, data.clone().into()).await.unwrap();
    let stalled = Stalled::begin(&daemon, &info.segment).await;
    daemon.client.complete("j", 1).await.unwrap();
    daemon.client.subsume("j", 1).await.unwrap();

    let mut living = 0;
    for n in 1..=50 {
        living = churn(&daemon, n).await;
    }

    let kept = STALLED_BYTES as u64 + MIB;
    shrinks_to(&daemon, kept + living + living / 4).await;
    assert!(bytes_on_disk(&daemon) >= STALLED_BYTES as u64, "the file that is read is gone");
    assert!(stalled.go_on().await == data, "the bytes are whole");
    shrinks_to(&daemon, living + living / 4).await;
    assert_eq!(daemon.metric("esker_corrupt_reads_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_many_parts_is_read_to_its_end_though_it_is_replaced_meanwhile() {
    const PART_BYTES: usize = 5 << 20;
    let daemon = TestDaemon::start(&QUICK).await;
    let builder = AmazonS3Builder::new()
        .with_endpoint(format!("http://{}", daemon.s3()))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name("checkpoints")
        .with_skip_signature(true);
    let (store, key) = (builder.build().unwrap(), Key::from("dir/object"));
    let data = Bytes::from(pattern(1, STALLED_BYTES));
    let mut upload = store.put_multipart(&key).await.unwrap();
    for at in (0..STALLED_BYTES).step_by(PART_BYTES) {
        upload.put_part(data.slice(at..at + PART_BYTES).into()).await.unwrap();
    }
    upload.complete().await.unwrap();
    let part = PART_BYTES as u64;
    for range in [0..1, part - 1..part + 1, part + 7..3 * part - 7, (1 << 20) - 1..(1 << 20) + 1, part * 11..part * 12]
    {
        let wanted = data.slice(range.start as usize..range.end as usize);
        assert!(store.get_range(&key, range.clone()).await.unwrap() == wanted, "other bytes of {range:?}");
    }
    let mut body = store.get(&key).await.unwrap().into_stream();
    let mut read = body.next().await.unwrap().unwrap().to_vec();

    store.put(&key, Bytes::from_static(b"new").into()).await.unwrap();
    store.delete(&key).await.unwrap();
    daemon.metric_becomes("esker_live_bytes", 0.0).await;
    daemon.client.gc(false).await.unwrap();

    while let Some(bytes) = body.next().await {
        read.extend_from_slice(&bytes.unwrap());
    }
    assert!(read == data, "the bytes are whole");
    shrinks_to(&daemon, 0).await;
}

/// Reads a restore to its end, which has these bytes.
async fn read_on(restore: &mut Restore, data: &[Vec<u8>]) -> Result<(), ClientError> {
    let mut segments = data.iter();
    while restore.next().await?.is_some() {
        let mut rest = &segments.next().unwrap()[..];
        while let Some(bytes) = restore.bytes().await? {
            assert!(rest.starts_with(&bytes), "other bytes");
            rest = &rest[bytes.len()..];
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_restore_keeps_no_file_longer_than_it_reads_it() {
    // Too little for windows that hold all of it.
    let little_memory = [
        ("limits.memory", "32mb"),
        ("limits.multipart-memory", "8mb"),
        ("limits.multipart-part-in-memory-max", "5mb"),
        ("store.max-bytes-in-flight", "32mb"),
        ("execution.checkpointing.file-merging.max-file-size", "8mb"),
    ];
    let daemon = TestDaemon::start(&[&QUICK[..], &little_memory].concat()).await;
    daemon.client.create_job("j").await.unwrap();
    let data: Vec<Vec<u8>> = (0..4).map(|seed| pattern(seed, STALLED_BYTES / 2)).collect();
    let mut ids = vec![];
    for data in &data {
        ids.push(daemon.client.put("j", &checkpoint(1), None, data.clone().into()).await.unwrap().segment);
    }
    let wanted = RestoreRequest { segments: Some(ids), ..RestoreRequest::default() };
    let mut restore = daemon.client.restore(&wanted).await.unwrap();
    daemon.client.complete("j", 1).await.unwrap();
    daemon.client.subsume("j", 1).await.unwrap();

    shrinks_to(&daemon, 0).await;

    let ended = read_on(&mut restore, &data).await.expect_err("a restore of freed segments ended well");
    assert!(matches!(ended, ClientError::BrokenOff { .. }), "{ended}");
    assert_eq!(daemon.metric("esker_corrupt_reads_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_over_its_deadline_gives_its_file_up_and_breaks_off() {
    let daemon = TestDaemon::start(&[QUICK[0], QUICK[1], ("limits.read-lease", "300 ms")]).await;
    daemon.client.create_job("j").await.unwrap();
    let data = pattern(1, STALLED_BYTES);
    let info = daemon.client.put("j", &checkpoint(1), None, data.clone().into()).await.unwrap();
    let stalled = Stalled::begin(&daemon, &info.segment).await;
    daemon.client.complete("j", 1).await.unwrap();
    daemon.client.subsume("j", 1).await.unwrap();

    shrinks_to(&daemon, 0).await;

    let read = stalled.go_on().await;
    assert!(read.len() < data.len() && data.starts_with(&read), "{} bytes, or other ones", read.len());
    assert_eq!(daemon.metric("esker_corrupt_reads_total").await, 0.0, "nothing was damaged");
    assert_eq!(daemon.metric("esker_rejected_total{reason=\"stalled_read\"}").await, 1.0);
}

/// Two segments in one file, of which the first is read and stalls, and only the other lives then. Returns the daemon, the
/// read, the bytes of both, and what lives.
async fn stalled_in_a_shared_file(punch_holes: &str, kept: usize) -> (TestDaemon, Stalled, [Vec<u8>; 2], SegmentInfo) {
    let one_file = [
        ("store.part-size", "48mb"),
        ("limits.multipart-part-in-memory-max", "5mb"),
        ("execution.checkpointing.file-merging.max-file-size", "256mb"),
        ("execution.checkpointing.file-merging.max-space-amplification", "1.5"),
        ("reclaim.punch-holes", punch_holes),
        ("limits.read-lease", "300 ms"),
    ];
    let daemon = TestDaemon::start(&[&QUICK[..], &one_file].concat()).await;
    let client = &daemon.client;
    client.create_job("j").await.unwrap();
    let params = PutParams { scope: Some("shared".to_owned()), ..checkpoint(1) };
    let data = [pattern(1, 40 << 20), pattern(2, 30 << 20)];
    let read = client.put("j", &params, None, data[0].clone().into()).await.unwrap();
    let other = client.put("j", &params, None, data[1].clone().into()).await.unwrap();
    assert_eq!(read.file, other.file);
    let stalled = Stalled::begin(&daemon, &read.segment).await;
    let kept = [read, other].into_iter().nth(kept).unwrap();
    client.complete("j", 1).await.unwrap();
    assert_eq!(client.reuse("j", 2, vec![kept.handle.clone()]).await.unwrap().reused, 1);
    client.complete("j", 2).await.unwrap();
    client.subsume("j", 1).await.unwrap();
    client.flush("j").await.unwrap();
    (daemon, stalled, data, kept)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_over_its_deadline_finds_what_was_moved_meanwhile() {
    let (daemon, stalled, data, kept) = stalled_in_a_shared_file("false", 0).await;

    shrinks_to(&daemon, (40 << 20) + MIB).await;

    assert!(daemon.files().iter().all(|path| !path.ends_with(kept.file.as_ref().unwrap())), "it was not moved");
    assert!(stalled.go_on().await == data[0], "the bytes are whole");
    assert_eq!(daemon.metric("esker_corrupt_reads_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_over_its_deadline_that_finds_a_hole_breaks_off_and_nothing_is_called_damaged() {
    let (daemon, stalled, data, kept) = stalled_in_a_shared_file("true", 1).await;

    shrinks_to(&daemon, (30 << 20) + MIB).await;

    let read = stalled.go_on().await;
    assert!(read.len() < data[0].len() && data[0].starts_with(&read), "{} bytes, or other ones", read.len());
    assert_eq!(daemon.metric("esker_corrupt_reads_total").await, 0.0, "nothing was damaged");
    assert_eq!(daemon.metric("esker_rejected_total{reason=\"stalled_read\"}").await, 1.0);
    assert!(daemon.client.get(&kept.segment).await.unwrap() == data[1]);
}
