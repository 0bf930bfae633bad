//! Checkpoint after checkpoint, catch-up after catch-up, and a check of all that lives in the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, ensure};
use futures::TryStreamExt;
use futures::future::{join_all, try_join_all};

use super::instance::Instance;
use super::report::{Above, ReadBack, Reclaimed, RunReport, Samples};
use super::workload::{Checkpoint, Churn, Contents, LivePieces, ModelSegment};
use super::{CHECKPOINT_INTERVAL, ChurnOptions, ChurnSetting};
use crate::catalog::state::SpaceUsage;
use crate::engine::Recount;
use crate::engine::intake::Whole;
use crate::engine::jobs::CheckpointStep;
use crate::engine::space::Round;
use crate::load::workload::job_id;
use crate::metrics::labels::ReclaimedFiles;
use crate::model::{About, CheckpointId, JobId, Label, SegmentCrc, SegmentId, StateScope, SubtaskKey, Writer};
use crate::runtime::Clock;

/// Rounds in a row that may do nothing though there is something to do: writers or the backend seemed to need the
/// bandwidth.
const IDLE_ROUNDS_MAX: usize = 5;

/// Runs one setting.
///
/// # Errors
/// When something cannot be stored, reused or reclaimed, or what was stored is not there in the end.
pub async fn run(
    options: &ChurnOptions,
    setting: ChurnSetting,
    folder: Option<&Path>,
    mut tell: impl FnMut(u64),
) -> anyhow::Result<RunReport> {
    let begun = Clock::instant();
    let mut run = ChurnRun::start(options, setting, folder).await?;
    let mut churn = Churn::new(options.shape, options.seed);
    for _ in 0..options.checkpoints {
        let checkpoint = churn.next_checkpoint();
        tell(checkpoint.number);
        run.step(&checkpoint).await?;
    }
    let verified = run.verify().await?;
    let report = run.report(setting, verified, begun.elapsed());
    run.instance.stop().await?;
    Ok(report)
}

struct ChurnRun {
    instance: Instance,
    job: JobId,
    subtasks: usize,
    retain: u64,
    limit: f64,
    contents: Contents,
    living: LivePieces,
    /// The segments of the catalog, by the numbers of the workload.
    segments: HashMap<u64, SegmentId>,
    between: Samples,
    after: Samples,
    on_storage: Samples,
    waiting_bytes_max: u64,
    above: Above,
    reclaimed: Reclaimed,
}

impl ChurnRun {
    async fn start(options: &ChurnOptions, setting: ChurnSetting, folder: Option<&Path>) -> anyhow::Result<Self> {
        let instance = Instance::start(setting, folder, options.seed).await?;
        let job: JobId = job_id(options.seed, 0).parse()?;
        instance.engine().create_job(&job).await?;
        Ok(Self {
            instance,
            job,
            subtasks: options.shape.subtasks,
            retain: options.retain,
            limit: setting.limit,
            contents: Contents::new(options.seed),
            living: LivePieces::default(),
            segments: HashMap::new(),
            between: Samples::default(),
            after: Samples::default(),
            on_storage: Samples::default(),
            waiting_bytes_max: 0,
            above: Above::default(),
            reclaimed: Reclaimed::default(),
        })
    }

    /// One checkpoint, and what the reclaimer and the deleter do after it.
    async fn step(&mut self, checkpoint: &Checkpoint) -> anyhow::Result<()> {
        let begun = self.instance.elapsed();
        let subsumed = checkpoint.number.saturating_sub(self.retain);
        self.take(checkpoint, subsumed).await?;
        let between = self.space();
        // The checkpoint came just after the reclaimer had looked.
        self.instance.pass(self.instance.engine().settings().reclaim.interval);
        self.catch_up().await?;
        self.instance.engine().delete_now().await?;
        let after = self.space();
        self.waiting_bytes_max = self.waiting_bytes_max.max(after.forgotten_bytes);
        if subsumed > 0 {
            self.between.push(reclaimable(&between));
            self.after.push(reclaimable(&after));
            self.on_storage.push(after.amplification());
            if reclaimable(&between) > self.limit {
                self.above.add(self.instance.elapsed() - begun);
            }
        }
        self.instance.pass((begun + CHECKPOINT_INTERVAL).saturating_sub(self.instance.elapsed()));
        Ok(())
    }

    fn space(&self) -> SpaceUsage {
        self.instance.engine().space_usage()
    }

    /// Stores and completes a checkpoint, and subsumes those up to `subsumed`, as the native API is told to.
    async fn take(&mut self, checkpoint: &Checkpoint, subsumed: u64) -> anyhow::Result<()> {
        let engine = self.instance.engine();
        let id = CheckpointId(checkpoint.number);
        let mut kept: BTreeMap<usize, Vec<SegmentId>> = BTreeMap::new();
        for piece in &checkpoint.kept {
            kept.entry(piece.subtask).or_default().extend(self.segments.get(&piece.number));
        }
        for refused in try_join_all(kept.into_values().map(|ids| engine.reuse(&self.job, id, ids, None))).await? {
            ensure!(refused.is_empty(), "{} segments may not be reused", refused.len());
        }
        let mut stores = vec![];
        for piece in &checkpoint.written {
            let about = self.about(piece, id)?;
            let data = self.contents.of(piece);
            stores.push(engine.store(about, None, None, Whole { crc: SegmentCrc::of(&data), data, paid: None }));
        }
        // All are in their groups before the first group goes.
        for (piece, stored) in checkpoint.written.iter().zip(join_all(stores).await) {
            self.segments.insert(piece.number, stored?.id);
        }
        engine.step(&self.job, id, CheckpointStep::Complete).await?;
        if subsumed > 0 {
            engine.step(&self.job, CheckpointId(subsumed), CheckpointStep::Subsume).await?;
        }
        // Files that are closed get their ends.
        engine.tasks().wait().await;
        self.living.take(checkpoint, subsumed);
        let living: BTreeSet<u64> = self.living.pieces().map(|piece| piece.number).collect();
        self.segments.retain(|number, _| living.contains(number));
        Ok(())
    }

    fn about(&self, piece: &ModelSegment, checkpoint: CheckpointId) -> anyhow::Result<About> {
        let subtask = SubtaskKey {
            operator: Label::parse("operator", "churn")?,
            index: u32::try_from(piece.subtask)?,
            parallelism: u32::try_from(self.subtasks)?,
        };
        Ok(About {
            job: self.job.clone(),
            scope: StateScope::Shared,
            writer: Writer { subtask: Some(subtask), task_manager: None },
            checkpoint: Some(checkpoint),
            name: None,
        })
    }

    /// Reclaims until there is nothing to do. What is copied takes its virtual time.
    async fn catch_up(&mut self) -> anyhow::Result<()> {
        let begun = Clock::instant();
        let mut idle = 0;
        while idle < IDLE_ROUNDS_MAX {
            let before = stored(&self.space());
            let engine = self.instance.engine();
            let round = engine.reclaim_now().await?;
            let done = engine.reclaim_plan().await?.is_empty();
            engine.tasks().wait().await;
            let did_nothing = Round { jobs_above: 0, ..round } == Round::default();
            if did_nothing && done {
                break;
            }
            idle = if did_nothing { idle + 1 } else { 0 };
            self.reclaimed.add(&round, before.saturating_sub(stored(&self.space())));
            let seconds = round.read_bytes as f64 / self.instance.copied_bytes_per_second as f64;
            self.instance.pass(Duration::from_secs_f64(seconds));
        }
        self.reclaimed.real_seconds += begun.elapsed().as_secs_f64();
        Ok(())
    }

    /// After the last grace: everything that lives can be read, the catalog adds up, and storage has its files and no others.
    async fn verify(&mut self) -> anyhow::Result<ReadBack> {
        let engine = self.instance.engine();
        self.instance.pass(engine.settings().reclaim.delete_grace + CHECKPOINT_INTERVAL);
        engine.delete_now().await?;
        let Recount { segments: known, faults, .. } = engine.recount().await?;
        ensure!(faults.is_empty(), "the catalog does not add up: {faults:?}");
        let mut bytes = 0;
        for piece in self.living.pieces() {
            bytes += self.read(piece).await?;
        }
        let segments = self.living.pieces().count();
        let space = self.space();
        ensure!(known == segments, "{known} segments are in the catalog, {segments} live");
        ensure!(space.live_bytes == bytes, "{} bytes live in the catalog, {bytes} do", space.live_bytes);
        let files = engine.files().into_iter();
        let expected: BTreeMap<String, u64> = files.map(|file| (file.id.to_string(), file.state.len())).collect();
        let listed: BTreeMap<String, u64> = engine.list_store().await?.into_iter().collect();
        ensure!(listed == expected, "storage has {} files, the catalog {}, or others", listed.len(), expected.len());
        ensure!(space.forgotten_bytes == 0, "{} bytes are not deleted", space.forgotten_bytes);
        Ok(ReadBack { segments: segments as u64, bytes, files: listed.len() as u64 })
    }

    /// Reads a segment whole and compares it.
    async fn read(&self, piece: &ModelSegment) -> anyhow::Result<u64> {
        let id = self.segments.get(&piece.number).copied();
        let Some(id) = id else { bail!("segment {} of subtask {} is gone", piece.number, piece.subtask) };
        let stream = self.instance.engine().read_segment(id, 0..piece.len).await?;
        let blocks: Vec<bytes::Bytes> = stream.try_collect().await?;
        let data = blocks.concat();
        ensure!(data == self.contents.of(piece), "segment {} has other bytes than were stored", piece.number);
        Ok(data.len() as u64)
    }

    fn report(&self, setting: ChurnSetting, verified: ReadBack, real: Duration) -> RunReport {
        let files = |how| self.instance.engine().metrics().reclaim_files.of(how).get();
        RunReport {
            name: setting.name(),
            limit: setting.limit,
            amplification_after: self.after.spread(),
            amplification_between: self.between.spread(),
            amplification_on_storage: self.on_storage.spread(),
            above: self.above,
            checkpoints: self.after.len(),
            reclaimed: self.reclaimed,
            files_died_whole: files(ReclaimedFiles::DiedWhole),
            files_rewritten: files(ReclaimedFiles::Rewritten),
            files_created: self.instance.engine().metrics().files_created.get(),
            waiting_bytes_max: self.waiting_bytes_max,
            verified,
            real_seconds: real.as_secs_f64(),
        }
    }
}

/// The amplification that reclaiming can do something about: without what only waits to be deleted.
fn reclaimable(space: &SpaceUsage) -> f64 {
    stored(space) as f64 / space.live_bytes as f64
}

/// Bytes that are stored, but for what only waits to be deleted.
fn stored(space: &SpaceUsage) -> u64 {
    space.physical_bytes - space.forgotten_bytes + space.inline_bytes
}
