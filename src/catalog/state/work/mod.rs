//! The rest of a command that frees or hands over many segments, done a few segments at a time.
//!
//! Such a command changes at once the few records that say what it means: a checkpoint is subsumed, aborted or claimed, a
//! savepoint is discarded, a job has ended. From then on every answer is the one after the command: a segment that nobody
//! needs any more is not shown and not reused ([`CatalogState::is_leaving`]), and one that was claimed is part of the
//! checkpoint of its new job. The segments themselves follow, in the order of their indexes ([`CatalogState::work`]): the
//! counts of space and of a job's segments go down with them, and the list of a job's segments shows a claimed one under the
//! job that has it so far.
//!
//! # Crash
//! The records that say what the command means are written before any of its segments, so a start knows what is left
//! ([`CatalogState::resume`]) and goes on with it as if nothing had happened, a few segments at a time. For a claim that is
//! the record of the checkpoint at its old job, which stays until the last segment has changed hands: completed, without an
//! end, claimed from the new job. A daemon that does not know of claims in pieces does not read it.

use std::collections::BTreeMap;

use super::segments::KeptSegment;
use super::walks::{Handing, HeldAt, HeldIndex, HeldWalk, each_held};
use super::{CatalogState, Ids, JobEntry, JobLife};
use crate::catalog::record::{CheckpointRecord, RecordKey};
use crate::model::{CheckpointId, CheckpointKind, CheckpointState, Holder, JobId, Millis, SegmentId};

/// Segments that are gone through between two questions whether to go on.
const STEP: usize = 32;
/// A command that frees or hands over no more than so many segments, about, leaves no work.
const AT_ONCE: usize = 2 * STEP;

/// The fate of a segment on a walk.
enum Fate {
    Stays,
    Goes,
    ChangesHands(JobId, CheckpointId),
}

impl HeldWalk {
    fn along(life: &JobLife, index: HeldIndex) -> &BTreeMap<CheckpointId, Ids> {
        match index {
            HeldIndex::LastUsed => &life.by_last_used,
            HeldIndex::Savepoints => &life.by_savepoint,
        }
    }

    /// Some more segments, and whether they are the last ones.
    fn next(&mut self, life: &JobLife) -> (Vec<SegmentId>, bool) {
        let mut next = Vec::with_capacity(STEP);
        let mut left = STEP;
        let mut goes_on = || {
            left -= 1;
            left > 0
        };
        let index = Self::along(life, self.index);
        let last = each_held(index, &mut self.at, self.through, &mut goes_on, |id| next.push(id));
        (next, last)
    }
}

impl Handing {
    /// Whether a segment of the old job is part of the checkpoint.
    fn takes(&self, kept: &KeptSegment<'_>) -> bool {
        let of_its_kind = match kept.holder {
            Holder::Checkpoints { .. } => self.kind == CheckpointKind::Checkpoint,
            Holder::Savepoint { .. } => self.kind == CheckpointKind::Savepoint,
            Holder::Objects { .. } | Holder::Upload => false,
        };
        of_its_kind && kept.holder.is_part_of(kept.checkpoint, self.checkpoint)
    }
}

impl CatalogState {
    /// Does some of what is left of earlier commands, until `goes_on` says no. True if nothing is left.
    pub fn work(&mut self, at: Millis, mut goes_on: impl FnMut() -> bool) -> bool {
        while let Some(mut walk) = self.work.walks.pop_front() {
            loop {
                let (next, last) = self.life(&walk.job).map_or((vec![], true), |life| walk.next(life));
                next.into_iter().for_each(|id| self.pass(&walk, id, at));
                if last {
                    break;
                }
                if !goes_on() {
                    self.work.walks.push_front(walk);
                    return false;
                }
            }
            self.end_walk(&walk);
            if !goes_on() {
                break;
            }
        }
        self.work.is_empty()
    }

    /// Does all that is left of earlier commands.
    pub fn finish_work(&mut self, at: Millis) {
        self.work(at, || true);
    }

    /// Whether nothing is left of earlier commands.
    pub fn is_idle(&self) -> bool {
        self.work.is_empty()
    }

    /// Counts the pieces of work that commands have left so far, and those of them that are done: they are done in order.
    pub fn work_counts(&self) -> (u64, u64) {
        (self.work.added, self.work.ended)
    }

    /// Does what a command has left since `before`, if that is little and nothing else is left.
    pub(super) fn work_at_once(&mut self, before: (u64, u64), at: Millis) {
        let (added, ended) = before;
        if added == ended && self.work.added > added {
            let mut left = AT_ONCE / STEP;
            self.work(at, || {
                left = left.saturating_sub(1);
                left > 0
            });
        }
    }

    fn pass(&mut self, walk: &HeldWalk, id: SegmentId, at: Millis) {
        match self.fate_of(walk, id) {
            Fate::Stays => {}
            Fate::Goes => self.free_segment(id, at),
            Fate::ChangesHands(to, checkpoint) => self.give_segment(id, &walk.job, &to, checkpoint),
        }
    }

    fn fate_of(&self, walk: &HeldWalk, id: SegmentId) -> Fate {
        let Some(kept) = self.segments.get(id) else { return Fate::Stays };
        let goes = |goes: bool| if goes { Fate::Goes } else { Fate::Stays };
        match &self.work.handing {
            Some(handing) if walk.hands_over && handing.takes(&kept) => match self.is_wanted(handing) {
                true => Fate::ChangesHands(handing.to.clone(), handing.checkpoint),
                false => Fate::Goes,
            },
            // What later checkpoints hold that have begun since is theirs.
            Some(_) if walk.hands_over => goes(!self.has_living_holder(&walk.job, &kept)),
            _ => goes(self.is_dead(&kept)),
        }
    }

    /// Whether the new job still has the checkpoint.
    fn is_wanted(&self, handing: &Handing) -> bool {
        self.has_claimed(&handing.to, &handing.from, handing.checkpoint)
    }

    fn has_living_holder(&self, job: &JobId, kept: &KeptSegment<'_>) -> bool {
        let Holder::Checkpoints { last_used } = kept.holder else { return true };
        let record = self.life(job).and_then(|life| life.checkpoints.get(&last_used));
        record
            .is_some_and(|record| record.kind == CheckpointKind::Checkpoint && record.state != CheckpointState::Aborted)
    }

    fn end_walk(&mut self, walk: &HeldWalk) {
        self.work.ended += 1;
        if walk.hands_over
            && let Some(Handing { from, checkpoint, .. }) = self.work.handing.take()
        {
            self.mutations.push(RecordKey::Checkpoint(from, checkpoint).delete());
        }
        self.forget_ended_job(&walk.job);
    }

    /// Whether a segment that is still there is gone for those who ask, or another job's.
    pub(super) fn is_leaving(&self, kept: &KeptSegment<'_>) -> bool {
        !self.work.is_empty() && (self.is_dead(kept) || self.handing_of(kept).is_some())
    }

    /// Whether a segment that is still there is gone for those who ask.
    pub(super) fn is_gone(&self, kept: &KeptSegment<'_>) -> bool {
        !self.work.is_empty() && self.is_dead(kept)
    }

    /// Whether nobody needs a segment any more that a checkpoint held: it is freed as soon as its turn comes.
    pub(super) fn is_dead(&self, kept: &KeptSegment<'_>) -> bool {
        if let Some(handing) = self.handing_of(kept) {
            return !self.is_wanted(handing);
        }
        let Some((_, job)) = self.jobs.at(kept.job) else { return false };
        let life = job.life();
        match kept.holder {
            Holder::Savepoint { id } => {
                life.checkpoints.get(&id).is_none_or(|record| record.state == CheckpointState::Aborted)
            }
            Holder::Checkpoints { last_used } => life.is_over(kept.checkpoint, last_used),
            Holder::Objects { .. } | Holder::Upload => false,
        }
    }

    fn handing_of(&self, kept: &KeptSegment<'_>) -> Option<&Handing> {
        let handing = self.work.handing.as_ref().filter(|handing| handing.takes(kept))?;
        self.jobs.at(kept.job).filter(|(job, _)| **job == handing.from).map(|_| handing)
    }

    /// Tells the segments of a checkpoint of `job` that are still another job's, as [`each_held`] does.
    pub(super) fn each_coming(
        &self,
        job: &JobId,
        checkpoint: CheckpointId,
        at: &mut HeldAt,
        goes_on: &mut dyn FnMut() -> bool,
        mut tell: impl FnMut(SegmentId),
    ) -> bool {
        let coming = |handing: &&Handing| handing.to == *job && handing.checkpoint == checkpoint;
        let Some(handing) = self.work.handing.as_ref().filter(coming).filter(|handing| self.is_wanted(handing)) else {
            return true;
        };
        let Some(life) = self.life(&handing.from) else { return true };
        let (index, through) = match handing.kind {
            CheckpointKind::Checkpoint => (HeldIndex::LastUsed, CheckpointId(u64::MAX)),
            CheckpointKind::Savepoint => (HeldIndex::Savepoints, checkpoint),
        };
        each_held(HeldWalk::along(life, index), at, through, goes_on, |id| {
            if self.segments.get(id).is_some_and(|kept| handing.takes(&kept)) {
                tell(id);
            }
        })
    }

    /// Whether something is still left of a checkpoint or savepoint that is not there any more.
    pub(super) fn is_being_cleared(&self, job: &JobId, id: CheckpointId) -> bool {
        let handed = |handing: &Handing| handing.from == *job && handing.checkpoint == id;
        self.work.handing.as_ref().is_some_and(handed)
            || self.life(job).is_some_and(|life| life.by_savepoint.contains_key(&id))
    }

    /// Frees the dead ones among the segments last used by these checkpoints.
    pub(super) fn clear(&mut self, job: &JobId, from: CheckpointId, through: CheckpointId) {
        self.walk(job, HeldIndex::LastUsed, from, through, false);
    }

    /// Frees the dead ones among the segments of a savepoint.
    pub(super) fn clear_savepoint(&mut self, job: &JobId, id: CheckpointId) {
        self.walk(job, HeldIndex::Savepoints, id, id, false);
    }

    fn walk(&mut self, job: &JobId, index: HeldIndex, from: CheckpointId, through: CheckpointId, hands_over: bool) {
        let any = |life: &JobLife| HeldWalk::along(life, index).range(from..=through).next().is_some();
        if hands_over || self.life(job).is_some_and(any) {
            self.work.add(HeldWalk { job: job.clone(), index, at: HeldAt::before(from), through, hands_over });
        }
    }

    /// The segments of a checkpoint of `from`, which has just been forgotten, become those of `to`; what else checkpoints of
    /// `from` held goes with it. Nothing else is left to be done.
    pub(super) fn hand_over(&mut self, from: &JobId, to: &JobId, checkpoint: CheckpointId, kind: CheckpointKind) {
        debug_assert!(self.work.handing.is_none(), "one claim at a time");
        self.work.handing = Some(Handing { from: from.clone(), to: to.clone(), checkpoint, kind });
        match kind {
            CheckpointKind::Checkpoint => {
                self.walk(from, HeldIndex::LastUsed, CheckpointId(0), CheckpointId(u64::MAX), true);
            }
            CheckpointKind::Savepoint => self.walk(from, HeldIndex::Savepoints, checkpoint, checkpoint, true),
        }
    }

    /// Takes up what an end of the process has left of commands.
    pub(super) fn resume(&mut self, at: Millis) {
        // First: at its old job a checkpoint that is claimed counts as subsumed.
        for (from, id, record) in self.unfinished_claims() {
            let CheckpointRecord { claimed_from: Some(to), kind, .. } = record else { continue };
            // There is one at most, as claims wait for each other.
            self.finish_work(at);
            self.forget_checkpoints(&from, id..=id, |_| true);
            self.hand_over(&from, &to, id, kind);
        }
        let lives = self.jobs.iter().filter_map(|(job, entry)| Some((job, entry.life.as_deref()?)));
        let left: Vec<_> = lives.flat_map(|(job, life)| life.left().map(|left| (job.clone(), left))).collect();
        for (job, (index, from, through)) in left {
            self.walk(&job, index, from, through, false);
        }
        // Of those that have ended, some may have been about to be forgotten.
        let jobs: Vec<JobId> = self.jobs.iter().map(|(job, _)| job.clone()).collect();
        jobs.iter().for_each(|job| self.forget_ended_job(job));
    }

    fn unfinished_claims(&self) -> Vec<(JobId, CheckpointId, CheckpointRecord)> {
        let entries = self.jobs.iter().flat_map(|(job, entry): (_, &JobEntry)| {
            entry.life().checkpoints.iter().map(move |(id, record)| (job, *id, record))
        });
        let unfinished = entries.filter(|(.., record)| record.is_changing_hands());
        unfinished.map(|(job, id, record)| (job.clone(), id, record.clone())).collect()
    }
}

/// The record of a checkpoint at its old job while its segments change hands.
pub(super) fn being_claimed(record: CheckpointRecord, by: &JobId) -> CheckpointRecord {
    CheckpointRecord { state: CheckpointState::Completed, ended: None, claimed_from: Some(by.clone()), ..record }
}

impl JobLife {
    /// Whether no checkpoint needs a segment any more, by what the records say: it was written for `written` and last used
    /// by `last_used`.
    fn is_over(&self, written: Option<CheckpointId>, last_used: CheckpointId) -> bool {
        let Some(record) = &self.record else { return false };
        let aborted = |record: &CheckpointRecord| record.state == CheckpointState::Aborted;
        if written == Some(last_used) && self.checkpoints.get(&last_used).is_some_and(aborted) {
            return true;
        }
        // Of a job that ended, segments that no completed checkpoint can be restored with are of no use; and so are those that are
        // subsumed, but for the checkpoints that were kept when those after them were.
        (record.subsumed >= Some(last_used) || record.ended.is_some()) && {
            let first = written.unwrap_or(CheckpointId(0)).min(last_used);
            !self.checkpoints.range(first..=last_used).any(|(_, record)| {
                record.state == CheckpointState::Completed && record.kind == CheckpointKind::Checkpoint
            })
        }
    }

    /// Where there may be something that is dead, as nothing is that was worked on to the end.
    fn left(&self) -> impl Iterator<Item = (HeldIndex, CheckpointId, CheckpointId)> {
        let (first, last) = (CheckpointId(0), CheckpointId(u64::MAX));
        let record = self.record.as_ref();
        let subsumed = record.and_then(|record| record.subsumed).map(|subsumed| (HeldIndex::LastUsed, first, subsumed));
        let ended = record.and_then(|record| record.ended).map(|_| (HeldIndex::LastUsed, first, last));
        let is_aborted = |record: &CheckpointRecord| record.state == CheckpointState::Aborted;
        let aborted = self.checkpoints.iter().filter(move |(_, record)| is_aborted(record));
        let discarded = self.by_savepoint.keys().filter(move |id| self.checkpoints.get(*id).is_none_or(is_aborted));
        let aborted = aborted.map(|(id, _)| (HeldIndex::LastUsed, *id, *id));
        let discarded = discarded.map(|id| (HeldIndex::Savepoints, *id, *id));
        subsumed.into_iter().chain(ended).chain(aborted).chain(discarded)
    }
}

#[cfg(test)]
mod tests;
