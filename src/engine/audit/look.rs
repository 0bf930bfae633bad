//! One `_metadata`: what it names, and what of that is there, in whichever shard.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};

use crate::catalog::Catalog;
use crate::engine::elsewhere::Shards;
use crate::engine::{Engine, EngineError, ObjectView, aside};
use crate::error::ErrorKind;
use crate::flink::{MetadataError, MetadataSummary, NamedPath, NamedState, Place, decoded, place_of, read_metadata};
use crate::model::{FlinkKey, FlinkPlace, Millis, ShardOf};
use crate::runtime::PaidBytes;

/// Larger ones are not read.
const METADATA_BYTES_MAX: u64 = 256 << 20;
/// Memory that it takes to compare one, for each byte of it: the byte, and what is remembered of names of a dozen bytes; with several
/// shards also what is named in others, until they are asked.
const MEMORY_PER_BYTE: u64 = 5;
const MEMORY_PER_BYTE_OF_SHARDS: u64 = 8;
/// Of the memory for reads, at most one part of so many.
const MEMORY_SHARE: u64 = 2;
/// Missing objects that are told of by name.
pub const MISSING_NAMED_MAX: usize = 100;
/// Objects that are listed by name.
pub const NAMED_MAX: usize = 100_000;
/// Objects that are looked up together.
const BATCH: usize = 1024;

/// What a checkpoint needs, and what of that is not there.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// What the file says of itself.
    pub summary: MetadataSummary,
    /// Objects that it names.
    pub objects: u64,
    /// Bytes of state in them, without those in the file itself.
    pub state_bytes: u64,
    /// Files that it names on storage that is not this one.
    pub elsewhere: u64,
    /// One of them.
    pub elsewhere_first: Option<String>,
    /// Objects that are not there, or shorter than what it names of them.
    pub missing: u64,
    /// Of them, those that Flink has merged.
    pub missing_merged: u64,
    /// The first of them.
    pub missing_first: Vec<MissingObject>,
    /// All objects, if they were asked for.
    pub named: Vec<NamedObject>,
    /// The memory that they take, until the last copy of this is dropped.
    pub paid: Option<Arc<PaidBytes>>,
    /// Objects that it names in folders of other jobs than its own, as one does that was copied, or has claimed a checkpoint.
    pub of_others: u64,
    /// Bucket and folder of one of these jobs.
    pub of_others_first: Option<String>,
    /// Bucket, folder and number of the checkpoint whose `_metadata` it is a copy of.
    pub copy_of: Option<String>,
}

/// An object that is needed and not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingObject {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// Bytes that it must have at least.
    pub needed: u64,
    /// Bytes that it has; `None` if it is not there.
    pub len: Option<u64>,
    /// Whether Flink has merged it.
    pub merged: bool,
}

/// A part of an object that is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedObject {
    /// Its bucket; none for a file elsewhere, whose path is the key.
    pub bucket: Option<String>,
    /// Its key.
    pub key: String,
    /// The first byte.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
}

/// Why a `_metadata` cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is none, or damaged.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// It does not fit into memory.
    #[error("has {len} bytes, and {max} are read at most")]
    TooLarge {
        /// Its length.
        len: u64,
        /// The largest that is read.
        max: u64,
    },
    /// Its bytes are damaged on storage.
    #[error("cannot be read: {0}")]
    Corrupt(String),
}

/// One that was looked at.
#[derive(Debug, Clone)]
pub struct LookedAt {
    /// When it was put.
    pub modified: Millis,
    /// Its length.
    pub len: u64,
    /// What it needs.
    pub needs: Result<Needs, Unreadable>,
}

/// Whether the objects are listed by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameList {
    /// All of them.
    Listed,
    /// None, unless it is missing.
    Counted,
}

/// Bytes of a `_metadata`, and what stays paid until they are dropped.
pub(super) struct MetadataBytes {
    pub bytes: Vec<u8>,
    paid: PaidBytes,
}

impl Engine {
    /// Compares the `_metadata` under a key with the objects that are there; `None` if it is gone.
    ///
    /// # Errors
    /// [`EngineError`] if storage does not answer, or there is no memory.
    pub async fn look_at_metadata(
        &self,
        bucket: &str,
        key: &str,
        names: NameList,
    ) -> Result<Option<LookedAt>, EngineError> {
        let Some(object) = self.object_there(bucket, key).await? else { return Ok(None) };
        // Held until its bytes are dropped.
        let _turn = self.audits.turn.lock().await;
        let len = object.head().len;
        let needs = match self.metadata_bytes(len, self.read_object(&object, 0..len)).await? {
            None => return Ok(None),
            Some(Err(why)) => Err(why),
            Some(Ok(bytes)) => {
                let comparison = Comparison::new(self.catalog.clone(), self.shard, (bucket, key), names);
                match aside("a look at a checkpoint", move || comparison.run(bytes)).await? {
                    Ok((mut compared, paid)) => {
                        self.look_elsewhere(&mut compared).await?;
                        Ok(compared.ended(names, paid))
                    }
                    Err(why) => Err(Unreadable::from(why)),
                }
            }
        };
        // Last: whoever discards a checkpoint deletes `_metadata` first.
        let after = self.object_there(bucket, key).await?;
        let head = object.head();
        let same = after.is_some_and(|after| after.head().etag == head.etag && after.head().modified == head.modified);
        Ok(same.then_some(LookedAt { modified: head.modified, len: head.len, needs }))
    }

    /// The object under a key; none either if there is no such bucket.
    pub(super) async fn object_there(&self, bucket: &str, key: &str) -> Result<Option<ObjectView>, EngineError> {
        Ok(self.catalog.object(bucket, key).await?)
    }

    /// Looks up what is named in other shards.
    async fn look_elsewhere(&self, compared: &mut Comparison) -> Result<(), EngineError> {
        let unsettled = std::mem::take(&mut compared.unsettled);
        if unsettled.is_empty() {
            return Ok(());
        }
        let shards = self.shards.as_deref().ok_or(EngineError::OneOfSeveral(self.shard))?;
        let mut buckets: HashMap<String, bool> = HashMap::new();
        let mut unsettled = unsettled.into_iter();
        loop {
            let batch: Vec<Wanted> = unsettled.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let places = batch.iter().map(|wanted| Some((wanted.bucket.clone(), wanted.key.clone())));
            let mut lens = self.lens_of_shards(shards, places.collect()).await?;
            let again = batch.iter().zip(&lens).map(|(wanted, len)| match len {
                Some(_) => None,
                None => Some((wanted.bucket.clone(), decoded(&wanted.key)?)),
            });
            let again = self.lens_of_shards(shards, again.collect()).await?;
            lens.iter_mut().zip(again).for_each(|(len, other)| *len = len.or(other));
            for (wanted, len) in batch.into_iter().zip(lens) {
                let has_bucket = match buckets.get(&wanted.bucket) {
                    _ if len.is_some() => true,
                    Some(known) => *known,
                    None => {
                        let known = shards.has_bucket(&wanted.bucket).await?;
                        buckets.insert(wanted.bucket.clone(), known);
                        known
                    }
                };
                compared.settle(wanted, len, has_bucket);
            }
        }
    }

    /// The lengths of objects, each in its shard; `None` for those that are not there, and for what is no place.
    async fn lens_of_shards(
        &self,
        shards: &dyn Shards,
        places: Vec<Option<(String, String)>>,
    ) -> Result<Vec<Option<u64>>, EngineError> {
        let shard_of = |(bucket, key): &(String, String)| self.shard.routing().of_key(bucket, key);
        let mut by_shard: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (n, place) in places.iter().enumerate() {
            if let Some(place) = place {
                by_shard.entry(shard_of(place)).or_default().push(n);
            }
        }
        let mut lens = vec![None; places.len()];
        for (shard, numbers) in by_shard {
            let objects = numbers.iter().filter_map(|n| places[*n].clone()).collect();
            for (n, len) in numbers.into_iter().zip(shards.lens(shard, objects).await?) {
                lens[n] = len;
            }
        }
        Ok(lens)
    }

    /// The bytes of a `_metadata` of this length, that `reading` brings; `None` if it is gone.
    pub(super) async fn metadata_bytes<E: Into<EngineError>>(
        &self,
        len: u64,
        reading: impl Future<Output = Result<impl Stream<Item = Result<Bytes, E>> + Unpin, EngineError>>,
    ) -> Result<Option<Result<MetadataBytes, Unreadable>>, EngineError> {
        let per_byte = if self.shard.is_whole() { MEMORY_PER_BYTE } else { MEMORY_PER_BYTE_OF_SHARDS };
        let max = METADATA_BYTES_MAX.min(self.budgets.reads.total() / MEMORY_SHARE / per_byte);
        if len > max {
            return Ok(Some(Err(Unreadable::TooLarge { len, max })));
        }
        let patience = self.settings.limits.admission_timeout;
        let paid = self.budgets.reads.pay(len * per_byte, patience).await?;
        let mut bytes = Vec::with_capacity(usize::try_from(len).map_err(|_| EngineError::TooLong(len))?);
        let read = async {
            let mut pieces = reading.await?;
            while let Some(piece) = pieces.next().await {
                bytes.extend_from_slice(&piece.map_err(Into::into)?);
            }
            Ok::<_, EngineError>(())
        };
        match read.await {
            Ok(()) => Ok(Some(Ok(MetadataBytes { bytes, paid }))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                Ok(Some(Err(Unreadable::Corrupt(crate::error::chain(&error)))))
            }
            Err(error) => Err(error),
        }
    }
}

/// A part of a file that is named and not looked up yet.
struct Wanted {
    bucket: String,
    key: String,
    needed: u64,
    merged: bool,
}

/// Compares what is named with the catalog, some at a time.
struct Comparison {
    catalog: Catalog,
    /// The catalog's.
    shard: ShardOf,
    bucket: String,
    key: String,
    names: NameList,
    hash: RandomState,
    /// Hashes of parts of files that were named, and of objects that were counted, and of those that are missing.
    parts: HashSet<u64>,
    objects: HashSet<u64>,
    missing: HashSet<u64>,
    batch: Vec<Wanted>,
    /// What another shard may have.
    unsettled: Vec<Wanted>,
    needs: Needs,
    /// The folder of a job whose own checkpoint it names a file of, and that checkpoint.
    foreign: Option<(String, Option<u64>)>,
}

impl Comparison {
    fn new(catalog: Catalog, shard: ShardOf, (bucket, key): (&str, &str), names: NameList) -> Self {
        Self {
            catalog,
            shard,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            names,
            hash: RandomState::new(),
            parts: HashSet::new(),
            objects: HashSet::new(),
            missing: HashSet::new(),
            batch: vec![],
            unsettled: vec![],
            needs: Needs::default(),
            foreign: None,
        }
    }

    fn run(mut self, metadata: MetadataBytes) -> Result<(Self, PaidBytes), MetadataError> {
        let MetadataBytes { bytes, paid } = metadata;
        let summary = read_metadata(&bytes, &mut |named| self.add(&named))?;
        self.look_up();
        self.needs.copy_of = self.copy_of(summary.checkpoint);
        self.needs.summary = summary;
        Ok((self, paid))
    }

    fn ended(self, names: NameList, paid: PaidBytes) -> Needs {
        let paid = (names == NameList::Listed).then(|| Arc::new(paid));
        Needs { paid, ..self.needs }
    }

    /// The checkpoint whose `_metadata` this is a copy of, if that is certain. Of checkpoint `number` it says that it is.
    ///
    /// A job that has claimed a checkpoint names files of another one's job, too, but it is in `chk-<number>` of its own, and
    /// names no file of `chk-<number>` of another.
    fn copy_of(&self, number: u64) -> Option<String> {
        let own = FlinkKey::of(&self.key);
        let place = own.as_ref().map(|own| own.place);
        let folder = match (&self.foreign, place) {
            (_, Some(FlinkPlace::Checkpoint(at))) if at != number => {
                let own = own.map(|own| format!("{}/{}", self.bucket, own.folder));
                self.foreign.as_ref().map(|(folder, _)| folder.clone()).or(own)?
            }
            (Some((folder, Some(of))), Some(FlinkPlace::Checkpoint(_))) if *of == number => folder.clone(),
            (Some((folder, _)), None | Some(FlinkPlace::Savepoint)) => folder.clone(),
            _ => return None,
        };
        Some(format!("s3://{folder}/chk-{number}"))
    }

    /// Notes an object that is in the folder of another job.
    fn is_of_another(&mut self, bucket: &str, key: &str) {
        let Some(FlinkKey { folder, place, .. }) = FlinkKey::of(key) else { return };
        let is_own = bucket == self.bucket && FlinkKey::of(&self.key).is_some_and(|own| own.folder == folder);
        if is_own || place == FlinkPlace::Savepoint {
            return;
        }
        self.needs.of_others += 1;
        let folder = format!("{bucket}/{folder}");
        self.needs.of_others_first.get_or_insert_with(|| format!("s3://{folder}"));
        let of = if let FlinkPlace::Checkpoint(number) = place { Some(number) } else { None };
        if self.foreign.as_ref().is_none_or(|(_, known)| known.is_none() && of.is_some()) {
            self.foreign = Some((folder, of));
        }
    }

    fn add(&mut self, named: &NamedState<'_>) {
        let place = place_of(&self.bucket, &self.key, &named.path);
        let NamedState { start, len, merged, .. } = *named;
        let part = match &place {
            Place::Object { bucket, key } => self.hash.hash_one((bucket, key, start, len)),
            Place::Elsewhere(path) => self.hash.hash_one((path, start, len)),
        };
        if !self.parts.insert(part) {
            return;
        }
        match place {
            Place::Object { bucket, key } => {
                let needed = start.saturating_add(len);
                self.needs.state_bytes = self.needs.state_bytes.saturating_add(len);
                if self.objects.insert(self.hash.hash_one((&bucket, &key))) {
                    self.needs.objects += 1;
                    if matches!(named.path, NamedPath::Absolute(_)) {
                        self.is_of_another(&bucket, &key);
                    }
                }
                self.list(Some(&bucket), &key, start, len);
                self.batch.push(Wanted { bucket, key, needed, merged });
                if self.batch.len() >= BATCH {
                    self.look_up();
                }
            }
            Place::Elsewhere(path) => {
                self.list(None, &path, start, len);
                self.is_elsewhere(path);
            }
        }
    }

    fn list(&mut self, bucket: Option<&str>, key: &str, start: u64, len: u64) {
        if self.names == NameList::Listed && self.needs.named.len() < NAMED_MAX {
            let bucket = bucket.map(str::to_owned);
            self.needs.named.push(NamedObject { bucket, key: key.to_owned(), start, len });
        }
    }

    fn is_elsewhere(&mut self, path: String) {
        self.needs.elsewhere += 1;
        self.needs.elsewhere_first.get_or_insert(path);
    }

    fn look_up(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let lens = self.catalog.object_lens(batch.iter().map(|wanted| (&*wanted.bucket, &*wanted.key)));
        for (wanted, len) in batch.into_iter().zip(lens) {
            let len = len.or_else(|| {
                let key = decoded(&wanted.key)?;
                self.catalog.object_lens([(&*wanted.bucket, &*key)]).pop()?
            });
            if len.is_none() && !self.shard.is_whole() {
                self.unsettled.push(wanted);
                continue;
            }
            let has_bucket = len.is_some() || self.catalog.has_bucket(&wanted.bucket);
            self.settle(wanted, len, has_bucket);
        }
    }

    /// So many bytes of it are there, if it is.
    fn settle(&mut self, wanted: Wanted, len: Option<u64>, has_bucket: bool) {
        if len.is_some_and(|len| len >= wanted.needed) {
            return;
        }
        if !has_bucket {
            self.is_elsewhere(format!("s3://{}/{}", wanted.bucket, wanted.key));
            return;
        }
        if self.missing.insert(self.hash.hash_one((&wanted.bucket, &wanted.key))) {
            self.is_missing(wanted, len);
        }
    }

    fn is_missing(&mut self, wanted: Wanted, len: Option<u64>) {
        let Wanted { bucket, key, needed, merged } = wanted;
        self.needs.missing += 1;
        self.needs.missing_merged += u64::from(merged);
        if self.needs.missing_first.len() < MISSING_NAMED_MAX {
            self.needs.missing_first.push(MissingObject { bucket, key, needed, len, merged });
        }
    }
}
