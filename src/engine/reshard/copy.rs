//! The bytes of a physical file, from where it is to the shards that have segments in it.
//!
//! A file goes as it is, under its name, if all that lives in it goes to one shard and most of it lives: places stay right then. Otherwise
//! what lives is written into a new file for each shard, which takes no more than it holds. A large file goes as it is in any case, as a
//! multipart upload: it holds few segments, and is never in memory.
//!
//! # Crash
//! | crash between | leaves | healed by |
//! | --- | --- | --- |
//! | file put, not recorded | a file that the new catalog does not name | put again under the same name, or deleted at the end |
//! | upload recorded, not complete | parts, and an open file in the new catalog | the next run aborts the upload |

use bytes::Bytes;

use super::RefillError;
use super::fill::Filling;
use crate::catalog::state::{DividedRecord, Division, SegmentView};
use crate::merge::FileWriter;
use crate::model::{Lane, LaneOf, Millis, PhysicalFileId, Segment, SegmentHasher, StateScope, crc32c};
use crate::runtime::Entropy;
use crate::store::{DataStore, FileWrites, ObjectFiles, Readers, StoreError};

/// A file of up to so many bytes is held in memory.
const WHOLE_BYTES_MAX: u64 = 32 << 20;
/// Parts of a larger one. A service takes at most 10,000 of them.
const PART_BYTES: u64 = 16 << 20;
const PARTS_MAX: u64 = 9_000;
/// Dead bytes between two segments that are read along, to save a request.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Bytes that are read at once, unless one segment is larger.
const SPAN_BYTES_MAX: u64 = 8 << 20;

/// What lives in one file and goes to one shard.
#[derive(Debug)]
pub struct FilePortion {
    /// The file.
    pub file: PhysicalFileId,
    /// Its length.
    pub len: u64,
    /// The shard.
    pub shard: u32,
    /// Its segments, in the order in which they stand there.
    pub segments: Vec<SegmentView>,
    /// Whether other shards have segments in it, too.
    pub shared: bool,
}

/// A portion that is in its place.
#[derive(Debug)]
pub struct CopiedPortion {
    /// The shard.
    pub shard: u32,
    /// The file that it is in now.
    pub file: PhysicalFileId,
    /// Its records.
    pub records: Vec<DividedRecord>,
    /// Its segments, and their bytes.
    pub segments: u64,
    /// See there.
    pub bytes: u64,
}

impl FilePortion {
    fn live_bytes(&self) -> u64 {
        self.segments.iter().map(|view| view.location.len()).sum()
    }

    fn goes_as_it_is(&self) -> bool {
        self.len > WHOLE_BYTES_MAX || !self.shared && self.live_bytes() * 2 >= self.len
    }
}

/// Brings what is missing of a portion to where it goes; `None` if nothing is.
///
/// # Errors
/// [`RefillError`]; it can be repeated.
pub async fn copy(
    division: &Division<'_>,
    from: &DataStore,
    to: &Filling,
    portion: &FilePortion,
    entropy: &Entropy,
) -> Result<Option<CopiedPortion>, RefillError> {
    let FilePortion { file, shard, .. } = portion;
    let segments = to.missing(&portion.segments).await?;
    if segments.is_empty() {
        return Ok(None);
    }
    let FileWrites::Whole(files) = to.data().writes() else {
        return Err(StoreError::Unsupported("several shards").into());
    };
    let mut records = vec![];
    let mut place = |view: &SegmentView, at: Option<Segment>| records.extend(division.segment(view.id, *shard, at));
    let (name, record) = if portion.goes_as_it_is() {
        match portion.len > WHOLE_BYTES_MAX {
            true => stream(division, from, to, &files, portion).await?,
            false => {
                let bytes = from.read(file, 0..portion.len).await.map_err(|error| lost(portion, error))?;
                let mut check = PassingCheck::new(portion);
                check.take(&bytes)?;
                files.put(file, vec![bytes]).await?;
            }
        }
        segments.iter().for_each(|view| place(view, None));
        (file.clone(), division.file(file))
    } else {
        let lane = division.lane(file).unwrap_or(Lane { job: None, scope: StateScope::Shared, of: LaneOf::All });
        let name = PhysicalFileId::new(lane.job.as_ref(), to.epoch(), entropy.ulid());
        let created = segments.iter().map(|view| view.created).min().unwrap_or(Millis(0));
        let writes = FileWrites::Whole(files);
        let mut writer = FileWriter::create(&writes, name.clone(), &lane, Readers::OnceClosed, created).await?;
        for run in runs(&segments) {
            for (view, data) in read(from, run).await? {
                let at = writer.push(view.id, &view.about, data, &view.crc);
                place(view, Some(at));
            }
        }
        let len = writer.push_end();
        writer.sync().await?;
        writer.finish().await?;
        let record = division.new_file(file, &name, len);
        (name, record)
    };
    // Before its segments: of a portion that is written in pieces, a segment without a file is never there.
    records.splice(0..0, record);
    let bytes = segments.iter().map(|view| view.location.len()).sum();
    Ok(Some(CopiedPortion { shard: *shard, file: name, records, segments: segments.len() as u64, bytes }))
}

/// Copies a large file as it is, part by part.
async fn stream(
    division: &Division<'_>,
    from: &DataStore,
    to: &Filling,
    files: &ObjectFiles,
    portion: &FilePortion,
) -> Result<(), RefillError> {
    let FilePortion { file, len, .. } = portion;
    let mut upload = files.begin(file).await?;
    // Before its first part: whoever goes on after a crash gives it up.
    let coming = division.coming_file(file, upload.id());
    let sent = async {
        to.write(coming.into_iter().collect()).await?;
        let part = PART_BYTES.max(len.div_ceil(PARTS_MAX));
        let mut check = PassingCheck::new(portion);
        let mut at = 0;
        while at < *len {
            let end = (at + part).min(*len);
            let bytes = from.read(file, at..end).await.map_err(|error| lost(portion, error))?;
            check.take(&bytes)?;
            upload.part(vec![bytes]).await?;
            at = end;
        }
        Ok(upload.complete().await?)
    };
    let sent: Result<(), RefillError> = sent.await;
    if sent.is_err() {
        upload.abort().await;
    }
    sent
}

/// That a file, or its end, is missing says that what lives in it is lost.
fn lost(portion: &FilePortion, error: StoreError) -> RefillError {
    match (&error, portion.segments.first()) {
        (StoreError::NotFound(_) | StoreError::Short { .. }, Some(view)) => damaged(view),
        _ => error.into(),
    }
}

fn damaged(view: &SegmentView) -> RefillError {
    let place = view.location.file().map_or_else(|| "the catalog".to_owned(), ToString::to_string);
    RefillError::Damaged { segment: view.id, place }
}

/// Checks the segments of a file as its bytes pass, in order.
struct PassingCheck<'a> {
    left: std::slice::Iter<'a, SegmentView>,
    current: Option<(&'a SegmentView, Segment)>,
    hasher: SegmentHasher,
    at: u64,
}

impl<'a> PassingCheck<'a> {
    fn new(portion: &'a FilePortion) -> Self {
        let mut check = Self { left: portion.segments.iter(), current: None, hasher: SegmentHasher::default(), at: 0 };
        check.next();
        check
    }

    fn next(&mut self) {
        self.hasher = SegmentHasher::default();
        self.current = self.left.next().and_then(|view| Some((view, view.location.segment()?.clone())));
    }

    /// The next bytes of the file.
    fn take(&mut self, bytes: &Bytes) -> Result<(), RefillError> {
        let end = self.at + bytes.len() as u64;
        while let Some((view, place)) = &self.current
            && place.offset < end
        {
            let (from, to) = (place.offset.max(self.at), place.end().min(end));
            self.hasher.update(&bytes.slice(index(from - self.at)..index(to - self.at)));
            if place.end() > end {
                break;
            }
            let hasher = std::mem::take(&mut self.hasher);
            if hasher.finish().whole != view.crc.whole {
                return Err(damaged(view));
            }
            self.next();
        }
        self.at = end;
        Ok(())
    }
}

/// An offset within bytes that are in memory.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("it is within bytes in memory")
}

/// Neighbours that are read at once.
fn runs(segments: &[SegmentView]) -> impl Iterator<Item = &[SegmentView]> {
    let end_of = |view: &SegmentView| view.location.segment().map_or(0, Segment::end);
    let begin_of = |view: &SegmentView| view.location.segment().map_or(0, |place| place.offset);
    let mut rest = segments;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let mut count = 1;
        while let Some(next) = rest.get(count) {
            let far = begin_of(next).saturating_sub(end_of(&rest[count - 1])) > GAP_BYTES_MAX;
            if far || end_of(next) - begin_of(first) > SPAN_BYTES_MAX {
                break;
            }
            count += 1;
        }
        let (run, later) = rest.split_at(count);
        rest = later;
        Some(run)
    })
}

/// The segments of a run, with their bytes, which are right.
async fn read<'a>(from: &DataStore, run: &'a [SegmentView]) -> Result<Vec<(&'a SegmentView, Bytes)>, RefillError> {
    let places: Vec<(&SegmentView, &Segment)> =
        run.iter().filter_map(|view| Some((view, view.location.segment()?))).collect();
    let (Some((first, begin)), Some((_, end))) = (places.first().copied(), places.last()) else { return Ok(vec![]) };
    let bytes = match from.read(&begin.file, begin.offset..end.end()).await {
        Err(StoreError::NotFound(_) | StoreError::Short { .. }) => return Err(damaged(first)),
        read => read?,
    };
    let mut found = vec![];
    for (view, place) in places {
        let from = index(place.offset - begin.offset);
        let data = bytes.slice(from..from + index(place.len));
        if crc32c(&data) != view.crc.whole {
            return Err(damaged(view));
        }
        found.push((view, data));
    }
    Ok(found)
}
