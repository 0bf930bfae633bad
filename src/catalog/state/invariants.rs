//! What always holds of a [`State`], recounted from scratch. Shared by debug builds, tests and `esker verify`.

use std::collections::{BTreeMap, BTreeSet};

use super::{PartVersion, SpaceUsage, State};
use crate::catalog::record::{FileState, Holder};
use crate::model::{Location, PhysicalFileId, SegmentId};

impl State {
    /// Recounts everything and tells what does not add up, a line each. Costs time proportional to the state.
    pub fn check(&self) -> Vec<String> {
        let mut faults = vec![];
        self.check_files(&mut faults);
        self.check_holders(&mut faults);
        self.check_objects(&mut faults);
        self.check_uploads(&mut faults);
        faults
    }

    fn check_files(&self, faults: &mut Vec<String>) {
        let mut space = SpaceUsage::default();
        let mut forgotten = 0;
        let mut live: BTreeMap<&PhysicalFileId, (u64, u64)> = BTreeMap::new();
        for (id, entry) in &self.segments {
            let len = entry.record.location.len();
            space.live_bytes += len;
            match &entry.record.location {
                Location::Inline { .. } => space.inline_bytes += len,
                Location::File(segment) => {
                    let count = live.entry(&segment.file).or_default();
                    *count = (count.0 + 1, count.1 + len);
                    match self.files.get(&segment.file).map(|file| file.record.state) {
                        None => faults.push(format!("segment {id} is in {}, which is not known", segment.file)),
                        Some(FileState::Forgotten { .. }) => {
                            faults.push(format!("segment {id} lives in {}, which is forgotten", segment.file));
                        }
                        Some(state) if entry.visible && segment.end() > state.len() => {
                            faults.push(format!("segment {id} ends beyond the end of {}", segment.file));
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        for (id, file) in &self.files {
            space.physical_bytes += file.record.occupied();
            if let FileState::Forgotten { since, why, .. } = file.record.state {
                space.forgotten_bytes += file.record.occupied();
                forgotten += 1;
                if !self.forgotten.get(&(why, since)).is_some_and(|files| files.contains(id)) {
                    faults.push(format!("{id} is forgotten, but not among the files to be deleted"));
                }
            }
            let counted = live.get(id).copied().unwrap_or_default();
            let counts = (file.live.len() as u64, file.live_bytes);
            if counted != counts {
                faults.push(format!("{id} counts {counts:?} live segments and bytes, it has {counted:?}"));
            }
            if file.live_bytes > file.record.occupied() {
                faults.push(format!("{id} has holes where segments live"));
            }
            if matches!(file.record.state, FileState::Closed { .. }) && counted.0 == 0 {
                faults.push(format!("{id} is closed and holds nothing that lives, but is not forgotten"));
            }
        }
        let queued: usize = self.forgotten.values().map(BTreeSet::len).sum();
        if queued != forgotten {
            faults.push(format!("{queued} files are to be deleted, {forgotten} are forgotten"));
        }
        if space != self.space {
            faults.push(format!("space is counted as {:?}, it is {space:?}", self.space));
        }
    }

    fn check_holders(&self, faults: &mut Vec<String>) {
        let counts = self.object_counts();
        for (id, entry) in &self.segments {
            let counted = counts.get(id).copied().unwrap_or(0);
            match entry.record.holder {
                Holder::Objects { count } if count != counted => {
                    faults.push(format!("segment {id} counts {count} objects, {counted} name it"));
                }
                Holder::Checkpoints { last_used } => {
                    let job = self.jobs.get(&entry.record.job);
                    let set = job.and_then(|job| job.by_last_used.get(&last_used));
                    if !set.is_some_and(|set| set.contains(id)) {
                        faults.push(format!("segment {id} is missing from the index of its last checkpoint"));
                    }
                    let subsumed = job.and_then(|job| job.record.as_ref()).and_then(|record| record.subsumed);
                    if subsumed.is_some_and(|subsumed| last_used <= subsumed) {
                        faults.push(format!("segment {id} lives, but checkpoint {last_used} is subsumed"));
                    }
                }
                Holder::Savepoint { id: savepoint } => {
                    let set = self.jobs.get(&entry.record.job).and_then(|job| job.by_savepoint.get(&savepoint));
                    if !set.is_some_and(|set| set.contains(id)) {
                        faults.push(format!("segment {id} is missing from the index of its savepoint"));
                    }
                }
                _ => {}
            }
            if !self.jobs.get(&entry.record.job).is_some_and(|job| job.segments.contains(id)) {
                faults.push(format!("segment {id} is missing from the index of its job"));
            }
        }
    }

    fn check_uploads(&self, faults: &mut Vec<String>) {
        let mut held = BTreeSet::<SegmentId>::new();
        for (upload, number, version) in self.part_versions() {
            let Some(id) = version.record.segment else { continue };
            let arrived = version.on_its_way.is_none();
            match self.segments.get(&id) {
                None => faults.push(format!("part {number} of {upload} names a segment that does not exist")),
                Some(segment) if segment.record.holder != Holder::Upload => {
                    faults.push(format!("segment {id} is part {number} of {upload}, which does not hold it"));
                }
                Some(segment) if segment.record.location.len() != version.record.len || segment.visible != arrived => {
                    faults.push(format!("segment {id} is not as long or as visible as part {number} of {upload}"));
                }
                Some(_) if !held.insert(id) => faults.push(format!("segment {id} is two parts")),
                Some(_) => {}
            }
        }
        for (id, upload) in &self.uploads {
            let twice = |versions: &&Vec<_>| {
                versions.iter().filter(|version: &&PartVersion| version.on_its_way.is_none()).count() > 1
            };
            if upload.parts.values().any(|versions| versions.is_empty() || twice(&versions)) {
                faults.push(format!("a part of {id} has no version, or two that count"));
            }
        }
        for (id, entry) in &self.segments {
            if entry.record.holder == Holder::Upload && !held.contains(id) {
                faults.push(format!("segment {id} is held by an upload, and no part names it"));
            }
        }
    }

    fn check_objects(&self, faults: &mut Vec<String>) {
        for (bucket, entry) in &self.buckets {
            for (key, versions) in &entry.objects {
                let arrived = versions.iter().filter(|version| version.on_its_way.is_none()).count();
                if versions.is_empty() || arrived > 1 {
                    faults.push(format!("{bucket}/{key} has {arrived} versions that count"));
                }
                for version in versions {
                    let lens = version
                        .record
                        .segments
                        .iter()
                        .map(|id| self.segments.get(id).map(|entry| entry.record.location.len()));
                    match lens.sum::<Option<u64>>() {
                        Some(len) if len == version.record.len => {}
                        Some(len) => faults
                            .push(format!("{bucket}/{key} has {} bytes, its segments have {len}", version.record.len)),
                        None => faults.push(format!("{bucket}/{key} names a segment that does not exist")),
                    }
                }
            }
        }
    }
}
