//! `esker rebuild`: a catalog from the files alone, with which everything that was in files reads as before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};

use esker::catalog::slate::{Journal, JournalError, Present};
use esker::config::{Config, Settings};
use esker::engine::identity::IdentityError;
use esker::engine::rebuild::{RebuildError, RebuildOptions, RebuildProgress, rebuild};
use esker::format::{self, FooterEntry, Header};
use esker::metrics::Metrics;
use esker::model::{About, CheckpointId, Millis, PhysicalFileId, SegmentId, StateScope, Writer, crc32c};
use esker::store::{DiskSpace, Placement, Traffic};
use esker_client::Client;
use esker_client::wire::PutParams;
use futures::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt};
use tempfile::TempDir;

use crate::daemon::files;
use crate::process::{self, Process, Ready};
use crate::support::pattern;

/// More than is kept inside the catalog.
const SMALL: usize = 30_000;
/// More than a block, so that there are checksums of blocks.
const MIDDLE: usize = (1 << 20) + 77;
/// More than a part, so that it is streamed.
const LARGE: usize = (6 << 20) + 5;
const PART: usize = 5 << 20;

/// A daemon's folder, and what was answered.
struct World {
    folder: TempDir,
    handles: BTreeMap<String, Vec<u8>>,
    objects: BTreeMap<String, (Vec<u8>, String)>,
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), handles: BTreeMap::new(), objects: BTreeMap::new() }
    }

    fn start(&self, more: &[(&str, &str)]) -> (Process, Ready) {
        let mut environment = vec![("ESKER__STORE__PART_SIZE", "5mb".to_owned())];
        environment.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
        let mut process = Process::spawn(self.folder.path(), &environment);
        let ready = process.wait_ready();
        (process, ready)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Segments through both doors.
    async fn write(&mut self, ready: &Ready) {
        let client = Client::new(&ready.api, None).unwrap();
        client.create_job("words").await.unwrap();
        let mut seed = 0;
        for checkpoint in 1..=2 {
            for (scope, len) in [("shared", SMALL), ("exclusive", MIDDLE), ("shared", LARGE), ("exclusive", SMALL)] {
                seed += 1;
                let params = PutParams {
                    checkpoint: Some(checkpoint),
                    scope: Some(scope.to_owned()),
                    operator: Some("map".to_owned()),
                    subtask: Some(seed % 2),
                    parallelism: Some(2),
                    task_manager: Some("tm".to_owned()),
                    ..PutParams::default()
                };
                self.put(&client, &params, seed.into(), len).await;
            }
            client.complete("words", checkpoint).await.unwrap();
        }
        client.begin_savepoint("words", 3).await.unwrap();
        let params = PutParams { checkpoint: Some(3), ..PutParams::default() };
        self.put(&client, &params, 100, SMALL).await;
        self.put(&client, &params, 101, LARGE).await;
        client.complete("words", 3).await.unwrap();
        self.write_objects(ready).await;
    }

    async fn put(&mut self, client: &Client, params: &PutParams, seed: u64, len: usize) {
        let data = pattern(seed, len);
        let info = client.put("words", params, None, data.clone().into()).await.unwrap();
        self.handles.insert(info.handle, data);
    }

    async fn write_objects(&mut self, ready: &Ready) {
        let store = ready.s3_builder(ClientOptions::new()).build().unwrap();
        let job = "0123456789abcdef0123456789abcdef";
        let puts = [
            (format!("jobs/{job}/chk-4/one"), SMALL),
            (format!("jobs/{job}/shared/two"), MIDDLE),
            ("plain/large".to_owned(), LARGE),
            ("plain/over".to_owned(), SMALL),
            ("plain/over".to_owned(), SMALL + 1),
        ];
        for (n, (key, len)) in (200..).zip(puts) {
            let data = pattern(n, len);
            let answer = store.put(&Key::from(key.as_str()), data.clone().into()).await.unwrap();
            self.objects.insert(key, (data, answer.e_tag.unwrap()));
        }
        for (key, lens) in [("plain/parts", vec![PART, PART + 3, 1000]), ("plain/part", vec![SMALL])] {
            let mut upload = store.put_multipart(&Key::from(key)).await.unwrap();
            let mut whole = vec![];
            for (n, len) in (300..).zip(lens) {
                let data = pattern(n, len);
                whole.extend_from_slice(&data);
                upload.put_part(data.into()).await.unwrap();
            }
            let answer = upload.complete().await.unwrap();
            self.objects.insert(key.to_owned(), (whole, answer.e_tag.unwrap()));
        }
    }

    async fn check(&self, ready: &Ready) {
        self.check_handles(ready).await;
        let store = ready.s3_builder(ClientOptions::new()).build().unwrap();
        let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
        assert_eq!(listed.len(), self.objects.len());
        for (key, (data, e_tag)) in &self.objects {
            let got = store.get(&Key::from(key.as_str())).await.unwrap();
            assert_eq!(got.meta.e_tag.as_ref(), Some(e_tag), "{key}");
            assert_eq!(got.bytes().await.unwrap(), data, "{key}");
        }
    }

    async fn check_handles(&self, ready: &Ready) {
        let client = Client::new(&ready.api, None).unwrap();
        for (handle, data) in &self.handles {
            assert_eq!(client.get_handle(handle).await.unwrap(), data, "{handle}");
        }
    }

    fn lose_catalog(&self) {
        std::fs::rename(self.data().join("catalog"), self.folder.path().join("lost")).unwrap();
    }

    fn run(&self, command: &str, more: &[&str]) -> (Option<i32>, String) {
        let mut esker = process::esker();
        let Output { status, stdout, stderr } =
            esker.arg(command).arg("--data-dir").arg(self.data()).args(more).output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
    }

    fn json(&self, more: &[&str]) -> (Option<i32>, serde_json::Value) {
        let (code, text) = self.run("rebuild", &[&["--json"], more].concat());
        (code, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
    }
}

/// What a daemon left that ended in order.
async fn stopped() -> World {
    let mut world = World::new();
    let (process, ready) = world.start(&[]);
    world.write(&ready).await;
    process.terminate();
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_in_files_reads_as_before() {
    let world = stopped().await;
    world.lose_catalog();

    let (code, report) = world.json(&[]);

    assert_eq!((code, &report["faults"]), (Some(0), &serde_json::json!([])), "{report}");
    assert_eq!(report["objects"], world.objects.len());
    assert_eq!(report["lost_and_found"], 1, "what stood under a key before");
    let (code, text) = world.run("verify", &["--read-data", "100"]);
    assert_eq!(code, Some(0), "{text}");
    let (process, ready) = world.start(&[]);
    world.check(&ready).await;
    let client = Client::new(&ready.api, None).unwrap();
    let checkpoints = client.checkpoints("words").await.unwrap();
    assert_eq!(checkpoints.iter().map(|info| info.checkpoint).collect::<Vec<_>>(), [1, 2, 3]);
    // A savepoint stays, shared state that a checkpoint reused in time stays, the rest goes.
    let shared: Vec<&String> =
        world.handles.iter().filter(|(_, data)| data.len() == LARGE).map(|(key, _)| key).collect();
    client.begin("words", 7).await.unwrap();
    let ids = shared.iter().map(|handle| handle.split(':').nth(1).unwrap().to_owned()).collect();
    let refused = client.reuse("words", 7, ids).await.unwrap();
    assert_eq!(refused.refused.len(), 1, "the savepoint's");
    client.complete("words", 7).await.unwrap();
    client.subsume("words", 6).await.unwrap();
    for (handle, data) in &world.handles {
        let read = client.get_handle(handle).await;
        let kept = data.len() == LARGE || *data == pattern(100, SMALL);
        assert_eq!(read.is_ok(), kept, "{handle}");
    }
    process.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_epochs_go_on_where_the_lost_catalog_ended() {
    let mut world = stopped().await;
    let before = epochs(&world.data());
    world.lose_catalog();
    assert_eq!(world.run("rebuild", &[]).0, Some(0));
    // What an old daemon's name is on and nobody knows is litter, not a sign of a newer catalog.
    let some = files(&world.data().join("data")).pop().unwrap();
    let litter = some.with_file_name(format!("{:08x}-00000000000000000000000042", before.last().unwrap()));
    std::fs::copy(&some, &litter).unwrap();
    let (code, text) = world.run("gc", &["--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("not in the catalog") && !text.contains("warning"), "{text}");

    let (process, ready) = world.start(&[]);
    let client = Client::new(&ready.api, None).unwrap();
    let params = PutParams { checkpoint: Some(9), ..PutParams::default() };
    world.put(&client, &params, 900, SMALL).await;

    assert!(!litter.exists());
    assert!(epochs(&world.data()).last() > before.last());
    world.check_handles(&ready).await;
    process.terminate();
    assert_eq!(world.run("verify", &["--read-data", "100"]).0, Some(0));
}

fn epochs(data: &Path) -> Vec<u64> {
    let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    let epoch = |path| u64::from_str_radix(name(path).split('-').next().unwrap(), 16).unwrap();
    let mut epochs: Vec<u64> = files(&data.join("data")).into_iter().map(epoch).collect();
    epochs.sort_unstable();
    epochs
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_every_handle_works() {
    let mut world = World::new();
    let (process, ready) = world.start(&[]);
    world.write(&ready).await;
    drop(process); // kill -9
    world.lose_catalog();

    let (code, report) = world.json(&["--read-data"]);

    assert_eq!(code, Some(1), "whose the segments of open files are is lost: {report}");
    let (code, text) = world.run("verify", &["--read-data", "100"]);
    assert_eq!(code, Some(0), "{text}");
    let (process, ready) = world.start(&[]);
    world.check_handles(&ready).await;
    process.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_and_a_start_nothing_is_lost() {
    let mut world = World::new();
    let (process, ready) = world.start(&[]);
    world.write(&ready).await;
    drop(process); // kill -9
    let (process, _) = world.start(&[]);
    drop(process);
    world.lose_catalog();

    let (code, report) = world.json(&[]);

    assert_eq!(code, Some(0), "{report}");
    let (process, ready) = world.start(&[]);
    world.check(&ready).await;
    process.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_is_never_replaced_unasked() {
    let world = stopped().await;

    let (code, text) = world.run("rebuild", &[]);
    assert_eq!(code, Some(2));
    assert!(text.contains("--replace"), "{text}");
    let (code, report) = world.json(&["--replace"]);
    assert_eq!(code, Some(0), "{report}");
    let old = report["moved_aside"].as_str().unwrap();
    assert!(Path::new(old).join("db/FORMAT").is_file());

    let (process, ready) = world.start(&[]);
    world.check(&ready).await;
    let (code, text) = world.run("rebuild", &["--replace"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("in use"), "{text}");
    process.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_foreign_is_told() {
    let world = stopped().await;
    world.lose_catalog();
    let all = files(&world.data().join("data"));
    let large: Vec<&PathBuf> = all.iter().filter(|path| path.metadata().unwrap().len() > LARGE as u64).collect();
    // A footer, a header with the footer, and a file of nothing at all.
    let flip = |path: &Path, places: &[u64]| {
        let mut bytes = std::fs::read(path).unwrap();
        for place in places {
            let at = if *place == u64::MAX { bytes.len() - 100 } else { *place as usize };
            bytes[at] ^= 0x55;
        }
        std::fs::write(path, bytes).unwrap();
    };
    flip(large[0], &[u64::MAX]);
    flip(large[1], &[u64::MAX, 3]);
    let folder = large[0].parent().unwrap();
    std::fs::write(folder.join("00000001-00000000000000000000000042"), vec![7; 5000]).unwrap();
    std::fs::write(folder.join("00000001-00000000000000000000000043"), []).unwrap();
    // Copies that somebody made: of a file in order, and of a damaged one.
    let copies = world.data().join("data/copies");
    std::fs::create_dir(&copies).unwrap();
    for copied in [large[0], large[2]] {
        std::fs::copy(copied, copies.join(copied.file_name().unwrap())).unwrap();
    }
    std::fs::write(world.data().join("data/stray"), b"?").unwrap();

    let (code, report) = world.json(&["--read-data"]);

    assert_eq!(code, Some(1));
    let faults: Vec<&str> = report["faults"].as_array().unwrap().iter().map(|fault| fault.as_str().unwrap()).collect();
    assert_eq!(faults.len(), 6, "{faults:?}");
    assert_eq!((&report["lost_and_found"], &report["copies"]), (&5.into(), &1.into()), "{report}");
    let (process, ready) = world.start(&[]);
    let client = Client::new(&ready.api, None).unwrap();
    let kept = client.segments("lost+found", None, None).await.unwrap();
    assert_eq!(kept.segments.len(), 5);
    for segment in &kept.segments {
        client.get(&segment.info.segment).await.unwrap();
    }
    process.terminate();
}

fn settings(world: &World) -> Settings {
    let url = ("store.url".to_owned(), format!("file:{}", world.data().display()));
    Config::load_with(None, [], &[url]).unwrap().settings().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_cut_short_at_any_step_is_done_again() {
    let world = stopped().await;
    let options = RebuildOptions { replace: true, ..RebuildOptions::default() };
    let steps = AtomicUsize::new(0);
    rebuild(&settings(&world), options, &|_| {
        steps.fetch_add(1, Ordering::Relaxed);
    })
    .await
    .unwrap();
    let steps = steps.load(Ordering::Relaxed);
    assert!(steps > 10, "{steps}");

    for last in 0..steps {
        let settings = settings(&world);
        let cut_short = tokio::spawn(async move {
            let step = AtomicUsize::new(0);
            let crash = |at: RebuildProgress| assert!(step.fetch_add(1, Ordering::Relaxed) < last, "a crash at {at:?}");
            rebuild(&settings, options, &crash).await
        });
        assert!(cut_short.await.unwrap_err().is_panic());
        // Whatever is there now: the old catalog, whole, or nothing that a daemon would open.
        let place = Placement::Local {
            folder: world.data().join("catalog"),
            traffic: Traffic::catalog(Metrics::new()),
            space: DiskSpace::default(),
        };
        let left = Journal::present(&place).await.unwrap();
        let (code, report) = world.json(if left == Present::Journal { &["--replace"] } else { &[] });
        assert_eq!(code, Some(0), "after step {last}, which left {left:?}: {report}");
        for old in std::fs::read_dir(world.data()).unwrap().map(|entry| entry.unwrap().path()) {
            if old.file_name().unwrap().to_string_lossy().starts_with("catalog.old") {
                std::fs::remove_dir_all(old).unwrap();
            }
        }
    }
    let (code, text) = world.run("verify", &["--read-data", "100"]);
    assert_eq!(code, Some(0), "{text}");
    let (process, ready) = world.start(&[]);
    world.check(&ready).await;
    process.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_and_a_rebuild_keep_each_other_off_from_the_first_look_on() {
    let world = World::new();
    let (process, ready) = world.start(&[]);
    let client = Client::new(&ready.api, None).unwrap();
    client.create_job("words").await.unwrap();
    let params = PutParams { checkpoint: Some(1), ..PutParams::default() };
    let put = async |seed| client.put("words", &params, None, pattern(seed, SMALL).into()).await.unwrap();
    put(1).await;
    let replace = RebuildOptions { replace: true, ..RebuildOptions::default() };

    let refused = rebuild(&settings(&world), replace, &|at| panic!("it went on to {at:?}")).await;

    assert!(matches!(refused, Err(RebuildError::Journal(JournalError::Locked { .. }))), "{refused:?}");
    put(2).await;
    // Its catalog is gone, and it has the data all the same.
    std::fs::rename(world.data().join("catalog"), world.folder.path().join("away")).unwrap();
    let refused = rebuild(&settings(&world), replace, &|at| panic!("it went on to {at:?}")).await;
    assert!(matches!(refused, Err(RebuildError::Identity(IdentityError::InUse(_)))), "{refused:?}");
    std::fs::rename(world.folder.path().join("away"), world.data().join("catalog")).unwrap();
    process.terminate();

    let (start, world_data) = (AtomicUsize::new(0), world.data());
    let starts = |at: RebuildProgress| {
        if matches!(
            at,
            RebuildProgress::Listed(_)
                | RebuildProgress::RoomMade(_)
                | RebuildProgress::Begun
                | RebuildProgress::Written
        ) {
            let mut esker = process::esker();
            esker.args(["dev", "--s3", "127.0.0.1:0", "--api", "127.0.0.1:0", "--data-dir"]).arg(&world_data);
            let output = esker.output().unwrap();
            assert!(!output.status.success(), "it started at {at:?}");
            start.fetch_add(1, Ordering::Relaxed);
        }
    };
    let rebuilt = rebuild(&settings(&world), replace, &starts).await.unwrap();
    assert_eq!((rebuilt.segments, start.into_inner()), (2, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_refuses_a_catalog_that_is_half_rebuilt() {
    let world = stopped().await;
    world.lose_catalog();
    let settings = settings(&world);
    let cut_short = tokio::spawn(async move {
        rebuild(&settings, RebuildOptions::default(), &|at| assert!(at != RebuildProgress::Wrote, "a crash")).await
    });
    assert!(cut_short.await.unwrap_err().is_panic());

    let output = process::esker()
        .args(["dev", "--s3", "127.0.0.1:0", "--api", "127.0.0.1:0", "--data-dir"])
        .arg(world.data())
        .output()
        .unwrap();

    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("esker rebuild"));
    assert_eq!(world.run("rebuild", &[]).0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_without_files_cannot_be_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    for missing in [folder.path().to_owned(), folder.path().join("missing")] {
        let mut esker = process::esker();
        let output = esker.args(["rebuild", "--data-dir"]).arg(&missing).output().unwrap();

        assert_eq!(output.status.code(), Some(2));
    }
}

/// A closed file with these segments of job `j`, as a daemon of `epoch` writes it.
fn file(folder: &Path, epoch: u64, ulid: u128, segments: &[(u128, &[u8])]) -> PathBuf {
    let header = Header { epoch, ulid, created: Millis(1) };
    let mut bytes = format::encode_header(&header).to_vec();
    let mut entries = vec![];
    for (index, (id, data)) in (0..).zip(segments) {
        bytes.extend(format::encode_frame(index, data.len() as u64, crc32c(data)));
        entries.push(FooterEntry {
            id: SegmentId(*id),
            offset: bytes.len() as u64,
            len: data.len() as u64,
            crc32c: crc32c(data),
            about: About {
                job: "j".parse().unwrap(),
                scope: StateScope::Exclusive,
                writer: Writer::default(),
                checkpoint: Some(CheckpointId(5)),
                name: None,
            },
            savepoint: false,
        });
        bytes.extend_from_slice(data);
    }
    bytes.extend(format::encode_end(&entries, bytes.len() as u64, ulid));
    let id = PhysicalFileId::new(Some(&"j".parse().unwrap()), epoch, ulid);
    let path = folder.join(id.as_str());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

async fn places(world: &World) -> BTreeMap<String, String> {
    let (process, ready) = world.start(&[]);
    let client = Client::new(&ready.api, None).unwrap();
    let listed = client.segments("j", None, None).await.unwrap().segments;
    let mut places = BTreeMap::new();
    for segment in listed {
        let file = segment.info.file.unwrap();
        let epoch = file.rsplit('/').next().unwrap().split('-').next().unwrap().to_owned();
        let data = client.get(&segment.info.segment).await.unwrap();
        assert_eq!(crc32c(&data), u32::from_str_radix(&segment.info.crc32c, 16).unwrap());
        places.insert(segment.info.segment, epoch);
    }
    process.terminate();
    places
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_the_later_one_counts_and_a_damaged_one_does_not() {
    let world = World::new();
    let (one, two, three) = (pattern(1, 100), pattern(2, 5000), pattern(3, 10));
    file(&world.data(), 3, 30, &[(1, &one), (2, &two)]);
    let later = file(&world.data(), 0x10, 20, &[(1, &one), (3, &three)]);
    // Of the same epoch, a later name; its copy is damaged.
    let damaged = file(&world.data(), 0x10, 21, &[(2, &two)]);
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();

    let (code, report) = world.json(&["--read-data"]);

    assert_eq!((code, &report["copies"], &report["segments"]), (Some(0), &2.into(), &3.into()), "{report}");
    let epochs: Vec<String> = places(&world).await.into_values().collect();
    assert_eq!(epochs, ["00000010", "00000003", "00000010"]);
    assert!(later.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_without_another_copy_is_told_and_never_read_as_good() {
    let world = World::new();
    let large = pattern(1, MIDDLE);
    let damaged = file(&world.data(), 3, 30, &[(1, &large), (2, &pattern(2, 100))]);
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();

    let (code, report) = world.json(&[]);

    assert_eq!((code, &report["segments"]), (Some(1), &2.into()), "{report}");
    let (process, ready) = world.start(&[]);
    let client = Client::new(&ready.api, None).unwrap();
    assert!(client.get(&SegmentId(1).to_string()).await.is_err());
    assert_eq!(client.get(&SegmentId(2).to_string()).await.unwrap(), pattern(2, 100));
    process.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_catalog_is_moved_aside_too() {
    let world = World::new();
    file(&world.data(), 3, 30, &[(1, &pattern(1, 100))]);
    std::fs::create_dir_all(world.data().join("catalog/db/compacted")).unwrap();
    std::fs::write(world.data().join("catalog/db/compacted/x.sst"), b"?").unwrap();

    let (code, report) = world.json(&[]);

    assert_eq!(code, Some(0), "{report}");
    let old = Path::new(report["moved_aside"].as_str().unwrap());
    assert!(old.join("db/compacted/x.sst").exists());
}
