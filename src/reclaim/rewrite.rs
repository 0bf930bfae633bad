//! Copying what lives in files with too much dead in them, and packing what is small, into new files of the same lane.
//!
//! A new file is named in the catalog first, then written, then one commit moves all segments that are still where they
//! were read. So no crash leaves a file that nobody names, and a segment that is freed meanwhile stays freed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use super::{ReclaimError, Reclaimer, Round};
use crate::catalog::command::{Command, Move, Moved, Outcome, StoreFile};
use crate::catalog::record::{FileState, Holder, SegmentRecord};
use crate::catalog::state::{FileView, SegmentView};
use crate::merge::format::{self, FRAME_BYTES, HEADER_BYTES};
use crate::merge::lane::LaneKey;
use crate::merge::{MergeError, MergerParts, entry_of_record, header_of, name_file};
use crate::model::{PhysicalFileId, Segment, SegmentId, StateScope, crc32c};
use crate::runtime::{Clock, Lease, PaidBytes};
use crate::store::{DataStore, LocalFile, StoreError};

/// Dead bytes between two segments that are read along, to save a request.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Bytes read at once, unless one segment is larger.
const SPAN_BYTES_MAX: u64 = 8 << 20;
/// New files that are written at a time: most of it is waiting for commits and puts.
const OUTPUTS_AT_ONCE: usize = 4;
/// Segments of one new file: their moves are one commit.
const OUTPUT_SEGMENTS_MAX: usize = 10_000;
/// Inline segments stay in the catalog at least so long, unless there are too many bytes of them.
const INLINE_AGE: Duration = Duration::from_secs(600);
/// How often the catalog is searched for them.
const INLINE_LOOK: Duration = Duration::from_secs(60);
/// So many bytes of old inline segments of one lane are worth a file.
const INLINE_GROUP_BYTES_MIN: u64 = 256 << 10;

/// Segments for one new file.
struct Output {
    /// Drawn before anything runs, so that names do not depend on what is faster.
    ulid: u128,
    key: LaneKey,
    segments: Vec<SegmentView>,
    /// Of the files that they are in.
    leases: Vec<Arc<Lease>>,
}

/// What one new file took.
#[derive(Default)]
struct Written {
    read_bytes: u64,
    written_bytes: u64,
}

/// Where the bytes of an output go.
enum Sink {
    Local(LocalFile),
    /// Collected, because an object store takes a file whole.
    Object(Vec<Bytes>),
}

impl Reclaimer {
    pub(super) async fn rewrite(
        &mut self,
        plan: &Plan,
        stop: &CancellationToken,
        round: &mut Round,
    ) -> Result<(), ReclaimError> {
        let reading = self.leases.begin_own();
        let mut leases: HashMap<PhysicalFileId, Arc<Lease>> = HashMap::new();
        let mut segments_of = |files: &[PhysicalFileId]| -> Vec<SegmentView> {
            let state = self.parts.catalog.view();
            // Under the same lock, so that what is found stays until it is copied.
            leases.extend(files.iter().map(|file| (file.clone(), Arc::new(reading.lease(file)))));
            files.iter().flat_map(|file| state.segments_in(file)).collect()
        };
        let copied: Vec<FileView> = {
            let state = self.parts.catalog.view();
            plan.copy.iter().filter_map(|file| state.file(file)).collect()
        };
        let mut all = outputs(&self.parts, segments_of(&plan.copy));
        let mut victims = plan.copy.clone();
        for files in &plan.pack {
            let packed = outputs(&self.parts, segments_of(files));
            // Subtasks and memory may cut more finely than the plan knows: what makes no fewer files is not worth it.
            if packed.len() * 2 <= files.len() {
                victims.extend(files.iter().cloned());
                all.extend(packed);
            }
        }
        let inline = self.old_inline_segments();
        all.extend(outputs(&self.parts, inline));
        for output in &mut all {
            output.keep(&leases);
        }
        // Each file is kept for those outputs alone that need it.
        drop(leases);
        let mut waiting = all.into_iter();
        let mut failed = None;
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < OUTPUTS_AT_ONCE
                && !stop.is_cancelled()
                && failed.is_none()
                && !self.pressure.is_high()
                && let Some(output) = waiting.next()
            {
                running.push(write(self.parts.clone(), output));
            }
            match running.next().await {
                None => break,
                Some(Ok(written)) => {
                    round.read_bytes += written.read_bytes;
                    round.written_bytes += written.written_bytes;
                }
                Some(Err(ReclaimError::Corrupt { segment, file })) => match self.parts.store.look().await {
                    Ok(()) => {
                        self.parts.metrics.corrupt_reads.inc();
                        self.leave_alone(&file.clone(), &ReclaimError::Corrupt { segment, file });
                    }
                    // Whatever was read, it was not of this store.
                    Err(error) => failed = failed.or(Some(error.into())),
                },
                // What is running is seen through: it is not written in vain.
                Some(Err(error)) => failed = failed.or(Some(error)),
            }
        }
        let state = self.parts.catalog.view();
        let moved_away =
            |file: &PhysicalFileId| state.file(file).filter(|view| matches!(view.state, FileState::Forgotten { .. }));
        for view in victims.iter().filter_map(moved_away) {
            round.rewritten += 1;
            round.freed_bytes += view.occupied;
        }
        for before in copied.iter().filter(|before| moved_away(&before.id).is_some()) {
            round.copied_file_bytes += before.occupied;
            round.copied_live_bytes += before.live_bytes;
        }
        self.parts.metrics.reclaim_files.with_label_values(&["rewritten"]).inc_by(round.rewritten as u64);
        failed.map_or(Ok(()), Err)
    }

    /// Segments inside the catalog that have lived so long that a file is the better place for them.
    fn old_inline_segments(&mut self) -> Vec<SegmentView> {
        let settings = &self.parts.settings;
        let ages = self.parts.catalog.clock().ages();
        let state = self.parts.catalog.view();
        let inline = state.space().inline_bytes;
        if inline < INLINE_GROUP_BYTES_MIN {
            return vec![];
        }
        let crowded = inline > settings.catalog.inline_bytes_max / 2;
        // Every look goes over all segments.
        if !crowded && self.looked_inline.is_some_and(|looked| looked.elapsed() < INLINE_LOOK) {
            return vec![];
        }
        self.looked_inline = Some(Clock::instant());
        let ripe = |view: &SegmentView| {
            let young = ages.of(view.record.created) < INLINE_AGE;
            let about_to_die = view.record.scope == StateScope::Exclusive && view.record.checkpoint.is_some();
            !young || crowded && !about_to_die
        };
        let old = state.inline_segments().filter(ripe);
        let mut groups: BTreeMap<LaneKey, Vec<SegmentView>> = BTreeMap::new();
        old.for_each(|view| groups.entry(key_of(&self.parts, &view.record)).or_default().push(view));
        drop(state);
        let worth_a_file = |group: &Vec<SegmentView>| crowded || live_bytes(group) >= INLINE_GROUP_BYTES_MIN;
        groups.into_values().filter(worth_a_file).flatten().collect()
    }
}

impl Output {
    /// Takes a share of the leases on the files that it reads.
    fn keep(&mut self, leases: &HashMap<PhysicalFileId, Arc<Lease>>) {
        let files: BTreeSet<&PhysicalFileId> =
            self.segments.iter().filter_map(place_of).map(|place| &place.file).collect();
        self.leases = files.into_iter().filter_map(|file| leases.get(file).cloned()).collect();
    }
}

/// Writes one new file and moves the segments into it.
async fn write(parts: MergerParts, output: Output) -> Result<Written, ReclaimError> {
    let file = name_file(&parts, &output.key.lane, output.ulid).await?;
    parts.metrics.files_created.inc();
    let mut written = Written::default();
    let (segments, len) = match copy(&parts, &file, &output, &mut written).await {
        Ok(copied) => copied,
        Err(error) => {
            // It holds nothing, so it is deleted like any file that nobody needs.
            parts.catalog.execute(Command::CloseFile(file, 0)).await?;
            return Err(error);
        }
    };
    let file = StoreFile { id: file, lane: output.key.lane, len, closes: true, upload: None };
    // A twin that was shut out of an object store may still look up the old places.
    let private = matches!(parts.store, DataStore::Local(_));
    let moved = parts.catalog.execute(Command::Move(Move { file, segments, private })).await?;
    if let Outcome::Moved(_, bytes) = moved {
        written.written_bytes = bytes;
        parts.metrics.reclaim_bytes.with_label_values(&["written"]).inc_by(bytes);
    }
    Ok(written)
}

/// Cuts segments into new files: each of one lane, of at most the largest size of a file, and of as many subtasks as may
/// share one.
fn outputs(parts: &MergerParts, segments: Vec<SegmentView>) -> Vec<Output> {
    let merging = &parts.settings.merging;
    // Half of the memory for bodies is left to writers, and a file of an object store is held whole.
    let bytes_max = merging.file_bytes_max.min(parts.budget.total() / 2 / OUTPUTS_AT_ONCE as u64).max(1);
    let mut by_lane: BTreeMap<LaneKey, Vec<SegmentView>> = BTreeMap::new();
    segments.into_iter().for_each(|view| by_lane.entry(key_of(parts, &view.record)).or_default().push(view));
    let mut outputs = vec![];
    for (key, segments) in by_lane {
        let mut current: Vec<SegmentView> = vec![];
        let mut bytes = 0;
        let mut subtasks = BTreeSet::new();
        for view in segments {
            let len = view.record.location.len();
            let subtask = view.record.writer.subtask.clone();
            let crowded = subtask
                .as_ref()
                .is_some_and(|subtask| subtasks.len() >= merging.subtasks_per_file_max && !subtasks.contains(subtask));
            let full = bytes + len > bytes_max || current.len() >= OUTPUT_SEGMENTS_MAX;
            if !current.is_empty() && (full || crowded) {
                outputs.push(Output {
                    ulid: parts.entropy.ulid(),
                    key: key.clone(),
                    segments: std::mem::take(&mut current),
                    leases: vec![],
                });
                (bytes, subtasks) = (0, BTreeSet::new());
            }
            bytes += len;
            subtasks.extend(subtask);
            current.push(view);
        }
        outputs.push(Output { ulid: parts.entropy.ulid(), key, segments: current, leases: vec![] });
    }
    outputs
}

/// Whose segments a survivor may share a file with: those of its lane, from whatever checkpoint, but a savepoint stays by
/// itself.
fn key_of(parts: &MergerParts, record: &SegmentRecord) -> LaneKey {
    let about = record.about();
    match record.holder {
        Holder::Savepoint { .. } => LaneKey::of_savepoint(&about),
        _ => LaneKey { checkpoint: None, ..LaneKey::of(&about, &parts.settings.merging) },
    }
}

/// Writes the file and makes it durable. Returns what was copied where, and the file's length.
async fn copy(
    parts: &MergerParts,
    file: &PhysicalFileId,
    output: &Output,
    done: &mut Written,
) -> Result<(Vec<Moved>, u64), ReclaimError> {
    let Output { ulid, segments, .. } = output;
    let header = header_of(parts, *ulid);
    let (mut sink, _paid) = match &parts.store {
        DataStore::Local(store) => {
            let mut file = store.create(file).await?;
            file.append_unsynced(vec![header]).await?;
            (Sink::Local(file), None)
        }
        DataStore::Object(_) => (Sink::Object(vec![header]), Some(pay(parts, live_bytes(segments)).await?)),
    };
    let (mut at, mut moved, mut entries) = (HEADER_BYTES, vec![], vec![]);
    for run in runs(segments) {
        let span = place_of_run(run).map_or_else(|| live_bytes(run), |place| place.len);
        // On an object store what lives is paid for already; what is read along goes at once.
        let paid = pay(parts, span).await?;
        let mut written = vec![];
        for (view, data) in read(parts, run, done).await? {
            let index = entries.len() as u32;
            written.push(Bytes::copy_from_slice(&format::encode_frame(
                index,
                data.len() as u64,
                view.record.crc.whole,
            )));
            at += FRAME_BYTES;
            let to = Segment { file: file.clone(), offset: at, len: data.len() as u64 };
            entries.push(entry_of_record(view.id, &view.record, &to));
            moved.push(Moved { id: view.id, from: view.record.location.clone(), to });
            at += data.len() as u64;
            written.push(data);
        }
        match &mut sink {
            Sink::Local(file) => drop(file.append_unsynced(written).await?),
            Sink::Object(parts) => parts.append(&mut written),
        }
        drop(paid);
        let rate = parts.settings.reclaim.copied_bytes_per_second_max.max(1);
        let slowed = (span * OUTPUTS_AT_ONCE as u64) as f64 / rate as f64;
        tokio::time::sleep(Duration::from_secs_f64(slowed)).await;
    }
    let end = format::encode_end(&entries, at, *ulid);
    let len = at + end.len() as u64;
    match (sink, &parts.store) {
        (Sink::Local(mut file), _) => drop(file.append(vec![end]).await?),
        (Sink::Object(mut collected), DataStore::Object(store)) => {
            collected.push(end);
            store.put(file, collected).await?;
        }
        (Sink::Object(_), DataStore::Local(_)) => return Err(MergeError::ShuttingDown.into()),
    }
    Ok((moved, len))
}

async fn pay(parts: &MergerParts, bytes: u64) -> Result<PaidBytes, ReclaimError> {
    let paid = parts.budget.pay(bytes, parts.settings.limits.admission_timeout).await;
    Ok(paid.map_err(MergeError::from)?)
}

/// Neighbours that are read at once.
fn runs(segments: &[SegmentView]) -> impl Iterator<Item = &[SegmentView]> {
    let mut rest = segments;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let mut count = 1;
        if let Some(begin) = place_of(first) {
            let mut end = begin.end();
            for next in rest[1..].iter().map_while(place_of) {
                let near = next.file == begin.file && next.offset >= end && next.offset - end <= GAP_BYTES_MAX;
                if !near || next.end() - begin.offset > SPAN_BYTES_MAX {
                    break;
                }
                end = next.end();
                count += 1;
            }
        }
        let (run, later) = rest.split_at(count);
        rest = later;
        Some(run)
    })
}

fn place_of(view: &SegmentView) -> Option<&Segment> {
    view.record.location.segment()
}

/// The part of a file that is read for a run; none for segments inside the catalog.
fn place_of_run(run: &[SegmentView]) -> Option<Segment> {
    let (first, last) = (place_of(run.first()?)?, place_of(run.last()?)?);
    Some(Segment { file: first.file.clone(), offset: first.offset, len: last.end() - first.offset })
}

fn live_bytes(run: &[SegmentView]) -> u64 {
    run.iter().map(|view| view.record.location.len()).sum()
}

/// The segments of a run with their checked bytes; one inside the catalog that was freed meanwhile is left out.
async fn read<'a>(
    parts: &MergerParts,
    run: &'a [SegmentView],
    done: &mut Written,
) -> Result<Vec<(&'a SegmentView, Bytes)>, ReclaimError> {
    let mut found = vec![];
    let Some(place) = place_of_run(run) else {
        for view in run {
            found.extend(parts.catalog.inline_data(view.id).await?.map(|data| (view, data)));
        }
        return Ok(found);
    };
    let mut bytes = match parts.store.read(&place.file, place.offset..place.end()).await {
        // What was looked up under a lease is there, or lost: the store itself is there.
        Err(StoreError::NotFound(_) | StoreError::Short { .. }) => {
            return Err(ReclaimError::Corrupt { segment: run[0].id, file: place.file });
        }
        read => read?,
    };
    let mut damaged = wrong(run, &place, &bytes);
    if damaged.is_some() && parts.store.distrust(&place.file) {
        // The local copy may be damaged: once more, from the store itself.
        bytes = parts.store.read(&place.file, place.offset..place.end()).await?;
        damaged = wrong(run, &place, &bytes);
    }
    if let Some(segment) = damaged {
        // Wrong bytes of the store are not kept.
        parts.store.distrust(&place.file);
        return Err(ReclaimError::Corrupt { segment, file: place.file });
    }
    done.read_bytes += bytes.len() as u64;
    parts.metrics.reclaim_bytes.with_label_values(&["read"]).inc_by(bytes.len() as u64);
    let sparse = bytes.len() as u64 > 2 * live_bytes(run);
    // Copied out of what nobody wants, which goes.
    let kept = |data: Bytes| if sparse { Bytes::copy_from_slice(&data) } else { data };
    found.extend(cut(run, &place, &bytes).map(|(view, data)| (view, kept(data))));
    Ok(found)
}

/// The segments of a run, whose bytes are those of `span`.
fn cut<'a>(run: &'a [SegmentView], span: &Segment, bytes: &Bytes) -> impl Iterator<Item = (&'a SegmentView, Bytes)> {
    run.iter().filter_map(move |view| {
        let place = place_of(view)?;
        let from = usize::try_from(place.offset - span.offset).ok()?;
        Some((view, bytes.slice(from..from + usize::try_from(place.len).ok()?)))
    })
}

/// The first segment of a run whose bytes are not what was written.
fn wrong(run: &[SegmentView], span: &Segment, bytes: &Bytes) -> Option<SegmentId> {
    cut(run, span, bytes).find(|(view, data)| crc32c(data) != view.record.crc.whole).map(|(view, _)| view.id)
}
