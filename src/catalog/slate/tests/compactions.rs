//! Compactions that a crash cut short.

use std::sync::atomic::AtomicI64;

use slatedb::admin::Admin;
use slatedb::compactor::CompactionStatus;
use tokio::runtime::Runtime;

use super::*;
use crate::model::Millis;
use crate::runtime::Clock;

/// Whoever does a compaction, of those that are being done, and when that was last heard of.
async fn workers(folder: &FilePath) -> Vec<(String, Millis)> {
    let store = LocalFileSystem::new_with_prefix(folder.join("journal")).unwrap();
    let admin = Admin::builder(Path::from(LOCAL_DB), Arc::new(store)).build();
    // It may be collected while it is read.
    let Ok(Some(compactions)) = admin.read_compactions(None).await else { return vec![] };
    let running = compactions.recent_compactions().filter(|one| one.status() == CompactionStatus::Running);
    let workers = running.filter_map(|one| one.worker());
    workers.map(|worker| (worker.worker_id.clone(), Millis(worker.last_heartbeat_ms))).collect()
}

fn settings(clock: Clock) -> JournalSettings {
    JournalSettings {
        clock: clock.floored(),
        l0_bytes: 1 << 20,
        unflushed_bytes_max: 8 << 20,
        log_segment_bytes: 1 << 20,
        poll_interval: Duration::from_millis(20),
        ..JournalSettings::local()
    }
}

/// Writes until a compaction is being done, and ends as a crash would.
fn crash_in_a_compaction(folder: &TempDir, settings: JournalSettings) {
    let runtime = Runtime::new().unwrap();
    let journal = runtime.block_on(async {
        let (journal, _) = open_with(local(folder), settings).await.unwrap();
        for number in 0.. {
            let value = "x".repeat(4096);
            commit(&journal, (0..16).map(|row| put(format!("{number}-{row}"), &value)).collect()).await.unwrap();
            if !workers(folder.path()).await.is_empty() {
                break;
            }
        }
        journal
    });
    runtime.shutdown_timeout(Duration::from_secs(10));
    drop(journal);
}

#[test]
fn what_a_crash_cut_short_is_done_again_at_once_whatever_the_clocks_say() {
    let folder = tempfile::tempdir().unwrap();
    let ahead = Clock::Shifted(Arc::new(AtomicI64::new(600_000)));
    let runtime = Runtime::new().unwrap();
    let left = loop {
        crash_in_a_compaction(&folder, settings(ahead.clone()));
        // It may have come to its end after the look.
        let left = runtime.block_on(workers(folder.path()));
        if !left.is_empty() {
            break left;
        }
    };

    runtime.block_on(async {
        let settings = settings(Clock::System);
        let (journal, _) = open_with(local(&folder), settings.clone()).await.unwrap();
        // By this owner's clock, which is ten minutes behind and therefore slow, it would have been heard of a moment ago.
        for (worker, heard) in &left {
            let silent = settings.clock.now().0.saturating_sub(heard.0);
            assert!(u128::from(silent) > settings.compaction_silence().as_millis(), "{worker}: {silent} ms");
        }
        while workers(folder.path()).await.iter().any(|(worker, _)| left.iter().any(|(left, _)| left == worker)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        journal.close().await.unwrap();
    });
}
