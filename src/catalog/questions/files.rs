//! Physical files, and the space that they take.

use std::collections::BTreeMap;

use super::NoAnswer;
use crate::catalog::Catalog;
use crate::catalog::state::{
    CatalogState, CheckpointSpace, CheckpointView, Count, FileView, ForgottenFile, LaneCount, LaneSpace, SegmentView,
    SpaceUsage,
};
use crate::model::{FileState, Forgotten, JobId, Lane, Millis, PhysicalFileId, SegmentId, StateScope};

/// Looks at segments that change while it is counted who names them. One that always changes is not judged.
const SECOND_LOOKS_MAX: u32 = 5;

/// A file as a planner of reclaiming sees it.
#[derive(Debug, Clone)]
pub struct FileSurvey {
    /// The file.
    pub view: FileView,
    /// Whether it holds exclusive state of checkpoints, which dies with them.
    pub of_a_checkpoint: bool,
}

/// Segments inside the catalog that belong together.
#[derive(Debug, Clone, Default)]
pub struct InlineGroup {
    /// Their bytes.
    pub bytes: u64,
    /// By identity.
    pub segments: Vec<SegmentId>,
}

/// What the metrics tell of the catalog.
#[derive(Debug, Clone)]
pub struct CatalogFigures {
    /// Bytes in total.
    pub space: SpaceUsage,
    /// How many files are open, closed and forgotten.
    pub file_counts: [u64; 3],
    /// Files to be deleted.
    pub forgotten: Vec<ForgottenFile>,
    /// What the files of each job take.
    pub jobs: Vec<LaneSpace>,
}

/// What a recount of the catalog found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recount {
    /// Files in it.
    pub files: usize,
    /// Segments in it, also those that are not visible yet.
    pub segments: usize,
    /// What does not add up; empty if all is well.
    pub faults: Vec<String>,
}

/// How finely space is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Lane by lane.
    Lanes,
    /// The same, and checkpoint by checkpoint.
    Checkpoints,
}

/// What takes space.
#[derive(Debug, Clone)]
pub struct SpaceTaken {
    /// What each lane takes.
    pub lanes: BTreeMap<Lane, LaneSpace>,
    /// Files to be deleted.
    pub forgotten: Vec<ForgottenFile>,
    /// What the checkpoints of each job take, if that was asked.
    pub checkpoints: Vec<(JobId, Vec<OfCheckpoint>)>,
}

/// A checkpoint, and what it takes.
pub type OfCheckpoint = (CheckpointView, CheckpointSpace);

/// Files that are to be deleted, and those that are kept though nobody writes them.
#[derive(Debug, Clone)]
pub struct ToDelete {
    /// Files that hold nothing that lives.
    pub forgotten: Vec<ForgottenFile>,
    /// Files that the start left open, for data in them that the catalog does not know.
    pub kept: Vec<PhysicalFileId>,
}

impl Catalog {
    /// Whether the catalog knows a physical file, and what of it.
    pub fn file(&self, id: &PhysicalFileId) -> Option<FileView> {
        self.view().file(id)
    }

    /// All physical files, by name.
    pub fn files(&self) -> Vec<FileView> {
        let (mut files, mut next) = (vec![], 0);
        self.in_pieces(|state, goes_on| state.each_file(&mut next, goes_on, |view| files.push(view)).then_some(()));
        files.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        files
    }

    /// Those of `ids` that the catalog knows, in their order.
    pub fn files_among(&self, ids: &[PhysicalFileId]) -> Vec<FileView> {
        let mut known = vec![];
        self.for_each(ids, |state, id| known.extend(state.file(id)));
        known
    }

    /// Those of `ids` that the catalog does not know.
    pub fn unknown_files(&self, ids: Vec<PhysicalFileId>) -> Vec<PhysicalFileId> {
        let mut known = vec![];
        self.for_each(&ids, |state, id| known.push(state.file(id).is_some()));
        ids.into_iter().zip(known).filter(|(_, known)| !known).map(|(id, _)| id).collect()
    }

    /// Every file that is not waiting to be deleted.
    pub fn survey_files(&self) -> Vec<FileSurvey> {
        let (mut surveys, mut next) = (vec![], 0);
        self.in_pieces(|state, goes_on| {
            state.each_file(&mut next, goes_on, |view| surveys.extend(state.survey(view))).then_some(())
        });
        surveys.sort_unstable_by(|a, b| a.view.id.cmp(&b.view.id));
        surveys
    }

    /// A file, and where what lives in it begins, in order; segments that are not visible yet among it. What lives in a closed
    /// file at the end of the question is told: nothing comes to it.
    pub fn living_places(&self, id: &PhysicalFileId) -> Option<(FileView, Vec<u64>)> {
        let view = self.file(id)?;
        let (mut places, mut after) = (vec![], None);
        self.in_pieces(|state, goes_on| {
            state.each_living(id, &mut after, goes_on, |_, offset| places.push(offset)).then_some(())
        });
        places.sort_unstable();
        Some((view, places))
    }

    /// The visible segments inside the catalog, by what `key` says of each; `None` leaves one out. One that is freed or moved
    /// meanwhile may be among them.
    pub async fn inline_by<K: Ord>(&self, key: impl Fn(&SegmentView) -> Option<K>) -> BTreeMap<K, InlineGroup> {
        let (mut groups, mut after) = (BTreeMap::<K, InlineGroup>::new(), None);
        self.in_pieces_async(|state, goes_on| {
            let add = |view: SegmentView| {
                let Some(key) = key(&view) else { return };
                let group = groups.entry(key).or_default();
                group.bytes += view.location.len();
                group.segments.push(view.id);
            };
            state.each_inline(&mut after, goes_on, add).then_some(())
        })
        .await;
        groups
    }

    /// Files to be deleted from storage. What is deleted meanwhile may be among them.
    pub fn forgotten_files(&self) -> Vec<ForgottenFile> {
        self.forgotten_files_due(|_, _| true, usize::MAX)
    }

    /// The same, but only those that `due` says yes to by why and when they were forgotten, in that order; at most `max`.
    pub fn forgotten_files_due(&self, due: impl Fn(Forgotten, Millis) -> bool, max: usize) -> Vec<ForgottenFile> {
        let (mut files, mut after) = (vec![], None);
        if max == 0 {
            return files;
        }
        self.in_pieces(|state, goes_on| {
            let mut left = max - files.len();
            let mut goes_on = || {
                left = left.saturating_sub(1);
                left > 0 && goes_on()
            };
            let done = state.each_forgotten(&mut after, &mut goes_on, &due, |file| files.push(file));
            (done || files.len() >= max).then_some(())
        });
        files
    }

    /// Why and when files were forgotten that are still there.
    pub fn forgotten_times(&self) -> Vec<(Forgotten, Millis)> {
        self.view().forgotten().collect()
    }

    /// Files that the start left open, for data in them that the catalog does not know, and their lengths.
    pub fn kept_files(&self) -> Vec<(PhysicalFileId, u64)> {
        let (mut kept, mut next, epoch) = (vec![], 0, self.epoch());
        self.in_pieces(|state, goes_on| {
            let add = |view: FileView| match view.state {
                FileState::Open { len, .. } if view.id.epoch() < epoch => kept.push((view.id, len)),
                _ => {}
            };
            state.each_file(&mut next, goes_on, add).then_some(())
        });
        kept
    }

    /// What is to be deleted, and what is kept.
    pub fn to_delete(&self) -> ToDelete {
        let kept = self.kept_files().into_iter().map(|(file, _)| file).collect();
        ToDelete { forgotten: self.forgotten_files(), kept }
    }

    /// Bytes in total.
    pub fn space(&self) -> SpaceUsage {
        self.view().space()
    }

    /// What the physical files of each job take, until they are deleted.
    pub fn files_by_job(&self) -> Vec<LaneSpace> {
        self.count_files().1
    }

    fn count_files(&self) -> ([u64; 3], Vec<LaneSpace>) {
        let (mut counts, mut jobs, mut next) = ([0; 3], BTreeMap::new(), 0);
        self.in_pieces(|state, goes_on| state.count_files(&mut next, goes_on, &mut counts, &mut jobs).then_some(()));
        (counts, jobs.into_values().collect())
    }

    /// What takes space, of all jobs or of one. Each file, segment and checkpoint counts as it is when its turn comes, so what
    /// is written, moved or freed meanwhile may count or not.
    ///
    /// # Errors
    /// [`NoAnswer::UnknownJob`].
    pub fn space_taken(&self, job: Option<&JobId>, detail: Detail) -> Result<SpaceTaken, NoAnswer> {
        if let Some(job) = job {
            self.job(job)?;
        }
        let jobs = match (detail, job) {
            (Detail::Lanes, _) => vec![],
            (Detail::Checkpoints, Some(job)) => vec![job.clone()],
            (Detail::Checkpoints, None) => self.jobs().into_iter().map(|job| job.id).collect(),
        };
        let mut count = LaneCount::default();
        self.in_pieces(|state, goes_on| state.count_lanes(&mut count, goes_on).then_some(()));
        let of_job = |job: JobId| {
            let mut count = self.view().begin_checkpoint_count(&job);
            self.in_pieces(|state, goes_on| state.count_checkpoints(&job, &mut count, goes_on).then_some(()));
            (job, count.finish())
        };
        let checkpoints = jobs.into_iter().map(of_job).collect();
        Ok(SpaceTaken { lanes: count.lanes, forgotten: self.forgotten_files(), checkpoints })
    }

    /// What the metrics tell.
    pub fn figures(&self) -> CatalogFigures {
        let (file_counts, jobs) = self.count_files();
        CatalogFigures { space: self.space(), file_counts, forgotten: self.forgotten_files(), jobs }
    }

    /// Counts everything anew while everything goes on. Takes time proportional to the catalog.
    ///
    /// A change that is made meanwhile is no fault: [`crate::catalog::state`] says what is judged when. Totals that
    /// cannot be added up at once are judged if nothing changed.
    pub fn recount(&self) -> Recount {
        let _one_at_a_time = self.shared.recounting.lock();
        let mut count = Count::default();
        self.in_pieces(|state, goes_on| state.count_names(&mut count, goes_on).then_some(()));
        count.sort();
        self.in_pieces(|state, goes_on| state.count_all(&mut count, goes_on).then_some(()));
        while let Some(mut large) = count.next_large() {
            self.in_pieces(|state, goes_on| state.count_large(&mut count, &mut large, goes_on).then_some(()));
        }
        for _ in 0..SECOND_LOOKS_MAX {
            let Some(mut look) = count.second_look() else { break };
            let suspects = look.suspects().clone();
            self.shared.change(|state, _| state.watch(suspects));
            self.in_pieces(|state, goes_on| state.look_again(&mut look, goes_on).then_some(()));
            let often = look.often();
            self.in_pieces(|state, goes_on| state.judge_again(&mut count, &mut look, &often, goes_on).then_some(()));
            drop(self.shared.change(|state, _| state.unwatch()));
        }
        self.view().count_totals(&mut count);
        let Count { files, segments, faults, .. } = count;
        Recount { files, segments, faults }
    }
}

impl CatalogState {
    /// Those of `ids` that the catalog does not know.
    pub fn unknown_files(&self, mut ids: Vec<PhysicalFileId>) -> Vec<PhysicalFileId> {
        ids.retain(|id| self.file(id).is_none());
        ids
    }

    /// Every file that is not waiting to be deleted.
    pub fn survey_files(&self) -> Vec<FileSurvey> {
        self.files().filter_map(|view| self.survey(view)).collect()
    }

    fn survey(&self, view: FileView) -> Option<FileSurvey> {
        if let FileState::Forgotten { .. } = view.state {
            return None;
        }
        let one = self.living_in(&view.id).next();
        let of_a_checkpoint =
            one.is_some_and(|record| record.scope == StateScope::Exclusive && record.checkpoint.is_some());
        Some(FileSurvey { view, of_a_checkpoint })
    }

    /// What is to be deleted, and what the start of the owner of `epoch` keeps open.
    pub fn to_delete(&self, epoch: u64) -> ToDelete {
        ToDelete {
            forgotten: self.forgotten_files(|_, _| true, usize::MAX),
            kept: self.kept_files(epoch).map(|(file, _)| file).collect(),
        }
    }

    /// What takes space: every lane and file, and the checkpoints of all jobs or of one.
    pub fn space_taken(&self, job: Option<&JobId>, detail: Detail) -> SpaceTaken {
        let all = || self.jobs().into_iter().map(|job| job.id).collect();
        let jobs: Vec<JobId> = match detail {
            Detail::Lanes => vec![],
            Detail::Checkpoints => job.map_or_else(all, |job| vec![job.clone()]),
        };
        let of_job = |job: JobId| {
            let space = self.space_by_checkpoint(&job);
            (job, space)
        };
        SpaceTaken {
            lanes: self.space_by_lane(),
            forgotten: self.forgotten_files(|_, _| true, usize::MAX),
            checkpoints: jobs.into_iter().map(of_job).collect(),
        }
    }
}
