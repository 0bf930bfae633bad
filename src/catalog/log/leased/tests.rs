//! Owners that crash at every step, and others that take over in the middle of every step.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use futures::FutureExt;
use slatedb::wal::{WalIterator, WalReader};
use slatedb::{RowEntry, ValueDeletable};

use super::super::format::FrameBuilder;
use super::super::gc::collect_leased;
use super::sink::LeasedSink;
use super::*;
use crate::catalog::log::leased::open::take_over;
use crate::store::log_memory::{FATES, Fate, MemoryLogFolder, When};

/// Two frames of this size are more than a log file takes.
const VALUE_BYTES: usize = 100;
const FILE_BYTES_MAX: u64 = 300;

fn log_in(folder: &MemoryLogFolder) -> Arc<LeasedLog> {
    let limits = LeasedLogLimits {
        file_bytes_max: FILE_BYTES_MAX,
        idle_close: Duration::from_secs(60),
        patience: Duration::from_secs(60),
    };
    LeasedLog::new(Arc::new(folder.clone()), limits)
}

/// What frames hold, by their ids: the owner that committed each.
type Committed = BTreeMap<u64, String>;

fn value(id: u64, who: &str) -> String {
    format!("{id} of {who:.>width$}", width = VALUE_BYTES)
}

fn frame(id: u64, epoch: u64, durable_id: u64, who: &str) -> Bytes {
    let mut frame = FrameBuilder::new(Vec::new());
    frame.push(&RowEntry {
        key: Bytes::from_static(b"key"),
        value: ValueDeletable::Value(Bytes::from(value(id, who))),
        seq: id,
        create_ts: None,
        expire_ts: None,
    });
    Bytes::copy_from_slice(frame.seal(id, epoch, durable_id))
}

/// An owner that commits, and what was answered to it.
struct Owner {
    name: &'static str,
    epoch: u64,
    sink: LeasedSink,
    last_id: u64,
    answered: Committed,
    log: Arc<LeasedLog>,
    /// Up to this frame all is in tables, which outlive owners.
    tables: Arc<AtomicU64>,
}

impl Owner {
    /// Takes the log over. Returns what was replayed, too.
    async fn open(folder: &MemoryLogFolder, epoch: u64, name: &'static str) -> Result<(Self, Committed), WalError> {
        Self::open_behind(folder, epoch, name, &Arc::default()).await
    }

    /// The same with tables.
    async fn open_behind(
        folder: &MemoryLogFolder,
        epoch: u64,
        name: &'static str,
        tables: &Arc<AtomicU64>,
    ) -> Result<(Self, Committed), WalError> {
        let (log, tables) = (log_in(folder), Arc::clone(tables));
        let replay_after = tables.load(Ordering::SeqCst);
        let mut taken = take_over(&log, epoch, replay_after).await?;
        let replayed = rows(&mut taken.replay).await?;
        let ids: Vec<_> = replayed.keys().copied().collect();
        assert_eq!(ids, (replay_after + 1..=taken.last_id).collect::<Vec<_>>());
        let (last_id, answered) = (taken.last_id, Committed::new());
        Ok((Self { name, epoch, sink: taken.sink, last_id, answered, log, tables }, replayed))
    }

    /// Commits one frame after the other, and each time has the one before in a table and the log shortened.
    async fn commit_to_tables(&mut self, frames: u64) -> Result<(), WalError> {
        for _ in 0..frames {
            self.tables.store(self.last_id.saturating_sub(1), Ordering::SeqCst);
            // What cannot be deleted now is deleted later.
            drop(collect_leased(&self.log, self.tables.load(Ordering::SeqCst), false).await);
            self.commit(&[1]).await?;
        }
        Ok(())
    }

    /// Commits groups of so many frames, until one is refused.
    async fn commit(&mut self, groups: &[u64]) -> Result<(), WalError> {
        for frames in groups {
            let ids = self.last_id + 1..=self.last_id + frames;
            let parts: Vec<_> = ids.clone().map(|id| frame(id, self.epoch, self.last_id, self.name)).collect();
            self.sink.append(&parts, *ids.start()).await?;
            self.last_id = *ids.end();
            self.answered.extend(ids.map(|id| (id, value(id, self.name))));
        }
        Ok(())
    }
}

async fn rows(replay: &mut dyn WalIterator) -> Result<Committed, WalError> {
    let mut replayed = Committed::new();
    while let Some(rows) = replay.next().await? {
        for row in rows.rows {
            let ValueDeletable::Value(value) = row.value else { panic!("a value was written") };
            replayed.insert(row.seq, String::from_utf8(value.to_vec()).unwrap());
        }
    }
    Ok(replayed)
}

/// All that was answered is there.
fn assert_holds(replayed: &Committed, answered: &Committed, what: &str) {
    for (id, value) in answered {
        assert_eq!(replayed.get(id), Some(value), "frame {id} was answered: {what}, names");
    }
}

/// Runs a part of an owner's life, which ends early if the owner dies.
async fn live(folder: &MemoryLogFolder, life: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = folder.died() => {}
        () = life => {}
    }
}

/// Has an owner take over and commit, and adds what was answered to it.
async fn life_with(
    folder: &MemoryLogFolder,
    epoch: u64,
    name: &'static str,
    tables: &Arc<AtomicU64>,
    answered: &mut Committed,
) {
    let mut owner = None;
    live(folder, async {
        let Ok((opened, replayed)) = Owner::open_behind(folder, epoch, name, tables).await else { return };
        assert_holds(&replayed, &behind(tables, answered), name);
        let owner = owner.insert(opened);
        if owner.commit(&[1, 2, 1]).await.is_ok() && owner.commit_to_tables(2).await.is_ok() {
            owner.sink.finish().await;
        }
    })
    .await;
    answered.extend(owner.map(|owner| owner.answered).unwrap_or_default());
}

/// What is not in tables.
fn behind(tables: &AtomicU64, committed: &Committed) -> Committed {
    committed.clone().split_off(&(tables.load(Ordering::SeqCst) + 1))
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_is_replayed_whatever_became_of_any_call_of_two_owners() {
    let mut runs = 0;
    for first_fate in FATES {
        for first_call in 0.. {
            let mut second_ended = false;
            for second_fate in [Fate::Torn, Fate::Late, Fate::DiesBefore, Fate::DiesWithin] {
                for second_call in 0.. {
                    let (first, mut answered) = (MemoryLogFolder::new("first"), Committed::new());
                    let tables = Arc::default();
                    first.plan(first_call, first_fate);
                    life_with(&first, 1, "first", &tables, &mut answered).await;
                    let second = first.owner_of_the_same("second");
                    second.plan(second_call, second_fate);
                    life_with(&second, 2, "second", &tables, &mut answered).await;

                    let third = first.owner_of_the_same("third");
                    let (mut owner, replayed) = Owner::open_behind(&third, 3, "third", &tables).await.unwrap();
                    let what = format!("{first_fate:?} {first_call}, {second_fate:?} {second_call}");
                    assert_holds(&replayed, &behind(&tables, &answered), &what);
                    owner.commit(&[1, 1]).await.unwrap();
                    owner.sink.finish().await;
                    if ![first_fate, second_fate].contains(&Fate::Late) {
                        assert_eq!(third.open_names(), Vec::<String>::new(), "{what}");
                    }
                    runs += 1;
                    if second.calls() <= second_call {
                        second_ended = first.calls() <= first_call;
                        break;
                    }
                }
            }
            if second_ended {
                break;
            }
        }
    }
    assert!(runs > 3_000, "{runs} runs");
}

/// An owner that has taken over, and what was replayed to it; `None` until it has.
type Successor = Arc<parking_lot::Mutex<Option<(Owner, Committed)>>>;

/// Has somebody take over and commit in the middle of a call of the owner of `interrupted`.
fn taken_over_in(
    interrupted: &MemoryLogFolder,
    (call, when): (u64, When),
    by: MemoryLogFolder,
    epoch: u64,
    name: &'static str,
    commit: &'static [u64],
) -> Successor {
    let successor = Successor::default();
    let taken = Arc::clone(&successor);
    let take = async move {
        let (mut owner, replayed) = Owner::open(&by, epoch, name).await.unwrap();
        owner.commit(commit).await.unwrap();
        *taken.lock() = Some((owner, replayed));
    };
    interrupted.interrupt(call, when, take.boxed());
    successor
}

/// One owner at work, and another that takes over in the middle of one of its calls.
async fn race(fault: Option<(u64, Fate)>, call: u64, when: When) -> bool {
    let old_folder = MemoryLogFolder::new("old");
    let new_folder = old_folder.owner_of_the_same("new");
    let (mut old, _) = Owner::open(&old_folder, 1, "old").await.unwrap();
    old.commit(&[1, 2]).await.unwrap();
    let begun = old_folder.calls();
    if let Some((after, fate)) = fault {
        old_folder.plan(begun + after, fate);
    }
    let taken = taken_over_in(&old_folder, (begun + call, when), new_folder, 2, "new", &[1]);

    let ended = old.commit(&[1, 3, 1, 2, 1, 1]).await;

    let Some((mut new, replayed)) = taken.lock().take() else { return false };
    let what = format!("{fault:?}, taken over {when:?} call {call}");
    assert_holds(&replayed, &old.answered, &what);
    // It may have been interrupted in its very last call. Whatever it does from then on, it is told.
    assert!(matches!(ended, Ok(()) | Err(WalError::Fenced)), "{what}: {ended:?}");
    let late = old.commit(&[1]).await;
    assert!(matches!(late, Err(WalError::Fenced)), "{what}: {late:?}");
    old.sink.settle().await;
    new.commit(&[1, 2]).await.unwrap();

    let last_folder = old_folder.owner_of_the_same("last");
    let (_, all) = Owner::open(&last_folder, 3, "last").await.unwrap();
    assert_holds(&all, &old.answered, &what);
    assert_holds(&all, &new.answered, &what);
    true
}

#[tokio::test(start_paused = true)]
async fn an_owner_answers_nothing_that_a_successor_does_not_replay_wherever_it_is_interrupted() {
    let mut races = 0;
    let faults = [Fate::Fails, Fate::AnswerLost, Fate::Torn, Fate::Late];
    let faults = faults.into_iter().flat_map(|fate| (0..8).map(move |after| Some((after, fate))));
    for fault in [None].into_iter().chain(faults) {
        for when in [When::Before, When::After] {
            let mut call = 0;
            while race(fault, call, when).await {
                call += 1;
            }
            races += call;
        }
    }
    assert!(races > 500, "{races} races");
}

/// An owner that takes over, and the old one at work in the middle of one of its calls.
async fn old_one_at_work(has_open_file: bool, call: u64, when: When) -> bool {
    let old_folder = MemoryLogFolder::new("old");
    let new_folder = old_folder.owner_of_the_same("new");
    let (mut old, _) = Owner::open(&old_folder, 1, "old").await.unwrap();
    old.commit(&[1, 2, 1]).await.unwrap();
    if !has_open_file {
        old.sink.finish().await;
    }
    let worked = Arc::new(parking_lot::Mutex::new(None));
    let work = {
        let worked = Arc::clone(&worked);
        async move {
            drop(old.commit(&[1, 1, 2]).await);
            *worked.lock() = Some(old);
        }
    };
    new_folder.interrupt(call, when, work.boxed());

    let (mut new, replayed) = Owner::open(&new_folder, 2, "new").await.unwrap();
    new.commit(&[1, 1]).await.unwrap();

    let Some(mut old) = worked.lock().take() else { return false };
    let what = format!("file open: {has_open_file}, at work {when:?} call {call}");
    assert_holds(&replayed, &old.answered, &what);
    assert!(matches!(old.commit(&[1]).await, Err(WalError::Fenced)), "{what}");
    let last_folder = old_folder.owner_of_the_same("last");
    let (_, all) = Owner::open(&last_folder, 3, "last").await.unwrap();
    assert_holds(&all, &old.answered, &what);
    assert_holds(&all, &new.answered, &what);
    true
}

#[tokio::test(start_paused = true)]
async fn a_successor_replays_what_was_answered_while_it_was_taking_over() {
    for has_open_file in [true, false] {
        for when in [When::Before, When::After] {
            let mut call = 0;
            while old_one_at_work(has_open_file, call, when).await {
                call += 1;
            }
            assert!(call > 6, "{call} calls");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_that_take_over_at_the_same_time_the_later_epoch_stays() {
    for when in [When::Before, When::After] {
        for call in 0..40 {
            let root = MemoryLogFolder::new("first");
            let (mut first, _) = Owner::open(&root, 1, "first").await.unwrap();
            first.commit(&[1, 2, 1]).await.unwrap();
            let (second_folder, third_folder) = (root.owner_of_the_same("second"), root.owner_of_the_same("third"));
            let third = taken_over_in(&second_folder, (call, when), third_folder, 3, "third", &[1, 1]);

            let mut second = Owner::open(&second_folder, 2, "second").await.ok().map(|(owner, _)| owner);
            if let Some(owner) = &mut second {
                // Refused from the take-over on, which may come in its very last call.
                drop(owner.commit(&[1, 1, 1, 1]).await);
            }

            let Some((mut third, replayed)) = third.lock().take() else { break };
            let mut answered = first.answered.clone();
            if let Some(mut owner) = second {
                let late = owner.commit(&[1]).await;
                assert!(matches!(late, Err(WalError::Fenced)), "{when:?} {call}: {late:?}");
                answered.extend(owner.answered);
            }
            assert_holds(&replayed, &answered, &format!("{when:?} {call}"));
            third.commit(&[1]).await.unwrap();
            let (_, all) = Owner::open(&root.owner_of_the_same("last"), 4, "last").await.unwrap();
            assert_holds(&all, &answered, "in the end");
            assert_holds(&all, &third.answered, "in the end");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_whose_folder_was_made_anew_writes_nothing_into_it() {
    let old_folder = MemoryLogFolder::new("old");
    let (mut old, _) = Owner::open(&old_folder, 7, "old").await.unwrap();
    old.commit(&[1]).await.unwrap();

    old_folder.clear();
    let new_folder = old_folder.owner_of_the_same("new");
    let (mut new, replayed) = Owner::open(&new_folder, 1, "new").await.unwrap();
    assert!(replayed.is_empty());
    new.commit(&[1]).await.unwrap();

    assert!(matches!(old.commit(&[1]).await, Err(WalError::Fenced)));
    // Not even when an owner with the same epoch was here.
    let (mut same, _) = Owner::open(&old_folder.owner_of_the_same("same"), 7, "same").await.unwrap();
    assert!(matches!(old.commit(&[1]).await, Err(WalError::Fenced)));
    assert!(matches!(new.commit(&[1]).await, Err(WalError::Fenced)));
    same.commit(&[1]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_write_that_never_succeeds_ends_the_log_when_there_was_time_enough() {
    let folder = MemoryLogFolder::new("only");
    let limits = LeasedLogLimits { patience: Duration::ZERO, ..log_in(&folder).limits };
    let log = LeasedLog::new(Arc::new(folder.clone()), limits);
    let mut taken = take_over(&log, 1, 0).await.unwrap();
    folder.break_appends();

    let written = taken.sink.append(&[frame(1, 1, 0, "only")], 1).await;

    assert!(matches!(written, Err(WalError::Unavailable(_))), "{written:?}");
}

#[tokio::test(start_paused = true)]
async fn a_group_is_written_again_after_its_file_was_lost() {
    let folder = MemoryLogFolder::new("only");
    let (mut owner, _) = Owner::open(&folder, 1, "only").await.unwrap();
    owner.commit(&[1]).await.unwrap();

    folder.break_open_files();
    owner.commit(&[2]).await.unwrap();
    owner.sink.finish().await;

    let log_files = folder.names().into_iter().filter(|name| name.ends_with(".log"));
    let headers: Vec<_> = log_files.map(|name| LogFileHeader::from_file_name(&name).unwrap()).collect();
    assert_eq!(headers.iter().map(|header| (header.first_id, header.number)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_look_shows_what_is_closed_and_names_what_is_open_and_changes_nothing() {
    let folder = MemoryLogFolder::new("owner");
    let (mut owner, _) = Owner::open(&folder, 1, "owner").await.unwrap();
    owner.commit(&[1, 1]).await.unwrap();
    owner.sink.finish().await;
    owner.commit(&[1]).await.unwrap();
    let (names, open) = (folder.names(), folder.open_names());
    assert_eq!(open.len(), 1);

    let looker = folder.owner_of_the_same("looker");
    let reader = LeasedLogReader::new(log_in(&looker));
    let last = reader.last_wal_file_id(0).await.unwrap();
    let seen = rows(&mut *reader.iterator((1..last + 1).into()).await.unwrap()).await.unwrap();

    assert_eq!((last, reader.hidden()), (2, open.clone()));
    assert_eq!(seen.len(), 2);
    assert_eq!((folder.names(), folder.open_names()), (names, open));
    owner.commit(&[1]).await.unwrap();
    owner.sink.finish().await;
    let reader = LeasedLogReader::new(log_in(&looker));
    assert_eq!(reader.last_wal_file_id(0).await.unwrap(), 4);
    assert_eq!(reader.hidden(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn the_marks_of_older_owners_go_and_their_files_stay_until_they_are_collected() {
    let folder = MemoryLogFolder::new("a");
    for epoch in 1..=3 {
        let (mut owner, replayed) = Owner::open(&folder, epoch, "a").await.unwrap();
        assert_eq!(replayed.len() as u64, epoch - 1);
        owner.commit(&[1]).await.unwrap();
    }

    let marks: Vec<_> = folder.names().into_iter().filter(|name| name.ends_with(".fence")).collect();

    assert_eq!(marks, ["00000000000000000003-a.fence"]);
}

#[test]
fn the_name_of_a_mark_reads_back() {
    let mark = OwnerMark { epoch: 7, owner: "0123456789abcdef".to_owned() };
    assert_eq!(OwnerMark::from_file_name(&mark.file_name()), Some(mark));
    for other in ["7-a.fence", "00000000000000000007.fence", "00000000000000000007-a.log"] {
        assert_eq!(OwnerMark::from_file_name(other), None);
    }
}
