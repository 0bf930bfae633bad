//! Looks at many things, in pieces: each tells where it stopped, and goes on from there, whatever changed since.
//!
//! A look sees everything that is there from its beginning to its end, once, as it is when its turn comes. What comes or goes
//! meanwhile it may see or not. `goes_on` is asked after each thing that is looked at; where it says no, the look returns
//! `false`, and nothing was missed.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::segments::KeptSegment;
use super::views::job_view;
use super::walks::{HeldAt, each_held};
use super::{
    CatalogState, CheckpointSegment, CheckpointSpace, CheckpointView, FileView, ForgottenFile, JobView, LaneSpace,
    SegmentView,
};
use crate::model::{
    CheckpointId, CheckpointKind, FileState, Forgotten, Holder, JobId, Lane, LaneOf, Millis, PhysicalFileId, SegmentId,
    StateScope,
};

/// Asked after each thing whether to look at the next one now.
pub type GoesOn<'a> = &'a mut dyn FnMut() -> bool;

/// Space by lane, as far as it was counted.
#[derive(Debug, Default)]
pub struct LaneCount {
    /// The lanes that were counted.
    pub lanes: BTreeMap<Lane, LaneSpace>,
    file: u32,
    segment: Option<SegmentId>,
}

/// Space by checkpoint of a job, as far as it was counted.
#[derive(Debug)]
pub struct CheckpointCount {
    known: Vec<(CheckpointView, CheckpointSpace)>,
    /// Segments and bytes that are used from each of them on, less those that are used no more: the sum up to one is what that
    /// one uses.
    steps: Vec<(i64, i64)>,
    held: Option<HeldAt>,
    of_savepoints: HeldAt,
}

/// The segments of a checkpoint, as far as they were found.
#[derive(Debug)]
pub struct CheckpointLook {
    coming: Option<HeldAt>,
    held: HeldAt,
    savepoint: bool,
    /// In no order. One that changed hands or was used again meanwhile may be there twice.
    pub found: Vec<CheckpointSegment>,
}

const LAST: CheckpointId = CheckpointId(u64::MAX);

impl CatalogState {
    /// Tells the segments that are held for a savepoint, also those that are on their way, from behind `after` on.
    pub fn each_of_savepoint(
        &self,
        job: &JobId,
        id: CheckpointId,
        after: &mut Option<SegmentId>,
        goes_on: GoesOn<'_>,
        mut tell: impl FnMut(SegmentId),
    ) -> bool {
        let Some(held) = self.life(job).and_then(|life| life.by_savepoint.get(&id)) else { return true };
        for (id, ()) in held.iter_from(after.as_ref().map_or(Bound::Unbounded, Bound::Excluded)) {
            tell(*id);
            if !goes_on() {
                *after = Some(*id);
                return false;
            }
        }
        true
    }

    /// Tells files, from number `next` on; in no order.
    pub fn each_file(&self, next: &mut u32, goes_on: GoesOn<'_>, mut tell: impl FnMut(FileView)) -> bool {
        self.files.each(next, goes_on, |_, id, entry| tell(self.file_view(id, entry)))
    }

    /// Tells jobs, from number `next` on; in no order.
    pub fn each_job(&self, next: &mut u32, goes_on: GoesOn<'_>, mut tell: impl FnMut(JobView)) -> bool {
        self.jobs.each(next, goes_on, |_, id, entry| tell(job_view(id, entry)))
    }

    /// Tells segments after `after`, by identity.
    pub(super) fn each_segment(
        &self,
        after: &mut Option<SegmentId>,
        goes_on: GoesOn<'_>,
        mut tell: impl FnMut(SegmentId, KeptSegment<'_>),
    ) -> bool {
        for (id, kept) in self.segments.iter_after(*after) {
            tell(id, kept);
            *after = Some(id);
            if !goes_on() {
                return false;
            }
        }
        true
    }

    /// Tells the visible segments inside the catalog after `after`, by identity.
    pub fn each_inline(
        &self,
        after: &mut Option<SegmentId>,
        goes_on: GoesOn<'_>,
        mut tell: impl FnMut(SegmentView),
    ) -> bool {
        self.each_segment(after, goes_on, |id, kept| {
            if kept.is_inline()
                && let Some(view) = self.segment(id)
            {
                tell(view);
            }
        })
    }

    /// Tells the visible segments of a job after `after`, by identity, of one checkpoint or of all, while `wanted` says so.
    pub fn each_of_job(
        &self,
        job: &JobId,
        checkpoint: Option<CheckpointId>,
        after: &mut Option<SegmentId>,
        goes_on: GoesOn<'_>,
        mut wanted: impl FnMut(SegmentView) -> bool,
    ) -> bool {
        let begin = *after;
        let from = begin.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        for (id, ()) in self.jobs.get(job).into_iter().flat_map(|job| job.segments.iter_from(from)) {
            let kept = self.visible(*id).filter(|kept| checkpoint.is_none() || kept.checkpoint == checkpoint);
            if let Some(view) = kept.and_then(|_| self.segment(*id))
                && !wanted(view)
            {
                return true;
            }
            *after = Some(*id);
            if !goes_on() {
                return false;
            }
        }
        true
    }

    /// Tells the segments that live in a file after `after`, by identity, those that are not visible yet among them, and where
    /// each begins.
    pub fn each_living(
        &self,
        file: &PhysicalFileId,
        after: &mut Option<SegmentId>,
        goes_on: GoesOn<'_>,
        mut tell: impl FnMut(SegmentId, u64),
    ) -> bool {
        let begin = *after;
        let from = begin.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        for (id, ()) in self.files.get(file).into_iter().flat_map(|entry| entry.live.iter_from(from)) {
            if let Some(offset) = self.segments.get(*id).and_then(|kept| kept.offset()) {
                tell(*id, offset);
            }
            *after = Some(*id);
            if !goes_on() {
                return false;
            }
        }
        true
    }

    /// Tells files to be deleted after `after`, in the order of why and when they were forgotten, those that `due` says yes to.
    pub fn each_forgotten(
        &self,
        after: &mut Option<(Forgotten, Millis, PhysicalFileId)>,
        goes_on: GoesOn<'_>,
        due: &dyn Fn(Forgotten, Millis) -> bool,
        mut tell: impl FnMut(ForgottenFile),
    ) -> bool {
        let begin = after.clone();
        let from = begin.as_ref().map_or(Bound::Unbounded, |(why, since, _)| Bound::Included((*why, *since)));
        for ((why, since), files) in self.forgotten.range((from, Bound::Unbounded)) {
            if !due(*why, *since) {
                continue;
            }
            let here = begin.as_ref().filter(|(of, at, _)| (of, at) == (why, since));
            let from = here.map_or(Bound::Unbounded, |(.., file)| Bound::Excluded(file));
            for id in files.range((from, Bound::Unbounded)) {
                if let Some(entry) = self.files.get(id) {
                    let (lane, occupied) = (entry.record.lane.clone(), entry.record.occupied());
                    tell(ForgottenFile { id: id.clone(), why: *why, since: *since, lane, occupied });
                }
                if !goes_on() {
                    *after = Some((*why, *since, id.clone()));
                    return false;
                }
            }
        }
        true
    }

    /// Counts what each lane takes on storage. Files of versions that did not record their lane, and inline segments, count
    /// for a lane of their job. What moves from the catalog into a file meanwhile may count twice, or not.
    pub fn count_lanes(&self, count: &mut LaneCount, goes_on: GoesOn<'_>) -> bool {
        let LaneCount { lanes, file, segment } = count;
        let all = || Lane { job: None, scope: StateScope::Shared, of: LaneOf::All };
        self.files.each(file, goes_on, |_, _, entry| {
            lanes.entry(self.lane_of(entry).unwrap_or_else(all)).or_default().add_file(entry);
        }) && self.each_segment(segment, goes_on, |_, kept| {
            if kept.is_inline() {
                let of = lanes.entry(self.lane_of_segment(&kept)).or_default();
                of.segments += 1;
                of.space.live_bytes += kept.len;
                of.space.inline_bytes += kept.len;
            }
        })
    }

    /// What each lane takes on storage. Files of versions that did not record their lane, and inline segments, count for
    /// a lane of their job.
    pub fn space_by_lane(&self) -> BTreeMap<Lane, LaneSpace> {
        let mut count = LaneCount::default();
        self.count_lanes(&mut count, &mut || true);
        count.lanes
    }

    /// Counts how many files are open, closed and forgotten, and what those of each job take.
    pub fn count_files(
        &self,
        next: &mut u32,
        goes_on: GoesOn<'_>,
        counts: &mut [u64; 3],
        jobs: &mut BTreeMap<Option<JobId>, LaneSpace>,
    ) -> bool {
        self.files.each(next, goes_on, |_, _, entry| {
            counts[match entry.record.state {
                FileState::Open { .. } => 0,
                FileState::Closed { .. } => 1,
                FileState::Forgotten { .. } => 2,
            }] += 1;
            let job = match &entry.record.lane {
                Some(lane) => lane.job.clone(),
                None => self.lane_of(entry).and_then(|lane| lane.job),
            };
            jobs.entry(job).or_default().add_file(entry);
        })
    }

    /// Begins a count of what the checkpoints of a job take, of those that it has now.
    pub fn begin_checkpoint_count(&self, job: &JobId) -> CheckpointCount {
        let known = self.checkpoints(job).into_iter();
        let known: Vec<_> = known.map(|view| (view, CheckpointSpace::default())).collect();
        CheckpointCount {
            steps: vec![(0, 0); known.len() + 1],
            known,
            held: Some(HeldAt::before(CheckpointId(0))),
            of_savepoints: HeldAt::before(CheckpointId(0)),
        }
    }

    /// Goes on with it.
    pub fn count_checkpoints(&self, job: &JobId, count: &mut CheckpointCount, goes_on: GoesOn<'_>) -> bool {
        let Some(life) = self.life(job) else { return true };
        let CheckpointCount { known, steps, held, of_savepoints } = count;
        if let Some(at) = held {
            let done = each_held(&life.by_last_used, at, LAST, goes_on, |id| {
                let Some(kept) = self.segments.get(id) else { return };
                let Holder::Checkpoints { last_used } = kept.holder else { return };
                let first = known.partition_point(|(view, _)| kept.checkpoint > Some(view.id));
                let end = known.partition_point(|(view, _)| view.id <= last_used);
                if first >= end {
                    return;
                }
                let len = i64::try_from(kept.len).unwrap_or(i64::MAX);
                steps[first] = (steps[first].0 + 1, steps[first].1 + len);
                steps[end] = (steps[end].0 - 1, steps[end].1 - len);
                if end - first == 1 && known[first].0.kind == CheckpointKind::Checkpoint {
                    known[first].1.own_bytes += kept.len;
                }
            });
            if !done {
                return false;
            }
            *held = None;
        }
        each_held(&life.by_savepoint, of_savepoints, LAST, goes_on, |id| {
            let Some(kept) = self.segments.get(id) else { return };
            let Holder::Savepoint { id } = kept.holder else { return };
            if let Ok(index) = known.binary_search_by_key(&id, |(view, _)| view.id) {
                let space = &mut known[index].1;
                space.segments += 1;
                space.bytes += kept.len;
                space.own_bytes += kept.len;
            }
        })
    }

    /// Begins a look at the visible segments that a checkpoint or savepoint consists of.
    pub fn begin_checkpoint_look(&self, job: &JobId, checkpoint: CheckpointId) -> CheckpointLook {
        let savepoint = self.is_savepoint(job, checkpoint);
        let begin = HeldAt::before(checkpoint);
        CheckpointLook { coming: Some(begin), held: begin, savepoint, found: vec![] }
    }

    /// Goes on with it. As long as the checkpoint is there, nothing of it is missed: a segment moves to a later checkpoint only,
    /// and from the old job to the one that claims it.
    pub fn look_at_checkpoint(
        &self,
        job: &JobId,
        checkpoint: CheckpointId,
        look: &mut CheckpointLook,
        goes_on: GoesOn<'_>,
    ) -> bool {
        let CheckpointLook { coming, held, savepoint, found } = look;
        let add = |id: SegmentId, found: &mut Vec<CheckpointSegment>| {
            let Some(kept) = self.visible(id) else { return };
            let subtask = self.segments.writer(&kept).subtask.clone();
            let name = self.jobs.at(kept.job).and_then(|(job, _)| kept.name(job));
            found.push(CheckpointSegment { subtask, name, id });
        };
        if let Some(at) = coming {
            if !self.each_coming(job, checkpoint, at, goes_on, |id| add(id, found)) {
                return false;
            }
            *coming = None;
        }
        let Some(life) = self.life(job) else { return true };
        match savepoint {
            true => each_held(&life.by_savepoint, held, checkpoint, goes_on, |id| add(id, found)),
            false => each_held(&life.by_last_used, held, LAST, goes_on, |id| {
                let part = |kept: KeptSegment<'_>| kept.holder.is_part_of(kept.checkpoint, checkpoint);
                if self.segments.get(id).is_some_and(part) {
                    add(id, found);
                }
            }),
        }
    }
}

impl CheckpointCount {
    /// Returns the space of each, in the order of the checkpoints.
    pub fn finish(self) -> Vec<(CheckpointView, CheckpointSpace)> {
        let Self { mut known, steps, .. } = self;
        let (mut segments, mut bytes) = (0_i64, 0_i64);
        for ((view, space), (more, and)) in known.iter_mut().zip(steps) {
            (segments, bytes) = (segments + more, bytes + and);
            if view.kind == CheckpointKind::Checkpoint {
                space.segments += u64::try_from(segments).unwrap_or(0);
                space.bytes += u64::try_from(bytes).unwrap_or(0);
            }
        }
        known
    }
}
