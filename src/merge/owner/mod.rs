//! The task that writes one physical file.
//!
//! On an append store it writes group after group into a file that grows: what arrives while a group is synced is the
//! next group. On an object store it lets one group collect, closes the file, and puts it whole.
//!
//! A group for which the disk has no room is cut off again, the file is closed with what it had before, and the next group
//! gets another one, once there is room.
//!
//! Where a store gives a file up at the first trouble (a pipeline of DataNodes that broke), the group that was on its way is
//! taken back and written again, into another file, a few times. The file that failed is released by the store, with what was
//! durable in it, and only then closed in the catalog: until then it may still be somebody's.
//!
//! Either way the group's commit to the catalog runs beside the write, and both must be durable before anybody is
//! answered. If the write fails, the catalog forgets the group and the file takes nothing more. The same happens when the
//! owner panics: guards see to it.
//!
//! The owner waits for one thing at a time, for its group or for the work that it began, which changes nothing
//! ([`Owner::next_event`]); then it decides what that means, without waiting ([`Owner::apply`]).
//!
//! # Crash
//! The commit may be there without the bytes: the next start looks at the file and drops what is not whole. The bytes
//! may be there without the commit: they are dead, and the file, if it has no name in the catalog, is deleted.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::MergeError;
use super::context::{Committed, WriteContext, commit};
use super::file::FileWriter;
use super::group::{GroupAgain, Laid, Waiters, fits_the_catalog, inline_items, lay_out, refuse};
use super::lane::LaneKey;
use super::linger::{LaneLoad, linger};
use super::pace::{GroupIn, LanePace, UploadInFlight, UploadPace};
use super::pool::{Group, GroupAge, OpenFile};
use crate::catalog::command::{Command, Refusal, Store, StoreFile, Stored};
use crate::catalog::{Catalog, CatalogError};
use crate::config::MergingSettings;
use crate::metrics::labels::GroupWrite;
use crate::model::PhysicalFileId;
use crate::runtime::{Clock, Failure};
use crate::store::{FileWrites, Readers, StoreError};

/// Files that a group is written to, one after the other, before its writers are told.
const FILES_TRIED_MAX: u32 = 3;
/// Pause between two looks of an idle owner whether its store wants the file to end.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// First pause between two tries to release a file; doubles up to [`RELEASE_PAUSE_MAX`].
const RELEASE_PAUSE: Duration = Duration::from_secs(1);
const RELEASE_PAUSE_MAX: Duration = Duration::from_secs(60);

/// An open file in its owner's hands. However its owner ends, by a panic as well: the file takes nothing more, those
/// whose parcels it holds are told, and the pool counts one open file less.
pub(super) struct Owner {
    context: WriteContext,
    open: Arc<OpenFile>,
    writes: FileWrites,
    phase: Phase,
    /// The file that has begun, unless it is being written.
    file: Option<FileWriter>,
    /// The file that has begun on an append store and has no end yet.
    begun: Option<Begun>,
    /// Counts the group of an object store as on its way.
    on_its_way: Option<UploadInFlight>,
    /// Files that the group which is on its way was written to in vain.
    tried_in_vain: u32,
}

enum Phase {
    /// Waits for its group.
    Collecting,
    /// Waits until this is done.
    Busy(BoxFuture<'static, OwnerEvent>),
    Ended,
}

/// A file of an append store, for whoever has to close it.
struct Begun {
    id: PhysicalFileId,
    /// The durable bytes of it.
    len: u64,
}

/// The events that an owner waits for.
enum OwnerEvent {
    /// There is a group to be written, or the file is closed.
    Collected,
    /// Nothing came for a while.
    Idle,
    /// The file begins with this group, or it does not.
    Created(Result<Box<FileWriter>, StoreError>, Group),
    /// A group was written and committed, or was not.
    Written(Box<Settling>),
    /// The file got its end after a group for which there was no room. It has so many bytes.
    CutOff(Box<Settling>, u64),
    /// Whether the catalog was still ours when a group had been put.
    Checked(Box<Settling>, Result<(), CatalogError>),
    /// A group went into the catalog, or did not, and how long that took.
    Inlined(Waiters, Result<Vec<Result<Stored, Refusal>>, CatalogError>, Duration),
    /// The file has its end, as far as that was possible, and the catalog knows; unless the store may still have it open.
    Closed(Option<Begun>),
}

/// A group of which both halves are over.
struct Settling {
    file: FileWriter,
    waiters: Waiters,
    /// The group once more, where it can be written to another file.
    again: Option<GroupAgain>,
    written: Result<(), StoreError>,
    committed: Committed,
    /// The time that the write took by itself.
    write_took: Duration,
    /// The time that both took, by whichever clock says that it was longer.
    took: Duration,
    /// Whether the file takes nothing after this group.
    last: bool,
}

impl Owner {
    /// The owner of a file that was just opened: its pool counts it from now on.
    pub(super) fn new(context: WriteContext, open: Arc<OpenFile>, writes: FileWrites) -> Self {
        Self {
            context,
            open,
            writes,
            phase: Phase::Collecting,
            file: None,
            begun: None,
            on_its_way: None,
            tried_in_vain: 0,
        }
    }

    /// Writes the file until it is full, closed or idle.
    pub(super) async fn run(mut self) {
        while let Some(event) = self.next_event().await {
            self.apply(event);
        }
    }

    /// Waits for the next thing to happen; `None` at the end. Cancel safe.
    async fn next_event(&mut self) -> Option<OwnerEvent> {
        match (&mut self.phase, &self.writes) {
            (Phase::Collecting, FileWrites::Growing(_)) => {
                let idle_close = self.context.settings.merging.idle_close;
                // Not shared with another thread, which a file is not made for.
                let file = &mut self.file;
                let should_end = move || file.as_mut().is_some_and(|file| file.should_end());
                Some(something_collected(&self.open, idle_close, should_end).await)
            }
            (Phase::Collecting, FileWrites::Whole(_)) => {
                group_is_over(&self.open, &self.context.pace, &self.context.settings.merging).await;
                Some(OwnerEvent::Collected)
            }
            (Phase::Busy(work), _) => Some(work.await),
            (Phase::Ended, _) => None,
        }
    }

    fn apply(&mut self, event: OwnerEvent) {
        self.phase = match event {
            OwnerEvent::Collected => self.take_group(),
            OwnerEvent::Idle => {
                self.context.pools.close(&self.open);
                Phase::Collecting
            }
            OwnerEvent::Created(Ok(file), group) => self.created(*file, group),
            OwnerEvent::Created(Err(error), group) if self.may_try_another(&error) => self.try_another(&error, group),
            OwnerEvent::Created(Err(error), group) => {
                Waiters::of(group).fail(&MergeError::of_store(error, &self.context.space));
                Phase::Ended
            }
            OwnerEvent::Written(settling) => self.written(settling),
            OwnerEvent::CutOff(settling, len) => self.cut_off(*settling, len),
            OwnerEvent::Checked(mut settling, ours) => {
                if let Err(error) = ours {
                    settling.committed = Err(error);
                }
                self.settle(*settling)
            }
            OwnerEvent::Inlined(waiters, stored, took) => {
                match stored {
                    Ok(answers) => {
                        self.answers(answers.len());
                        // It is a put, too: where all groups go this way, nothing else tells how fast the store is.
                        self.context.pace.took(took);
                        waiters.answer(answers);
                    }
                    Err(error) => waiters.fail(&error.into()),
                }
                Phase::Ended
            }
            OwnerEvent::Closed(unfinished) => {
                self.begun = unfinished;
                Phase::Ended
            }
        };
    }

    fn grows(&self) -> bool {
        matches!(self.writes, FileWrites::Growing(_))
    }

    /// So many parcels of the group of an object store are about to be answered.
    fn answers(&self, parcels: usize) {
        self.on_its_way.iter().for_each(|on_its_way| on_its_way.answers(parcels));
    }

    fn take_group(&mut self) -> Phase {
        if !self.grows() {
            // Before the group is taken, which is the only one: what came between the two would be written by nobody.
            self.context.pools.close(&self.open);
        }
        let group = self.context.pools.take_group(&self.open);
        if group.parcels.is_empty() {
            return if group.last { self.end() } else { Phase::Collecting };
        }
        if !self.grows() {
            // From now on, not from the put on: the lane's next group decides by this number how long it waits.
            let inline = fits_the_catalog(&self.context, &group);
            let written = if inline { GroupIn::Commit } else { GroupIn::File };
            let (pace, recent) = (Arc::clone(&self.context.pace), self.context.settings.merging.linger.max);
            self.on_its_way = Some(pace.begin(self.open.key.clone(), group.parcels.len(), written, recent));
            if inline {
                return self.store_inline(group);
            }
        }
        match self.file.take() {
            Some(file) => self.write(file, group),
            None => self.create(group),
        }
    }

    fn store_inline(&self, group: Group) -> Phase {
        let catalog = self.context.catalog.clone();
        let (items, waiters) = inline_items(group.parcels);
        busy(async move {
            let begun = Clock::instant();
            let stored = catalog.store(Store { file: None, items }).await;
            OwnerEvent::Inlined(waiters, stored, begun.elapsed())
        })
    }

    fn create(&self, group: Group) -> Phase {
        let (writes, lane) = (self.writes.clone(), self.open.key.lane.clone());
        let id = self.context.file_id(&lane, self.context.entropy.ulid());
        let now = self.context.catalog.now();
        busy(async move {
            let created = FileWriter::create(&writes, id, &lane, Readers::AsItGrows, now).await;
            OwnerEvent::Created(created.map(Box::new), group)
        })
    }

    fn created(&mut self, file: FileWriter, group: Group) -> Phase {
        self.context.metrics.files_created.inc();
        if self.grows() {
            self.open.begins(file.id());
            self.begun = Some(Begun { id: file.id().clone(), len: 0 });
        }
        self.write(file, group)
    }

    /// Writes a group and commits it, side by side.
    fn write(&self, mut file: FileWriter, group: Group) -> Phase {
        let last = group.last;
        let again = self.leases().then(|| GroupAgain::of(&group));
        let Laid { items, segments, waiters } = lay_out(&mut file, group.parcels);
        let closes = !self.grows();
        let len = if closes { file.push_end() } else { file.len() };
        let lane = self.open.key.lane.clone();
        let named = StoreFile { id: file.id().clone(), lane, len, closes, upload: None };
        let kind = if closes { GroupWrite::Object } else { GroupWrite::Append };
        self.context.metrics.group_segments.of(kind).observe(segments as f64);
        let catalog = self.context.catalog.clone();
        busy(async move {
            let (begun, begun_at) = (Clock::instant(), catalog.clock().wall());
            let write = async {
                let written = file.sync().await;
                (written, begun.elapsed())
            };
            // Side by side: an answer costs one round trip, not two. Either may be durable alone after a crash; recovery
            // tells.
            let ((written, write_took), committed) = tokio::join!(write, commit(&catalog, Some(named), items));
            // The one clock stands still while the machine sleeps, the other may be set.
            let by_wall = Duration::from_millis(catalog.clock().wall().0.saturating_sub(begun_at.0));
            let took = begun.elapsed().max(by_wall);
            let settling = Settling { file, waiters, again, written, committed, write_took, took, last };
            OwnerEvent::Written(Box::new(settling))
        })
    }

    fn written(&mut self, settling: Box<Settling>) -> Phase {
        match (&settling.written, &settling.committed) {
            (Ok(()), committed) if !self.grows() => {
                self.context.pace.took(settling.write_took);
                if committed.is_ok() && self.may_have_been_dropped(settling.took) {
                    return self.check_owner(settling);
                }
            }
            // What is written counts whatever the catalog says: the file is closed behind it.
            (Ok(()), _) => self.begun.iter_mut().for_each(|begun| begun.len = settling.file.len()),
            // Not where the store keeps it for its writer: dropped behind its end, it would stay open there.
            (Err(_), Ok(_)) if settling.file.is_usable() && !self.leases() => return self.cut_off_group(settling),
            (Err(error), Ok(_)) if settling.again.is_some() && self.may_try_another(error) => {
                return self.write_again(*settling);
            }
            (Err(_), _) => {}
        }
        self.settle(*settling)
    }

    /// Whether a file of the store may fail by itself, so that the next one may not.
    fn leases(&self) -> bool {
        self.context.store.capabilities().leases
    }

    fn may_try_another(&self, error: &StoreError) -> bool {
        self.leases() && !error.is_full() && self.tried_in_vain + 1 < FILES_TRIED_MAX
    }

    /// Takes a group back and writes it to another file.
    fn write_again(&mut self, settling: Settling) -> Phase {
        let Settling { file, waiters, again, written, committed, last, .. } = settling;
        let (Some(again), Err(error)) = (again, written) else { return Phase::Ended };
        // Taken back before it is committed once more: a segment is in one place.
        drop(committed);
        // What the store has of the file is no longer its writer's from here on.
        drop(file);
        if let Some(begun) = self.begun.take() {
            self.release(begun);
        }
        self.try_another(&error, again.group(waiters, last))
    }

    fn try_another(&mut self, error: &StoreError, group: Group) -> Phase {
        self.tried_in_vain += 1;
        tracing::warn!(
            error = crate::error::chain(error),
            "a file was given up, its last group is written to another one"
        );
        self.create(group)
    }

    /// Closes a file in the catalog that takes nothing more. Where the store keeps it for its writer, that comes after it was
    /// released, however long that takes.
    fn release(&self, Begun { id, len }: Begun) {
        let catalog = self.context.catalog.clone();
        let close = move |id: PhysicalFileId| {
            if let Err(error) = catalog.note(Command::CloseFile(id.clone(), len)) {
                tracing::debug!(file = %id, %error, "a file could not be closed in the catalog");
            }
        };
        if !self.leases() {
            return close(id);
        }
        if tokio::runtime::Handle::try_current().is_err() {
            // The next start releases it.
            return;
        }
        let store = self.context.store.clone();
        self.context.tasks.spawn("file-release", Failure::FailsItsWork, async move {
            let mut pause = RELEASE_PAUSE;
            while let Err(error) = store.release(&id).await {
                tracing::warn!(file = %id, error = crate::error::chain(&error), "a file that failed cannot be released yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RELEASE_PAUSE_MAX);
            }
            close(id);
        });
    }

    /// Whether a put that took so long may have arrived after a successor took the name, dropped the segments, and deleted
    /// what it had put there: it waits for the grace before it deletes. Half of it is left to clocks that differ.
    fn may_have_been_dropped(&self, took: Duration) -> bool {
        took > self.context.settings.reclaim.delete_grace / 2
    }

    /// After the put: a successor that took the name did so after it was the owner.
    fn check_owner(&self, settling: Box<Settling>) -> Phase {
        let catalog = self.context.catalog.clone();
        busy(async move {
            let ours = catalog.check_owner().await;
            OwnerEvent::Checked(settling, ours)
        })
    }

    /// The file ends with what it had before the group.
    fn cut_off_group(&mut self, mut settling: Box<Settling>) -> Phase {
        // The group's own failure closes it in the catalog.
        self.begun = None;
        busy(async move {
            let len = write_end(&mut settling.file).await;
            OwnerEvent::CutOff(settling, len)
        })
    }

    fn cut_off(&mut self, settling: Settling, len: u64) -> Phase {
        let Settling { waiters, written, committed, .. } = settling;
        if let Ok((unsettled, _)) = committed {
            // In one batch with taking the group back: no crash may leave its segments in a closed file.
            unsettled.fail_at(len);
        }
        self.refuse_group(waiters, written)
    }

    /// Both halves of a group are over: confirms and answers, or takes it all back.
    fn settle(&mut self, settling: Settling) -> Phase {
        let Settling { file, waiters, written, committed, last, .. } = settling;
        if written.is_err() {
            // Taken back before anybody is told, who may repeat it at once.
            drop(committed);
            return self.refuse_group(waiters, written);
        }
        match committed {
            Ok((unsettled, answers)) => {
                // Visible before it is answered, so that whoever was answered finds it.
                unsettled.confirm();
                self.answers(answers.len());
                waiters.answer(answers);
            }
            Err(error) => {
                waiters.fail(&error.into());
                return Phase::Ended;
            }
        }
        if !self.grows() {
            return Phase::Ended;
        }
        self.tried_in_vain = 0;
        if file.should_end() {
            self.context.pools.close(&self.open);
        }
        self.file = Some(file);
        if last { self.end() } else { Phase::Collecting }
    }

    fn refuse_group(&self, waiters: Waiters, written: Result<(), StoreError>) -> Phase {
        if let Err(error) = written {
            // That the disk is full is logged once, not for each group.
            if !error.is_full() {
                tracing::error!(error = crate::error::chain(&error), "a group could not be written");
            }
            waiters.fail(&MergeError::of_store(error, &self.context.space));
        }
        Phase::Ended
    }

    /// Ends the file: nothing comes any more. Writes its end, if it has begun. Whatever fails from here on, the next start
    /// does it.
    fn end(&mut self) -> Phase {
        let Some(file) = self.file.take() else { return Phase::Ended };
        if !self.leases() {
            self.begun = None;
        }
        busy(close(self.context.catalog.clone(), file))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // First of all, because a commit may be on its way: its group is taken back before the file is closed without it.
        self.phase = Phase::Ended;
        // Then this, so that nothing is put into the file any more when what it holds is refused.
        self.context.pools.ended(&self.open);
        refuse(&self.context.space, self.context.pools.take_group(&self.open));
        if let Some(begun) = self.begun.take() {
            self.release(begun);
        }
    }
}

fn busy(work: impl Future<Output = OwnerEvent> + Send + 'static) -> Phase {
    Phase::Busy(work.boxed())
}

/// Waits for a group of a growing file, `idle_close` at most, and no longer than the store lets it.
async fn something_collected(
    open: &OpenFile,
    idle_close: Duration,
    mut should_end: impl FnMut() -> bool,
) -> OwnerEvent {
    let begun = Clock::instant();
    loop {
        // Armed before the look: what is put into the file between the two rings it.
        let bell = open.bell.notified();
        if open.has_work() {
            return OwnerEvent::Collected;
        }
        let left = idle_close.saturating_sub(begun.elapsed());
        if tokio::time::timeout(left.min(LOOK_EVERY), bell).await.is_err() && (left <= LOOK_EVERY || should_end()) {
            return OwnerEvent::Idle;
        }
    }
}

/// Waits until the group of a file that is put whole waits no longer for more.
async fn group_is_over(open: &OpenFile, pace: &UploadPace, merging: &MergingSettings) {
    // Parcels of the group when those that were about to arrive were let in.
    let mut let_in = 0;
    loop {
        // Armed before the look, as above.
        let (bell, mut over) = (open.bell.notified(), std::pin::pin!(pace.over()));
        over.as_mut().enable();
        let Some(age) = open.group_age(merging.group_bytes_max.max(merging.file_bytes_max)) else { return };
        if age.urgent {
            return;
        }
        let load = load_of(&age, pace, &open.key, merging.linger.max);
        let wait = linger(&load, &merging.linger);
        if !wait.is_zero() {
            let arrived = async {
                tokio::select! {
                    () = bell => {}
                    () = over => {}
                }
            };
            // Whatever happens, the question is asked anew.
            if tokio::time::timeout(wait, arrived).await.is_ok() {
                // Those that arrive with it are put first.
                tokio::task::yield_now().await;
            }
            continue;
        }
        if age.parcels == let_in {
            return;
        }
        // A timer goes off before tasks for which something has arrived get their turn; on a busy machine that is all that
        // arrived since the last look. They are put first, once if the group has waited for as long as it may.
        let_in = age.parcels;
        tokio::task::yield_now().await;
        if load.oldest >= merging.linger.max {
            return;
        }
    }
}

fn load_of(age: &GroupAge, pace: &UploadPace, lane: &LaneKey, recent: Duration) -> LaneLoad {
    let now = Clock::instant();
    let ago = |then| now.saturating_duration_since(then);
    let LanePace { groups, committing, answered, usual } = pace.of_lane(lane);
    // A moment before the group began, or since then.
    let answered = answered.filter(|answered| answered.is_recent(age.first, recent));
    LaneLoad {
        in_flight: groups,
        committing,
        answered: answered.map(|answered| (answered.parcels, ago(answered.at))),
        usual,
        oldest: ago(age.first),
        newest: ago(age.last),
        segments: age.parcels,
        latency: pace.latency(),
    }
}

/// Writes the end of a file and tells the catalog.
async fn close(catalog: Catalog, mut file: FileWriter) -> OwnerEvent {
    let len = write_end(&mut file).await;
    if let Err(error) = file.finish().await {
        tracing::warn!(file = %file.id(), error = crate::error::chain(&error), "a file could not be finished yet");
        return OwnerEvent::Closed(Some(Begun { id: file.id().clone(), len }));
    }
    // Not before the end is written: with a length that is not there the file would count as damaged.
    let closed = catalog.execute(Command::CloseFile(file.id().clone(), len)).await;
    if let Err(error) = closed {
        tracing::debug!(file = %file.id(), %error, "a file could not be closed in the catalog");
    }
    OwnerEvent::Closed(None)
}

/// Writes the end of a file, as far as that is possible. Returns its length.
async fn write_end(file: &mut FileWriter) -> u64 {
    // Without a segment nobody reads it.
    if file.len() > 0
        && let Err(error) = file.sync_end().await
        && !error.is_full()
    {
        tracing::warn!(file = %file.id(), error = crate::error::chain(&error), "the end of a file could not be written");
    }
    file.len()
}

#[cfg(test)]
mod tests;
