//! What always holds of a [`CatalogState`], recounted from scratch. Shared by debug builds, tests, `esker verify` and
//! `/v1/verify`.
//!
//! A recount of a state that goes on changing is done in pieces ([`Count`]), and tells no fault that only the changes made:
//! - What one thing and its indexes tell is judged in one piece.
//! - How many objects name a segment takes a look at all of them. A segment that seems to be named more or less often than it
//!   counts is watched during another look, and judged if it stayed as it was.
//! - The files are added up in one piece, if they are not too many.
//! - What else is a total is judged only if nothing at all changed while it was counted. How much memory the state takes is
//!   an estimate, and is judged by [`CatalogState::check`] alone.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Bound;

use super::looks::GoesOn;
use super::recovery::Held;
use super::segments::{KeptSegment, SegmentPlace};
use super::slot::Slot;
use super::{CatalogState, FileEntry, PartVersion, SpaceUsage};
use crate::model::{FileState, Holder, PhysicalFileId, SegmentId};

/// Segments of a file that are counted in one piece.
const LIVING_AT_ONCE: usize = 512;
/// Files that are added up in one piece.
const FILES_AT_ONCE: usize = 16_384;
/// A file that changes all the time while it is counted is not judged after so many attempts.
const ATTEMPTS_MAX: u32 = 8;

/// A recount, as far as it is.
#[derive(Debug, Default)]
pub struct Count {
    /// Files that were looked at.
    pub files: usize,
    /// Segments that were looked at, also those that are not visible yet.
    pub segments: usize,
    /// Faults that were found, a line each.
    pub faults: Vec<String>,
    names: Names,
    by_objects: Held,
    by_parts: Held,
    suspects: Vec<SegmentId>,
    /// Files with many segments, which are counted by themselves.
    large: Vec<PhysicalFileId>,
    space: SpaceUsage,
    /// Files that are forgotten.
    forgotten: usize,
    begun_at: Option<u64>,
    after: Option<SegmentId>,
    next_file: u32,
}

/// The segments that somebody names.
#[derive(Debug, Default)]
struct Names {
    /// Each as often as a version of an object names it.
    by_objects: Vec<SegmentId>,
    /// Each as often as a version of a part names it.
    by_parts: Vec<SegmentId>,
    object: Option<(String, Box<str>)>,
    part: Option<(String, u16)>,
}

/// Another look at who names the segments that somebody watches.
#[derive(Debug)]
pub struct SecondLook {
    names: Names,
    suspects: Vec<SegmentId>,
    watched: HashSet<SegmentId>,
    next: usize,
}

/// The count of a file with many segments.
#[derive(Debug)]
pub struct LargeFile {
    id: PhysicalFileId,
    after: Option<SegmentId>,
    counted: (u64, u64),
    /// The length of the file and the number of its segments when the count began: it grows with each segment that comes, and what is left gets fewer.
    like: Option<(u64, usize)>,
    attempts: u32,
}

impl CatalogState {
    /// Recounts everything and tells what does not add up, a line each. Costs time proportional to the state.
    pub fn check(&self) -> Vec<String> {
        let always: GoesOn<'_> = &mut || true;
        let mut count = Count::default();
        self.count_names(&mut count, always);
        count.sort();
        self.count_all(&mut count, always);
        while let Some(mut large) = count.next_large() {
            self.count_large(&mut count, &mut large, always);
        }
        let suspects = std::mem::take(&mut count.suspects);
        let often = Often::of(&count.names, &suspects.iter().copied().collect());
        suspects.iter().for_each(|id| self.judge(*id, &often, &mut count.faults));
        self.count_totals(&mut count);
        let others = self.recount_others();
        if others != self.memory.others {
            count.faults.push(format!("memory is counted as {} bytes, it is {others}", self.memory.others));
        }
        count.faults
    }

    /// First: who names segments.
    pub fn count_names(&self, count: &mut Count, goes_on: GoesOn<'_>) -> bool {
        let Count { names, faults, .. } = count;
        let Names { by_objects, by_parts, object, part } = names;
        self.each_object(object, goes_on, |bucket, key, slot| {
            self.check_object(bucket, key, slot, faults);
            let before = by_objects.len();
            slot.each_segment(|id| by_objects.push(id));
            by_objects.len() - before
        }) && self.each_part(part, goes_on, |upload, number, versions| {
            self.check_part(upload, number, versions, faults);
            by_parts.extend(versions.iter().filter_map(|version| version.record.segment));
        })
    }

    /// Then all segments and files, once the names are sorted.
    pub fn count_all(&self, count: &mut Count, goes_on: GoesOn<'_>) -> bool {
        count.begun_at.get_or_insert(self.revision);
        let Count { segments, faults, by_objects, by_parts, suspects, space, after, .. } = count;
        self.each_segment(after, goes_on, |id, kept| {
            *segments += 1;
            space.live_bytes += kept.len;
            space.inline_bytes += if kept.is_inline() { kept.len } else { 0 };
            self.check_segment(id, &kept, faults);
            let (objects, parts) = (by_objects.count(id), by_parts.count(id));
            if parts > 1 {
                faults.push(format!("segment {id} is two parts"));
            }
            match kept.holder {
                Holder::Objects { count } if count != objects => suspects.push(id),
                Holder::Upload if parts == 0 => suspects.push(id),
                _ => {}
            }
        }) && self.count_files_of(count, goes_on)
    }

    fn count_files_of(&self, count: &mut Count, goes_on: GoesOn<'_>) -> bool {
        let Count { files, faults, large, space, forgotten, next_file, .. } = count;
        self.files.each(next_file, goes_on, |_, id, entry| {
            *files += 1;
            add_file(entry, space, forgotten);
            self.check_file(id, entry, faults);
            if entry.live.len() > LIVING_AT_ONCE {
                large.push(id.clone());
            } else {
                let counted = entry.live.keys().map(|living| self.found_in(*living, id)).fold((0, 0), plus);
                check_living(id, entry, counted, faults);
            }
        })
    }

    /// Counts a file with many segments.
    pub fn count_large(&self, count: &mut Count, large: &mut LargeFile, goes_on: GoesOn<'_>) -> bool {
        let Some(entry) = self.files.get(&large.id) else { return true };
        let like = (entry.record.state.len(), entry.live.len());
        if *large.like.get_or_insert(like) != like {
            large.attempts += 1;
            (large.after, large.counted, large.like) = (None, (0, 0), Some(like));
        }
        if large.attempts > ATTEMPTS_MAX {
            return true;
        }
        let begin = large.after;
        for (living, ()) in entry.live.iter_from(begin.as_ref().map_or(Bound::Unbounded, Bound::Excluded)) {
            large.counted = plus(large.counted, self.found_in(*living, &large.id));
            large.after = Some(*living);
            if !goes_on() {
                return false;
            }
        }
        check_living(&large.id, entry, large.counted, &mut count.faults);
        true
    }

    /// From here on it is known which of these segments stay as they are. There is one such watch at a time.
    pub fn watch(&mut self, suspects: HashSet<SegmentId>) {
        self.segments.watched = suspects;
    }

    /// Goes on with another look at who names the suspects, which are watched.
    pub fn look_again(&self, look: &mut SecondLook, goes_on: GoesOn<'_>) -> bool {
        let SecondLook { names, watched, .. } = look;
        let Names { by_objects, by_parts, object, part } = names;
        self.each_object(object, goes_on, |_, _, slot| {
            let mut segments = 0;
            slot.each_segment(|id| {
                segments += 1;
                by_objects.extend(watched.contains(&id).then_some(id));
            });
            segments
        }) && self.each_part(part, goes_on, |_, _, versions| {
            let named = versions.iter().filter_map(|version| version.record.segment);
            by_parts.extend(named.filter(|id| watched.contains(id)));
        })
    }

    /// Judges those that have stayed as they were; the others are suspects again.
    pub fn judge_again(&self, count: &mut Count, look: &mut SecondLook, often: &Often, goes_on: GoesOn<'_>) -> bool {
        while let Some(id) = look.suspects.get(look.next).copied() {
            look.next += 1;
            if self.segments.watched.contains(&id) {
                self.judge(id, often, &mut count.faults);
            } else if self.segments.contains(id) {
                count.suspects.push(id);
            }
            if !goes_on() {
                return false;
            }
        }
        true
    }

    /// Ends the watch.
    pub fn unwatch(&mut self) -> HashSet<SegmentId> {
        std::mem::take(&mut self.segments.watched)
    }

    fn judge(&self, id: SegmentId, often: &Often, faults: &mut Vec<String>) {
        match self.segments.get(id).map(|kept| kept.holder) {
            Some(Holder::Objects { count }) => {
                let named = often.by_objects.get(&id).copied().unwrap_or(0);
                if named != count {
                    faults.push(format!("segment {id} counts {count} objects, {named} name it"));
                }
            }
            Some(Holder::Upload) if !often.by_parts.contains(&id) => {
                faults.push(format!("segment {id} is held by an upload, and no part names it"));
            }
            _ => {}
        }
    }

    /// Last: compares the totals, as far as they can be judged.
    pub fn count_totals(&self, count: &mut Count) {
        let (mut space, mut forgotten) = (count.space, count.forgotten);
        if count.begun_at != Some(self.revision) {
            if self.files.len() > FILES_AT_ONCE {
                return;
            }
            let inline_bytes = self.space.inline_bytes;
            (space, forgotten) = (SpaceUsage { inline_bytes, live_bytes: inline_bytes, ..SpaceUsage::default() }, 0);
            for (_, file) in self.files.iter() {
                space.live_bytes += file.live_bytes;
                add_file(file, &mut space, &mut forgotten);
            }
        }
        let queued: usize = self.forgotten.values().map(BTreeSet::len).sum();
        if queued != forgotten {
            count.faults.push(format!("{queued} files are to be deleted, {forgotten} are forgotten"));
        }
        if space != self.space {
            count.faults.push(format!("space is counted as {:?}, it is {space:?}", self.space));
        }
    }

    fn check_segment(&self, id: SegmentId, kept: &KeptSegment<'_>, faults: &mut Vec<String>) {
        match kept.place {
            SegmentPlace::Inline => {}
            SegmentPlace::Unknown { path, .. } => faults.push(format!("segment {id} is in {path}, which is not known")),
            SegmentPlace::File { file, offset } => match self.files.at(file) {
                None => faults.push(format!("segment {id} is in a file without a name")),
                Some((file, entry)) => {
                    if let FileState::Forgotten { .. } = entry.record.state {
                        faults.push(format!("segment {id} lives in {file}, which is forgotten"));
                    } else if kept.visible && offset + kept.len > entry.record.state.len() {
                        faults.push(format!("segment {id} ends beyond the end of {file}"));
                    }
                    if !entry.live.contains(&id) {
                        faults.push(format!("segment {id} is missing from the index of its file"));
                    }
                }
            },
        }
        let Some((_, job)) = self.jobs.at(kept.job) else {
            faults.push(format!("segment {id} is of a job without a name"));
            return;
        };
        if !job.segments.contains(&id) {
            faults.push(format!("segment {id} is missing from the index of its job"));
        }
        let (index, of, what) = match kept.holder {
            Holder::Checkpoints { last_used } => (&job.life().by_last_used, last_used, "last checkpoint"),
            Holder::Savepoint { id } => (&job.life().by_savepoint, id, "savepoint"),
            Holder::Objects { .. } | Holder::Upload => return,
        };
        if !index.get(&of).is_some_and(|held| held.contains(&id)) {
            faults.push(format!("segment {id} is missing from the index of its {what}"));
        }
        // What is left of a command goes as soon as its turn comes.
        if self.is_idle() && self.is_dead(kept) {
            faults.push(format!("segment {id} lives, but nothing needs it: its {what} is {of}"));
        }
    }

    fn check_file(&self, id: &PhysicalFileId, file: &FileEntry, faults: &mut Vec<String>) {
        if let FileState::Forgotten { since, why, .. } = file.record.state
            && !self.forgotten.get(&(why, since)).is_some_and(|files| files.contains(id))
        {
            faults.push(format!("{id} is forgotten, but not among the files to be deleted"));
        }
        if file.live_bytes > file.record.occupied() {
            faults.push(format!("{id} has holes where segments live"));
        }
        if matches!(file.record.state, FileState::Closed { .. }) && file.live.is_empty() {
            faults.push(format!("{id} is closed and holds nothing that lives, but is not forgotten"));
        }
    }

    /// One segment and its bytes, if it lives in this file.
    fn found_in(&self, living: SegmentId, file: &PhysicalFileId) -> (u64, u64) {
        let Some(kept) = self.segments.get(living) else { return (0, 0) };
        let here = kept.file().and_then(|number| self.files.at(number)).is_some_and(|(name, _)| name == file);
        if here { (1, kept.len) } else { (0, 0) }
    }

    fn check_object(&self, bucket: &str, key: &str, slot: &Slot, faults: &mut Vec<String>) {
        let versions = slot.versions();
        let arrived = versions.iter().filter(|version| version.on_its_way.is_none()).count();
        if versions.is_empty() || arrived > 1 {
            faults.push(format!("{bucket}/{key} has {arrived} versions that count"));
        }
        for version in &versions {
            let lens = version.record.segments.iter().map(|id| self.segments.get(*id).map(|kept| kept.len));
            match lens.sum::<Option<u64>>() {
                Some(len) if len == version.record.head.len => {}
                Some(len) => {
                    faults
                        .push(format!("{bucket}/{key} has {} bytes, its segments have {len}", version.record.head.len));
                }
                None => faults.push(format!("{bucket}/{key} names a segment that does not exist")),
            }
        }
    }

    fn check_part(&self, upload: &str, number: u16, versions: &[PartVersion], faults: &mut Vec<String>) {
        if versions.is_empty() || versions.iter().filter(|version| version.on_its_way.is_none()).count() > 1 {
            faults.push(format!("part {number} of {upload} has no version, or two that count"));
        }
        for version in versions {
            let Some(id) = version.record.segment else { continue };
            let arrived = version.on_its_way.is_none();
            match self.segments.get(id) {
                None => faults.push(format!("part {number} of {upload} names a segment that does not exist")),
                Some(kept) if kept.holder != Holder::Upload => {
                    faults.push(format!("segment {id} is part {number} of {upload}, which does not hold it"));
                }
                // One that arrives with many others becomes visible a moment before its part counts.
                Some(kept) if kept.len != version.record.head.len || arrived && !kept.visible => {
                    faults.push(format!("segment {id} is not as long or as visible as part {number} of {upload}"));
                }
                Some(_) => {}
            }
        }
    }

    /// Tells what stands under each key after `after`; `tell` says how many segments that has.
    fn each_object(
        &self,
        after: &mut Option<(String, Box<str>)>,
        goes_on: GoesOn<'_>,
        mut tell: impl FnMut(&str, &str, &Slot) -> usize,
    ) -> bool {
        let begin = after.take();
        let from = begin.as_ref().map_or(Bound::Unbounded, |(bucket, _)| Bound::Included(bucket));
        for (bucket, entry) in self.buckets.range::<String, _>((from, Bound::Unbounded)) {
            let here = begin.as_ref().filter(|(of, _)| of == bucket);
            let from = here.map_or(Bound::Unbounded, |(_, key)| Bound::Excluded(&**key));
            for (key, slot) in entry.objects.iter_from::<str>(from) {
                let segments = tell(bucket, key, slot);
                // Asked for each, but a key is seen to its end.
                let over = (0..segments.max(1)).fold(false, |over, _| !goes_on() | over);
                if over {
                    *after = Some((bucket.clone(), key.clone()));
                    return false;
                }
            }
        }
        true
    }

    /// Tells the versions of each part after `after`.
    fn each_part(
        &self,
        after: &mut Option<(String, u16)>,
        goes_on: GoesOn<'_>,
        mut tell: impl FnMut(&str, u16, &[PartVersion]),
    ) -> bool {
        let begin = after.take();
        let from = begin.as_ref().map_or(Bound::Unbounded, |(upload, _)| Bound::Included(upload));
        for (upload, entry) in self.uploads.range::<String, _>((from, Bound::Unbounded)) {
            let here = begin.as_ref().filter(|(of, _)| of == upload);
            let from = here.map_or(Bound::Unbounded, |(_, number)| Bound::Excluded(number));
            for (number, versions) in entry.parts.range::<u16, _>((from, Bound::Unbounded)) {
                tell(upload, *number, versions);
                if !goes_on() {
                    *after = Some((upload.clone(), *number));
                    return false;
                }
            }
        }
        true
    }
}

/// Counts of how often the suspects are named.
#[derive(Debug, Default)]
pub struct Often {
    by_objects: HashMap<SegmentId, u32>,
    by_parts: HashSet<SegmentId>,
}

impl Often {
    fn of(names: &Names, suspects: &HashSet<SegmentId>) -> Self {
        let mut often = Self::default();
        for id in names.by_objects.iter().filter(|id| suspects.contains(id)) {
            *often.by_objects.entry(*id).or_default() += 1;
        }
        often.by_parts.extend(names.by_parts.iter().filter(|id| suspects.contains(id)));
        often
    }
}

impl Count {
    /// Puts what was collected in order: there may be millions of it, and nobody has to wait for that.
    pub fn sort(&mut self) {
        let Names { by_objects, by_parts, .. } = &self.names;
        self.by_objects = Held::of(by_objects.clone());
        self.by_parts = Held::of(by_parts.clone());
    }

    /// The next file that is counted by itself.
    pub fn next_large(&mut self) -> Option<LargeFile> {
        let id = self.large.pop()?;
        Some(LargeFile { id, after: None, counted: (0, 0), like: None, attempts: 0 })
    }

    /// Begins another look at the segments that seem to be named more or less often than they count, if there are any.
    pub fn second_look(&mut self) -> Option<SecondLook> {
        let suspects = std::mem::take(&mut self.suspects);
        let watched: HashSet<SegmentId> = suspects.iter().copied().collect();
        (!suspects.is_empty()).then(|| SecondLook { names: Names::default(), suspects, watched, next: 0 })
    }
}

impl SecondLook {
    /// The segments that are looked at.
    pub fn suspects(&self) -> &HashSet<SegmentId> {
        &self.watched
    }

    /// Returns how often it has found them named.
    pub fn often(&self) -> Often {
        Often::of(&self.names, &self.watched)
    }
}

fn plus(a: (u64, u64), b: (u64, u64)) -> (u64, u64) {
    (a.0 + b.0, a.1 + b.1)
}

fn add_file(file: &FileEntry, space: &mut SpaceUsage, forgotten: &mut usize) {
    space.physical_bytes += file.record.occupied();
    if let FileState::Forgotten { .. } = file.record.state {
        space.forgotten_bytes += file.record.occupied();
        *forgotten += 1;
    }
}

fn check_living(id: &PhysicalFileId, file: &FileEntry, counted: (u64, u64), faults: &mut Vec<String>) {
    let counts = (file.live.len() as u64, file.live_bytes);
    if counted != counts {
        faults.push(format!("{id} counts {counts:?} live segments and bytes, it has {counted:?}"));
    }
}
