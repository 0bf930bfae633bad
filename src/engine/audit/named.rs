//! Everything that any `_metadata` names, while jobs go on and take each other's checkpoints over.
//!
//! A file is needed as long as a `_metadata` names it; and which one does changes: a job completes its next checkpoint and deletes the one
//! before, or claims that of another job; people move folders. At each moment one that names it is there. But a listing takes time, and
//! may pass where the next one will be before it is there, and come to the last one when that is gone.
//!
//! So each `_metadata` is read as soon as it is listed, and everything is listed again until a pass finds none in a folder in which none
//! had been read before, and misses none. What was named in a folder before that pass is then known: what an older checkpoint
//! of a job does not name, a later one names only if it is younger, or comes from a folder that is new. And a folder
//! whose first `_metadata` comes later takes over what stands in another one, which names it still when the pass begins.
//!
//! What is named by one of a pass is kept, though that one be gone by the next.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::BoxFuture;
use futures::stream::TryStreamExt;
use futures::{FutureExt, StreamExt};

use super::arriving::is_of_others;
use super::look::Unreadable;
use super::orphans::{Ended, Judge, KEY_BYTES, OrphanReport};
use crate::engine::arrivals::is_metadata;
use crate::engine::elsewhere::ShardBytes;
use crate::engine::{Engine, EngineError, Listed, aside};
use crate::flink::{Place, place_of, places_meant, read_metadata};
use crate::model::{FlinkKey, Millis};

/// Passes after which it ends: folders come, or checkpoints go, faster than they are read.
const PASSES_MAX: usize = 12;

/// What was read by now.
#[derive(Debug, Default)]
struct ReadByNow {
    /// Each `_metadata`, by bucket and key: when it was put, and its entity tag.
    read: BTreeMap<(String, String), (Millis, String)>,
    /// Buckets and folders in which one was read in an earlier pass.
    folders: BTreeSet<(String, String)>,
    /// The same, in this one, and not in those before.
    new_folders: BTreeSet<(String, String)>,
    /// Buckets and folders in which one was listed in this pass, and gone before it was read.
    missed: BTreeSet<(String, String)>,
}

impl ReadByNow {
    /// Whether something may be named that is not known, once a pass is over; the next one begins.
    fn may_have_missed(&mut self) -> bool {
        let missed = std::mem::take(&mut self.missed).iter().any(|folder| !self.folders.contains(folder));
        let new = !self.new_folders.is_empty();
        self.folders.append(&mut self.new_folders);
        missed || new
    }
}

/// Whether a `_metadata` was there to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WasThere {
    Yes,
    No,
}

/// A `_metadata` that is there, in whichever shard.
struct StoredMetadata<'a> {
    modified: Millis,
    len: u64,
    reading: BoxFuture<'a, Result<ShardBytes, EngineError>>,
}

impl Engine {
    async fn stored_metadata<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
    ) -> Result<Option<StoredMetadata<'a>>, EngineError> {
        let Some(shards) = &self.shards else {
            let Some(object) = self.object_there(bucket, key).await? else { return Ok(None) };
            let (modified, len) = (object.head().modified, object.head().len);
            let reading = async move {
                let bytes = self.read_object(&object, 0..len).await?;
                Ok(bytes.map_err(EngineError::from).boxed())
            };
            return Ok(Some(StoredMetadata { modified, len, reading: reading.boxed() }));
        };
        let shard = self.shard.routing().of_key(bucket, key);
        let Some(head) = shards.head(shard, bucket, key).await? else { return Ok(None) };
        let (modified, len) = (head.modified, head.len);
        let reading = async move { shards.read(shard, bucket, key, &head).await };
        Ok(Some(StoredMetadata { modified, len, reading: reading.boxed() }))
    }
}

impl Judge {
    /// Sees every object of every bucket, and reads every `_metadata`, as often as it takes to know of all that is named.
    pub(super) async fn read_all_metadata(&mut self) -> Result<(), Ended> {
        let mut by_now = ReadByNow::default();
        for _ in 0..PASSES_MAX {
            for bucket in self.engine.buckets_to_look_at(None)? {
                for shard in self.shards() {
                    self.read_metadata_of(shard, &bucket, &mut by_now).await?;
                }
            }
            if !by_now.may_have_missed() {
                return Ok(());
            }
        }
        Err(EngineError::NamesChange(PASSES_MAX).into())
    }

    async fn read_metadata_of(&mut self, shard: u32, bucket: &str, by_now: &mut ReadByNow) -> Result<(), Ended> {
        let mut after = Some(String::new());
        while let Some(from) = after {
            let (entries, next) = self.page(shard, bucket, "", &from).await?;
            let mut found = vec![];
            for entry in entries {
                let Listed::Object { key, modified, etag, .. } = entry else { continue };
                self.survey.see(bucket, &key, modified);
                if is_metadata(&key) {
                    found.push((key, (modified, etag)));
                }
            }
            // Before the next page: the longer one is waited for, the likelier it is gone.
            for (key, version) in found {
                self.read_once(bucket, key, version, by_now).await?;
            }
            self.pay().await?;
            after = next;
        }
        Ok(())
    }

    async fn read_once(
        &mut self,
        bucket: &str,
        key: String,
        version: (Millis, String),
        by_now: &mut ReadByNow,
    ) -> Result<(), Ended> {
        let folder = (bucket.to_owned(), folder_of(&key).to_owned());
        let at = (bucket.to_owned(), key);
        if by_now.read.get(&at) == Some(&version) {
            return Ok(());
        }
        if self.read(bucket, &at.1).await? == WasThere::No {
            by_now.missed.insert(folder);
            return Ok(());
        }
        let texts = bucket.len() + at.1.len() + version.1.len() + folder.0.len() + folder.1.len();
        self.remembered_bytes += 2 * KEY_BYTES + texts as u64;
        by_now.read.insert(at, version);
        if !by_now.folders.contains(&folder) {
            by_now.new_folders.insert(folder);
        }
        Ok(())
    }

    /// Reads a `_metadata`, if it is still there. What one that is damaged names up to there is named all the same.
    async fn read(&mut self, bucket: &str, key: &str) -> Result<WasThere, Ended> {
        let engine = self.engine.clone();
        let Some(StoredMetadata { modified, len, reading }) = engine.stored_metadata(bucket, key).await? else {
            return Ok(WasThere::No);
        };
        // Held until its bytes are dropped.
        let turn = engine.audits.turn.lock().await;
        let outcome = match engine.metadata_bytes(len, reading).await? {
            None => return Ok(WasThere::No),
            Some(Err(why)) => Err(why),
            Some(Ok(bytes)) => {
                let mut survey = std::mem::take(&mut self.survey);
                let (at, catalog) = ((bucket.to_owned(), key.to_owned()), engine.catalog.clone());
                let reading = aside("a look at a checkpoint", move || {
                    let read = read_metadata(&bytes.bytes, &mut |named| {
                        for (bucket, key) in places_meant(&at.0, &at.1, &named.path) {
                            survey.name(&bucket, &key);
                        }
                        let is_known = match place_of(&at.0, &at.1, &named.path) {
                            Place::Object { bucket, .. } => catalog.has_bucket(&bucket),
                            Place::Elsewhere(_) => false,
                        };
                        if !is_known {
                            survey.is_elsewhere(&at.0, &at.1);
                        }
                    });
                    (survey, read)
                });
                let (survey, read) = reading.await?;
                self.survey = survey;
                read.map(|_| ()).map_err(Unreadable::from)
            }
        };
        // Before anything is told: whoever listens may be slow, and arriving checkpoints wait for their turn.
        drop(turn);
        self.pay().await?;
        match outcome {
            Err(why) if is_of_others(key, &why) => {}
            outcome => {
                self.survey.complete(bucket, key, modified, outcome.is_ok());
                if let Err(why) = outcome {
                    self.tell(OrphanReport::Unreadable { bucket: bucket.to_owned(), key: key.to_owned(), why }).await?;
                }
            }
        }
        Ok(WasThere::Yes)
    }
}

/// The folder of the job or of the savepoint that a `_metadata` is of; of a copy somewhere else, the folder that it is in.
fn folder_of(key: &str) -> &str {
    let is_in = || key.rsplit_once('/').map_or("", |(folder, _)| folder);
    FlinkKey::of(key).map_or_else(is_in, |flink| flink.folder)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use parking_lot::Mutex;

    use super::*;
    use crate::config::Config;
    use crate::engine::audit::{Judgement, OrphanQuery};
    use crate::engine::elsewhere::Shards;
    use crate::engine::{EngineOptions, ListPage, ListQuery, ObjectToDelete};
    use crate::flink::Kept;
    use crate::model::{ObjectHead, ObjectHeaders, StoreShards};

    /// Names `shared/raw` of the job below, and others.
    const METADATA: &[u8] = include_bytes!("../../../tests/data/flink-metadata/flink-2.3-v4.bin");
    /// Does not.
    const OF_OTHERS: &[u8] = include_bytes!("../../../tests/data/flink-metadata/flink-1.13-v3.bin");
    const OF_A: &str = "flink/0123456789abcdef0123456789abcdef";
    const OF_B: &str = "flink/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    /// What is there changes each time that a `_metadata` of the first job is listed.
    #[derive(Debug)]
    struct Moving {
        /// Keys at each time; the last of them stay.
        times: Vec<Vec<String>>,
        now: Mutex<usize>,
        deleted: Mutex<Vec<String>>,
    }

    impl Moving {
        fn keys(&self) -> Vec<String> {
            self.times[(*self.now.lock()).min(self.times.len() - 1)].clone()
        }
    }

    /// The first shard has the first job, the other one the second.
    fn is_in(shard: u32, key: &str) -> bool {
        (shard == 0) == key.starts_with(OF_B)
    }

    fn bytes_of(key: &str) -> &'static [u8] {
        if key == of_a("chk-9/_metadata") { OF_OTHERS } else { METADATA }
    }

    fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, Result<T, EngineError>> {
        std::future::ready(Ok(value)).boxed()
    }

    impl Shards for Moving {
        fn has_bucket<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<bool, EngineError>> {
            ready(true)
        }

        fn list<'a>(
            &'a self,
            shard: u32,
            bucket: &'a str,
            query: ListQuery<'a>,
        ) -> BoxFuture<'a, Result<ListPage, EngineError>> {
            if bucket != "state" {
                return ready(ListPage { entries: vec![], truncated: false });
            }
            let keys = self.keys();
            let entry = |key: &String| Listed::Object {
                key: key.clone(),
                len: 1,
                etag: String::new(),
                modified: Millis(if key.ends_with("_metadata") { 1000 } else { 1 }),
                class: None,
                checksum: None,
            };
            let mut entries: Vec<_> = keys.iter().filter(|key| is_in(shard, key)).map(entry).collect();
            entries.sort_by(|a, b| a.name().cmp(b.name()));
            entries.retain(|entry| entry.name() > query.after);
            if shard == 0 {
                // The listing has passed here.
                *self.now.lock() += 1;
            }
            ready(ListPage { entries, truncated: false })
        }

        fn lens(&self, _: u32, _: Vec<(String, String)>) -> BoxFuture<'_, Result<Vec<Option<u64>>, EngineError>> {
            ready(vec![])
        }

        fn head<'a>(
            &'a self,
            _: u32,
            _: &'a str,
            key: &'a str,
        ) -> BoxFuture<'a, Result<Option<ObjectHead>, EngineError>> {
            let head = ObjectHead {
                len: bytes_of(key).len() as u64,
                etag: String::new(),
                modified: Millis(1000),
                headers: ObjectHeaders::default(),
                checksum: None,
                part_lens: vec![],
            };
            ready(self.keys().iter().any(|known| known == key).then_some(head))
        }

        fn read<'a>(
            &'a self,
            _: u32,
            _: &'a str,
            key: &'a str,
            _: &'a ObjectHead,
        ) -> BoxFuture<'a, Result<ShardBytes, EngineError>> {
            ready(futures::stream::iter([Ok(Bytes::from_static(bytes_of(key)))]).boxed())
        }

        fn delete<'a>(
            &'a self,
            _: u32,
            _: &'a str,
            objects: Vec<ObjectToDelete>,
        ) -> BoxFuture<'a, Result<Vec<Result<(), EngineError>>, EngineError>> {
            self.deleted.lock().extend(objects.iter().map(|object| object.key.clone()));
            ready(objects.iter().map(|_| Ok(())).collect())
        }
    }

    /// The files of the first job, its checkpoint 9, which names none of them, and these.
    fn keys(names: &[String]) -> Vec<String> {
        let always = ["shared/raw", "shared/left", "chk-9/_metadata"].map(of_a);
        always.iter().chain(names).cloned().collect()
    }

    /// What is told of a store that changes so, and what was deleted of it.
    async fn orphans_of(times: Vec<Vec<String>>) -> (Result<Vec<OrphanReport>, EngineError>, Vec<String>) {
        let flags = [("store.url".to_owned(), "memory:".to_owned())];
        let settings = Config::load_with(None, [], &flags).unwrap().settings().unwrap();
        let running = Engine::open(settings, EngineOptions::default()).await.unwrap();
        let mut engine = running.engine().clone();
        engine.create_bucket("state").await.unwrap();
        let moving = Arc::new(Moving { times, now: Mutex::new(0), deleted: Mutex::default() });
        engine.shard = StoreShards::first(2).shard(0);
        engine.shards = Some(Arc::clone(&moving) as Arc<dyn Shards>);
        let query = OrphanQuery {
            bucket: None,
            prefix: String::new(),
            job: None,
            older_than: Duration::ZERO,
            delete: true,
            risk_running_checkpoints: true,
            kept: true,
        };
        let told = engine.orphans(query).unwrap().try_collect().await;
        let deleted = moving.deleted.lock().clone();
        (told, deleted)
    }

    fn of_a(name: &str) -> String {
        format!("{OF_A}/{name}")
    }

    #[tokio::test]
    async fn a_checkpoint_that_another_job_takes_over_during_the_look_is_named_all_the_time() {
        // The first job names the file no more once the second one does, which completes where the listing has been.
        let before = keys(&[of_a("chk-7/_metadata")]);
        let after = keys(&[format!("{OF_B}/chk-10/_metadata")]);

        let (told, deleted) = orphans_of(vec![before, after]).await;

        let told = told.unwrap();
        let is_kept = told.iter().any(|report| {
            matches!(report, OrphanReport::Object(object)
                if object.key == of_a("shared/raw") && matches!(object.judgement, Judgement::Kept(Kept::Named)))
        });
        assert!(is_kept, "{told:#?}");
        assert!(!deleted.contains(&of_a("shared/raw")), "{deleted:?}");
    }

    #[tokio::test]
    async fn what_nobody_names_is_deleted_while_a_job_goes_on() {
        let times = (10..40).map(|number| keys(&[of_a(&format!("chk-{number}/_metadata"))])).collect();

        let (told, deleted) = orphans_of(times).await;

        let told = told.unwrap();
        assert!(matches!(told.last(), Some(OrphanReport::End { deleted: 1, .. })), "{told:#?}");
        assert_eq!(deleted, [of_a("shared/left")]);
    }

    #[tokio::test]
    async fn it_ends_with_an_error_while_checkpoints_keep_moving_to_other_folders() {
        let moved = |number: u32| keys(&[format!("flink/{number:032x}/chk-1/_metadata")]);
        let times = (0..100).map(moved).collect();

        let (told, deleted) = orphans_of(times).await;

        let error = told.unwrap_err();
        assert!(error.to_string().contains("came and went") && deleted.is_empty(), "{error}");
        assert_eq!(error.kind(), crate::error::ErrorKind::Unavailable);
    }
}
