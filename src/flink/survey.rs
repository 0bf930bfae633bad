//! Which objects of Flink's jobs nothing names any more: aborted checkpoints, and files that a killed task manager or a late
//! upload left.
//!
//! A survey is fed with every object of every bucket and with everything that any `_metadata` names, because a job that has
//! claimed a checkpoint names files of the job before. Then it judges: an object is an orphan only if it is certain that
//! nothing needs it, now or later. What cannot be judged is kept, and the reason told.
//!
//! The rules, in the order in which the first that fits decides:
//!
//! | object | kept, because |
//! | --- | --- |
//! | a `_metadata`, the marker of a folder | they are what objects are judged by, and hold nothing |
//! | named by any `_metadata` | it is needed |
//! | in the folder of a savepoint | a savepoint is the user's |
//! | in `taskowned/`, not merged by Flink | tasks keep such files without naming them in `_metadata` |
//! | in a folder below `shared/` that Flink's merging did not make | a backend (ForSt) works on the files there, and names them later |
//! | in `dstl/` | changes are uploaded before the checkpoint that will name them |
//! | of a job with a `_metadata` that cannot be read | that may name it |
//! | of a job with a `_metadata` that names files elsewhere | the same files may be here under another name |
//! | any, while a `_metadata` in no layout of Flink's cannot be read | it may be a copy that names it |
//! | of a job without a completed checkpoint | nothing says what is in progress |
//! | of a checkpoint above the newest completed one | it may be in progress |
//! | not older than the newest completed checkpoint; if anything of one above it is there, than that, and than the completed one before | the next checkpoint may name it |
//! | younger than asked for | |
//!
//! All others are orphans. A job that cannot be read may still name files of a job that it took over; these are safe, because
//! the checkpoint that it took over either stands, and names them, or its job has none that is newer than they are.
//!
//! # Source
//! `CheckpointCoordinator` (a checkpoint that completes aborts those before it), `SharedStateRegistryImpl`,
//! `ChangelogKeyedStateBackend`, `ForStStateBackend` and `FileMergingSnapshotManager` of Flink 2.3.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::metadata::METADATA;
use crate::model::{FlinkKey, FlinkPlace, Millis};

/// What a name takes that is remembered: its hash, and its part of a table that is copied when it grows.
const NAME_BYTES: u64 = 24;
/// What a job takes beside its folder and its checkpoints.
const JOB_BYTES: u64 = 192;
/// What the time of a checkpoint takes.
const CHECKPOINT_BYTES: u64 = 48;

/// Why an object is an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Orphan {
    /// Of a checkpoint that never completed, and never will: a newer one has.
    AbortedCheckpoint(u64),
    /// In the folder of a completed checkpoint that does not name it: it came too late.
    LateUpload(u64),
    /// Of a task manager whose upload no completed checkpoint names.
    Unnamed,
    /// The same, in a file that Flink has merged.
    UnnamedMerged,
}

/// Why an object is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// It is a `_metadata`.
    Metadata,
    /// It is the marker of a folder.
    Folder,
    /// A `_metadata` names it.
    Named,
    /// It is in the folder of a savepoint.
    Savepoint,
    /// Tasks own it.
    TaskOwned,
    /// A state backend may be working on it.
    Working,
    /// It is part of a changelog.
    Changelog,
    /// A `_metadata` of the job cannot be read.
    Unreadable,
    /// A `_metadata` that cannot be read is in no layout of Flink's, so it may be of any job.
    UnreadableCopy,
    /// A `_metadata` of the job names files on other storage, or in a bucket that is not here.
    Elsewhere,
    /// The job has no completed checkpoint.
    NoCheckpoint,
    /// Its checkpoint may be in progress.
    Running,
    /// It is not older than the newest completed checkpoint.
    Young,
    /// It is younger than asked for.
    Recent,
}

/// A judgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrphanVerdict {
    /// Nothing needs it.
    Orphan(Orphan),
    /// It is kept.
    Kept(Kept),
}

/// Everything that is known of the jobs of Flink.
#[derive(Debug, Default)]
pub struct Survey {
    /// Hashes of the buckets and keys that are named. Two that are equal by chance keep an orphan, no more.
    named: HashSet<u64>,
    hash: RandomState,
    jobs: HashMap<String, HashMap<String, JobSurvey>>,
    unreadable_copy: bool,
    /// Bytes that jobs and their checkpoints take, about.
    jobs_bytes: u64,
}

/// One job.
#[derive(Debug, Default)]
struct JobSurvey {
    /// When the first object of each checkpoint was put.
    begun: BTreeMap<u64, Millis>,
    completed: BTreeMap<u64, Millis>,
    unreadable: bool,
    elsewhere: bool,
}

/// The newest completed checkpoint, and the time from which on the next ones may name what is put.
struct Newest {
    number: u64,
    cutoff: Millis,
}

impl Survey {
    /// There is an object.
    pub fn see(&mut self, bucket: &str, key: &str, modified: Millis) {
        let Some(FlinkKey { folder, place: FlinkPlace::Checkpoint(number), .. }) = FlinkKey::of(key) else { return };
        let begun = &mut self.job_mut(bucket, folder).begun;
        let before = begun.len();
        begun.entry(number).and_modify(|first| *first = modified.min(*first)).or_insert(modified);
        let new = (begun.len() - before) as u64;
        self.jobs_bytes += new * CHECKPOINT_BYTES;
    }

    /// Bytes of memory that it takes, about: rather more than less.
    pub fn bytes(&self) -> u64 {
        self.named.capacity() as u64 * NAME_BYTES + self.jobs_bytes
    }

    /// The object under a key is a `_metadata`, was put then, and names what [`Self::name`] was told of, or cannot be read.
    pub fn complete(&mut self, bucket: &str, key: &str, modified: Millis, readable: bool) {
        let Some(FlinkKey { folder, place, .. }) = FlinkKey::of(key) else {
            self.unreadable_copy |= !readable;
            return;
        };
        let job = self.job_mut(bucket, folder);
        job.unreadable |= !readable;
        if let FlinkPlace::Checkpoint(number) = place
            && job.completed.insert(number, modified).is_none()
        {
            self.jobs_bytes += CHECKPOINT_BYTES;
        }
    }

    /// A `_metadata` names this object.
    pub fn name(&mut self, bucket: &str, key: &str) {
        let hash = self.hash.hash_one((bucket, key));
        self.named.insert(hash);
    }

    /// The `_metadata` under this key names a file on other storage, or in a bucket that is not here.
    pub fn is_elsewhere(&mut self, bucket: &str, key: &str) {
        if let Some(FlinkKey { folder, .. }) = FlinkKey::of(key) {
            self.job_mut(bucket, folder).elsewhere = true;
        }
    }

    /// Judges an object that was put at `modified`, at `now`; `None` if it is none of Flink's.
    pub fn judge(
        &self,
        bucket: &str,
        key: &str,
        modified: Millis,
        older_than: Duration,
        now: Millis,
    ) -> Option<OrphanVerdict> {
        let flink = FlinkKey::of(key)?;
        let job = self.jobs.get(bucket).and_then(|jobs| jobs.get(flink.folder));
        Some(match self.kept(bucket, key, &flink, job, modified) {
            Err(kept) => OrphanVerdict::Kept(kept),
            Ok(_) if now.0.saturating_sub(modified.0) < millis(older_than) => OrphanVerdict::Kept(Kept::Recent),
            Ok(orphan) => OrphanVerdict::Orphan(orphan),
        })
    }

    fn kept(
        &self,
        bucket: &str,
        key: &str,
        flink: &FlinkKey<'_>,
        job: Option<&JobSurvey>,
        modified: Millis,
    ) -> Result<Orphan, Kept> {
        let leaf = key.rsplit('/').next().unwrap_or_default();
        match leaf {
            "" => return Err(Kept::Folder),
            METADATA => return Err(Kept::Metadata),
            _ if self.named.contains(&self.hash.hash_one((bucket, key))) => return Err(Kept::Named),
            _ => (),
        }
        let place = match flink.place {
            FlinkPlace::Savepoint => return Err(Kept::Savepoint),
            FlinkPlace::TaskOwned if !flink.merged => return Err(Kept::TaskOwned),
            FlinkPlace::Shared if !flink.merged && flink.below.contains('/') => return Err(Kept::Working),
            FlinkPlace::Changelog => return Err(Kept::Changelog),
            place => place,
        };
        if self.unreadable_copy {
            return Err(Kept::UnreadableCopy);
        }
        let job = job.ok_or(Kept::NoCheckpoint)?;
        if job.unreadable {
            return Err(Kept::Unreadable);
        }
        if job.elsewhere {
            return Err(Kept::Elsewhere);
        }
        let Newest { number: newest, cutoff } = job.newest().ok_or(Kept::NoCheckpoint)?;
        match place {
            FlinkPlace::Checkpoint(number) if number > newest => Err(Kept::Running),
            _ if modified >= cutoff => Err(Kept::Young),
            FlinkPlace::Checkpoint(number) if job.completed.contains_key(&number) => Ok(Orphan::LateUpload(number)),
            FlinkPlace::Checkpoint(number) => Ok(Orphan::AbortedCheckpoint(number)),
            _ if flink.merged => Ok(Orphan::UnnamedMerged),
            _ => Ok(Orphan::Unnamed),
        }
    }

    fn job_mut(&mut self, bucket: &str, folder: &str) -> &mut JobSurvey {
        let jobs_bytes = &mut self.jobs_bytes;
        self.jobs.entry(bucket.to_owned()).or_default().entry(folder.to_owned()).or_insert_with_key(|folder| {
            *jobs_bytes += JOB_BYTES + folder.len() as u64;
            JobSurvey::default()
        })
    }
}

impl JobSurvey {
    /// The one that was completed last; by time, because a job that begins anew in the folder of another counts from one.
    ///
    /// If there is anything of one above it, checkpoints are taken concurrently. What is there of that does not tell when it
    /// began: its first files may be in `shared/`, or be gone. It was not before the completion of the one before.
    fn newest(&self) -> Option<Newest> {
        let mut by_time: Vec<_> = self.completed.iter().map(|(number, at)| (*at, u64::MAX - *number)).collect();
        by_time.sort_unstable();
        let (completed, number) = by_time.pop().map(|(at, rest)| (at, u64::MAX - rest))?;
        let Some(above) = self.begun.range(number + 1..).map(|(_, begun)| *begun).min() else {
            return Some(Newest { number, cutoff: completed });
        };
        let before = by_time.pop().map_or(Millis(0), |(at, _)| at);
        Some(Newest { number, cutoff: above.min(before) })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const J: &str = "d/0123456789abcdef0123456789abcdef";
    const U: &str = "5b1d8f5e-8c2f-4a52-9d34-0a1b2c3d4e5f";

    /// A job whose checkpoint 7 was completed at 700.
    fn job() -> Survey {
        let mut survey = Survey::default();
        put(&mut survey, &format!("{J}/chk-7/{U}"), 690);
        put(&mut survey, &format!("{J}/chk-7/_metadata"), 700);
        survey.complete("b", &format!("{J}/chk-7/_metadata"), Millis(700), true);
        survey
    }

    fn put(survey: &mut Survey, key: &str, at: u64) {
        survey.see("b", key, Millis(at));
    }

    fn judge(survey: &Survey, below: &str, at: u64) -> OrphanVerdict {
        survey.judge("b", &format!("{J}/{below}"), Millis(at), Duration::ZERO, Millis(10_000)).unwrap()
    }

    #[test]
    fn what_is_remembered_is_counted_once() {
        let mut survey = job();
        let of_job = survey.bytes();
        assert_eq!(of_job, JOB_BYTES + J.len() as u64 + 2 * CHECKPOINT_BYTES);

        for _ in 0..2 {
            put(&mut survey, &format!("{J}/chk-7/again"), 650);
            survey.complete("b", &format!("{J}/chk-7/_metadata"), Millis(701), true);
        }
        assert_eq!(survey.bytes(), of_job);
        for n in 0..10_000 {
            survey.name("b", &n.to_string());
        }
        assert!(survey.bytes() >= of_job + 10_000 * NAME_BYTES);
    }

    #[test]
    fn what_is_named_is_kept_and_what_an_older_upload_left_is_an_orphan() {
        let mut survey = job();
        survey.name("b", &format!("{J}/shared/named"));

        assert_eq!(judge(&survey, "shared/named", 100), OrphanVerdict::Kept(Kept::Named));
        assert_eq!(judge(&survey, "shared/other", 100), OrphanVerdict::Orphan(Orphan::Unnamed));
        assert_eq!(judge(&survey, "shared/job_ab_op_x/f", 100), OrphanVerdict::Orphan(Orphan::UnnamedMerged));
        assert_eq!(judge(&survey, &format!("chk-6/{U}"), 600), OrphanVerdict::Orphan(Orphan::AbortedCheckpoint(6)));
        assert_eq!(judge(&survey, &format!("chk-7/{U}"), 690), OrphanVerdict::Orphan(Orphan::LateUpload(7)));
    }

    #[test]
    fn what_cannot_be_judged_is_kept() {
        let survey = job();

        assert_eq!(judge(&survey, "chk-7/_metadata", 100), OrphanVerdict::Kept(Kept::Metadata));
        assert_eq!(judge(&survey, "chk-6/", 100), OrphanVerdict::Kept(Kept::Folder));
        assert_eq!(judge(&survey, "taskowned/x", 100), OrphanVerdict::Kept(Kept::TaskOwned));
        assert_eq!(judge(&survey, "taskowned/job_ab_tm_x/f", 100), OrphanVerdict::Orphan(Orphan::UnnamedMerged));
        assert_eq!(judge(&survey, "dstl/x", 100), OrphanVerdict::Kept(Kept::Changelog));
        assert_eq!(judge(&survey, "shared/op_x_attempt_1/db/f", 100), OrphanVerdict::Kept(Kept::Working));
        let savepoint = survey.judge("b", "sp/savepoint-ab-cd/x", Millis(1), Duration::ZERO, Millis(10_000));
        assert_eq!(savepoint, Some(OrphanVerdict::Kept(Kept::Savepoint)));
        assert_eq!(survey.judge("b", "logs/x", Millis(1), Duration::ZERO, Millis(10_000)), None);
    }

    #[test]
    fn nothing_is_an_orphan_that_the_next_checkpoint_may_name() {
        let mut survey = job();

        assert_eq!(judge(&survey, "shared/x", 700), OrphanVerdict::Kept(Kept::Young));
        assert_eq!(judge(&survey, &format!("chk-8/{U}"), 100), OrphanVerdict::Kept(Kept::Running));
        assert_eq!(judge(&survey, "shared/x", 699), OrphanVerdict::Orphan(Orphan::Unnamed));
        // Checkpoint 8 began while 7 was in progress, and nothing says when.
        put(&mut survey, &format!("{J}/chk-8/"), 650);
        assert_eq!(judge(&survey, "shared/x", 1), OrphanVerdict::Kept(Kept::Young));
        // After 6 was complete, whatever is left of its first files.
        survey.complete("b", &format!("{J}/chk-6/_metadata"), Millis(600), true);
        assert_eq!(judge(&survey, "shared/x", 600), OrphanVerdict::Kept(Kept::Young));
        assert_eq!(judge(&survey, "shared/x", 599), OrphanVerdict::Orphan(Orphan::Unnamed));
        put(&mut survey, &format!("{J}/chk-8/{U}"), 550);
        assert_eq!(judge(&survey, "shared/x", 550), OrphanVerdict::Kept(Kept::Young));
    }

    #[test]
    fn a_job_without_a_checkpoint_or_with_one_that_cannot_be_read_has_no_orphan() {
        let mut survey = job();
        assert_eq!(
            survey.judge("c", &format!("{J}/shared/x"), Millis(1), Duration::ZERO, Millis(10_000)),
            Some(OrphanVerdict::Kept(Kept::NoCheckpoint))
        );

        survey.complete("b", &format!("{J}/chk-6/_metadata"), Millis(600), false);
        assert_eq!(judge(&survey, "shared/x", 100), OrphanVerdict::Kept(Kept::Unreadable));
    }

    #[test]
    fn nothing_of_a_job_that_names_files_elsewhere_is_an_orphan() {
        let mut survey = job();
        survey.is_elsewhere("b", "d/ffffffffffffffffffffffffffffffff/chk-7/_metadata");
        assert_eq!(judge(&survey, "shared/x", 100), OrphanVerdict::Orphan(Orphan::Unnamed));

        survey.is_elsewhere("b", &format!("{J}/chk-6/_metadata"));
        assert_eq!(judge(&survey, "shared/x", 100), OrphanVerdict::Kept(Kept::Elsewhere));
        assert_eq!(judge(&survey, &format!("chk-6/{U}"), 100), OrphanVerdict::Kept(Kept::Elsewhere));
    }

    #[test]
    fn nothing_is_an_orphan_while_a_copy_somewhere_cannot_be_read() {
        let mut survey = job();
        survey.complete("c", "pinned/before/_metadata", Millis(1), true);
        assert_eq!(judge(&survey, "shared/x", 100), OrphanVerdict::Orphan(Orphan::Unnamed));

        survey.complete("c", "pinned/before/_metadata", Millis(1), false);
        assert_eq!(judge(&survey, "shared/x", 100), OrphanVerdict::Kept(Kept::UnreadableCopy));
    }

    #[test]
    fn a_job_that_counts_anew_in_an_old_folder_is_judged_by_its_last_checkpoint() {
        let mut survey = job();
        put(&mut survey, &format!("{J}/chk-1/_metadata"), 900);
        survey.complete("b", &format!("{J}/chk-1/_metadata"), Millis(900), true);

        assert_eq!(judge(&survey, &format!("chk-2/{U}"), 890), OrphanVerdict::Kept(Kept::Running));
        // The first object of checkpoint 7 of the job before is older.
        assert_eq!(judge(&survey, "shared/x", 690), OrphanVerdict::Kept(Kept::Young));
    }

    #[test]
    fn the_age_that_is_asked_for_is_that_at_least() {
        let survey = job();
        let at = |modified| {
            survey.judge("b", &format!("{J}/shared/x"), Millis(modified), Duration::from_millis(500), Millis(1000))
        };

        assert_eq!(at(500), Some(OrphanVerdict::Orphan(Orphan::Unnamed)));
        assert_eq!(at(501), Some(OrphanVerdict::Kept(Kept::Recent)));
    }
}
