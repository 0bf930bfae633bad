//! Getting space back on a local disk, as worker and operator see it.

use std::path::Path;
use std::process::Output;

use esker::format;
use esker::metrics::Metrics;
use esker::model::PhysicalFileId;
use esker::store::{DataStore, LocalStore, Traffic};
use esker_client::wire::{BatchAnswer, BatchHead, SegmentInfo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{TestDaemon, files};
use crate::process;
use crate::support::pattern;

/// Reclaiming happens when the test says so.
const WHEN_TOLD: [(&str, &str); 2] = [("reclaim.interval", "1 h"), ("store.part-size", "1mb")];
const SEGMENT_BYTES: usize = 60_000;

/// A segment, and the seed of its bytes.
type Living = Vec<(SegmentInfo, u64)>;

/// 30 segments of one file, of which the second checkpoint uses every third.
async fn mostly_dead(daemon: &TestDaemon) -> Living {
    let client = &daemon.client;
    client.create_job("j").await.unwrap();
    let head = BatchHead {
        len: SEGMENT_BYTES as u64,
        checkpoint: Some(1),
        scope: Some("shared".to_owned()),
        ..BatchHead::default()
    };
    let segments: Vec<_> = (0..30).map(|seed| (head.clone(), pattern(seed, SEGMENT_BYTES).into())).collect();
    let answers = client.put_many("j", &segments).await.unwrap();
    let stored = answers.into_iter().map(|answer| match answer {
        BatchAnswer::Stored(info) => info,
        BatchAnswer::Error(error) => panic!("{error:?}"),
    });
    let living: Living = stored.zip(0..).step_by(3).collect();
    client.complete("j", 1).await.unwrap();
    let kept = living.iter().map(|(info, _)| info.handle.clone()).collect();
    assert_eq!(client.reuse("j", 2, kept).await.unwrap().reused, 10);
    client.complete("j", 2).await.unwrap();
    client.subsume("j", 1).await.unwrap();
    client.flush("j").await.unwrap();
    daemon.metric_becomes("esker_physical_files{state=\"open\"}", 0.0).await;
    living
}

async fn assert_living(daemon: &TestDaemon, living: &Living) {
    for (info, seed) in living {
        assert!(daemon.client.get(&info.segment).await.unwrap() == pattern(*seed, SEGMENT_BYTES), "segment {seed}");
    }
}

fn on_disk(daemon: &TestDaemon) -> u64 {
    let blocks = |path: &Path| std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).unwrap());
    daemon.files().iter().map(|path| blocks(path) * 512).sum()
}

fn esker(arguments: &[&str]) -> Output {
    process::esker().args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> serde_json::Value {
    let output = esker(&[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn dead_ranges_are_given_back_where_they_are_and_nothing_is_copied() {
    let daemon = TestDaemon::start(&WHEN_TOLD).await;
    let living = mostly_dead(&daemon).await;
    let before = on_disk(&daemon);

    let round = daemon.client.reclaim().await.unwrap();

    assert!(round.punched_bytes > 20 * (SEGMENT_BYTES as u64 - 2 * 4096), "{round:?}");
    assert_eq!((round.written_bytes, round.jobs_above), (0, 0));
    // The file system needs a block or two to remember the holes.
    let given_back = before - on_disk(&daemon);
    assert!(given_back.abs_diff(round.punched_bytes) < 64 << 10, "{given_back} bytes, said {round:?}");
    assert_living(&daemon, &living).await;
    let total = daemon.client.space(None, None).await.unwrap().total;
    assert!(total.amplification.unwrap() < 1.3, "{total:?}");
    assert_eq!(daemon.client.reclaim().await.unwrap().punched_bytes, 0, "nothing is given back twice");

    let daemon = daemon.restart().await;

    assert_living(&daemon, &living).await;
    let again = daemon.client.space(None, None).await.unwrap().total;
    assert_eq!(again.physical_bytes, total.physical_bytes, "holes are remembered");
    let folder = daemon.shut_down().await;
    let verified = esker(&["verify", "--read-data", "100", "--data-dir", folder.path().to_str().unwrap()]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[tokio::test]
async fn files_of_a_volume_that_was_gone_for_a_moment_are_reclaimed_once_it_is_back() {
    for punch_holes in ["true", "false"] {
        let daemon = TestDaemon::start(&[&WHEN_TOLD[..], &[("reclaim.punch-holes", punch_holes)]].concat()).await;
        let living = mostly_dead(&daemon).await;
        let away = tempfile::tempdir().unwrap();
        let move_all = |from: &Path, to: &Path| {
            ["ESKER", "data"].iter().for_each(|name| std::fs::rename(from.join(name), to.join(name)).unwrap());
        };
        move_all(daemon.folder(), away.path());

        let refused = daemon.client.get(&living[0].0.segment).await.unwrap_err();
        assert!(refused.status().is_some_and(|status| status == 503) && refused.is_transient(), "{refused}");
        daemon.client.reclaim().await.unwrap_err();
        assert_eq!(daemon.metric("esker_store_lost").await, 1.0);
        move_all(away.path(), daemon.folder());

        let round = daemon.client.reclaim().await.unwrap();
        let given_back = if punch_holes == "true" { round.punched_bytes } else { round.freed_bytes };
        assert!(given_back > 10 * SEGMENT_BYTES as u64, "punch-holes = {punch_holes}: {round:?}");
        assert_eq!(daemon.metric("esker_corrupt_reads_total").await, 0.0);
        assert_living(&daemon, &living).await;
    }
}

#[tokio::test]
async fn holes_that_a_crash_left_uncounted_are_counted_by_the_next_round() {
    let daemon = TestDaemon::start(&WHEN_TOLD).await;
    let living = mostly_dead(&daemon).await;
    let file: PhysicalFileId = living[0].0.file.as_ref().unwrap().parse().unwrap();
    // As the reclaimer does, but that the daemon dies before it can say so.
    let store = DataStore::Local(LocalStore::new(daemon.folder().to_owned(), Traffic::data(Metrics::new())));
    let dead = |frame: &&format::Frame| living.iter().all(|(info, _)| info.offset != frame.offset);
    let frames = store.frames(&file).await.unwrap();
    let ranges = frames.iter().filter(dead).map(|frame| frame.offset..frame.offset + frame.len).collect();
    let holes = store.punch(&file, ranges).await.unwrap();

    let daemon = daemon.restart().await;

    assert_living(&daemon, &living).await;
    let uncounted = daemon.client.space(None, None).await.unwrap().total.physical_bytes;
    assert_eq!(daemon.client.reclaim().await.unwrap().punched_bytes, holes);
    let counted = daemon.client.space(None, None).await.unwrap().total.physical_bytes;
    assert_eq!(uncounted - counted, holes);
    assert_living(&daemon, &living).await;
}

#[tokio::test]
async fn a_read_that_has_begun_ends_well_though_everything_is_deleted_meanwhile() {
    let daemon = TestDaemon::start(&WHEN_TOLD).await;
    daemon.client.create_job("j").await.unwrap();
    let data = pattern(1, 60 << 20);
    let info = daemon.client.put("j", &crate::daemon::checkpoint(1), None, data.clone().into()).await.unwrap();
    let mut slow = TcpStream::connect(daemon.api()).await.unwrap();
    let request = format!("GET /v1/segments/{} HTTP/1.1\r\nhost: esker\r\nconnection: close\r\n\r\n", info.segment);
    slow.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1000];
    slow.read_exact(&mut answer).await.unwrap();

    daemon.client.complete("j", 1).await.unwrap();
    daemon.client.subsume("j", 1).await.unwrap();
    let report = daemon.client.gc(false).await.unwrap();
    assert_eq!(report.deleted, 0, "its reader has not left");
    assert_eq!(report.waiting.readers, report.forgotten_bytes, "{report:?}");
    assert!(daemon.client.get(&info.segment).await.is_err(), "it is freed");

    slow.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(&data), "the bytes are whole");
    drop(slow);
    assert_eq!(daemon.client.gc(false).await.unwrap().deleted, 1);
    assert_eq!(files(daemon.folder().join("data").as_path()).len(), 0);
}

// The program is waited for on this thread, the daemon answers on others.
#[tokio::test(flavor = "multi_thread")]
async fn du_gc_and_reclaim_say_the_same_of_a_daemon_and_of_its_folder() {
    let daemon = TestDaemon::start(&WHEN_TOLD).await;
    mostly_dead(&daemon).await;
    let api = format!("http://{}", daemon.api());
    let asked: Vec<_> = ["job", "lane", "checkpoint"]
        .map(|by| json(&["du", "--api", &api, "--by", by]))
        .into_iter()
        .chain([json(&["reclaim", "--dry-run", "--api", &api]), json(&["gc", "--dry-run", "--api", &api])])
        .collect();
    assert_eq!(asked[0]["total"]["live_bytes"], 10 * SEGMENT_BYTES as u64);
    assert_eq!(asked[0]["rows"][0]["of"], "j");
    assert_eq!(asked[2]["rows"][0]["own_bytes"], 10 * SEGMENT_BYTES as u64);
    assert_eq!(asked[3]["punch"].as_array().unwrap().len(), 1);

    let folder = daemon.shut_down().await;

    let folder = folder.path().to_str().unwrap();
    let seen: Vec<_> = ["job", "lane", "checkpoint"]
        .map(|by| json(&["du", "--data-dir", folder, "--by", by]))
        .into_iter()
        .chain([
            json(&["reclaim", "--dry-run", "--data-dir", folder]),
            json(&["gc", "--dry-run", "--data-dir", folder]),
        ])
        .collect();
    assert_eq!(seen, asked);
    for nowhere in [&["du", "--data-dir", "/nowhere"][..], &["gc", "--data-dir", folder], &["du", "--by", "shoe"]] {
        assert_eq!(esker(nowhere).status.code(), Some(2), "{nowhere:?}");
    }
}
