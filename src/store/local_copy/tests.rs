use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;

const MB: u64 = 1 << 20;

fn file(n: u128) -> PhysicalFileId {
    PhysicalFileId::new(None, 1, n)
}

fn bytes(seed: u8, len: usize) -> Bytes {
    (0..len).map(|n| (n / 256) as u8 ^ (n as u8).wrapping_mul(seed)).collect()
}

struct Open {
    copy: LocalCopy,
    tasks: TaskGroup,
    metrics: Metrics,
}

fn settings(dirs: &[&Path], bytes_max: u64) -> LocalCopySettings {
    let dirs = dirs.iter().map(|dir| dir.to_path_buf()).collect();
    LocalCopySettings { dirs, bytes_max, waiting_bytes_max: 32 * MB }
}

fn try_open(settings: &LocalCopySettings) -> Option<Open> {
    let metrics = Metrics::new();
    let copy = LocalCopy::open(settings, "s3://bucket", &metrics)?;
    let tasks = TaskGroup::new(CancellationToken::new());
    copy.run(&tasks);
    Some(Open { copy, tasks, metrics })
}

fn open(dir: &TempDir, bytes_max: u64) -> Open {
    try_open(&settings(&[dir.path()], bytes_max)).unwrap()
}

impl Open {
    /// Entries that were kept are on disk when this returns.
    async fn close(self) -> Metrics {
        self.copy.close();
        self.tasks.wait().await;
        self.metrics
    }

    /// Like a shutdown and a start.
    async fn reopen(self, dir: &TempDir, bytes_max: u64) -> Self {
        self.close().await;
        open(dir, bytes_max)
    }
}

/// Files in the folders below `dir` that hold entries.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(dir).unwrap().map(|folder| folder.unwrap().path());
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    files.filter(|path| path.file_name().is_some_and(|name| name != "LOCK")).collect()
}

/// A part of the names of a file's entries.
fn of(n: u128) -> String {
    file(n).as_str().replace('/', "@")
}

fn disk_usage(dir: &Path) -> u64 {
    entries(dir).iter().map(|path| fs::metadata(path).unwrap().len().next_multiple_of(4096)).sum()
}

#[tokio::test]
async fn what_was_kept_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let copy = open(&dir, 100 * MB);
    let (whole, part) = (bytes(3, 3_000_000), bytes(5, 100_000));
    copy.copy.keep(&file(1), 0, vec![whole.slice(..10), whole.slice(10..)]);
    copy.copy.keep(&file(2), 7_000, vec![part.clone()]);
    copy.copy.keep(&file(2), 107_000, vec![part.clone()]);

    let copy = copy.reopen(&dir, 100 * MB).await;

    assert!(copy.copy.read(&file(1), 0..3_000_000).await.unwrap() == whole);
    assert!(copy.copy.read(&file(1), 1_234_567..1_234_570).await.unwrap() == whole[1_234_567..1_234_570]);
    let across = copy.copy.read(&file(2), 106_000..108_000).await.unwrap();
    assert!(across[..1000] == part[99_000..] && across[1000..] == part[..1000]);
    assert_eq!(copy.copy.read(&file(2), 6_999..7_001).await, None);
    assert_eq!(copy.copy.read(&file(3), 0..1).await, None);
    assert_eq!((copy.metrics.local_copy_hits.get(), copy.metrics.local_copy_misses.get()), (3, 2));
    assert_eq!(copy.metrics.local_copy_bytes.get() as u64, disk_usage(dir.path()));
}

#[tokio::test]
async fn the_bound_is_kept_and_what_was_used_longest_ago_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut copy = open(&dir, 4 * MB);
    for n in 1..=3 {
        copy.copy.keep(&file(n), 0, vec![bytes(1, 1_000_000)]);
    }
    copy = copy.reopen(&dir, 4 * MB).await;
    assert!(copy.copy.read(&file(1), 0..10).await.is_some());
    for n in 4..=5 {
        copy.copy.keep(&file(n), 0, vec![bytes(1, 1_000_000)]);
    }
    copy.copy.keep(&file(9), 0, vec![bytes(1, 5_000_000)]);

    let metrics = copy.close().await;

    assert_eq!((metrics.local_copy_evictions.get(), metrics.local_copy_dropped.get()), (1, 1));
    assert!(disk_usage(dir.path()) <= 4 * MB);
    assert_eq!(metrics.local_copy_bytes.get() as u64, disk_usage(dir.path()));
    assert!(!entries(dir.path()).iter().any(|path| path.to_string_lossy().contains(&of(2))));
    let smaller = open(&dir, 3 * MB);
    assert!(disk_usage(dir.path()) <= 3 * MB, "a lower bound is kept from the start");
    assert_eq!((entries(dir.path()).len(), smaller.metrics.local_copy_evictions.get()), (3, 1));
}

#[tokio::test]
async fn damaged_truncated_foreign_and_missing_entries_are_misses_and_go_away() {
    let dir = tempfile::tempdir().unwrap();
    let copy = open(&dir, 100 * MB);
    for n in 0..=4 {
        copy.copy.keep(&file(n), 0, vec![bytes(n as u8, 300_000)]);
    }
    copy.close().await;
    let entry = |n: u128| {
        let mut all = entries(dir.path()).into_iter();
        all.find(|path| path.to_string_lossy().contains(&of(n))).unwrap()
    };
    let mut damaged = fs::read(entry(0)).unwrap();
    damaged[150_000] ^= 1;
    fs::write(entry(0), damaged).unwrap();
    fs::copy(entry(2), entry(1)).unwrap();
    fs::OpenOptions::new().write(true).open(entry(2)).unwrap().set_len(1000).unwrap();
    fs::write(entry(4).with_file_name("staged"), "half an entry").unwrap();
    fs::write(entry(4).with_file_name("something else"), "").unwrap();
    let copy = open(&dir, 100 * MB);
    fs::remove_file(entry(3)).unwrap();

    for n in 0..=3 {
        assert_eq!(copy.copy.read(&file(n), 0..300_000).await, None, "{n}");
    }
    assert!(copy.copy.read(&file(4), 0..300_000).await.unwrap() == bytes(4, 300_000));

    assert_eq!(copy.metrics.local_copy_damaged.get(), 2);
    copy.close().await;
    assert_eq!(entries(dir.path()), [entry(4)]);
}

#[tokio::test]
async fn what_is_forgotten_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let copy = open(&dir, 100 * MB);
    copy.copy.keep(&file(1), 0, vec![bytes(1, 1000)]);
    let copy = copy.reopen(&dir, 100 * MB).await;
    copy.copy.keep(&file(2), 0, vec![bytes(1, 1000)]);

    assert!(copy.copy.forget(&file(1)));
    assert!(copy.copy.forget(&file(2)), "what waits is known, too");
    assert!(!copy.copy.forget(&file(1)));

    assert_eq!(copy.copy.read(&file(1), 0..1).await, None);
    let metrics = copy.close().await;
    assert_eq!((entries(dir.path()), metrics.local_copy_bytes.get()), (vec![], 0));
}

#[tokio::test]
async fn nothing_is_kept_while_too_much_waits() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    let copy = LocalCopy::open(&settings(&[dir.path()], 100 * MB), "s3://bucket", &metrics).unwrap();
    for n in 0..8 {
        copy.keep(&file(n), 0, vec![bytes(1, 5_000_000)]);
    }

    assert_eq!(metrics.local_copy_dropped.get(), 2, "six of 5 MB fit into 32 MiB");
    let tasks = TaskGroup::new(CancellationToken::new());
    copy.run(&tasks);
    copy.close();
    tasks.wait().await;
    assert_eq!(entries(dir.path()).len(), 6);
}

#[tokio::test]
async fn daemons_have_folders_of_their_own_and_those_left_behind_are_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (open(&dir, 100 * MB), open(&dir, 100 * MB));
    first.copy.keep(&file(1), 0, vec![bytes(1, 1000)]);
    second.copy.keep(&file(2), 0, vec![bytes(1, 1000)]);
    first.close().await;
    second.close().await;
    assert_eq!(entries(dir.path()).len(), 2);

    let again = open(&dir, 100 * MB);

    assert!(again.copy.read(&file(1), 0..1000).await.is_some());
    assert_eq!(again.copy.read(&file(2), 0..1000).await, None);
    assert_eq!(entries(dir.path()).len(), 1);
    let other_store = LocalCopy::open(&settings(&[dir.path()], 100 * MB), "s3://other", &again.metrics).unwrap();
    assert_eq!(other_store.read(&file(1), 0..1000).await, None);
    let folder = entries(dir.path())[0].parent().unwrap().to_owned();
    assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_disk_that_fails_is_left_alone_and_the_others_go_on() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let no_folder = dir.path().join("a file");
    fs::write(&no_folder, "").unwrap();
    assert!(try_open(&settings(&[&no_folder], MB)).is_none());
    let copy = try_open(&settings(&[&no_folder, other.path()], 100 * MB)).unwrap();
    for n in 0..20 {
        copy.copy.keep(&file(n), 0, vec![bytes(1, 1000)]);
    }
    let metrics = copy.close().await;
    let kept = entries(other.path()).len();
    assert!((1..20).contains(&kept), "{kept}");
    assert_eq!(metrics.local_copy_dropped.get(), 0);

    let copy = try_open(&settings(&[other.path()], 100 * MB)).unwrap();
    let folder = entries(other.path())[0].parent().unwrap().to_owned();
    fs::remove_dir_all(&folder).unwrap();
    copy.copy.keep(&file(50), 0, vec![bytes(1, 1000)]);
    tokio::time::timeout(Duration::from_secs(20), async {
        while copy.metrics.local_copy_dropped.get() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    copy.copy.keep(&file(51), 0, vec![bytes(1, 1000)]);

    assert_eq!(copy.metrics.local_copy_dropped.get(), 2);
    assert_eq!(copy.copy.read(&file(1), 0..10).await, None);
}

#[tokio::test]
async fn on_a_full_disk_the_copy_shrinks_and_rests() {
    let dir = tempfile::tempdir().unwrap();
    let copy = open(&dir, 100 * MB);
    for n in 0..32 {
        copy.copy.keep(&file(n), 0, vec![bytes(1, 4000)]);
    }
    let copy = copy.reopen(&dir, 100 * MB).await;
    let staged = entries(dir.path())[0].with_file_name("staged");
    std::os::unix::fs::symlink("/dev/full", &staged).unwrap();

    copy.copy.keep(&file(50), 0, vec![bytes(1, 4000)]);
    tokio::time::timeout(Duration::from_secs(20), async {
        while copy.metrics.local_copy_evictions.get() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    copy.copy.keep(&file(51), 0, vec![bytes(1, 4000)]);

    assert_eq!((copy.metrics.local_copy_evictions.get(), copy.metrics.local_copy_dropped.get()), (2, 2));
    let mut readable = 0;
    for n in 0..32 {
        readable += u32::from(copy.copy.read(&file(n), 0..4000).await.is_some());
    }
    assert_eq!(readable, 30, "what is there is read on");
    copy.close().await;
    assert_eq!(entries(dir.path()).len(), 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_beside_writers_and_evictions_get_right_bytes_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let copy = open(&dir, MB / 2);
    let contents: Vec<Bytes> = (0..3).map(|n| bytes(n, 200_000)).collect();
    let busy = |seed: u64| {
        let (copy, metrics, contents) = (copy.copy.clone(), copy.metrics.clone(), contents.clone());
        async move {
            let enough = || metrics.local_copy_hits.get() > 20 && metrics.local_copy_evictions.get() > 5;
            let begun = Instant::now();
            for n in (0..).take_while(|n| *n < 300 || (!enough() && begun.elapsed() < Duration::from_secs(60))) {
                // The writer needs a turn, too, and on a slow disk a long one.
                match n < 300 {
                    true => tokio::task::yield_now().await,
                    false => tokio::time::sleep(Duration::from_millis(1)).await,
                }
                let number = (n / 5 + seed / 2) % 3;
                let (file, all) = (file(number.into()), &contents[number as usize]);
                let start = (n * 1009 * (seed + 1)) % 150_000;
                let part = |len: u64| all.slice(start as usize..(start + len) as usize);
                if let Some(read) = copy.read(&file, start..start + 40_000).await {
                    assert!(read == part(40_000), "file {number} from {start}");
                }
                match n % 10 {
                    // Later on nothing is forgotten before a slow disk has it.
                    0 if n < 300 => {
                        copy.forget(&file);
                    }
                    n if n % 2 == 0 => copy.keep(&file, start, vec![part(50_000)]),
                    _ => copy.keep(&file, 0, vec![all.clone()]),
                }
            }
        }
    };

    let tasks: Vec<_> = (0..4).map(|seed| tokio::spawn(busy(seed))).collect();
    for task in tasks {
        task.await.unwrap();
    }

    let metrics = copy.close().await;
    assert!(metrics.local_copy_hits.get() > 20 && metrics.local_copy_evictions.get() > 5);
    assert_eq!(metrics.local_copy_damaged.get(), 0);
    assert_eq!(metrics.local_copy_bytes.get() as u64, disk_usage(dir.path()));
    assert!(disk_usage(dir.path()) <= MB / 2);
}
