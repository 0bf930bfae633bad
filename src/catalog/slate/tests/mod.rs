//! The journal as its callers see it, on a local disk and on an object store in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Display;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::TryStreamExt;
use futures::future::{join_all, try_join_all};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::metrics::Metrics;
use crate::metrics::labels::{Purpose, StoreOperation};
use crate::store::Capabilities;

mod compactions;
mod leased;
mod requests;

type Records = BTreeMap<Bytes, Bytes>;

fn local(folder: &TempDir) -> Placement {
    counted(folder, &Metrics::new())
}

fn counted(folder: &TempDir, metrics: &Metrics) -> Placement {
    Placement::Local {
        folder: folder.path().join("journal"),
        traffic: Traffic::catalog(metrics.clone()),
        space: DiskSpace::default(),
    }
}

fn object(store: &Arc<dyn ObjectStore>) -> Placement {
    Placement::Object {
        store: Arc::clone(store),
        prefix: Path::from("some/prefix"),
        can: Capabilities::OBJECT,
        log: None,
    }
}

async fn open_with(placement: Placement, settings: JournalSettings) -> Result<(Journal, Records), JournalError> {
    let mut records = Vec::new();
    let journal = Journal::open(placement, settings, |key, value| {
        records.push((key, value));
        Ok::<_, Infallible>(())
    })
    .await?;
    assert!(records.is_sorted_by(|a, b| a.0 < b.0), "not in key order");
    Ok((journal, records.into_iter().collect()))
}

async fn open(placement: Placement) -> Result<(Journal, Records), JournalError> {
    let settings = match placement {
        Placement::Local { .. } => JournalSettings::local(),
        Placement::Object { .. } => JournalSettings::default(),
    };
    open_with(placement, settings).await
}

fn put(key: impl Display, value: impl Display) -> Mutation {
    Mutation::Put { key: Bytes::from(key.to_string()), value: Bytes::from(value.to_string()) }
}

fn record(key: &str, value: &str) -> (Bytes, Bytes) {
    (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()))
}

async fn commit(journal: &Journal, batch: Vec<Mutation>) -> Result<(), JournalError> {
    journal.write(batch, Haste::Now).await?.durable().await
}

/// Files below `folder`, with lengths.
fn files(folder: &FilePath) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => found.push((entry.path(), metadata.len())),
                Err(_) => {} // collected meanwhile
            }
        }
    }
    found.sort();
    found
}

/// Groups that became durable on an object store: SlateDB writes a file of its own for each.
async fn groups_of(store: &dyn ObjectStore) -> usize {
    let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
    objects.iter().filter(|object| object.location.as_ref().contains("/wal/")).count()
}

fn log_files(folder: &TempDir) -> Vec<(PathBuf, u64)> {
    let mut files = files(&folder.path().join("journal/log"));
    files.retain(|(path, _)| path.extension().is_some_and(|extension| extension == "log"));
    files
}

#[tokio::test]
async fn records_come_back_in_key_order_after_close_on_both_placements() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    for placement in [local(&folder), object(&store)] {
        let (journal, records) = open(placement.clone()).await.unwrap();
        assert!(records.is_empty());
        let batch = vec![put("b", 1), put("a", 2), put("c", 3), put("a", 4)];
        commit(&journal, batch).await.unwrap();
        let delete = Mutation::Delete { key: Bytes::from("c") };
        commit(&journal, vec![delete]).await.unwrap();
        let epoch = journal.epoch();
        journal.close().await.unwrap();

        let (journal, records) = open(placement).await.unwrap();

        assert_eq!(records, Records::from([record("a", "4"), record("b", "1")]));
        assert!(journal.epoch() > epoch);
    }
}

#[tokio::test]
async fn durable_records_survive_a_drop_without_close() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    for placement in [local(&folder), object(&store)] {
        for round in 0..5 {
            let (journal, records) = open(placement.clone()).await.unwrap();
            assert_eq!(records.len(), round);
            commit(&journal, vec![put(round, round)]).await.unwrap();
            drop(journal);
        }
    }
}

#[tokio::test]
async fn torn_tails_are_cut() {
    let folder = tempfile::tempdir().unwrap();
    type Tail = fn(&[u8]) -> Vec<u8>;
    let tails: [Tail; 4] = [
        |segment| segment[36..60].to_vec(),
        |segment| segment[36..segment.len() - 1].to_vec(),
        |_| vec![0; 4096],
        |_| vec![0x5a; 700],
    ];
    for (round, tail) in tails.into_iter().enumerate() {
        let (journal, records) = open(local(&folder)).await.unwrap();
        assert_eq!(records.len(), round);
        commit(&journal, vec![put(round, "x")]).await.unwrap();
        drop(journal);
        let (newest, len) = log_files(&folder).pop().unwrap();
        let tail = tail(&fs::read(&newest).unwrap());
        let mut file = File::options().append(true).open(&newest).unwrap();
        file.write_all(&tail).unwrap();

        let (journal, records) = open(local(&folder)).await.unwrap();

        assert_eq!(records.len(), round + 1);
        assert_eq!(fs::metadata(&newest).unwrap().len(), len);
        drop(journal);
    }
}

#[tokio::test]
async fn a_segment_that_was_never_begun_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(local(&folder)).await.unwrap();
    commit(&journal, vec![put("a", 1)]).await.unwrap();
    drop(journal);
    let newest = fs::read_dir(folder.path().join("journal/log")).unwrap().map(|entry| entry.unwrap().file_name());
    let newest = newest.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".log")).max().unwrap();
    let (epoch, _) = newest.split_once('-').unwrap();
    // The only frame so far has the id 1.
    let empty = folder.path().join(format!("journal/log/{epoch}-{:020}.log", 2));
    fs::write(&empty, b"ESKER").unwrap();

    let (journal, records) = open(local(&folder)).await.unwrap();

    assert_eq!(records.len(), 1);
    commit(&journal, vec![put("b", 2)]).await.unwrap();
    drop(journal);
    assert_eq!(open(local(&folder)).await.unwrap().1.len(), 2);
}

#[tokio::test]
async fn damage_to_a_durable_frame_is_not_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(local(&folder)).await.unwrap();
    for n in 0..3 {
        commit(&journal, vec![put(n, n)]).await.unwrap();
    }
    drop(journal);
    let (newest, _) = log_files(&folder).pop().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    bytes[36 + 40] ^= 1;
    fs::write(&newest, &bytes).unwrap();

    let error = open(local(&folder)).await.unwrap_err();

    assert!(matches!(error, JournalError::Corrupt(_)), "{error:?}");
    assert_eq!(fs::read(&newest).unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_committers_keep_their_order_and_share_groups() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let metrics = Metrics::new();
    for placement in [counted(&folder, &metrics), object(&store)] {
        let (journal, _) = open(placement.clone()).await.unwrap();

        try_join_all((0..16).map(|committer| {
            let journal = &journal;
            async move {
                for n in 0..100 {
                    let batch = vec![put(committer, n), put(format!("{committer}-{n}"), "x")];
                    commit(journal, batch).await?;
                }
                Ok::<_, JournalError>(())
            }
        }))
        .await
        .unwrap();

        let groups = match placement {
            Placement::Local { .. } => {
                metrics.store_requests.of((StoreOperation::Append, Purpose::Catalog)).get() as usize
            }
            Placement::Object { .. } => groups_of(&*store).await,
        };
        assert!((100..=1600).contains(&groups), "{groups} groups for 1600 batches");
        drop(journal);
        let (_, records) = open(placement).await.unwrap();
        assert_eq!(records.len(), 16 * 101);
        for committer in 0..16 {
            let last = &records[&Bytes::from(committer.to_string())];
            assert_eq!(last, "99");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_commits_leave_a_handful_of_files() {
    const COMMITTERS: u32 = 128;
    const COMMITS: u32 = 100_096; // a multiple of the committers
    let folder = tempfile::tempdir().unwrap();
    let settings = JournalSettings {
        l0_bytes: 1 << 20,
        unflushed_bytes_max: 8 << 20,
        log_segment_bytes: 1 << 20,
        poll_interval: Duration::from_millis(200),
        gc_interval: Duration::from_millis(500),
        gc_age_min: Duration::from_millis(500),
        superseded_tables_kept: Duration::from_secs(1),
        ..JournalSettings::local()
    };
    let (journal, _) = open_with(local(&folder), settings.clone()).await.unwrap();
    let begun = Instant::now();

    let mut work = Box::pin(try_join_all((0..COMMITTERS).map(|committer| {
        let journal = &journal;
        async move {
            for n in 0..COMMITS / COMMITTERS {
                let key = format!("{committer:04}-{:06}", n % 100);
                commit(journal, vec![put(key, format!("{n:0100}"))]).await?;
            }
            Ok::<_, JournalError>(())
        }
    })));
    let mut peak = 0;
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            done = &mut work => break drop(done.unwrap()),
            _ = ticks.tick() => peak = peak.max(files(folder.path()).len()),
        };
    }

    drop(work);
    let took = begun.elapsed();
    println!("{COMMITS} commits in {took:?}, at most {peak} files");
    assert!(peak < 100, "{peak} files");
    let counted = log_files(&folder);
    assert!(counted.len() < 20, "{counted:?}");
    drop(journal);
    let (journal, records) = open_with(local(&folder), settings).await.unwrap();
    assert_eq!(records.len() as u32, COMMITTERS * 100);
    journal.close().await.unwrap();
    println!("files after close: {:#?}", files(folder.path()));
}

/// Has `older` commit until the newer owner, that is opened after more than `enough` commits, has shut it out. Whatever was
/// acknowledged is there then.
async fn overtaken(
    older: &Journal,
    enough: u32,
    opening: impl Future<Output = (Journal, Records)>,
) -> (Journal, Records) {
    let (mut acked, begin) = (Vec::new(), CancellationToken::new());
    let committing = async {
        for n in 0.. {
            match commit(older, vec![put(n, n)]).await {
                Ok(()) => acked.push(Bytes::from(n.to_string())),
                Err(error) => return error,
            }
            if n == enough {
                begin.cancel();
            }
        }
        unreachable!()
    };
    let opening = async {
        begin.cancelled().await;
        opening.await
    };

    let (error, (newer, records)) = futures::join!(committing, opening);

    assert!(matches!(error, JournalError::Fenced), "{error:?}");
    assert!(acked.len() > enough as usize);
    for key in &acked {
        assert!(records.contains_key(key), "{key:?} was answered");
    }
    (newer, records)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_newer_owner_on_an_object_store_fences_the_older() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (older, _) = open(object(&store)).await.unwrap();
    let (newer, _) = overtaken(&older, 5, async { open(object(&store)).await.unwrap() }).await;
    let error = commit(&older, vec![put("late", 1)]).await.unwrap_err();
    assert!(matches!(error, JournalError::Fenced), "{error:?}");
    commit(&newer, vec![put("new", 1)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_the_lock_a_newer_owner_of_the_folder_still_fences_the_older() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let (older, _) = open(local(&folder)).await.unwrap();
        fs::remove_file(folder.path().join("journal/LOCK")).unwrap();
        let committing = join_all((0..8).map(|committer| {
            let older = &older;
            async move {
                let mut acked = Vec::new();
                for n in 0.. {
                    let key = format!("{round}-{committer}-{n}");
                    match commit(older, vec![put(&key, n)]).await {
                        Ok(()) => acked.push(Bytes::from(key)),
                        Err(error) => return (acked, error),
                    }
                }
                unreachable!()
            }
        }));
        let opening = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            open(local(&folder)).await.unwrap()
        };

        let (committed, (newer, records)) = futures::join!(committing, opening);

        for (acked, error) in committed {
            // Without the file that it has locked the folder counts as another one, if it gets to look.
            assert!(matches!(error, JournalError::Fenced | JournalError::Moved { .. }), "{error:?}");
            assert!(acked.iter().all(|key| records.contains_key(key)));
        }
        commit(&newer, vec![put("new", round)]).await.unwrap();
    }
}

#[tokio::test]
async fn an_idle_older_owner_learns_of_the_newer_one_by_its_poll() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let settings = JournalSettings { poll_interval: Duration::from_millis(50), ..JournalSettings::default() };
    let (old, _) = open_with(object(&store), settings).await.unwrap();
    old.check_owner().await.unwrap();

    let (new, _) = open(object(&store)).await.unwrap();

    let ended = tokio::time::timeout(Duration::from_secs(30), old.ended()).await.expect("it never learns of it");
    assert!(matches!(ended, Some(JournalError::Fenced)), "{ended:?}");
    assert!(matches!(old.check_owner().await, Err(JournalError::Fenced)));
    new.check_owner().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_owner_that_never_rests_does_not_keep_the_newer_one_out() {
    // Each try of the newer one to get in is a put and some gets: the older one commits more than once meanwhile.
    let ms = Duration::from_millis;
    let slow = ThrottleConfig { wait_put_per_call: ms(2), wait_get_per_call: ms(5), ..ThrottleConfig::default() };
    let store: Arc<dyn ObjectStore> = Arc::new(ThrottledStore::new(InMemory::new(), slow));
    let settings = JournalSettings { poll_interval: Duration::from_secs(3600), ..JournalSettings::default() };
    let (old, _) = open_with(object(&store), settings).await.unwrap();
    let busy = tokio::spawn(async move {
        let mut number = 0;
        loop {
            match commit(&old, vec![put(number, number)]).await {
                Ok(()) => number += 1,
                Err(error) => return (number, error),
            }
        }
    });

    let opened = tokio::time::timeout(Duration::from_secs(60), open(object(&store))).await;

    let (_new, records) = opened.expect("it does not get in").unwrap();
    let (durable, error) = busy.await.unwrap();
    assert!(matches!(error, JournalError::Fenced), "{error:?}");
    assert!(records.len() >= durable, "{} of {durable} records", records.len());
}

#[tokio::test]
async fn a_journal_that_was_closed_or_dropped_has_not_ended_by_itself() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (closed, _) = open(object(&store)).await.unwrap();
    let ended = closed.ended();

    closed.close().await.unwrap();

    assert!(ended.await.is_none());
    let (dropped, _) = open(object(&store)).await.unwrap();
    let ended = dropped.ended();
    drop(dropped);
    assert!(ended.await.is_none());
}

#[tokio::test]
async fn an_idle_older_owner_is_fenced_by_its_next_commit() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (older, _) = open(object(&store)).await.unwrap();
    let (_newer, _) = open(object(&store)).await.unwrap();

    let error = commit(&older, vec![put("a", 1)]).await.unwrap_err();

    assert!(matches!(error, JournalError::Fenced), "{error:?}");
}

#[tokio::test]
async fn a_second_daemon_on_the_folder_is_refused_and_the_first_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = open(local(&folder)).await.unwrap();
    commit(&first, vec![put("a", 1)]).await.unwrap();

    let error = open(local(&folder)).await.unwrap_err();

    assert!(matches!(error, JournalError::Locked { .. }), "{error:?}");
    commit(&first, vec![put("b", 2)]).await.unwrap();
    first.close().await.unwrap();
    let (_, records) = open(local(&folder)).await.unwrap();
    assert_eq!(records.len(), 2);
}

#[tokio::test]
async fn a_database_is_not_opened_with_the_other_log() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(local(&folder)).await.unwrap();
    commit(&journal, vec![put("a", 1)]).await.unwrap();
    journal.close().await.unwrap();
    let store = LocalFileSystem::new_with_prefix(folder.path().join("journal")).unwrap();
    let as_objects =
        Placement::Object { store: Arc::new(store), prefix: Path::from("db"), can: Capabilities::OBJECT, log: None };

    let error = open(as_objects.clone()).await.unwrap_err();
    println!("{error}");
    assert!(matches!(error, JournalError::WrongFormat { .. }), "{error:?}");

    fs::remove_file(folder.path().join("journal/db/FORMAT")).unwrap();
    for placement in [as_objects, local(&folder)] {
        let error = open(placement).await.unwrap_err();
        let JournalError::WrongFormat { found, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(found, "");
    }
}

#[tokio::test]
async fn a_failed_write_closes_the_journal_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(local(&folder)).await.unwrap();
    commit(&journal, vec![put("a", 1)]).await.unwrap();
    let Backend::Local { _log: log, .. } = &journal.backend else { unreachable!() };

    log.0.fail_next_write();
    let error = commit(&journal, vec![put("b", 2)]).await.unwrap_err();

    assert!(matches!(error, JournalError::Unavailable(_)), "{error:?}");
    let error = commit(&journal, vec![put("c", 3)]).await.unwrap_err();
    assert!(matches!(error, JournalError::Unavailable(_)), "{error:?}");
    println!("close: {:?}", journal.close().await);
    let (_, records) = open(local(&folder)).await.unwrap();
    assert_eq!(records, Records::from([record("a", "1")]));
}

#[tokio::test]
async fn a_full_disk_delays_commits_and_fails_none() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(local(&folder)).await.unwrap();
    commit(&journal, vec![put("a", 1)]).await.unwrap();
    let Backend::Local { _log: log, .. } = &journal.backend else { unreachable!() };

    log.0.find_the_disk_full(3);
    commit(&journal, vec![put("b", 2)]).await.unwrap();
    log.0.find_the_disk_full(u64::MAX);
    let waits = journal.write(vec![put("c", 3)], Haste::Now).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), waits.durable()).await.is_err());
    log.0.find_the_disk_full(0);
    waits.durable().await.unwrap();

    journal.close().await.unwrap();
    let (_, records) = open(local(&folder)).await.unwrap();
    assert_eq!(records, Records::from([record("a", "1"), record("b", "2"), record("c", "3")]));
}

#[tokio::test]
async fn waiters_hear_of_a_dropped_journal() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(local(&folder)).await.unwrap();
    let commits = join_all((0..20).map(|n| journal.write(vec![put(n, n)], Haste::Now))).await;

    drop(journal);

    for commit in commits {
        // Either is right, waiting for ever is not.
        match commit.unwrap().durable().await {
            Ok(()) | Err(JournalError::Closed) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn a_dropped_journal_ends_its_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    for placement in [local(&folder), object(&store)] {
        let before = tasks();
        let (journal, _) = open(placement).await.unwrap();
        assert!(tasks() > before);

        drop(journal);

        let all_gone = async {
            while tasks() > before {
                tokio::task::yield_now().await;
            }
        };
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, all_gone).await.unwrap();
    }
}

#[tokio::test]
async fn batches_that_cannot_be_stored_are_refused_and_harm_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(local(&folder)).await.unwrap();
    let huge = Mutation::Put { key: Bytes::from("k"), value: Bytes::from(vec![0; BATCH_BYTES_MAX]) };

    for batch in [vec![], vec![put("", 1)], vec![put("k".repeat(70_000), 1)], vec![huge]] {
        let error = journal.write(batch, Haste::Now).await.unwrap_err();
        assert!(matches!(error, JournalError::Invalid(_)), "{error:?}");
    }

    commit(&journal, vec![put("a", 1)]).await.unwrap();
}

#[tokio::test]
async fn a_refused_record_ends_the_open_and_frees_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(local(&folder)).await.unwrap();
    commit(&journal, vec![put("a", 1)]).await.unwrap();
    journal.close().await.unwrap();

    let refuse = |_, _| Err("unknown record");
    let opening = Journal::open(local(&folder), JournalSettings::local(), refuse);
    let refused = tokio::spawn(opening).await.unwrap(); // opening is `Send`

    assert!(matches!(refused, Err(JournalError::Visit(_))), "{refused:?}");
    open(local(&folder)).await.unwrap();
}

const KILL_FOLDER: &str = "ESKER_TEST_KILL_FOLDER";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_batches_survive_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let mut acked = 0;
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture"])
            .arg("catalog::slate::tests::child_that_commits_until_killed")
            .env(KILL_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut keys: Vec<String> = Vec::new();
        while keys.len() < 200 * round {
            let line = lines.next().expect("the child ended").unwrap();
            keys.extend(line.strip_prefix("ack ").map(str::to_owned));
        }
        child.kill().unwrap();
        let rest = lines.map_while(Result::ok);
        // The last line may have been cut by the kill: then it is the start of a key.
        let rest = rest.filter_map(|line| line.strip_prefix("ack ").map(str::to_owned));
        keys.extend(rest.filter(|key| key.ends_with('.')));
        child.wait().unwrap();
        acked += keys.len();

        let (journal, records) = open(local(&folder)).await.unwrap();

        for key in keys {
            for row in 0..10 {
                let key = Bytes::from(format!("{key}{row}"));
                assert!(records.contains_key(&key), "{key:?} is lost");
            }
        }
        assert_eq!(records.len() % 10, 0, "a batch is torn");
        if round == 2 {
            journal.close().await.unwrap();
        }
    }
    println!("{acked} acknowledged batches, none lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by acknowledged_batches_survive_sigkill"]
async fn child_that_commits_until_killed() {
    let Ok(folder) = std::env::var(KILL_FOLDER) else {
        return;
    };
    let folder = FilePath::new(&folder).join("journal");
    let placement = Placement::Local { folder, traffic: Traffic::catalog(Metrics::new()), space: DiskSpace::default() };
    let settings = JournalSettings {
        log_segment_bytes: 64 << 10,
        l0_bytes: 128 << 10,
        gc_interval: Duration::from_millis(50),
        ..JournalSettings::local()
    };
    let (journal, _) = open_with(placement, settings).await.unwrap();
    join_all((0..8).map(|committer| {
        let journal = &journal;
        async move {
            for n in 0.. {
                let key = format!("{}-{committer}-{n}.", journal.epoch());
                let batch = (0..10).map(|row| put(format!("{key}{row}"), "x".repeat(150)));
                commit(journal, batch.collect()).await.unwrap();
                println!("ack {key}");
            }
        }
    }))
    .await;
}

#[tokio::test]
async fn batches_that_can_wait_share_a_request() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (journal, _) = open(object(&store)).await.unwrap();
    let before = groups_of(&*store).await;

    let commits = (0..8).map(|n| {
        let journal = &journal;
        async move {
            tokio::time::sleep(Duration::from_millis(n)).await;
            journal.write(vec![put(n, n)], Haste::Soon).await?.durable().await
        }
    });
    try_join_all(commits).await.unwrap();

    let groups = groups_of(&*store).await - before;
    assert!((1..=2).contains(&groups), "{groups} groups");
}
