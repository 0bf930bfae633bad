//! Writers at the S3 door: each has a few keys of its own, which it puts, overwrites, copies and deletes.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{ClientOptions, CopyOptions, Error, GetResult, ObjectStore, ObjectStoreExt, RetryConfig};
use rand::Rng;
use rand::rngs::StdRng;

use crate::plan::any_len;
use crate::support::pattern;
use crate::{Look, Round};

const KEYS: u64 = 12;
/// S3's smallest part that is not the last.
const PART_BYTES: usize = 5 << 20;

/// The bytes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Content {
    seed: u64,
    len: usize,
}

/// What is known of a key.
#[derive(Debug, Clone, Default)]
struct Slot {
    /// What was answered or seen last.
    is: Option<Content>,
    /// What was asked for since, without an answer.
    may_be: Vec<Option<Content>>,
    round: u32,
}

/// What a writer knows of its keys.
pub struct Keys {
    pub number: u64,
    slots: BTreeMap<String, Slot>,
    answered: u64,
    settled: u64,
}

impl Keys {
    pub fn new(number: u64) -> Self {
        Self { number, slots: BTreeMap::new(), answered: 0, settled: 0 }
    }

    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        vec![("S3 writes answered", self.answered), ("S3 writes in doubt and settled", self.settled)]
    }

    /// Two writers share a job, and so its files.
    fn folder(&self) -> String {
        format!("jobs/s3-{}", self.number % 2)
    }

    fn any_key(&self, rng: &mut StdRng) -> String {
        let (n, writer) = (rng.random_range(0..KEYS), self.number);
        let place = ["shared", "chk-1", "chk-2", "other"][(n % 4) as usize];
        format!("{}/{place}/w{writer}-{n}", self.folder())
    }

    /// Compares the keys in the daemon with what is known, and settles what is not.
    pub async fn check(&mut self, round: &Round, look: Look, mut rng: StdRng) {
        let store = client(round);
        for (key, slot) in &mut self.slots {
            let in_doubt = !slot.may_be.is_empty();
            if !in_doubt && !look.at(slot.round, round.number, &mut rng) {
                continue;
            }
            let found = get(&store, key).await.unwrap_or_else(|error| panic!("{key} cannot be read: {error}"));
            let matches = |content: &&Option<Content>| match (&found, content) {
                (Some(bytes), Some(content)) => *bytes == pattern(content.seed, content.len),
                (None, None) => true,
                _ => false,
            };
            let is = slot.may_be.iter().chain([&slot.is]).find(matches).copied();
            slot.is = is.unwrap_or_else(|| {
                panic!("{key} has {:?} bytes, which are none of {slot:?}", found.as_ref().map(Bytes::len))
            });
            self.settled += u64::from(in_doubt);
            slot.may_be.clear();
        }
        self.check_listing(&store).await;
    }

    async fn check_listing(&self, store: &AmazonS3) {
        let folder = Path::from(self.folder());
        let mine = format!("/w{}-", self.number);
        let listed: Vec<_> = store.list(Some(&folder)).try_collect().await.unwrap();
        let listed: BTreeMap<String, usize> = listed
            .into_iter()
            .filter(|meta| meta.location.as_ref().contains(&mine))
            .map(|meta| (meta.location.to_string(), meta.size as usize))
            .collect();
        let known: BTreeMap<String, usize> =
            self.slots.iter().filter_map(|(key, slot)| Some((key.clone(), slot.is?.len))).collect();
        assert_eq!(listed, known);
    }

    /// Writes until the daemon ends.
    pub async fn write(&mut self, round: &Round, mut rng: StdRng) {
        let store = client(round);
        loop {
            let done = match rng.random_range(0..100) {
                0..60 => self.put(&store, &mut rng, round).await,
                60..64 => self.put_parts(&store, &mut rng, round).await,
                64..76 => self.copy(&store, &mut rng, round).await,
                76..86 => self.delete(&store, &mut rng, round).await,
                86..90 => self.delete_many(&store, &mut rng, round).await,
                _ => self.read(&store, &mut rng).await,
            };
            match done {
                Ok(()) => self.answered += 1,
                Err(error) => return round.expect_end("an S3 request", &error),
            }
        }
    }

    fn begin(&mut self, key: &str, content: Option<Content>, round: &Round) {
        let slot = self.slots.entry(key.to_owned()).or_default();
        slot.may_be.push(content);
        slot.round = round.number;
    }

    fn end(&mut self, key: &str, content: Option<Content>) {
        let slot = self.slots.entry(key.to_owned()).or_default();
        slot.is = content;
        slot.may_be.clear();
    }

    async fn put(&mut self, store: &AmazonS3, rng: &mut StdRng, round: &Round) -> Result<(), Error> {
        let (key, content) = (self.any_key(rng), Content { seed: rng.random(), len: any_len(rng) });
        self.begin(&key, Some(content), round);
        let data = Bytes::from(pattern(content.seed, content.len));
        store.put(&Path::from(key.as_str()), data.into()).await?;
        self.end(&key, Some(content));
        Ok(())
    }

    async fn put_parts(&mut self, store: &AmazonS3, rng: &mut StdRng, round: &Round) -> Result<(), Error> {
        let key = self.any_key(rng);
        let content = Content { seed: rng.random(), len: PART_BYTES + rng.random_range(1..1 << 20) };
        let data = Bytes::from(pattern(content.seed, content.len));
        let mut upload = store.put_multipart(&Path::from(key.as_str())).await?;
        upload.put_part(data.slice(..PART_BYTES).into()).await?;
        upload.put_part(data.slice(PART_BYTES..).into()).await?;
        match rng.random_range(0..4) {
            0 => upload.abort().await,
            1 => Ok(()), // left behind
            _ => {
                self.begin(&key, Some(content), round);
                upload.complete().await?;
                self.end(&key, Some(content));
                Ok(())
            }
        }
    }

    async fn copy(&mut self, store: &AmazonS3, rng: &mut StdRng, round: &Round) -> Result<(), Error> {
        let (from, to) = (self.any_key(rng), self.any_key(rng));
        let source = self.slots.get(&from).filter(|slot| slot.may_be.is_empty()).and_then(|slot| slot.is);
        let Some(content) = source.filter(|_| from != to) else { return Ok(()) };
        self.begin(&to, Some(content), round);
        let (source, target) = (Path::from(from.as_str()), Path::from(to.as_str()));
        store.copy_opts(&source, &target, CopyOptions::default()).await?;
        self.end(&to, Some(content));
        Ok(())
    }

    async fn delete(&mut self, store: &AmazonS3, rng: &mut StdRng, round: &Round) -> Result<(), Error> {
        let key = self.any_key(rng);
        self.begin(&key, None, round);
        store.delete(&Path::from(key.as_str())).await?;
        self.end(&key, None);
        Ok(())
    }

    async fn delete_many(&mut self, store: &AmazonS3, rng: &mut StdRng, round: &Round) -> Result<(), Error> {
        let keys: BTreeSet<String> = (0..4).map(|_| self.any_key(rng)).collect();
        keys.iter().for_each(|key| self.begin(key, None, round));
        let paths: Vec<_> = keys.iter().map(|key| Ok(Path::from(key.as_str()))).collect();
        let deleted: Vec<Path> = store.delete_stream(futures::stream::iter(paths).boxed()).try_collect().await?;
        assert_eq!(deleted.len(), keys.len());
        keys.iter().for_each(|key| self.end(key, None));
        Ok(())
    }

    /// Reads one of the keys while others write.
    async fn read(&mut self, store: &AmazonS3, rng: &mut StdRng) -> Result<(), Error> {
        let key = self.any_key(rng);
        let Some(slot) = self.slots.get(&key).filter(|slot| slot.may_be.is_empty()) else { return Ok(()) };
        let found = get(store, &key).await?;
        let wanted = slot.is.map(|content| pattern(content.seed, content.len));
        assert!(found.as_deref() == wanted.as_deref(), "{key} is not what was stored");
        Ok(())
    }
}

/// Asks for the whole of some object and takes nothing of the answer, for as long as what is returned is held.
pub async fn ask_and_take_nothing(round: &Round) -> Option<GetResult> {
    let store = client(round);
    let largest = store.list(None).try_collect::<Vec<_>>().await.ok()?.into_iter().max_by_key(|meta| meta.size)?;
    store.get(&largest.location).await.ok()
}

fn client(round: &Round) -> AmazonS3 {
    // A repeat would hide whether the first try was answered.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    round.ready.s3_builder(ClientOptions::new()).with_retry(retry).build().unwrap()
}

async fn get(store: &AmazonS3, key: &str) -> Result<Option<Bytes>, Error> {
    match store.get(&Path::from(key)).await {
        Ok(found) => Ok(Some(found.bytes().await?)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
