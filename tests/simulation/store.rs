//! The object store of the simulation, in memory, as one process reaches it: slow, and not always what it should be.
//!
//! A request is on its way, takes effect at one moment, and its answer is on its way back. It may be refused, its answer may be lost, it
//! may be carried out twice, and one that nobody waits for any more, because its time was over or its process was killed, may still
//! arrive. 409 on a create comes out of the client as `AlreadyExists`, whether or not anything is there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

use crate::bug::Bug;
use crate::log_watch::LogWatch;
use crate::world::{Place, World};

/// The bytes that a daemon puts in the place of a file that never came.
const TOMBSTONE: &[u8] = b"esker: this file was never written\n";
/// Whoever is not answered gives up within this time.
const NEVER: Duration = Duration::from_secs(4);
/// For so long a write is not seen by those that see what was, or not done by those that do it later.
const BEHIND: Duration = Duration::from_millis(1500);

/// The last write of an object.
#[derive(Debug, Clone, Copy)]
struct Written {
    modified: DateTime<Utc>,
    at: Duration,
    by: u64,
}

/// What is stored.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    inner: InMemory,
    written: Mutex<BTreeMap<Path, Written>>,
    pub(crate) log: LogWatch,
}

impl Objects {
    pub(crate) fn keys(&self, prefix: &str) -> Vec<Path> {
        let prefix = Path::from(prefix);
        let listed = self.inner.list(Some(&prefix)).map_ok(|meta| meta.location).try_collect::<Vec<_>>();
        now(listed).unwrap()
    }

    pub(crate) fn bytes(&self, path: &Path) -> Option<bytes::Bytes> {
        let found = now(self.inner.get(path)).ok()?;
        now(found.bytes()).ok()
    }
}

/// Memory does not wait.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("what is in memory is there")
}

/// The store as one process reaches it.
pub(crate) struct ReachedStore {
    world: Arc<World>,
    objects: Arc<Objects>,
    place: Place,
    /// Which process, of all that ever were.
    process: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Create,
    Write,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    Refused,
    Conflict,
    AnswerLost,
    Twice,
    /// Whoever waits is not answered; it arrives later, or never.
    Swallowed,
}

/// A request under way. What changes something may arrive though nobody waits for it.
struct Sent<T: 'static> {
    effect: Option<Effect<T>>,
    world: Arc<World>,
    name: String,
}

type Effect<T> = Arc<dyn Fn() -> Result<T> + Send + Sync>;

impl<T> Drop for Sent<T> {
    fn drop(&mut self) {
        if let Some(effect) = self.effect.take()
            && !self.world.is_calm()
            && self.world.chance(600)
        {
            let after = self.world.millis(0..2500);
            self.world.send_late(after, self.name.clone(), Box::new(move || told(&effect())));
        }
    }
}

fn told<T>(answer: &Result<T>) -> String {
    match answer {
        Ok(_) => "ok",
        Err(Error::AlreadyExists { .. }) => "exists",
        Err(Error::NotFound { .. }) => "none",
        Err(Error::Precondition { .. }) => "other",
        Err(_) => "error",
    }
    .to_owned()
}

fn failed(what: &'static str) -> Error {
    Error::Generic { store: "simulation", source: what.into() }
}

impl fmt::Debug for ReachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ReachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated store of {}", self.process)
    }
}

impl ReachedStore {
    pub(crate) fn new(world: &Arc<World>, objects: &Arc<Objects>, place: Place, process: u64) -> Self {
        Self { world: Arc::clone(world), objects: Arc::clone(objects), place, process }
    }

    fn fate(&self, kind: Kind) -> Fate {
        let world = &self.world;
        if world.is_calm() {
            return Fate::Done;
        }
        if world.chance(world.refused_percent() * 10) {
            return Fate::Refused;
        }
        let odd = world.scenario.odd;
        if odd == 0 || !world.chance(odd * 4) {
            return Fate::Done;
        }
        match (world.draw(0..5), kind) {
            (0, Kind::Create) => Fate::Conflict,
            (1, Kind::Create | Kind::Write) => Fate::Twice,
            (2, Kind::Create | Kind::Write) => Fate::AnswerLost,
            (3, _) => Fate::Swallowed,
            _ => Fate::Refused,
        }
    }

    async fn call<T: 'static>(&self, kind: Kind, name: &str, path: &Path, effect: Effect<T>) -> Result<T> {
        let world = &self.world;
        let name = format!("{} {name} {path}", self.process);
        let range = match path.as_ref().contains("/data/") && kind != Kind::Read && !world.is_calm() {
            true => world.scenario.uploads.clone(),
            false => world.scenario.storage.clone(),
        };
        let (there, back) = (world.millis(range.clone()), world.millis(world.scenario.storage.clone()));
        let (fate, slowness) = (self.fate(kind), world.slowness());
        let changes = (kind != Kind::Read).then(|| Arc::clone(&effect));
        let mut sent = Sent { effect: changes, world: Arc::clone(world), name };
        tokio::time::sleep(there * slowness).await;
        while world.is_off_storage(self.place) {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        let answer = match fate {
            Fate::Swallowed => {
                tokio::time::sleep(NEVER).await;
                return Err(failed("no answer"));
            }
            Fate::Refused => Err(failed("503 Slow Down")),
            Fate::Conflict => {
                Err(Error::AlreadyExists { path: path.to_string(), source: "409 ConditionalRequestConflict".into() })
            }
            Fate::Done => effect(),
            Fate::Twice => effect().and_then(|_| effect()),
            Fate::AnswerLost => effect().and(Err(failed("the connection was reset"))),
        };
        sent.effect = None;
        world.tell(format_args!("{} {fate:?} -> {}", sent.name, told(&answer)));
        tokio::time::sleep(back * slowness).await;
        answer
    }

    fn put(&self, path: &Path, payload: PutPayload, opts: PutOptions) -> Effect<PutResult> {
        let (objects, world, path) = (Arc::clone(&self.objects), Arc::clone(&self.world), path.clone());
        let (process, bug) = (self.process, self.world.bug);
        let (is_map, is_log) = (path.as_ref().contains("/cluster/map/"), path.as_ref().contains("/wal/"));
        Arc::new(move || {
            let mut opts = opts.clone();
            if is_log && bug == Some(Bug::BlindLogWrite) {
                opts.mode = PutMode::Overwrite;
            }
            if payload.content_length() == TOMBSTONE.len() && bug == Some(Bug::HeadWithoutTombstone) {
                return Ok(PutResult { e_tag: None, version: None, extensions: Default::default() });
            }
            if is_map && bug == Some(Bug::OpenBeforeMap) && !world.is_calm() {
                let (objects, path, payload) = (Arc::clone(&objects), path.clone(), payload.clone());
                let name = format!("{process} put {path}");
                let land = move || told(&now(objects.inner.put_opts(&path, payload, opts)));
                world.send_late(BEHIND, name, Box::new(land));
                return Ok(PutResult { e_tag: None, version: None, extensions: Default::default() });
            }
            let len = payload.content_length() as u64;
            let put = now(objects.inner.put_opts(&path, payload.clone(), opts))?;
            objects
                .written
                .lock()
                .insert(path.clone(), Written { modified: stamp(world.now()), at: world.now(), by: process });
            if is_log && let Some(fault) = objects.log.wrote(&path, process, len) {
                world.break_with(fault);
            }
            Ok(put)
        })
    }

    /// The object as it was put.
    fn dated(objects: &Objects, mut meta: ObjectMeta) -> ObjectMeta {
        if let Some(written) = objects.written.lock().get(&meta.location) {
            meta.last_modified = written.modified;
        }
        meta
    }

    /// Whether this process does not see a write yet, or nobody does.
    fn is_unseen(world: &World, objects: &Objects, path: &Path, process: u64) -> bool {
        if !path.as_ref().contains("/cluster/map/") {
            return false;
        }
        let Some(Written { at, by, .. }) = objects.written.lock().get(path).copied() else { return false };
        let young = world.now() < at + BEHIND;
        young && by != process && world.has(Bug::ProofBeforeView)
    }
}

/// Storage's own clock, which is right.
fn stamp(now: Duration) -> DateTime<Utc> {
    let millis = 1_767_225_600_000 + i64::try_from(now.as_millis()).unwrap();
    DateTime::from_timestamp_millis(millis).unwrap()
}

#[async_trait]
impl ObjectStore for ReachedStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let kind = if opts.mode == PutMode::Create { Kind::Create } else { Kind::Write };
        let effect = self.put(path, payload, opts);
        self.call(kind, "put", path, effect).await
    }

    async fn put_multipart_opts(&self, path: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.objects.inner.put_multipart_opts(path, opts).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let (objects, world, at, process) =
            (Arc::clone(&self.objects), Arc::clone(&self.world), path.clone(), self.process);
        let name = if options.head { "head" } else { "get" };
        let effect: Effect<GetResult> = Arc::new(move || {
            if Self::is_unseen(&world, &objects, &at, process) {
                return Err(Error::NotFound { path: at.to_string(), source: "not yet".into() });
            }
            let mut found = now(objects.inner.get_opts(&at, options.clone()))?;
            found.meta = Self::dated(&objects, found.meta);
            Ok(found)
        });
        self.call(Kind::Read, name, path, effect).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.again();
        let deleted = paths.and_then(move |path| {
            let store = store.again();
            async move {
                let (objects, at) = (Arc::clone(&store.objects), path.clone());
                let effect: Effect<()> = Arc::new(move || match now(objects.inner.delete(&at)) {
                    Err(Error::NotFound { .. }) => Ok(()),
                    other => other,
                });
                store.call(Kind::Write, "delete", &path, effect).await.map(|()| path)
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix.cloned(), None)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix.cloned(), Some(offset.clone()))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (objects, at) = (Arc::clone(&self.objects), prefix.cloned());
        let path = prefix.cloned().unwrap_or_default();
        let effect: Effect<ListResult> = Arc::new(move || {
            let mut found = now(objects.inner.list_with_delimiter(at.as_ref()))?;
            found.objects = found.objects.into_iter().map(|meta| Self::dated(&objects, meta)).collect();
            Ok(found)
        });
        self.call(Kind::Read, "list", &path, effect).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.inner.copy_opts(from, to, options).await
    }
}

impl ReachedStore {
    fn again(&self) -> Self {
        Self::new(&self.world, &self.objects, self.place, self.process)
    }

    fn listed(&self, prefix: Option<Path>, offset: Option<Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let store = self.again();
        let path = prefix.clone().unwrap_or_default();
        let listing = async move {
            let (objects, world, process) = (Arc::clone(&store.objects), Arc::clone(&store.world), store.process);
            let effect: Effect<Vec<ObjectMeta>> = Arc::new(move || {
                let all = objects.inner.list(prefix.as_ref()).try_collect::<Vec<_>>();
                let all = now(all)?.into_iter().filter(|meta| offset.as_ref().is_none_or(|from| meta.location > *from));
                let seen = all.filter(|meta| !Self::is_unseen(&world, &objects, &meta.location, process));
                Ok(seen.map(|meta| Self::dated(&objects, meta)).collect())
            });
            let found = store.call(Kind::Read, "list", &path, effect).await?;
            Ok::<_, Error>(futures::stream::iter(found.into_iter().map(Ok)))
        };
        futures::stream::once(listing).try_flatten().boxed()
    }
}

#[async_trait]
impl MultipartStore for ReachedStore {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.objects.inner.create_multipart(path).await
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, part: usize, data: PutPayload) -> Result<PartId> {
        self.objects.inner.put_part(path, id, part, data).await
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        self.objects.inner.complete_multipart(path, id, parts).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.objects.inner.abort_multipart(path, id).await
    }
}
