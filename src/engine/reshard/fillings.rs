//! All new catalogs, and what goes into which.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use futures::future::join_all;

use super::copy::{FilePortion, copy};
use super::fill::{BATCH_RECORDS, Filling, RecordBatch};
use super::{RefillError, Source, Tools};
use crate::catalog::state::{DividedCounts, DividedRecord, Division};
use crate::model::{PhysicalFileId, crc32c};

/// Files that are copied at a time.
const COPIES_AT_ONCE: usize = 4;
/// Segments inside a catalog that are read at once.
const INLINE_AT_ONCE: usize = 32;

/// New catalogs that are being filled.
pub struct Fillings {
    all: Vec<Filling>,
    batches: Vec<RecordBatch>,
    /// The files that were written.
    files: BTreeSet<(u32, PhysicalFileId)>,
    /// What was brought to each of them.
    copied: Vec<DividedCounts>,
}

crate::runtime::opaque_debug!(Fillings);

impl Fillings {
    /// Those of all shards, in order, into which so many catalogs go.
    pub fn new(all: Vec<Filling>, sources: usize) -> Self {
        let all: Vec<Filling> = all.into_iter().map(|filling| filling.shared(sources > 1)).collect();
        let batches = all.iter().map(|_| RecordBatch::default()).collect();
        let copied = vec![DividedCounts::default(); all.len()];
        Self { all, batches, files: BTreeSet::new(), copied }
    }

    /// Brings all of one catalog to where it goes, but its buckets. Tells of bytes that were copied.
    ///
    /// # Errors
    /// [`RefillError`]; it can be begun anew.
    pub async fn take(
        &mut self,
        source: &Source,
        division: &Division<'_>,
        tools: &Tools,
        on: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RefillError> {
        self.take_files(source, division, tools, on).await?;
        self.take_inline(source, division, on).await?;
        let mut records = division.records();
        loop {
            // Some at a time: what is lent by the catalog is not held while storage works.
            let some: Vec<(u32, DividedRecord)> = records.by_ref().take(BATCH_RECORDS).collect();
            if some.is_empty() {
                return self.flush().await;
            }
            self.put(some).await?;
        }
    }

    async fn take_files(
        &mut self,
        source: &Source,
        division: &Division<'_>,
        tools: &Tools,
        on: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RefillError> {
        let portions = division.files().into_iter().flat_map(|file| {
            let len = division.len_of(&file);
            let parts = division.parts(&file);
            let shared = parts.len() > 1;
            parts.into_iter().map(move |(shard, segments)| match len {
                Some(len) => Ok(FilePortion { file: file.clone(), len, shard, segments, shared }),
                None => Err(RefillError::Open(file.clone())),
            })
        });
        let Self { all, batches, files, copied } = self;
        let fillings = &*all;
        let copies = portions.map(|portion| async move {
            let portion = portion?;
            let to = &fillings[portion.shard as usize];
            copy(division, &source.data, to, &portion, &tools.entropy).await
        });
        let mut copies = futures::stream::iter(copies).buffered(COPIES_AT_ONCE);
        while let Some(done) = copies.next().await {
            let Some(portion) = done? else { continue };
            let shard = portion.shard as usize;
            copied[shard].files += 1;
            copied[shard].segments += portion.segments;
            copied[shard].bytes += portion.bytes;
            files.insert((portion.shard, portion.file));
            batches[shard].add(&fillings[shard], portion.records).await?;
            on(portion.bytes);
        }
        Ok(())
    }

    async fn take_inline(
        &mut self,
        source: &Source,
        division: &Division<'_>,
        on: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RefillError> {
        let mut after = None;
        loop {
            let some = division.inline(after, INLINE_AT_ONCE);
            let Some((last, _)) = some.last() else { return Ok(()) };
            after = Some(*last);
            let reads = some.iter().map(|(id, _)| source.catalog.inline_data(*id));
            let read = futures::future::try_join_all(reads).await?;
            for ((id, shards), data) in some.into_iter().zip(read) {
                let data = data.filter(|data| division.crc_of(id) == Some(crc32c(data)));
                let Some(data) = data else {
                    return Err(RefillError::Damaged { segment: id, place: "the catalog".to_owned() });
                };
                for shard in shards {
                    let record = division.segment(id, shard, None).map(|record| (shard, record));
                    let counts = &mut self.copied[shard as usize];
                    counts.segments += 1;
                    counts.bytes += data.len() as u64;
                    self.put(record.into_iter().chain([(shard, Division::inline_data(id, data.clone()))])).await?;
                }
                on(data.len() as u64);
            }
        }
    }

    /// Brings records to the shards that they are for.
    ///
    /// # Errors
    /// [`RefillError`].
    pub async fn put(&mut self, records: impl IntoIterator<Item = (u32, DividedRecord)>) -> Result<(), RefillError> {
        let mut by_shard: BTreeMap<u32, Vec<DividedRecord>> = BTreeMap::new();
        for (shard, record) in records {
            by_shard.entry(shard).or_default().push(record);
        }
        for (shard, records) in by_shard {
            self.batches[shard as usize].add(&self.all[shard as usize], records).await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), RefillError> {
        for (batch, filling) in self.batches.iter_mut().zip(&self.all) {
            batch.flush(filling).await?;
        }
        Ok(())
    }

    /// Closes the catalogs as they are.
    pub async fn close(self) {
        join_all(self.all.into_iter().map(Filling::close)).await;
    }

    /// Makes all durable, and closes the catalogs. Returns what this run has copied to each.
    ///
    /// # Errors
    /// [`RefillError`]; it can be begun anew.
    pub async fn finish(mut self, tools: &Tools) -> Result<Vec<DividedCounts>, RefillError> {
        let mut finished = self.flush().await;
        for filling in self.all {
            match finished {
                Ok(()) => finished = filling.finish(&self.files, tools).await,
                Err(_) => filling.close().await,
            }
        }
        finished.map(|()| self.copied)
    }
}
