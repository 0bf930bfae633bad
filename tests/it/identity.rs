//! A daemon on a folder that is not the store that its catalog belongs to: an empty mount point, another store's folder, an
//! older catalog. It destroys nothing there and makes nothing, and says what it expected.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker::catalog::mutation::Mutation;
use esker::catalog::slate::{Journal, JournalError, JournalSettings};
use esker::format::encode_frame;
use esker::metrics::Metrics;
use esker::model::SegmentHasher;
use esker::store::{DiskSpace, Placement, Traffic};
use esker_client::Client;
use esker_client::wire::{GcReport, SegmentInfo};
use http::StatusCode;
use object_store::{ClientOptions, ObjectStoreExt, RetryConfig};
use tempfile::TempDir;

use crate::daemon::{TestDaemon, checkpoint, files};
use crate::process::{Process, Ready, esker};
use crate::raw::{ask, request};
use crate::support::pattern;

/// More than is kept inside the catalog.
const LEN: usize = 30_000;

/// A data folder and a catalog elsewhere, as on two volumes, and what was answered.
struct World {
    folder: TempDir,
    answered: Vec<(SegmentInfo, u64)>,
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), answered: vec![] }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn away(&self) -> PathBuf {
        self.folder.path().join("away")
    }

    /// The folder of the catalog called `name`.
    fn catalog(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).join("catalog")
    }

    fn environment(&self, catalog: &str) -> Vec<(&'static str, String)> {
        vec![("ESKER__CATALOG__URL", format!("file:{}", self.folder.path().join(catalog).display()))]
    }

    fn start(&self) -> (Process, Ready) {
        let mut process = Process::spawn(self.folder.path(), &self.environment("elsewhere"));
        let ready = process.wait_ready();
        (process, ready)
    }

    /// Puts segments of a job, each of which is answered.
    async fn put(&mut self, ready: &Ready, job: &str, count: u64) {
        let client = Client::new(&ready.api, None).unwrap();
        client.create_job(job).await.unwrap();
        for _ in 0..count {
            let seed = self.answered.len() as u64;
            let info = client.put(job, &checkpoint(1), None, pattern(seed, LEN).into()).await.unwrap();
            self.answered.push((info, seed));
        }
    }

    async fn assert_readable(&self, ready: &Ready) {
        let client = Client::new(&ready.api, None).unwrap();
        for (info, seed) in &self.answered {
            assert!(client.get(&info.segment).await.unwrap() == pattern(*seed, LEN), "segment {seed}");
        }
    }

    /// What a start says that must be refused. It must not hang, either.
    fn refused(&self, catalog: &str) -> (Option<i32>, String) {
        let log = self.folder.path().join("refused");
        let mut command = esker();
        command.args(["dev", "--s3", "127.0.0.1:0", "--api", "127.0.0.1:0", "--data-dir"]).arg(self.data());
        command.envs(self.environment(catalog)).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > Duration::from_secs(20) {
                child.kill().unwrap();
                panic!("it started, or hangs:\n{}", fs::read_to_string(&log).unwrap());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        (child.wait().unwrap().code(), fs::read_to_string(&log).unwrap())
    }

    /// The same with a catalog and a word that the message must have.
    fn assert_refused(&self, catalog: &str, words: &[&str]) {
        let (code, text) = self.refused(catalog);
        assert_eq!(code, Some(2), "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word}: {text}"));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Names and lengths of all physical files.
fn physical(data: &Path) -> Vec<(PathBuf, u64)> {
    let mut found: Vec<_> =
        files(&data.join("data")).into_iter().map(|path| (path.clone(), fs::metadata(path).unwrap().len())).collect();
    found.sort();
    found
}

#[tokio::test]
async fn a_volume_that_is_not_mounted_is_told_and_with_it_back_everything_reads() {
    let mut world = World::new();
    let (process, ready) = world.start();
    world.put(&ready, "j", 30).await;
    drop(process);
    let before = physical(&world.data());
    let identity = fs::read_to_string(world.data().join("ESKER")).unwrap();
    let id = identity.split('"').nth(3).unwrap();
    fs::rename(world.data(), world.away()).unwrap();

    for is_there in [false, true] {
        if is_there {
            fs::create_dir(world.data()).unwrap();
        }
        world.assert_refused("elsewhere", &[id, "made 20", &world.data().display().to_string(), "Mount the volume"]);
        assert_eq!(world.data().exists(), is_there, "something was made on the way");
        assert!(!is_there || fs::read_dir(world.data()).unwrap().next().is_none(), "something was made there");
    }

    // The volume of another store.
    let other = TestDaemon::start(&[]).await.shut_down().await;
    fs::remove_dir(world.data()).unwrap();
    copy(other.path(), &world.data());
    world.assert_refused("elsewhere", &["says that this is store", id]);

    fs::remove_dir_all(world.data()).unwrap();
    fs::rename(world.away(), world.data()).unwrap();
    assert_eq!(physical(&world.data()), before);
    let (_process, ready) = world.start();
    world.assert_readable(&ready).await;
}

/// What must be damaged, and the words that the start must say then.
type Damage = (&'static str, fn(&World), &'static [&'static str]);

fn only(folder: &Path, of: impl Fn(&Path) -> bool) -> PathBuf {
    let mut found: Vec<PathBuf> = files(folder).into_iter().filter(|path| of(path)).collect();
    found.sort();
    found.pop().expect("there is one")
}

fn fifo(path: &Path) {
    fs::remove_file(path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[tokio::test]
async fn each_damage_of_what_a_start_reads_is_named_with_what_to_do_and_changes_nothing() {
    let mut world = World::new();
    let (process, ready) = world.start();
    world.put(&ready, "j", 3).await;
    process.terminate();
    let keep = world.folder.path().join("keep");
    for part in ["data", "elsewhere"] {
        copy(&world.folder.path().join(part), &keep.join(part));
    }
    let damages: [Damage; 10] = [
        (
            "no FORMAT",
            |w| fs::remove_file(w.catalog("elsewhere").join("db/FORMAT")).unwrap(),
            &["db/FORMAT is missing or empty", "esker rebuild --replace"],
        ),
        ("empty FORMAT", |w| fs::write(w.catalog("elsewhere").join("db/FORMAT"), "").unwrap(), &["missing or empty"]),
        (
            "junk in FORMAT",
            |w| fs::write(w.catalog("elsewhere").join("db/FORMAT"), "\u{1b}[31m".repeat(99)).unwrap(),
            &["db/FORMAT says \"\\u{1b}[31m", "esker rebuild --replace"],
        ),
        ("FORMAT is a pipe", |w| fifo(&w.catalog("elsewhere").join("db/FORMAT")), &["not a regular file"]),
        (
            "half a table",
            |w| {
                let is_table = |path: &Path| path.extension().is_some_and(|end| end == "sst");
                let path = only(&w.catalog("elsewhere").join("db"), is_table);
                let len = fs::metadata(&path).unwrap().len();
                fs::File::options().write(true).open(path).unwrap().set_len(len / 2).unwrap();
            },
            &["the catalog is damaged", "esker rebuild --replace"],
        ),
        (
            "junk in a manifest",
            |w| fs::write(only(&w.catalog("elsewhere").join("db/manifest"), |_| true), [0xff; 300]).unwrap(),
            &["the catalog is damaged", "esker rebuild --replace"],
        ),
        ("ESKER is a pipe", |w| fifo(&w.data().join("ESKER")), &["ESKER does not say", "not a regular file"]),
        (
            "ESKER is a folder",
            |w| {
                fs::remove_file(w.data().join("ESKER")).unwrap();
                fs::create_dir(w.data().join("ESKER")).unwrap();
            },
            &["ESKER does not say", "not a regular file"],
        ),
        (
            "no ESKER",
            |w| fs::remove_file(w.data().join("ESKER")).unwrap(),
            &["ESKER does not exist, but store", "may not be mounted. Nothing was changed. Mount"],
        ),
        (
            "an empty owner",
            |w| fs::write(only(&w.data().join("owners"), |_| true), "").unwrap(),
            &["owners/0000", "is empty or damaged"],
        ),
    ];
    for (what, damage, words) in damages {
        damage(&world);

        let (code, text) = world.refused("elsewhere");

        assert_eq!(code, Some(2), "{what}: {text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{what}: {word}: {text}"));
        for wrong in ["another daemon has taken", "by a bug", "\u{1b}[31m"] {
            assert!(!text.contains(wrong), "{what}: {wrong}: {text}");
        }
        assert!(text.len() < 3000, "{what}: {text}");
        for part in ["data", "elsewhere"] {
            fs::remove_dir_all(world.folder.path().join(part)).unwrap();
            copy(&keep.join(part), &world.folder.path().join(part));
        }
    }
    let (_process, ready) = world.start();
    world.assert_readable(&ready).await;
}

#[tokio::test]
async fn a_flipped_bit_in_the_header_of_an_open_file_loses_nothing() {
    let mut world = World::new();
    let (process, ready) = world.start();
    world.put(&ready, "j", 40).await;
    drop(process);
    let before = physical(&world.data());
    for (path, _) in &before {
        let mut bytes = fs::read(path).unwrap();
        bytes[11] ^= 4;
        fs::write(path, bytes).unwrap();
    }

    let (process, ready) = world.start();
    world.assert_readable(&ready).await;
    process.terminate();

    let (_process, ready) = world.start();
    world.assert_readable(&ready).await;
    assert_eq!(physical(&world.data()).len(), before.len());
}

#[tokio::test]
async fn a_second_catalog_over_the_same_data_is_refused_and_deletes_nothing() {
    let mut world = World::new();
    let (process, ready) = world.start();
    world.put(&ready, "j", 10).await;
    let before = physical(&world.data());

    // Empty; and a copy of the first one, while that is in use.
    world.assert_refused("second", &["esker rebuild", "catalog.url"]);
    assert!(!world.catalog("second").exists());
    copy(&world.catalog("elsewhere"), &world.catalog("copy"));
    let (code, text) = world.refused("copy");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("in use by another daemon"), "{text}");

    assert_eq!(physical(&world.data()), before);
    world.put(&ready, "other", 3).await;
    world.assert_readable(&ready).await;
    process.terminate();
    world.assert_refused("second", &["esker rebuild"]);
    let (_process, ready) = world.start();
    world.assert_readable(&ready).await;
}

#[tokio::test]
async fn a_catalog_that_was_restored_from_an_older_copy_is_refused() {
    let mut world = World::new();
    let (process, ready) = world.start();
    world.put(&ready, "j", 3).await;
    process.terminate();
    copy(&world.catalog("elsewhere"), &world.catalog("old"));
    let (process, ready) = world.start();
    world.put(&ready, "later", 10).await;
    drop(process);
    let before = physical(&world.data());

    // The epochs grow with each look at it, too.
    for _ in 0..3 {
        world.assert_refused("old", &["older than its data", "esker rebuild --replace"]);
        let url = format!("catalog.url=file:{}", world.folder.path().join("old").display());
        let store = format!("store.url=file:{}", world.data().display());
        let looked = esker().args(["verify", "--set", &url, "--set", &store]).output().unwrap();
        assert_eq!(looked.status.code(), Some(0), "{}", String::from_utf8_lossy(&looked.stdout));
    }

    assert_eq!(physical(&world.data()), before);
    let (_process, ready) = world.start();
    world.assert_readable(&ready).await;
}

#[tokio::test]
async fn what_a_catalog_that_was_copied_at_work_does_not_know_is_kept_for_the_newer_one() {
    let mut world = World::new();
    let (process, ready) = world.start();
    world.put(&ready, "j", 3).await;
    copy(&world.catalog("elsewhere"), &world.catalog("old"));
    world.put(&ready, "j", 5).await;
    world.put(&ready, "later", 5).await;
    drop(process);
    let before = physical(&world.data());
    let shared: Vec<&String> = world.answered[..8].iter().filter_map(|(info, _)| info.file.as_ref()).collect();
    assert!(shared.iter().all(|file| *file == shared[0]), "the newer segments are in a file of their own");
    let mut environment = world.environment("old");
    environment.push(("ESKER__RECLAIM__INTERVAL", "20 ms".to_owned()));
    environment.push(("ESKER__RECLAIM__DELETE_GRACE", "0".to_owned()));
    // The grace begins anew with each start.
    for round in 0..2 {
        let mut older = Process::spawn(world.folder.path(), &environment);
        let older_ready = older.wait_ready();
        let client = Client::new(&older_ready.api, None).unwrap();
        assert_eq!(client.gc_report().await.unwrap().kept, [shared[0].clone()]);
        if round == 0 {
            for (info, seed) in &world.answered[..3] {
                assert!(client.get(&info.segment).await.unwrap() == pattern(*seed, LEN));
            }
            let log = older.log();
            assert!(log.contains("moved files that the catalog does not name"), "{log}");
            assert!(log.contains("files hold data that the catalog does not know"), "{log}");
            client.reclaim().await.unwrap();
            // All that the older one knows of the file dies.
            client.subsume("j", 1).await.unwrap();
        }
        client.reclaim().await.unwrap();
        client.gc(false).await.unwrap();
    }
    let aside = files(&world.data().join("lost+found"));
    assert_eq!(aside.len() + physical(&world.data()).len(), before.len(), "a file is gone");

    // The newer one comes back. By the operator's word: it was not the last one in use.
    world.assert_refused("elsewhere", &["older than its data", "owners/"]);
    fs::remove_dir_all(world.data().join("owners")).unwrap();
    let (_process, ready) = world.start();
    world.assert_readable(&ready).await;
    assert_eq!(physical(&world.data()).len(), before.len());
    assert!(files(&world.data().join("lost+found")).is_empty());
}

#[tokio::test]
async fn what_nobody_was_answered_for_is_given_back_after_the_grace() {
    let mut world = World::new();
    let (process, ready) = world.start();
    world.put(&ready, "j", 2).await;
    drop(process);
    let [(path, _)] = &physical(&world.data())[..] else { panic!("one file") };
    let mut bytes = fs::read(path).unwrap();
    let mut hasher = SegmentHasher::default();
    hasher.update(&pattern(7, LEN));
    bytes.extend(encode_frame(2, LEN as u64, hasher.finish().whole));
    bytes.extend(pattern(7, LEN));
    fs::write(path, bytes).unwrap();
    let mut environment = world.environment("elsewhere");
    environment.push(("ESKER__RECLAIM__INTERVAL", "20 ms".to_owned()));
    environment.push(("ESKER__RECLAIM__SWEEP_GRACE", "100 ms".to_owned()));

    let mut process = Process::spawn(world.folder.path(), &environment);
    let ready = process.wait_ready();
    world.assert_readable(&ready).await;
    Client::new(&ready.api, None).unwrap().subsume("j", 1).await.unwrap();

    let begun = Instant::now();
    while !physical(&world.data()).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it is still there:\n{}", process.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(process.log().contains("is not kept any longer"), "{}", process.log());
}

#[tokio::test]
async fn a_damaged_object_does_not_give_way_to_the_one_before_it() {
    let world = World::new();
    let (process, ready) = world.start();
    let store = ready.s3_builder(ClientOptions::new()).build().unwrap();
    let key = object_store::path::Path::from("key");
    for seed in [1, 2] {
        store.put(&key, pattern(seed, LEN).into()).await.unwrap();
    }
    drop(process);
    let newer = &pattern(2, LEN)[..1000];
    let mut damaged = 0;
    for (path, _) in physical(&world.data()) {
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(newer.len()).position(|window| window == newer) {
            bytes[at + 500] ^= 4;
            fs::write(path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);

    let (process, ready) = world.start();
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let store = ready.s3_builder(ClientOptions::new()).with_retry(retry).build().unwrap();
    assert_eq!(store.head(&key).await.unwrap().size, LEN as u64);
    let read = async { store.get(&key).await?.bytes().await };
    assert!(read.await.is_err(), "an older or a damaged object was read");
    assert!(process.log().contains("segments that were written as a whole are damaged"), "{}", process.log());
}

#[tokio::test]
async fn a_volume_that_goes_away_while_the_daemon_runs_is_noticed_and_nothing_is_deleted() {
    let elsewhere = tempfile::tempdir().unwrap();
    let url = format!("file:{}", elsewhere.path().display());
    let often = [("reclaim.interval", "20 ms"), ("reclaim.delete-grace", "0"), ("reclaim.sweep-interval", "20 ms")];
    let daemon = TestDaemon::start(&[("catalog.url", url.as_str()), often[0], often[1], often[2]]).await;
    let client = &daemon.client;
    for job in ["kept", "dying"] {
        client.create_job(job).await.unwrap();
    }
    let kept = client.put("kept", &checkpoint(1), None, pattern(1, LEN).into()).await.unwrap();
    client.put("dying", &checkpoint(1), None, pattern(2, LEN).into()).await.unwrap();
    for job in ["kept", "dying"] {
        client.flush(job).await.unwrap();
    }
    daemon.metric_becomes("esker_physical_files{state=\"closed\"}", 2.0).await;
    let root = daemon.folder().to_owned();
    let away = elsewhere.path().join("away");
    let before = daemon.files().len();
    fs::rename(&root, &away).unwrap();
    fs::create_dir(&root).unwrap();

    client.subsume("dying", 1).await.unwrap();
    client.create_job("new").await.unwrap();
    let put = client.put("new", &checkpoint(1), None, pattern(3, LEN).into()).await.unwrap_err();
    assert_eq!(put.status(), Some(StatusCode::SERVICE_UNAVAILABLE), "{put}");
    client.get(&kept.segment).await.unwrap_err();
    daemon.metric_becomes("esker_store_lost", 1.0).await;
    let answer = ask(daemon.api(), request("GET", "/readyz", "", b"")).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("no writes: the store is not there: "), "{}", answer.text());
    assert!(fs::read_dir(&root).unwrap().next().is_none(), "something was written beneath the mount point");
    assert_eq!(files(&away.join("data")).len(), before, "a file was deleted");
    assert_eq!(daemon.metric("esker_physical_files_deleted_total").await, 0.0);

    // A copy says that it is the same store, and is not.
    fs::remove_dir(&root).unwrap();
    copy(&away, &root);
    let copied = physical(&root);
    let put = client.put("new", &checkpoint(1), None, pattern(3, LEN).into()).await.unwrap_err();
    assert_eq!(put.status(), Some(StatusCode::SERVICE_UNAVAILABLE), "{put}");
    assert_eq!(physical(&root), copied, "something was written to the copy, or deleted there");

    fs::remove_dir_all(&root).unwrap();
    fs::rename(&away, &root).unwrap();

    daemon.metric_becomes("esker_store_lost", 0.0).await;
    assert_eq!(ask(daemon.api(), request("GET", "/readyz", "", b"")).await.status, 200);
    daemon.metric_becomes("esker_physical_files_deleted_total", 1.0).await;
    assert!(client.get(&kept.segment).await.unwrap() == pattern(1, LEN));
    client.put("new", &checkpoint(1), None, pattern(3, LEN).into()).await.unwrap();
}

/// Names and lengths of all files.
fn all(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found: Vec<_> =
        files(folder).into_iter().map(|path| (path.clone(), fs::metadata(path).unwrap().len())).collect();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_a_copy_replaces_under_load_ends_the_daemon_and_all_that_was_answered_is_in_the_moved_one() {
    replaced_under_load("-a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_a_copy_of_hard_links_replaces_under_load_ends_the_daemon_as_well() {
    replaced_under_load("-al").await;
}

/// A copy that is made with `cp` and these flags takes the place of the folder.
async fn replaced_under_load(flags: &str) {
    let root = tempfile::tempdir().unwrap();
    let (data, away) = (root.path().join("data"), root.path().join("away"));
    let small = [
        ("ESKER__CATALOG__LOG_SEGMENT_SIZE", "64 kb".to_owned()),
        ("ESKER__CATALOG__UNFLUSHED_MAX", "8 mb".to_owned()),
    ];
    let mut process = Process::spawn(root.path(), &small);
    let ready = process.wait_ready();
    let client = Client::new(&ready.api, None).unwrap();
    client.create_job("j").await.unwrap();
    let (answered_tx, mut answers) = tokio::sync::mpsc::unbounded_channel();
    let putting = tokio::spawn(async move {
        for seed in 0.. {
            // Every other one is kept inside the catalog.
            let len = if seed % 2 == 0 { LEN } else { 900 };
            match client.put("j", &checkpoint(1), None, pattern(seed, len).into()).await {
                Ok(info) => answered_tx.send((info, seed, len)).unwrap(),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    let mut answered = vec![];
    while answered.len() < 30 {
        answered.push(answers.recv().await.unwrap());
    }

    fs::rename(&data, &away).unwrap();
    assert!(std::process::Command::new("cp").arg(flags).args([&away, &data]).status().unwrap().success());
    let copied = all(&data);
    let (status, log) = tokio::task::spawn_blocking(|| process.wait_end()).await.unwrap();

    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("was moved or replaced while the daemon was running"), "{log}");
    let now = all(&data);
    match flags {
        // Bytes that were on their way to open files are in both.
        "-al" => assert_eq!(now.len(), copied.len(), "a file was begun in the copy:\n{log}"),
        _ => assert_eq!(now, copied, "something was written to the copy:\n{log}"),
    }
    putting.abort();
    drop(putting.await);
    while let Some(answer) = answers.recv().await {
        answered.push(answer);
    }
    fs::rename(&data, root.path().join("copy")).unwrap();
    fs::rename(&away, &data).unwrap();
    let mut process = Process::spawn(root.path(), &small);
    let ready = process.wait_ready();
    let client = Client::new(&ready.api, None).unwrap();
    for (info, seed, len) in answered {
        assert!(client.get(&info.segment).await.unwrap() == pattern(seed, len), "segment {seed}");
    }
}

/// The log files of a catalog, oldest first.
fn log_files(catalog: &Path) -> Vec<PathBuf> {
    let mut found = files(&catalog.join("log"));
    found.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    found.sort();
    found
}

#[tokio::test]
async fn a_file_of_the_log_that_is_gone_refuses_the_start_and_with_it_back_everything_reads() {
    let root = tempfile::tempdir().unwrap();
    let small = [("ESKER__CATALOG__LOG_SEGMENT_SIZE", "64 kb".to_owned())];
    let mut process = Process::spawn(root.path(), &small);
    let ready = process.wait_ready();
    let client = Client::new(&ready.api, None).unwrap();
    client.create_job("j").await.unwrap();
    let mut answered = vec![];
    // Fewer than make the database write a table.
    while log_files(&root.path().join("data/catalog")).len() < 3 {
        let seed = answered.len() as u64;
        answered.push(client.put("j", &checkpoint(1), None, pattern(seed, 900).into()).await.unwrap());
    }
    drop(process);
    let folder = root.path().join("data/catalog/log");
    let log = log_files(&root.path().join("data/catalog"));
    let refused = |what: &str| {
        let (status, text) = Process::spawn(root.path(), &small).wait_end();
        assert_eq!(status.code(), Some(2), "{what}: {text}");
        assert!(text.contains("a file of the catalog log is gone"), "{what}: {text}");
    };

    for (what, file) in [("a hole", &log[log.len() - 2]), ("the newest", &log[log.len() - 1])] {
        let away = root.path().join("away");
        fs::rename(file, &away).unwrap();
        refused(what);
        fs::rename(&away, file).unwrap();
    }
    let newest = &log[log.len() - 1];
    let bytes = fs::read(newest).unwrap();
    fs::write(newest, b"").unwrap();
    refused("an empty one");
    fs::write(newest, bytes).unwrap();
    let away = root.path().join("away");
    fs::create_dir(&away).unwrap();
    log.iter().for_each(|file| fs::rename(file, away.join(file.file_name().unwrap())).unwrap());
    refused("none at all");
    log.iter().for_each(|file| fs::rename(away.join(file.file_name().unwrap()), file).unwrap());
    assert!(folder.is_dir());

    let mut process = Process::spawn(root.path(), &small);
    let client = Client::new(&process.wait_ready().api, None).unwrap();
    for (seed, info) in answered.iter().enumerate() {
        assert!(client.get(&info.segment).await.unwrap() == pattern(seed as u64, 900), "segment {seed}");
    }
}

#[tokio::test]
async fn nothing_is_answered_with_bytes_of_a_file_that_was_deleted_under_the_daemon() {
    let root = tempfile::tempdir().unwrap();
    let mut process = Process::spawn(root.path(), &[]);
    let ready = process.wait_ready();
    let client = Client::new(&ready.api, None).unwrap();
    client.create_job("j").await.unwrap();
    client.put("j", &checkpoint(1), None, pattern(1, LEN).into()).await.unwrap();
    for file in files(&root.path().join("data/data")) {
        fs::remove_file(file).unwrap();
    }

    let mut answered = vec![];
    for seed in 0..20 {
        if let Ok(info) = client.put("j", &checkpoint(1), None, pattern(seed, LEN).into()).await {
            answered.push((info, seed));
        }
    }

    assert!(answered.len() > 10, "only {} were answered", answered.len());
    for (info, seed) in &answered {
        assert!(client.get(&info.segment).await.unwrap() == pattern(*seed, LEN), "segment {seed}");
    }

    for file in log_files(&root.path().join("data/catalog")) {
        fs::remove_file(file).unwrap();
    }
    client.put("j", &checkpoint(1), None, pattern(1, 900).into()).await.unwrap_err();
    let (status, log) = tokio::task::spawn_blocking(move || process.wait_end()).await.unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("was deleted or moved while it was written"), "{log}");
}

#[tokio::test]
async fn a_mount_over_the_files_alone_is_noticed_and_a_folder_that_was_tidied_away_is_made_again() {
    let daemon = TestDaemon::start(&[]).await;
    let (data, away) = (daemon.folder().join("data"), daemon.folder().join("away"));
    daemon.client.create_job("a").await.unwrap();
    let put = async |seed| daemon.client.put("a", &checkpoint(seed), None, pattern(seed, LEN).into()).await;
    let first = put(1).await.unwrap();
    fs::rename(&data, &away).unwrap();
    fs::create_dir(&data).unwrap();
    daemon.client.create_job("b").await.unwrap();

    let refused = daemon.client.put("b", &checkpoint(1), None, pattern(2, LEN).into()).await.unwrap_err();

    assert_eq!(refused.status(), Some(StatusCode::SERVICE_UNAVAILABLE), "{refused}");
    assert_eq!(files(&data).len(), 0);
    fs::remove_dir(&data).unwrap();
    fs::rename(&away, &data).unwrap();
    assert!(daemon.client.get(&first.segment).await.unwrap() == pattern(1, LEN));
    daemon.client.flush("a").await.unwrap();
    daemon.client.subsume("a", 1).await.unwrap();
    daemon.metric_becomes("esker_physical_files_deleted_total", 1.0).await;
    for folder in fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path()) {
        fs::remove_dir(folder).unwrap();
    }
    let second = put(2).await.unwrap();
    assert!(daemon.client.get(&second.segment).await.unwrap() == pattern(2, LEN));
}

#[tokio::test]
async fn a_folder_of_files_may_be_a_link_and_lost_and_found_somebody_elses() {
    let mut world = World::new();
    let (process, ready) = world.start();
    world.put(&ready, "j", 10).await;
    drop(process);
    let folder = fs::read_dir(world.data().join("data")).unwrap().next().unwrap().unwrap().path();
    fs::rename(&folder, world.away()).unwrap();
    std::os::unix::fs::symlink(world.away(), &folder).unwrap();
    let lost = world.data().join("lost+found");
    let strangers: [fn(&Path); 3] = [
        |path| fs::write(path, b"a file").unwrap(),
        |path| std::os::unix::fs::symlink("lost+found", path).unwrap(),
        |path| fs::create_dir(path).unwrap(),
    ];

    for stranger in strangers {
        stranger(&lost);
        let (process, ready) = world.start();
        world.assert_readable(&ready).await;
        drop(process);
        fs::remove_file(&lost).or_else(|_| fs::remove_dir(&lost)).unwrap();
    }
}

#[test]
fn a_command_of_another_user_is_refused_before_it_makes_anything() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can give a file to another user");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let mut process = Process::spawn(root.path(), &[]);
    process.wait_ready();
    process.terminate();
    let data = root.path().join("data");
    std::os::unix::fs::chown(data.join("ESKER"), Some(4242), None).unwrap();
    let before = all(&data);

    for (command, more) in [("verify", &[][..]), ("du", &[]), ("gc", &["--dry-run"]), ("verify", &["--repair"])] {
        let (code, text) = run(command, &data, more);
        assert_eq!(code, Some(2), "{command}: {text}");
        assert!(text.contains("is of user 4242") && text.contains("sudo -u '#4242'"), "{command}: {text}");
    }
    assert_eq!(all(&data), before);
}

/// Makes a folder look as an older version left it.
async fn as_an_older_version(root: &Path) {
    let place = Placement::Local {
        folder: root.join("catalog"),
        traffic: Traffic::catalog(Metrics::new()),
        space: DiskSpace::default(),
    };
    let journal = Journal::open(place, JournalSettings::local(), |_, _| Ok::<_, JournalError>(())).await.unwrap();
    // The record of its last owner.
    let delete = Mutation::Delete { key: Bytes::from_static(b"w") };
    let deleted = journal.write(vec![delete], esker::catalog::slate::Haste::Now).await.unwrap();
    deleted.durable().await.unwrap();
    journal.close().await.unwrap();
    for name in ["ESKER", "catalog/STORE"] {
        fs::remove_file(root.join(name)).unwrap();
    }
    fs::remove_dir_all(root.join("owners")).unwrap();
}

fn run(command: &str, root: &Path, more: &[&str]) -> (Option<i32>, String) {
    let output = esker().args([command, "--data-dir"]).arg(root).args(more).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[tokio::test]
async fn a_store_of_an_older_version_gets_its_identity_if_all_its_files_are_there() {
    let daemon = TestDaemon::start(&[]).await;
    daemon.client.create_job("j").await.unwrap();
    let info = daemon.client.put("j", &checkpoint(1), None, pattern(1, LEN).into()).await.unwrap();
    let folder = daemon.shut_down().await;
    let root = folder.path().to_owned();
    as_an_older_version(&root).await;
    let file = root.join(info.file.as_ref().unwrap());
    let hidden = root.join("hidden");
    fs::rename(&file, &hidden).unwrap();

    let refused = TestDaemon::try_start_on(folder, vec![]).await;
    let (folder, error) = refused.expect_err("its only file is missing");
    assert!(error.is_refusal() && error.to_string().contains("none of them is there"), "{error}");
    assert!(!root.join("ESKER").exists() && !root.join("catalog/STORE").exists());

    fs::rename(&hidden, &file).unwrap();
    let daemon = TestDaemon::try_start_on(folder, vec![]).await.map_err(|(_, error)| error).unwrap();
    assert!(daemon.client.get(&info.segment).await.unwrap() == pattern(1, LEN));
    let identity = fs::read_to_string(root.join("ESKER")).unwrap();
    assert_eq!(fs::read_to_string(root.join("catalog/STORE")).unwrap(), identity);

    // One side that gets lost is put back from the other, where that is sure.
    let folder = daemon.shut_down().await;
    fs::remove_file(root.join("catalog/STORE")).unwrap();
    let daemon = TestDaemon::try_start_on(folder, vec![]).await.map_err(|(_, error)| error).unwrap();
    assert_eq!(fs::read_to_string(root.join("catalog/STORE")).unwrap(), identity);
    let folder = daemon.shut_down().await;
    fs::remove_file(root.join("ESKER")).unwrap();
    let (folder, error) = TestDaemon::try_start_on(folder, vec![]).await.err().unwrap();
    assert!(error.is_refusal() && error.to_string().contains("STORE"), "{error}");
    fs::copy(root.join("catalog/STORE"), root.join("ESKER")).unwrap();
    let daemon = TestDaemon::try_start_on(folder, vec![]).await.map_err(|(_, error)| error).unwrap();
    assert!(daemon.client.get(&info.segment).await.unwrap() == pattern(1, LEN));
    assert_eq!(fs::read_dir(root.join("owners")).unwrap().count(), 1, "what earlier owners left is removed");
}

#[tokio::test]
async fn a_durable_file_that_is_missing_or_short_refuses_the_start_until_the_operator_drops_it() {
    let daemon = TestDaemon::start(&[]).await;
    let mut infos = vec![];
    for (seed, job) in [(1, "missing"), (2, "short"), (3, "whole")] {
        daemon.client.create_job(job).await.unwrap();
        infos.push(daemon.client.put(job, &checkpoint(1), None, pattern(seed, LEN).into()).await.unwrap());
    }
    let folder = daemon.shut_down().await;
    let root = folder.path().to_owned();
    let file = |at: usize| root.join(infos[at].file.as_ref().unwrap());
    fs::remove_file(file(0)).unwrap();
    fs::File::options().write(true).open(file(1)).unwrap().set_len(1000).unwrap();

    let (folder, error) = TestDaemon::try_start_on(folder, vec![]).await.err().unwrap();
    let text = error.to_string();
    assert!(error.is_refusal() && text.contains("durable segments are missing or too short: 2 in 2 files: "), "{text}");
    assert!(
        text.contains("has 1000 bytes") && text.contains("does not exist") && text.contains("--drop-lost"),
        "{text}"
    );
    let (code, text) = run("verify", &root, &[]);
    assert_eq!((code, text.matches("fault: ").count()), (Some(1), 2), "{text}");

    let (code, text) = run("verify", &root, &["--repair", "--drop-lost"]);

    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.matches("done: dropped 1 segments").count(), 2, "{text}");
    let daemon = TestDaemon::try_start_on(folder, vec![]).await.map_err(|(_, error)| error).unwrap();
    assert!(daemon.client.get(&infos[2].segment).await.unwrap() == pattern(3, LEN));
    assert_eq!(daemon.client.get(&infos[0].segment).await.unwrap_err().status(), Some(StatusCode::NOT_FOUND));
    assert_eq!(daemon.client.get(&infos[1].segment).await.unwrap_err().status(), Some(StatusCode::NOT_FOUND));
}

#[tokio::test]
async fn files_that_nobody_names_lie_in_lost_and_found_for_the_grace() {
    let quick = [
        ("store.request-timeout", "100 ms"),
        ("store.retry-timeout", "50 ms"),
        ("reclaim.interval", "20 ms"),
        ("reclaim.delete-grace", "0"),
        ("reclaim.sweep-interval", "20 ms"),
        ("reclaim.sweep-grace", "1 h"),
    ];
    let daemon = TestDaemon::start(&quick).await;
    daemon.client.create_job("j").await.unwrap();
    let info = daemon.client.put("j", &checkpoint(1), None, pattern(1, LEN).into()).await.unwrap();
    let root = daemon.folder().to_owned();
    let stray = |name: &str| format!("data/j/00000001-0000000000000000000000000{name}");
    let folder = daemon.shut_down().await;
    fs::write(root.join(stray("1")), b"of a start").unwrap();

    let flags = |changed: &[(&str, &str)]| -> Vec<(String, String)> {
        quick.iter().chain(changed).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let daemon = TestDaemon::try_start_on(folder, flags(&[])).await.map_err(|(_, error)| error).unwrap();
    assert_eq!(fs::read(root.join("lost+found").join(stray("1"))).unwrap(), b"of a start");
    fs::write(root.join(stray("2")), b"of a run").unwrap();
    daemon.metric_becomes("esker_set_aside_files_total", 2.0).await;
    assert_eq!(files(&root.join("lost+found")).len(), 2);
    daemon.metric_becomes("esker_unnamed_files", 2.0).await;
    let report = daemon.client.gc_report().await.unwrap();
    let told = |n: usize| {
        let aside = &report.set_aside[n];
        (aside.file.clone(), aside.bytes, aside.since_ms.zip(aside.until_ms).map(|(since, until)| until - since))
    };
    assert_eq!((report.unnamed.len(), report.set_aside.len()), (0, 2), "{report:?}");
    assert_eq!([told(0), told(1)], [(stray("1"), 10, Some(3_600_000)), (stray("2"), 8, Some(3_600_000))]);
    assert!(daemon.client.get(&info.segment).await.unwrap() == pattern(1, LEN));

    let folder = daemon.shut_down().await;
    let (code, text) = run("gc", folder.path(), &["--dry-run", "--json"]);
    assert_eq!(code, Some(0), "{text}");
    let stopped: GcReport = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let files_of = |report: &GcReport| report.set_aside.iter().map(|aside| aside.file.clone()).collect::<Vec<_>>();
    assert_eq!(files_of(&stopped), files_of(&report));
    assert!(stopped.set_aside.iter().all(|aside| aside.until_ms.is_none()), "its grace begins with the next start");
    let short = flags(&[("reclaim.sweep-grace", "10 ms")]);
    let daemon = TestDaemon::try_start_on(folder, short).await.map_err(|(_, error)| error).unwrap();
    daemon.metric_becomes("esker_swept_files_total", 2.0).await;
    assert!(files(&root.join("lost+found")).is_empty());
}
