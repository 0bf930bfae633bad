//! Copying what lives in files with too much dead in them, and packing what is small, into new files of the same lane.
//!
//! A new file is named in the catalog first, then written, then one commit moves all segments that are still where they
//! were read. So no crash leaves a file that nobody names, and a segment that is freed meanwhile stays freed.
//!
//! A few new files are written at a time. [`Rewriting::next_event`] waits for one of them and changes nothing;
//! [`Rewriting::apply`] decides what that means for the others, without waiting.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use super::{ReclaimError, Reclaimer, Round};
use crate::catalog::command::{Command, Move, Moved, Outcome, StoreFile};
use crate::catalog::state::SegmentView;
use crate::merge::lane::LaneKey;
use crate::merge::{FileWriter, MergeError, WriteContext};
use crate::metrics::labels::{ReclaimedBytes, ReclaimedFiles};
use crate::model::{FileState, Holder, PhysicalFileId, Segment, SegmentId, StateScope, crc32c};
use crate::runtime::{Clock, Lease, PaidBytes};
use crate::store::{Readers, StoreError};

/// Dead bytes between two segments that are read along, to save a request.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Bytes read at once, unless one segment is larger.
const SPAN_BYTES_MAX: u64 = 8 << 20;
/// Bytes of segments inside the catalog that are copied between two pauses: each pause takes a millisecond at least, however
/// little it is for.
const INLINE_BYTES_AT_ONCE: u64 = 256 << 10;
/// Number of inline segments that are read at the same time.
const INLINE_READS_AT_ONCE: usize = 32;
/// New files that are written at a time: most of it is waiting for commits and puts.
const OUTPUTS_AT_ONCE: usize = 4;
/// Segments of one new file: their moves are one commit.
const OUTPUT_SEGMENTS_MAX: usize = 10_000;
/// Inline segments of one round: what is known of each is in memory.
const INLINE_SEGMENTS_MAX: usize = 65_536;
/// Inline segments stay in the catalog at least so long, unless there are too many bytes of them.
const INLINE_AGE: Duration = Duration::from_secs(600);
/// Interval at which the catalog is searched for them.
const INLINE_LOOK: Duration = Duration::from_secs(60);
/// Bytes of old inline segments of one lane that are worth a file.
const INLINE_GROUP_BYTES_MIN: u64 = 256 << 10;

/// Segments for one new file.
struct Output {
    /// Drawn before anything runs, so that names do not depend on what is faster.
    ulid: u128,
    key: LaneKey,
    segments: Vec<SegmentView>,
    /// Leases on the files that they are in.
    leases: Vec<Arc<Lease>>,
}

/// The bytes that one new file took.
#[derive(Default)]
struct RewrittenFile {
    read_bytes: u64,
    written_bytes: u64,
}

/// The new files of one round: those that wait, and those that are on their way.
struct Rewriting {
    context: WriteContext,
    waiting: std::vec::IntoIter<Output>,
    running: FuturesUnordered<BoxFuture<'static, RewriteEvent>>,
    /// Looks at the store that are among what runs.
    looks: usize,
    written: RewrittenFile,
    /// Damage in the store itself that was found and has not been told yet.
    damaged: Vec<Damage>,
    failed: Option<ReclaimError>,
}

/// A segment that has other bytes than were written.
struct Damage {
    segment: SegmentId,
    file: PhysicalFileId,
}

/// The events that a round waits for.
enum RewriteEvent {
    /// A new file was written and its segments were moved, or not.
    Written(Result<RewrittenFile, ReclaimError>),
    /// After wrong bytes: whether this is the store that they should have come from.
    Looked(Damage, Result<(), StoreError>),
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
            // What is found stays until it is copied.
            let found = self.parts.catalog.find_files(files, &reading);
            leases.extend(found.leases);
            found.segments
        };
        let copied = self.parts.catalog.files_among(&plan.copy);
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
        let inline = self.old_inline_segments().await;
        all.extend(outputs(&self.parts, inline));
        for output in &mut all {
            output.keep(&leases);
        }
        // Each file is kept for those outputs alone that need it.
        drop(leases);
        let mut rewriting = Rewriting::new(self.parts.clone(), all);
        loop {
            while rewriting.may_begin() && !stop.is_cancelled() && !self.pressure.is_high() && rewriting.begin() {}
            // None only when nothing runs, so what was begun is seen through: it is not written in vain.
            let Some(event) = rewriting.next_event().await else { break };
            rewriting.apply(event);
            for Damage { segment, file } in rewriting.damaged.drain(..) {
                self.parts.metrics.corrupt_reads.inc();
                self.leave_alone(&file.clone(), &ReclaimError::Corrupt { segment, file });
            }
        }
        let Rewriting { written, failed, .. } = rewriting;
        round.read_bytes += written.read_bytes;
        round.written_bytes += written.written_bytes;
        let mut moved_away = self.parts.catalog.files_among(&victims);
        moved_away.retain(|view| matches!(view.state, FileState::Forgotten { .. }));
        round.rewritten += moved_away.len();
        round.freed_bytes += moved_away.iter().map(|view| view.occupied).sum::<u64>();
        let moved_away: HashSet<PhysicalFileId> = moved_away.into_iter().map(|view| view.id).collect();
        for before in copied.iter().filter(|before| moved_away.contains(&before.id)) {
            round.copied_file_bytes += before.occupied;
            round.copied_live_bytes += before.live_bytes;
        }
        self.parts.metrics.reclaim_files.of(ReclaimedFiles::Rewritten).inc_by(round.rewritten as u64);
        failed.map_or(Ok(()), Err)
    }

    /// Segments inside the catalog that have lived so long that a file is the better place for them, as many as one round takes.
    async fn old_inline_segments(&mut self) -> Vec<SegmentView> {
        let settings = &self.parts.settings;
        let ages = self.parts.catalog.clock().ages();
        let inline = self.parts.catalog.space().inline_bytes;
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
            let young = ages.of(view.created) < INLINE_AGE;
            let about_to_die = view.about.scope == StateScope::Exclusive && view.about.checkpoint.is_some();
            !young || crowded && !about_to_die
        };
        let key = |view: &SegmentView| ripe(view).then(|| key_of(&self.parts, view));
        let groups = self.parts.catalog.inline_by(key).await;
        let worth_a_file = groups.into_values().filter(|group| crowded || group.bytes >= INLINE_GROUP_BYTES_MIN);
        let mut picked: Vec<SegmentId> = worth_a_file.flat_map(|group| group.segments).collect();
        if picked.len() > INLINE_SEGMENTS_MAX {
            picked.truncate(INLINE_SEGMENTS_MAX);
            // The next round goes on.
            self.looked_inline = None;
        }
        self.parts.catalog.segments(picked)
    }
}

impl Rewriting {
    fn new(context: WriteContext, outputs: Vec<Output>) -> Self {
        Self {
            context,
            waiting: outputs.into_iter(),
            running: FuturesUnordered::new(),
            looks: 0,
            written: RewrittenFile::default(),
            damaged: vec![],
            failed: None,
        }
    }

    /// Whether one more may be begun. Not while it is not known whether the store is there: what is begun would meet the same.
    fn may_begin(&self) -> bool {
        self.running.len() < OUTPUTS_AT_ONCE && self.looks == 0 && self.failed.is_none()
    }

    /// Begins the next one. False if none waits.
    fn begin(&mut self) -> bool {
        let Some(output) = self.waiting.next() else { return false };
        self.running.push(write(self.context.clone(), output).map(RewriteEvent::Written).boxed());
        true
    }

    /// Waits for the next thing to happen; `None` when nothing runs. Cancel safe.
    async fn next_event(&mut self) -> Option<RewriteEvent> {
        self.running.next().await
    }

    fn apply(&mut self, event: RewriteEvent) {
        match event {
            RewriteEvent::Written(Ok(RewrittenFile { read_bytes, written_bytes })) => {
                self.written.read_bytes += read_bytes;
                self.written.written_bytes += written_bytes;
            }
            RewriteEvent::Written(Err(ReclaimError::Corrupt { segment, file })) => self.look(Damage { segment, file }),
            RewriteEvent::Written(Err(error)) => self.fail(error),
            RewriteEvent::Looked(damage, there) => {
                self.looks -= 1;
                match there {
                    Ok(()) => self.damaged.push(damage),
                    // Whatever was read, it was not of this store.
                    Err(error) => self.fail(error.into()),
                }
            }
        }
    }

    fn look(&mut self, damage: Damage) {
        self.looks += 1;
        let store = self.context.store.clone();
        self.running.push(async move { RewriteEvent::Looked(damage, store.look().await) }.boxed());
    }

    /// The first failure is the one that is told.
    fn fail(&mut self, error: ReclaimError) {
        self.failed.get_or_insert(error);
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
async fn write(context: WriteContext, output: Output) -> Result<RewrittenFile, ReclaimError> {
    let file = context.file_id(&output.key.lane, output.ulid);
    // Before it is there: no crash leaves a file that nobody names.
    context.name_file(&file, &output.key.lane, None).await?;
    context.metrics.files_created.inc();
    let mut written = RewrittenFile::default();
    let (segments, len) = match copy(&context, &file, &output, &mut written).await {
        Ok(copied) => copied,
        Err(error) => {
            // It holds nothing, so it is deleted like any file that nobody needs.
            context.catalog.execute(Command::CloseFile(file, 0)).await?;
            return Err(error);
        }
    };
    let file = StoreFile { id: file, lane: output.key.lane, len, closes: true, upload: None };
    // A twin that was shut out of a store that is not ours alone may still look up the old places.
    let private = context.store.capabilities().exclusive;
    // Not before the bytes are durable: from this commit on they are read there, and the old ones may go.
    let moved = context.catalog.execute(Command::Move(Move { file, segments, private })).await?;
    if let Outcome::Moved(_, bytes) = moved {
        written.written_bytes = bytes;
        context.metrics.reclaim_bytes.of(ReclaimedBytes::Written).inc_by(bytes);
    }
    Ok(written)
}

/// Cuts segments into new files: each of one lane, of at most the largest size of a file, and of as many subtasks as may
/// share one.
fn outputs(context: &WriteContext, segments: Vec<SegmentView>) -> Vec<Output> {
    let merging = &context.settings.merging;
    // Half of the memory for bodies is left to writers, and a file of an object store is held whole.
    let bytes_max = merging.file_bytes_max.min(context.budget.total() / 2 / OUTPUTS_AT_ONCE as u64).max(1);
    let mut by_lane: BTreeMap<LaneKey, Vec<SegmentView>> = BTreeMap::new();
    segments.into_iter().for_each(|view| by_lane.entry(key_of(context, &view)).or_default().push(view));
    let mut outputs = vec![];
    for (key, segments) in by_lane {
        let mut current: Vec<SegmentView> = vec![];
        let mut bytes = 0;
        let mut subtasks = BTreeSet::new();
        for view in segments {
            let len = view.location.len();
            let subtask = view.about.writer.subtask.clone();
            let crowded = subtask
                .as_ref()
                .is_some_and(|subtask| subtasks.len() >= merging.subtasks_per_file_max && !subtasks.contains(subtask));
            let full = bytes + len > bytes_max || current.len() >= OUTPUT_SEGMENTS_MAX;
            if !current.is_empty() && (full || crowded) {
                outputs.push(Output {
                    ulid: context.entropy.ulid(),
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
        outputs.push(Output { ulid: context.entropy.ulid(), key, segments: current, leases: vec![] });
    }
    outputs
}

/// Whose segments a survivor may share a file with: those of its lane, from whatever checkpoint, but a savepoint stays by
/// itself.
fn key_of(context: &WriteContext, view: &SegmentView) -> LaneKey {
    match view.holder {
        Holder::Savepoint { .. } => LaneKey::of_savepoint(&view.about),
        _ => LaneKey { checkpoint: None, ..LaneKey::of(&view.about, &context.settings.merging) },
    }
}

/// Writes the file and makes it durable. Returns what was copied where, and the file's length.
async fn copy(
    context: &WriteContext,
    id: &PhysicalFileId,
    output: &Output,
    done: &mut RewrittenFile,
) -> Result<(Vec<Moved>, u64), ReclaimError> {
    let Output { key, segments, .. } = output;
    // An object store takes the file whole, and what lives of it is in memory until then.
    let _paid = match context.store.capabilities().appends {
        true => None,
        false => Some(pay(context, live_bytes(segments)).await?),
    };
    let now = context.catalog.now();
    let mut file = FileWriter::create(&context.store.writes(), id.clone(), &key.lane, Readers::OnceClosed, now).await?;
    let mut moved = vec![];
    for run in runs(segments) {
        let span = place_of_run(run).map_or_else(|| live_bytes(run), |place| place.len);
        // On an object store what lives is paid for already; what is read along goes at once.
        let paid = pay(context, span).await?;
        for (view, data) in read(context, run, done).await? {
            let to = file.push(view.id, &view.about, data, &view.crc);
            moved.push(Moved { id: view.id, from: view.location.clone(), to });
        }
        file.write().await?;
        // The bytes are with the store, or paid for as what lives: not held while this copy slows itself down.
        drop(paid);
        let rate = context.settings.reclaim.copied_bytes_per_second_max.max(1);
        let slowed = (span * OUTPUTS_AT_ONCE as u64) as f64 / rate as f64;
        tokio::time::sleep(Duration::from_secs_f64(slowed)).await;
    }
    let len = file.push_end();
    // The last step before the move is committed, and with it the right to delete the old bytes.
    file.sync().await?;
    file.finish().await?;
    Ok((moved, len))
}

async fn pay(context: &WriteContext, bytes: u64) -> Result<PaidBytes, ReclaimError> {
    let paid = context.budget.pay(bytes, context.settings.limits.admission_timeout).await;
    Ok(paid.map_err(MergeError::from)?)
}

/// Neighbours that are read at once, or segments inside the catalog that are.
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
        } else {
            let mut bytes = 0;
            let fits = |view: &&SegmentView| {
                bytes += view.location.len();
                place_of(view).is_none() && bytes <= INLINE_BYTES_AT_ONCE
            };
            count = rest.iter().take_while(fits).count().max(1);
        }
        let (run, later) = rest.split_at(count);
        rest = later;
        Some(run)
    })
}

fn place_of(view: &SegmentView) -> Option<&Segment> {
    view.location.segment()
}

/// The part of a file that is read for a run; `None` for segments inside the catalog.
fn place_of_run(run: &[SegmentView]) -> Option<Segment> {
    let (first, last) = (place_of(run.first()?)?, place_of(run.last()?)?);
    Some(Segment { file: first.file.clone(), offset: first.offset, len: last.end() - first.offset })
}

fn live_bytes(run: &[SegmentView]) -> u64 {
    run.iter().map(|view| view.location.len()).sum()
}

/// The segments of a run with their checked bytes; one inside the catalog that was freed meanwhile is left out.
async fn read<'a>(
    context: &WriteContext,
    run: &'a [SegmentView],
    done: &mut RewrittenFile,
) -> Result<Vec<(&'a SegmentView, Bytes)>, ReclaimError> {
    let mut found = vec![];
    let Some(place) = place_of_run(run) else {
        for views in run.chunks(INLINE_READS_AT_ONCE) {
            let reads = views.iter().map(|view| context.catalog.inline_data(view.id));
            let read = futures::future::try_join_all(reads).await?;
            found.extend(views.iter().zip(read).filter_map(|(view, data)| Some((view, data?))));
        }
        return Ok(found);
    };
    let mut bytes = match context.store.read(&place.file, place.offset..place.end()).await {
        // What was looked up under a lease is there, or lost: the store itself is there.
        Err(StoreError::NotFound(_) | StoreError::Short { .. }) => {
            return Err(ReclaimError::Corrupt { segment: run[0].id, file: place.file });
        }
        read => read?,
    };
    let mut damaged = wrong(run, &place, &bytes);
    if damaged.is_some() && context.store.distrust(&place.file) {
        // The local copy may be damaged: once more, from the store itself.
        bytes = context.store.read(&place.file, place.offset..place.end()).await?;
        damaged = wrong(run, &place, &bytes);
    }
    if let Some(segment) = damaged {
        // Wrong bytes of the store are not kept.
        context.store.distrust(&place.file);
        return Err(ReclaimError::Corrupt { segment, file: place.file });
    }
    done.read_bytes += bytes.len() as u64;
    context.metrics.reclaim_bytes.of(ReclaimedBytes::Read).inc_by(bytes.len() as u64);
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
    cut(run, span, bytes).find(|(view, data)| crc32c(data) != view.crc.whole).map(|(view, _)| view.id)
}

#[cfg(test)]
mod tests;
