//! Objects of Flink's jobs that no checkpoint names: found, and deleted if that is asked for.
//!
//! First every `_metadata` of every bucket is read ([`super::named`]), because a job may name files of another one; then the objects are
//! judged ([`crate::flink::survey`]) and told one by one. Whoever listens sets the pace; when nobody does any more, it ends.
//!
//! In a store of several shards the objects of all of them are looked at, through their owners. One that does not answer ends the
//! look with an error; what was to be deleted until then was named by no shard.
//!
//! What is remembered of names is paid for from the memory for reads as it grows, up to a share of it. Beyond that, or while
//! others have that memory, the look ends with an error: nothing was deleted then.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use futures::stream::{self, Stream};
use tokio::sync::mpsc;

use super::look::Unreadable;
use super::retained::is_of_job;
use crate::engine::{Engine, EngineError, ListQuery, Listed, ObjectToDelete};
use crate::flink::{Kept, Orphan, OrphanVerdict, Survey};
use crate::model::{FlinkKey, Millis};
use crate::runtime::{Failure, PaidBytes};

/// Keys that are listed and judged at a time, well below a millisecond.
const KEYS_AT_ONCE: usize = 200;
/// What may wait for whoever listens.
const TOLD_MAX: usize = 256;

/// Of the memory for reads, names take at most one part of so many.
const NAMES_SHARE: u64 = 4;
/// Bytes of memory that are paid for at a time.
const PAID_AT_ONCE: u64 = 1 << 20;
/// What a key takes that is remembered, beside its text.
pub(super) const KEY_BYTES: u64 = 64;
/// What a job takes, beside the name of its folder.
const JOB_BYTES: u64 = 512;

/// Younger orphans are deleted only for whoever takes the risk: files of a checkpoint in progress may look like them, and this
/// is how long Flink lets one take unless it is told otherwise.
const DELETED_AGE_MIN: Duration = Duration::from_secs(600);

/// The objects that are asked for.
#[derive(Debug, Clone)]
pub struct OrphanQuery {
    /// Only those in this bucket.
    pub bucket: Option<String>,
    /// Only those whose keys begin so.
    pub prefix: String,
    /// Only those of this job: Flink's id, or bucket and folder.
    pub job: Option<String>,
    /// Orphans are at least so old.
    pub older_than: Duration,
    /// Whether they are deleted.
    pub delete: bool,
    /// Whether they are so even if they are younger than [`DELETED_AGE_MIN`].
    pub risk_running_checkpoints: bool,
    /// Whether objects that are kept are told one by one, too.
    pub kept: bool,
}

/// What is told.
#[derive(Debug, Clone)]
pub enum OrphanReport {
    /// An object.
    Object(JudgedObject),
    /// A `_metadata` that cannot be read, and why.
    Unreadable {
        /// Its bucket.
        bucket: String,
        /// Its key.
        key: String,
        /// Why.
        why: Unreadable,
    },
    /// A job, after all its objects.
    Job(JobTally),
    /// The end: nothing follows.
    End {
        /// Objects of Flink's jobs that were looked at.
        objects: u64,
        /// Orphans among them.
        orphans: u64,
        /// Their bytes.
        orphan_bytes: u64,
        /// Those that were deleted.
        deleted: u64,
        /// Objects that no layout of Flink's fits.
        others: u64,
    },
}

/// An object that was judged.
#[derive(Debug, Clone)]
pub struct JudgedObject {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// Number of bytes.
    pub len: u64,
    /// When it was put.
    pub modified: Millis,
    /// The judgement.
    pub judgement: Judgement,
}

/// What is thought of an object, and done with it.
#[derive(Debug, Clone)]
pub enum Judgement {
    /// It is kept.
    Kept(Kept),
    /// It is an orphan, and stays.
    Orphan(Orphan),
    /// It was one, and is deleted.
    Deleted(Orphan),
    /// It was to be deleted, and was not: it is another by now.
    NotDeleted(Orphan, String),
}

/// The objects of a job.
#[derive(Debug, Clone, Default)]
pub struct JobTally {
    /// The bucket.
    pub bucket: String,
    /// The folder of the job, or of the savepoint.
    pub folder: String,
    /// Its objects, and their bytes.
    pub objects: ObjectCount,
    /// Orphans among them.
    pub orphans: ObjectCount,
    /// Of these, those that were deleted.
    pub deleted: ObjectCount,
    /// Those that are kept, by why.
    pub kept: BTreeMap<Kept, ObjectCount>,
}

/// A number of objects, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObjectCount {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl ObjectCount {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// Nobody listens any more, or storage does not answer.
pub(super) enum Ended {
    Unheard,
    Failed(EngineError),
}

impl From<EngineError> for Ended {
    fn from(error: EngineError) -> Self {
        Self::Failed(error)
    }
}

impl Engine {
    /// Judges objects, deletes orphans if that is asked for, and tells of them. Ends with [`OrphanReport::End`], or an error.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if there is no such bucket; [`EngineError::TooYoung`] if objects are to be deleted that may be
    /// needed yet; [`EngineError::OneOfSeveral`] if nobody tells what is named in other shards.
    pub fn orphans(
        &self,
        query: OrphanQuery,
    ) -> Result<impl Stream<Item = Result<OrphanReport, EngineError>> + Send + use<>, EngineError> {
        if query.delete && query.older_than < DELETED_AGE_MIN && !query.risk_running_checkpoints {
            return Err(EngineError::TooYoung(DELETED_AGE_MIN));
        }
        if !self.shard.is_whole() && self.shards.is_none() {
            return Err(EngineError::OneOfSeveral(self.shard));
        }
        let buckets = self.buckets_to_look_at(query.bucket.as_deref())?;
        let (tell, told) = mpsc::channel(TOLD_MAX);
        let judge = Judge {
            engine: self.clone(),
            query,
            tell: tell.clone(),
            survey: Survey::default(),
            jobs: BTreeMap::new(),
            others: 0,
            remembered_bytes: 0,
            paid: None,
        };
        self.tasks().spawn("orphans", Failure::FailsItsWork, async move {
            let engine = judge.engine.clone();
            // One at a time: each remembers all that is named.
            let _turn = engine.audits.survey.lock().await;
            match judge.run(buckets).await {
                Ok(()) | Err(Ended::Unheard) => (),
                // Unheard, too, if this fails.
                Err(Ended::Failed(error)) => drop(tell.send(Err(error)).await),
            }
        });
        Ok(stream::unfold(told, |mut told| async move { told.recv().await.map(|report| (report, told)) }))
    }
}

/// Whoever looks, and what is known by now.
pub(super) struct Judge {
    pub(super) engine: Engine,
    query: OrphanQuery,
    tell: mpsc::Sender<Result<OrphanReport, EngineError>>,
    pub(super) survey: Survey,
    jobs: BTreeMap<(String, String), JobTally>,
    others: u64,
    /// Bytes of names in memory, beside those of the survey.
    pub(super) remembered_bytes: u64,
    paid: Option<PaidBytes>,
}

impl Judge {
    async fn run(mut self, buckets: Vec<String>) -> Result<(), Ended> {
        self.read_all_metadata().await?;
        for bucket in buckets {
            self.judge_bucket(&bucket).await?;
        }
        let mut sum = JobTally::default();
        for tally in std::mem::take(&mut self.jobs).into_values() {
            for (of, count) in [
                (&mut sum.objects, tally.objects),
                (&mut sum.orphans, tally.orphans),
                (&mut sum.deleted, tally.deleted),
            ] {
                of.objects += count.objects;
                of.bytes += count.bytes;
            }
            self.tell(OrphanReport::Job(tally)).await?;
        }
        let JobTally { objects, orphans, deleted, .. } = sum;
        self.tell(OrphanReport::End {
            objects: objects.objects,
            orphans: orphans.objects,
            orphan_bytes: orphans.bytes,
            deleted: deleted.objects,
            others: self.others,
        })
        .await
    }

    pub(super) async fn tell(&self, report: OrphanReport) -> Result<(), Ended> {
        self.tell.send(Ok(report)).await.map_err(|_| Ended::Unheard)
    }

    /// The shards whose objects are looked at: all.
    pub(super) fn shards(&self) -> Range<u32> {
        0..self.engine.shard.of
    }

    /// Pays for what is remembered by now.
    pub(super) async fn pay(&mut self) -> Result<(), Ended> {
        let budget = &self.engine.budgets.reads;
        let (needed, max) = (self.survey.bytes() + self.remembered_bytes, budget.total() / NAMES_SHARE);
        if needed > max {
            return Err(EngineError::TooManyNames(max).into());
        }
        while self.paid.as_ref().map_or(0, PaidBytes::len) < needed {
            let patience = self.engine.settings.limits.admission_timeout;
            let more = budget.pay(PAID_AT_ONCE, patience).await.map_err(EngineError::from)?;
            match &mut self.paid {
                Some(paid) => paid.merge(more),
                paid => *paid = Some(more),
            }
        }
        Ok(())
    }

    /// Some objects, and the key after which there are more. Whoever listens no more is noticed here.
    pub(super) async fn page(
        &self,
        shard: u32,
        bucket: &str,
        prefix: &str,
        after: &str,
    ) -> Result<(Vec<Listed>, Option<String>), Ended> {
        if self.tell.is_closed() {
            return Err(Ended::Unheard);
        }
        if self.engine.stopping().is_cancelled() {
            return Err(EngineError::ShuttingDown.into());
        }
        let listing = ListQuery { prefix, delimiter: "", after, max: KEYS_AT_ONCE };
        let page = match &self.engine.shards {
            None => self.engine.list(bucket, &listing).await?,
            Some(shards) => shards.list(shard, bucket, listing).await?,
        };
        let next = page.entries.last().filter(|_| page.truncated).map(|last| last.name().to_owned());
        Ok((page.entries, next))
    }

    async fn judge_bucket(&mut self, bucket: &str) -> Result<(), Ended> {
        let prefix = self.query.prefix.clone();
        for shard in self.shards() {
            let mut after = Some(String::new());
            while let Some(from) = after {
                let (entries, next) = self.page(shard, bucket, &prefix, &from).await?;
                let (told, doomed) = self.judge_page(bucket, entries);
                for object in told {
                    self.tell(OrphanReport::Object(object)).await?;
                }
                if self.query.delete {
                    self.delete(shard, bucket, doomed).await?;
                }
                self.pay().await?;
                after = next;
            }
        }
        Ok(())
    }

    /// What is told of these objects now, and the orphans that are to be deleted, with their entity tags.
    fn judge_page(
        &mut self,
        bucket: &str,
        entries: Vec<Listed>,
    ) -> (Vec<JudgedObject>, Vec<(JudgedObject, Orphan, String)>) {
        let (mut told, mut doomed) = (vec![], vec![]);
        let (now, older_than) = (self.engine.now(), self.query.older_than);
        for entry in entries {
            let Listed::Object { key, len, etag, modified, .. } = entry else { continue };
            let verdict = self.survey.judge(bucket, &key, modified, older_than, now);
            let (Some(verdict), Some(folder)) = (verdict, FlinkKey::of(&key).map(|flink| flink.folder.to_owned()))
            else {
                self.others += 1;
                continue;
            };
            if !is_of_job(bucket, &folder, self.query.job.as_deref()) {
                continue;
            }
            let tally = self.tally(bucket, folder);
            tally.objects.add(len);
            let object = |judgement| JudgedObject { bucket: bucket.to_owned(), key, len, modified, judgement };
            match verdict {
                OrphanVerdict::Orphan(why) => {
                    tally.orphans.add(len);
                    let object = object(Judgement::Orphan(why));
                    if self.query.delete { doomed.push((object, why, etag)) } else { told.push(object) }
                }
                OrphanVerdict::Kept(why) => {
                    tally.kept.entry(why).or_default().add(len);
                    if self.query.kept {
                        told.push(object(Judgement::Kept(why)));
                    }
                }
            }
        }
        (told, doomed)
    }

    fn tally(&mut self, bucket: &str, folder: String) -> &mut JobTally {
        let key = (bucket.to_owned(), folder);
        let remembered = &mut self.remembered_bytes;
        self.jobs.entry(key).or_insert_with_key(|(bucket, folder)| {
            *remembered += JOB_BYTES + 2 * (bucket.len() + folder.len()) as u64;
            JobTally { bucket: bucket.clone(), folder: folder.clone(), ..JobTally::default() }
        })
    }

    /// Deletes orphans that are still the objects that were judged.
    async fn delete(
        &mut self,
        shard: u32,
        bucket: &str,
        doomed: Vec<(JudgedObject, Orphan, String)>,
    ) -> Result<(), Ended> {
        if doomed.is_empty() {
            return Ok(());
        }
        let objects = doomed.iter().map(|(object, _, etag)| ObjectToDelete {
            key: object.key.clone(),
            if_match: Some(etag.clone()),
            if_put_at: Some(object.modified),
        });
        let answers: Vec<Result<(), String>> = match &self.engine.shards {
            None => {
                let answers = self.engine.delete_objects(bucket, objects.collect()).await?.into_iter();
                answers.map(|answer| answer.map_err(|refusal| refusal.to_string())).collect()
            }
            Some(shards) => {
                let answers = shards.delete(shard, bucket, objects.collect()).await?.into_iter();
                answers.map(|answer| answer.map_err(|error| error.to_string())).collect()
            }
        };
        for ((object, why, _), answer) in doomed.into_iter().zip(answers) {
            let judgement = match answer {
                Ok(()) => {
                    let folder = FlinkKey::of(&object.key).map(|flink| flink.folder.to_owned()).unwrap_or_default();
                    self.tally(bucket, folder).deleted.add(object.len);
                    Judgement::Deleted(why)
                }
                Err(refusal) => Judgement::NotDeleted(why, refusal),
            };
            self.tell(OrphanReport::Object(JudgedObject { judgement, ..object })).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog::command::{Bind, Condition, ObjectContent, PutObject};
    use crate::config::Config;
    use crate::engine::elsewhere::{ShardBytes, Shards};
    use crate::engine::{EngineOptions, ListPage, Running};
    use crate::error::ErrorKind;
    use crate::model::{ObjectHead, ObjectHeaders, StoreShards};
    use futures::future::BoxFuture;
    use futures::{FutureExt, StreamExt};

    async fn engine() -> Running {
        let flags = [("store.url", "memory:"), ("limits.admission-timeout", "100ms")];
        let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let settings = Config::load_with(None, [], &flags).unwrap().settings().unwrap();
        let running = Engine::open(settings, EngineOptions::default()).await.unwrap();
        running.engine().create_bucket("b").await.unwrap();
        running
    }

    /// An object without bytes.
    async fn put(engine: &Engine, key: &str) {
        let head = ObjectHead {
            len: 0,
            etag: String::new(),
            modified: Millis(1),
            headers: ObjectHeaders::default(),
            checksum: None,
            part_lens: vec![],
        };
        let content = ObjectContent::Segments { segments: vec![], head, upload: None };
        let put = PutObject { bucket: "b".into(), key: key.into(), condition: Condition::None, content };
        engine.store_without_bytes(Bind::Object(Box::new(put))).await.unwrap();
    }

    fn all() -> OrphanQuery {
        OrphanQuery {
            bucket: None,
            prefix: String::new(),
            job: None,
            older_than: Duration::ZERO,
            delete: false,
            risk_running_checkpoints: false,
            kept: false,
        }
    }

    async fn first(engine: &Engine) -> Result<OrphanReport, EngineError> {
        Box::pin(engine.orphans(all()).unwrap()).next().await.unwrap()
    }

    #[tokio::test]
    async fn what_is_remembered_is_paid_for_and_waits_for_nobody_for_ever() {
        let running = engine().await;
        let engine = running.engine();
        put(engine, "d/0123456789abcdef0123456789abcdef/chk-1/_metadata").await;
        assert!(first(engine).await.is_ok());
        let (reads, patience) = (&engine.budgets.reads, Duration::from_secs(20));
        let others = reads.pay(reads.total() - PAID_AT_ONCE / 2, patience).await.unwrap();

        let refused = first(engine).await.unwrap_err();

        assert!(matches!(refused, EngineError::Memory(_)) && refused.kind() == ErrorKind::Overloaded, "{refused}");
        drop(others);
        assert!(first(engine).await.is_ok());
        assert!(reads.pay(reads.total(), patience).await.is_ok(), "all of it is given back");
    }

    #[tokio::test]
    async fn names_that_take_too_much_memory_end_the_look_with_what_to_do() {
        let running = engine().await;
        let (tell, _told) = mpsc::channel(1);
        let mut judge = Judge {
            engine: running.engine().clone(),
            query: all(),
            tell,
            survey: Survey::default(),
            jobs: BTreeMap::new(),
            others: 0,
            remembered_bytes: running.engine().budgets.reads.total() / NAMES_SHARE,
            paid: None,
        };
        assert!(judge.pay().await.is_ok());
        assert_eq!(judge.paid.as_ref().map(|paid| paid.len() >= judge.remembered_bytes), Some(true));

        judge.tally("b", "d/0123456789abcdef0123456789abcdef".to_owned());
        let Err(Ended::Failed(error)) = judge.pay().await else { panic!("it was paid for") };

        assert!(error.to_string().contains("raise limits.memory"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Overloaded);
    }

    /// Two shards, of which one has a file that nothing names there, and the other one does not give its `_metadata`.
    #[derive(Debug)]
    struct OneIsSilent;

    fn silent<T: Send + 'static>() -> BoxFuture<'static, Result<T, EngineError>> {
        let error = EngineError::Elsewhere { kind: ErrorKind::Unavailable, message: "shard 1 is silent".into() };
        std::future::ready(Err(error)).boxed()
    }

    impl Shards for OneIsSilent {
        fn has_bucket<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<bool, EngineError>> {
            std::future::ready(Ok(true)).boxed()
        }

        fn list<'a>(
            &'a self,
            shard: u32,
            _: &'a str,
            _: ListQuery<'a>,
        ) -> BoxFuture<'a, Result<ListPage, EngineError>> {
            let names: &[&str] = match shard {
                0 => &["chk-9/_metadata", "shared/left"],
                _ => &["savepoint-0a1b2c-0123456789ab/_metadata"],
            };
            let entry = |name: &&str| Listed::Object {
                key: format!("d/0123456789abcdef0123456789abcdef/{name}"),
                len: 1,
                etag: String::new(),
                modified: Millis(1),
                class: None,
                checksum: None,
            };
            let page = ListPage { entries: names.iter().map(entry).collect(), truncated: false };
            std::future::ready(Ok(page)).boxed()
        }

        fn lens(&self, _: u32, _: Vec<(String, String)>) -> BoxFuture<'_, Result<Vec<Option<u64>>, EngineError>> {
            silent()
        }

        fn head<'a>(
            &'a self,
            _: u32,
            _: &'a str,
            key: &'a str,
        ) -> BoxFuture<'a, Result<Option<ObjectHead>, EngineError>> {
            if key.contains("savepoint") { silent() } else { std::future::ready(Ok(None)).boxed() }
        }

        fn read<'a>(
            &'a self,
            _: u32,
            _: &'a str,
            _: &'a str,
            _: &'a ObjectHead,
        ) -> BoxFuture<'a, Result<ShardBytes, EngineError>> {
            silent()
        }

        fn delete<'a>(
            &'a self,
            _: u32,
            _: &'a str,
            objects: Vec<ObjectToDelete>,
        ) -> BoxFuture<'a, Result<Vec<Result<(), EngineError>>, EngineError>> {
            panic!("{objects:?} may be named where nobody has answered")
        }
    }

    #[tokio::test]
    async fn nothing_is_told_or_deleted_before_all_shards_have_said_what_they_name() {
        let running = engine().await;
        let mut engine = running.engine().clone();
        engine.shard = StoreShards::first(2).shard(0);
        engine.shards = Some(Arc::new(OneIsSilent));
        let asked = OrphanQuery { delete: true, risk_running_checkpoints: true, ..all() };

        let told: Vec<_> = engine.orphans(asked.clone()).unwrap().collect().await;
        engine.shards = None;
        let alone = engine.orphans(asked).err().map(|error| error.to_string());

        assert!(alone.as_ref().is_some_and(|why| why.contains("shard 0 of 2 alone")), "{alone:?}");
        let [Err(error)] = &told[..] else { panic!("{told:?}") };
        assert!(error.to_string().contains("shard 1 is silent"), "{error}");
    }

    #[tokio::test]
    async fn young_orphans_are_deleted_only_at_the_risk_of_whoever_asks() {
        let running = engine().await;
        let asked = |older_than, risk_running_checkpoints| {
            let query = OrphanQuery { delete: true, older_than, risk_running_checkpoints, ..all() };
            running.engine().orphans(query).err().map(|error| error.to_string())
        };

        let refused = asked(DELETED_AGE_MIN - Duration::from_millis(1), false).unwrap();
        assert!(refused.contains("at least 10m") && refused.contains("--risk-running-checkpoints"), "{refused}");
        assert_eq!(asked(DELETED_AGE_MIN, false), None);
        assert_eq!(asked(Duration::ZERO, true), None);
    }
}
